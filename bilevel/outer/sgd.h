#pragma once
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/outer/outer_optimizer.h"

namespace bilevel {

struct OuterSgdOptions {
  double lr = 0.1;
  double momentum = 0.0;      // `momentum` is this rule with 0.9
  double dampening = 0.0;     // the gradient enters the momentum by 1 − dampening, but wholly the first time
  double weight_decay = 0.0;  // added to the gradient: ½ weight_decay ‖x‖² more in F
  bool nesterov = false;      // looks ahead along the momentum; needs momentum, and no dampening
  std::vector<std::string> violations() const;
};
void read(Section& section, OuterSgdOptions& options);

/// Gradient descent with momentum, with the exact meaning of torch.optim.SGD. State: `outer.momentum_buffer` [dx].
class OuterSgd final : public OuterOptimizer {
 public:
  explicit OuterSgd(OuterSgdOptions options);
  std::string_view name() const override { return options_.momentum == 0 ? "sgd" : "momentum"; }
  at::Tensor step(State& state, const at::Tensor& x, const at::Tensor& gradient) const override;

 private:
  OuterSgdOptions options_;
};

}  // namespace bilevel
