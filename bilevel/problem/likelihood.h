#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "bilevel/problem/loss.h"

namespace bilevel {

/// The inner loss of a batch as a negative log-likelihood of the outputs z(y), with a ridge:
///
///     g(x, y) = Σ_i w_i ℓ(z_i(y), t_i) + ½ Σ_j λ_j y_j²,   ℓ(z, t) = −log p(t | z)
///
/// p is a categorical (softmax), a Bernoulli (logistic) or a normal distribution of variance one (squared); w ≥ 0 counts how
/// often a sample is seen.
struct Likelihood {
  Loss::Kind kind = Loss::Kind::kSoftmax;
  int64_t outputs = 1;  // C
  at::Tensor targets;   // t as Loss::targets gives them, [·, B]
  at::Tensor weights;   // w [B], the 1/B of a mean in it
  at::Tensor ridge;     // λ [dy]
};

/// Whose labels scores are taken of.
enum class Labels {
  kObserved,    // the data's: the empirical Fisher information, which is the Fisher information only where the model is right
  kSampled,     // drawn from the model, p(· | z): unbiased for the Fisher information whatever the data's labels are
  kEnumerated,  // each there is, weighted by its probability (normal: one standard deviation along each output): exact, C times
                // the work
};

/// How many labels `output_scores` takes of each sample.
int64_t labels_of_each(const Likelihood& likelihood, Labels labels);

/// √(w_i p) ∂z ℓ(z_i, t) for the labels t of each sample, [k, C, B]; p is 1 but for kEnumerated. z is [C, B]. Labels are drawn by
/// `seed` and the number of the sample (`samples`, int64 [B]) alone.
at::Tensor output_scores(const Likelihood& likelihood, const at::Tensor& z, Labels labels, uint64_t seed,
                         const at::Tensor& samples);

}  // namespace bilevel
