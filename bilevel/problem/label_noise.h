#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace bilevel {

enum class NoiseKind {
  kRandom,     // a wrong label is any of the other classes, all alike
  kLookAlike,  // a wrong label is the class that looks like the true one
};

/// Somebody who labels samples, and how often he is wrong.
struct Labeller {
  std::string name;
  double error_rate = 0;  // probability that a label of his is wrong
  NoiseKind kind = NoiseKind::kRandom;
};

/// 6 careful (2–10 % random), 7 careless (30–70 % random) and 7 confused labellers (60–90 % look-alike). Rates are drawn from
/// `seed`.
std::vector<Labeller> mixed_labellers(uint64_t seed);
/// 6 careful (2–10 % random) and 14 who move 80 % of their labels to the look-alike class.
std::vector<Labeller> swapping_labellers(uint64_t seed);

/// For each class the one it is taken for.
/// Fashion-MNIST: T-shirt ↔ shirt, trouser ↔ dress, pullover ↔ coat, sandal ↔ sneaker, bag → ankle boot → sneaker.
const std::vector<int64_t>& fashion_mnist_look_alikes();
/// Digits: 0 ↔ 6, 1 ↔ 7, 2 → 3 ↔ 8, 4 ↔ 9, 5 → 6.
const std::vector<int64_t>& digits_look_alikes();
/// k → k + 1 modulo `classes`, where no better map is known.
std::vector<int64_t> next_class(int64_t classes);

struct NoisyLabels {
  at::Tensor labels;               // int64 [n]
  at::Tensor wrong;                // bool [n]: the label is not the true one
  at::Tensor sources;              // int64 [n]: who labelled
  std::vector<double> error_rate;  // of each labeller, as it came out
  std::vector<std::string> source_names;
};

/// Gives each sample to one labeller, at random and equally many to each, and labels it as that labeller does. `truth` is
/// int64 [n] in 0 … classes − 1, `look_alikes` a map of all classes without fixed points. The same seed, the same labels.
NoisyLabels simulate_labels(const at::Tensor& truth, const std::vector<Labeller>& labellers,
                            const std::vector<int64_t>& look_alikes, uint64_t seed);

}  // namespace bilevel
