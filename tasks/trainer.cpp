#include "tasks/trainer.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/oracle/choice.h"
#include "bilevel/oracle/counted.h"
#include "tasks/gram.h"

namespace bilevel {
namespace {

/// Supervised learning whose step size falls linearly to zero.
class Annealed final : public SupervisedProblem {
 public:
  Annealed(SupervisedOptions options, SupervisedData data, double lr, int64_t steps, std::function<void()> poll)
      : SupervisedProblem(std::move(options), std::move(data)), lr_(lr), steps_(steps), poll_(std::move(poll)) {}
  bool has_rule_hyperparameters() const override { return true; }
  RuleHyperparameters rule_hyperparameters(const at::Tensor& x, int64_t t) const override {
    if (poll_) poll_();
    return {{"lr", at::scalar_tensor(lr_ * static_cast<double>(steps_ - t) / static_cast<double>(steps_), x.options())}};
  }

 private:
  double lr_;
  int64_t steps_;
  std::function<void()> poll_;
};

}  // namespace

Trainer::Trainer(TrainerOptions options, Samples data) : options_(std::move(options)), data_(std::move(data)) {
  model_ = make_model(options_.model, data_.features.sizes().slice(1).vec(), options_.outputs);
  if (convex()) gram_ = std::make_shared<Gram>(data_.features, options_.model.bias);
}

Trainer::Fit Trainer::fit(const at::Tensor& weights, double ridge, const at::Tensor& start, double tolerance) const {
  const at::Tensor kept = weights.gt(0).nonzero().squeeze(1);
  const int64_t n = data_.labels.size(0), m = kept.size(0);
  require(weights.dim() == 1 && weights.size(0) == n,
          fmt::format("Trainer::fit: expected {} weights, got shape [{}].", n, fmt::join(weights.sizes(), ", ")));
  require(m > 0, "Trainer::fit: every sample has weight zero.");
  // Gathering the rows costs as much as two gradients, and a solve takes a dozen. The batches of a network are drawn from the
  // rows that are kept, so there these must be the only ones.
  const bool gather = convex() ? m < n * 9 / 10 : m < n;
  const auto rows = [&](const at::Tensor& t) { return gather ? t.index_select(0, kept) : t; };

  SupervisedOptions options;
  options.model = options_.model;
  options.loss = options_.loss;
  options.outputs = options_.outputs;
  options.dtype = data_.features.scalar_type();
  options.l2 = ridge;
  options.seed = static_cast<int64_t>(options_.seed);
  SupervisedData data;
  data.inner = {rows(data_.features), rows(data_.labels)};
  data.outer = {data.inner.features.narrow(0, 0, 1), data.inner.labels.narrow(0, 0, 1)};  // nothing is asked of it
  data.sample_weights = rows(weights);
  data.sample_weights = data.sample_weights / data.sample_weights.mean();
  // A Gram matrix of its own costs less than a poor one where few rows are left.
  data.gram = 4 * m < n ? nullptr : gram_;
  const at::Tensor x = at::empty({0}, data.inner.features.options());

  const auto solve = [&](const Problem& problem, const InnerSolver& solver) -> Fit {
    const auto uncounted = make_oracle(problem);
    const CountedOracle oracle(*uncounted);
    const at::Tensor y0 = start.defined() ? start : problem.initial_inner(x, 0);
    const InnerSolution solution = solver.solve(oracle, x, 0, {y0, {}, 0, 0}, {});
    cost_ += oracle.cost();
    return {solution.y, solution.stationarity};
  };
  if (convex()) {
    LbfgsOptions lbfgs;
    lbfgs.tolerance = tolerance;
    return solve(SupervisedProblem(std::move(options), std::move(data)), Lbfgs(lbfgs));
  }
  RuleSolverOptions rule;
  rule.batch = std::min(options_.batch, m);
  rule.steps = std::max(options_.updates, options_.epochs * (n / options_.batch));
  rule.lr = options_.lr;
  const BatchPlan plan = BatchPlan::shuffled(m, rule.batch, Stream(options_.seed, "batches of a fit"));
  const Annealed problem(std::move(options), std::move(data), options_.lr, rule.steps, options_.poll);
  return solve(problem, RuleSolver(std::make_unique<AdamRule>(AdamRuleOptions{}), rule, plan));
}

at::Tensor Trainer::logits(const at::Tensor& y, const at::Tensor& features) const {
  const at::NoGradGuard no_grad;
  constexpr int64_t kPiece = 2000;
  std::vector<at::Tensor> pieces;
  for (int64_t i = 0; i < features.size(0); i += kPiece) {
    pieces.push_back(model_->outputs(y, features.narrow(0, i, std::min(kPiece, features.size(0) - i))));
  }
  return at::cat(pieces, 1);
}

}  // namespace bilevel
