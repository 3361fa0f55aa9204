#pragma once
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/outer/outer_optimizer.h"

namespace bilevel {

struct OuterAdamOptions {
  double lr = 0.1;                           // about the change of each x in a step, whatever the gradient's scale
  std::vector<double> betas = {0.9, 0.999};  // memory of the gradient and of its square
  double eps = 1e-8;                         // added to the root of the square
  double weight_decay = 0.0;                 // added to the gradient: ½ weight_decay ‖x‖² more in F
  bool amsgrad = false;                      // divides by the largest square so far (Reddi, Kale & Kumar 2018)
  bool shared = false;  // one second moment for all of x, the mean of the squares: steps keep the gradient's proportions
  std::vector<std::string> violations() const;
};
void read(Section& section, OuterAdamOptions& options);

/// Adam (Kingma & Ba 2015, Algorithm 1), with the exact meaning of torch.optim.Adam. State: `outer.exp_avg`, `outer.exp_avg_sq`,
/// `outer.max_exp_avg_sq` with amsgrad, [dx] each, and the integer `outer.step`.
class OuterAdam final : public OuterOptimizer {
 public:
  explicit OuterAdam(OuterAdamOptions options);
  std::string_view name() const override { return "adam"; }
  at::Tensor step(State& state, const at::Tensor& x, const at::Tensor& gradient) const override;

 private:
  OuterAdamOptions options_;
};

}  // namespace bilevel
