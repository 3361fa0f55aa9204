#include "bilevel/outer/registry.h"

#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/outer/adam.h"
#include "bilevel/outer/bfgs.h"
#include "bilevel/outer/exponentiated_gradient.h"
#include "bilevel/outer/sgd.h"
#include "bilevel/outer/sign.h"
#include "bilevel/outer/smoothed.h"

namespace bilevel {
namespace {

template <class Optimizer, class Options>
OuterOptimizerRow row(std::string name, std::string description, Options defaults) {
  return {std::move(name), std::move(description), [defaults](Section& section) -> std::unique_ptr<OuterOptimizer> {
            Options options = defaults;
            read(section, options);
            return std::make_unique<Optimizer>(options);
          }};
}

}  // namespace

const std::vector<OuterOptimizerRow>& outer_optimizers() {
  static const std::vector<OuterOptimizerRow> rows = {
      row<OuterSgd>("sgd", "gradient descent; momentum, dampening, nesterov and weight_decay as in PyTorch", OuterSgdOptions{}),
      row<OuterSgd>("momentum", "sgd with momentum 0.9 unless given", OuterSgdOptions{.momentum = 0.9}),
      row<OuterAdam>("adam", "Adam, with amsgrad and weight_decay as in PyTorch", OuterAdamOptions{}),
      row<OuterSign>("sign", "along the signs of the hypergradient, with steps that shrink where a sign flips",
                     OuterSignOptions{}),
      row<OuterBfgs>("bfgs", "L-BFGS with steps of length one at most max_step: for a few x and little noise",
                     OuterBfgsOptions{}),
      row<ExponentiatedGradient>("exponentiated-gradient", "mirror descent on the simplex with the entropy, for mixtures",
                                 ExponentiatedGradientOptions{}),
  };
  return rows;
}

std::unique_ptr<OuterOptimizer> make_outer_optimizer(const std::string& name, Section& options) {
  std::vector<std::string> known;
  for (const auto& optimizer : outer_optimizers()) {
    known.push_back(optimizer.name);
    if (optimizer.name != name) continue;
    auto made = optimizer.make(options);
    int64_t window = 1;
    options.read("smoothing", window);
    if (window < 1) options.fail("smoothing", fmt::format("a mean of {} hypergradients; at least 1 would be right.", window));
    double decay = 1;
    if (window > 1) options.read("smoothing_decay", decay);
    if (!(decay > 0 && decay <= 1)) {
      options.fail("smoothing_decay",
                   fmt::format("{} is no factor; more than 0 and at most 1 (equal weights) would be right.", decay));
    }
    if (window > 1) made = std::make_unique<Smoothed>(std::move(made), window, decay);
    return made;
  }
  options.fail("rule", fmt::format("\"{}\" is no outer optimiser.{}", name, suggestion(name, known)));
}

}  // namespace bilevel
