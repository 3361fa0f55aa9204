#include "tasks/trust_learning.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/linear/cg.h"
#include "bilevel/oracle/choice.h"
#include "tasks/grouped_implicit.h"
#include "tasks/trainer.h"

namespace bilevel {
namespace {

constexpr double kStationarity = 1e-3;  // of a linear model
constexpr int64_t kProductRows = 2000;  // of a network; a product with all rows costs as much as a step of all rows
constexpr double kResidual = 3e-2;      // of a direction for x; its last digits are lost in the sampling noise of the trusted set
constexpr int64_t kMostSampleSteps = 6;  // weights of single samples learn a small trusted set by heart

SupervisedOptions supervised_options(const TrustData& data, const ReweightOptions& options) {
  SupervisedOptions supervised;
  supervised.model = options.model;
  supervised.outputs = data.classes;
  supervised.dtype = data.noisy.features.scalar_type();
  supervised.seed = static_cast<int64_t>(options.seed);
  supervised.l2 = options.model.kind == "linear" ? options.ridge : kNetworkRidge;
  Hyperparameter weight;
  weight.kind = options.by == "sample" ? Hyperparameter::Kind::kSampleWeight : Hyperparameter::Kind::kSourceWeight;
  supervised.hyperparameters = {weight};
  return supervised;
}

SupervisedData supervised_data(const TrustData& data) {
  SupervisedData supervised;
  supervised.inner = data.noisy;
  supervised.outer = data.trusted;
  supervised.sources = data.sources;
  supervised.source_count = data.source_count;
  supervised.gram = data.gram;
  return supervised;
}

}  // namespace

at::Tensor model_features(const Dataset& data, const Dataset& like, const ReweightOptions& options) {
  if (options.model.kind != "cnn") return data.features;
  require(like.images(), "reweight: a cnn needs images, and these data are none. Use --model linear or mlp.");
  return data.features.view({data.size(), 1, like.height, like.width});
}

TrustData trust_data(const ReweightData& data, const ReweightOptions& options) {
  TrustData trust;
  trust.noisy = {model_features(data.noisy, data.noisy, options), data.noisy.labels};
  trust.trusted = {model_features(data.trusted, data.noisy, options), data.trusted.labels};
  trust.sources = data.noisy.sources.defined() ? data.noisy.sources : at::zeros({data.noisy.size()}, at::kLong);
  trust.source_count = std::max<int64_t>(1, static_cast<int64_t>(data.noisy.source_names.size()));
  trust.classes = std::max(data.noisy.classes(), data.trusted.classes());
  return trust;
}

TrustData in_double(TrustData data) {
  for (Samples* samples : {&data.noisy, &data.trusted}) samples->features = samples->features.to(at::kDouble);
  data.gram = nullptr;
  return data;
}

std::vector<at::Tensor> trusted_groups(const at::Tensor& labels, const ReweightOptions& options) {
  const int64_t m = labels.size(0);
  const int64_t count = std::clamp<int64_t>(m / 4, 1, options.groups);
  const at::Tensor shuffled = Stream(options.seed, "groups of the trusted").at(0).permutation(m);
  const at::Tensor order =
      shuffled.index_select(0, std::get<1>(labels.index_select(0, shuffled).sort(/*stable=*/true, 0, false)));
  const at::Tensor group_of = at::empty({m}, at::kLong).index_copy_(0, order, at::arange(m).remainder(count));
  std::vector<at::Tensor> groups;
  for (int64_t g = 0; g < count; ++g) groups.push_back((group_of == g).nonzero().squeeze(1));
  return groups;
}

int64_t trust_steps(const ReweightOptions& options) {
  return options.by == "sample" ? std::min(options.steps, kMostSampleSteps) : options.steps;
}

OuterAdamOptions trust_outer_options(const ReweightOptions& options) {
  OuterAdamOptions adam;
  adam.lr = options.lr;
  adam.shared = true;
  return adam;
}

TrustLearning::TrustLearning(const TrustData& data, const ReweightOptions& options)
    : options_(options),
      problem_(supervised_options(data, options), supervised_data(data)),
      uncounted_(make_oracle(problem_)),
      oracle_(*uncounted_) {
  const int64_t n = problem_.inner_samples();
  const BatchPlan rows = convex() || n <= kProductRows
                             ? BatchPlan::full()
                             : BatchPlan::shuffled(n, kProductRows, Stream(options.seed, "rows of the products"));
  const std::vector<at::Tensor> groups = options.by == "sample" ? std::vector<at::Tensor>{at::arange(problem_.outer_samples())}
                                                                : trusted_groups(data.trusted.labels, options);
  LbfgsOptions lbfgs;
  lbfgs.tolerance = kStationarity;
  DoubleLoopOptions loop;
  loop.carry_rule_state = !convex();
  algorithm_ = std::make_unique<DoubleLoop>(oracle_, convex() ? std::make_shared<const Lbfgs>(lbfgs) : network_solver(1),
                                            std::make_shared<GroupedImplicit>(implicit(), groups, rows, found_),
                                            std::make_shared<OuterAdam>(trust_outer_options(options)), loop);
}

std::unique_ptr<Implicit> TrustLearning::implicit() const {
  CgOptions cg;
  cg.iterations = options_.iterations;
  cg.tolerance = kResidual;
  cg.damping = convex() ? 0.0 : options_.damping;
  ImplicitOptions implicit;
  implicit.gauss_newton = !convex();
  implicit.precondition = convex();
  implicit.residual_warning = 0.5;
  implicit.stationarity_warning = 1;
  return std::make_unique<Implicit>(std::make_unique<Cg>(cg), implicit);
}

EstimatorSettings TrustLearning::estimator() const {
  EstimatorSettings settings = {{"estimator", "\"implicit\""},
                                {"solver", "\"cg\""},
                                {"iterations", std::to_string(options_.iterations)},
                                {"tolerance", fmt::format("{}", kResidual)}};
  if (convex()) {
    settings.emplace_back("precondition", "\"problem\"");
  } else {
    settings.emplace_back("curvature", "\"gauss-newton\"");
    settings.emplace_back("damping", fmt::format("{}", options_.damping));
  }
  return settings;
}

std::shared_ptr<const InnerSolver> TrustLearning::network_solver(int64_t epochs) const {
  const int64_t n = problem_.inner_samples();
  RuleSolverOptions rule;
  rule.lr = TrainerOptions{}.lr;
  rule.batch = std::min(TrainerOptions{}.batch, n);
  rule.steps = epochs * std::max<int64_t>(20, n / rule.batch);
  rule.carry_state = true;
  return std::make_shared<RuleSolver>(std::make_unique<AdamRule>(AdamRuleOptions{}), rule,
                                      BatchPlan::shuffled(n, rule.batch, Stream(options_.seed, "batches")));
}

State TrustLearning::start() const {
  State state = algorithm_->init();
  if (convex()) return state;
  const InnerSolution ahead = network_solver(2)->solve(oracle_, state.tensor("x"), 0, {state.tensor("y"), {}, 0, 0}, {});
  state.set("y", ahead.y);
  return state;
}

}  // namespace bilevel
