#pragma once
#include <ATen/core/Tensor.h>

#include "tasks/label_posterior.h"

namespace bilevel {

/// How well two doubts tell wrong labels from right ones: areas under ROC curves, 1 perfect, ½ chance.
struct PlantedErrors {
  double self_confidence = 0;  // 1 − probability of the label by a model of all the given labels
  double posterior = 0;        // 1 − probability that the label is right, by the label posterior
};

/// Judges doubts on samples whose true class is known, by planting errors there: sample i of class c gets every label y, from
/// every source s, with the weight share_s · T_s[c, y] with which that source would give it.
///
/// `share` [S] are the sources' shares of all samples and `confusion` is T [S, C, C] (label_posterior.h); `truth` is int64 [m].
/// Class probabilities [C, m] are by models that have not seen these samples: `self` by one of all the given labels,
/// `probabilities` by the one that the posterior began from. The errors are the posterior's own idea of them, so its figure is
/// the flattered one.
PlantedErrors planted_errors(const at::Tensor& confusion, const at::Tensor& share, const at::Tensor& truth,
                             const at::Tensor& self, const at::Tensor& probabilities);

/// The area under the ROC curve of `score` for the samples where `positive` (bool) holds; ties count half. `weight` not negative;
/// undefined: all alike.
double area_under_curve(const at::Tensor& score, const at::Tensor& positive, const at::Tensor& weight = {});

}  // namespace bilevel
