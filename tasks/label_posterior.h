#pragma once
#include <ATen/core/Tensor.h>

namespace bilevel {

/// What a classifier and the habits of each source say together about the true labels.
struct LabelPosterior {
  at::Tensor classes;    // [C, n]: probability of each true class of a sample, given its label and its source
  at::Tensor correct;    // [n]: probability that the given label is the true one
  at::Tensor confusion;  // [S, C, C]: P(given label | true class) of each source
};

/// Expectation–maximisation for one confusion matrix per source (Dawid & Skene 1979), with the classifier as the prior of each
/// sample's class:
///
///   Q_i[c] ∝ P_i[c] · T_s(i)[c, y_i],   T_s[c, y] ∝ prior + Σ over i of source s with label y of Q_i[c]
///
/// `probabilities` P is [C, n], out of fold: a classifier that has seen the label of sample i would only repeat it. `labels` and
/// `sources` are int64 [n]. `prior` is the pseudo-count of each entry of T.
LabelPosterior label_posterior(const at::Tensor& probabilities, const at::Tensor& labels, const at::Tensor& sources,
                               int64_t source_count, int64_t iterations = 3, double prior = 0.5);

}  // namespace bilevel
