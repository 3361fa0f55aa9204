// Numbers: hypertorch (prolearner/hypertorch, examples/logistic_regression.ipynb), higher (facebookresearch/higher), betty
// (leopard-ai/betty), each run unmodified in float64; scikit-learn and numpy for the data; closed forms for the gold tests. A
// number printed to n decimals is compared to within one unit of the last.
#include "tasks/selftest.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/core/vectors.h"
#include "bilevel/hypergrad/darts.h"
#include "bilevel/hypergrad/forward.h"
#include "bilevel/hypergrad/identity.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/one_step.h"
#include "bilevel/hypergrad/t1_t2.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/linear/neumann.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/adam.h"
#include "bilevel/outer/sgd.h"
#include "tasks/diabetes.h"
#include "tasks/planted_errors.h"
#include "tasks/random_state.h"
#include "tasks/selftest_problems.h"

namespace bilevel {
namespace {

// Collects deviations; the worst, relative to what it is allowed, is what gets told.
class Comparison {
 public:
  void near(const std::string& what, double measured, double published, double allowed) {
    const double deviation = std::abs(measured - published);
    take(deviation, allowed, [&] {
      return fmt::format("{} = {:.12g}, and should be {:.12g}: {:.0e} off, {:.0e} allowed", what, measured, published, deviation,
                         allowed);
    });
  }

  /// The first entries of a vector.
  void near(const std::string& what, const at::Tensor& measured, const std::vector<double>& published, double allowed) {
    for (size_t i = 0; i < published.size(); ++i) {
      near(fmt::format("{} [{}]", what, i), measured[static_cast<int64_t>(i)].item<double>(), published[i], allowed);
    }
  }

  /// ‖a − b‖ / ‖b‖
  void close(const std::string& what, const at::Tensor& measured, const at::Tensor& exact, double allowed) {
    const double error = ((measured - exact).norm() / exact.norm()).item<double>();
    take(error, allowed, [&] { return fmt::format("{}: relative error {:.0e}, {:.0e} allowed", what, error, allowed); });
  }

  /// A number that must not come near zero: what shows that a check can fail.
  void apart(const std::string& what, const at::Tensor& measured, const at::Tensor& other, double at_least) {
    const double distance = ((measured - other).norm() / other.norm()).item<double>();
    take(distance >= at_least ? 0.0 : std::numeric_limits<double>::infinity(), 1.0,
         [&] { return fmt::format("{}: relative distance {:.0e}, at least {:.0e} expected", what, distance, at_least); });
  }

  CheckResult result() const {
    if (count_ > 0 && worst_ == 0) return {true, fmt::format("{} numbers, all exact", count_)};
    return {count_ > 0 && worst_ <= 1.0, fmt::format("{} numbers; the worst: {}", count_, detail_)};
  }

 private:
  template <class Text>
  void take(double deviation, double allowed, const Text& text) {
    const double quotient = deviation == 0 ? 0 : deviation / allowed;
    const double ratio = std::isfinite(quotient) ? quotient : std::numeric_limits<double>::infinity();
    ++count_;
    if (ratio <= worst_ && count_ > 1) return;
    worst_ = ratio;
    detail_ = text();
  }

  int count_ = 0;
  double worst_ = 0;
  std::string detail_ = "nothing was compared";
};

RuleSolver sgd(double lr, int64_t steps, double momentum = 0.0, double weight_decay = 0.0) {
  SgdRuleOptions rule;
  rule.momentum = momentum;
  rule.weight_decay = weight_decay;
  RuleSolverOptions options;
  options.lr = lr;
  options.steps = steps;
  return {std::make_unique<SgdRule>(rule), options};
}

RuleSolver adam(double lr, int64_t steps, bool decoupled = false) {
  RuleSolverOptions options;
  options.lr = lr;
  options.steps = steps;
  return {std::make_unique<AdamRule>(decoupled ? AdamRuleOptions::adamw() : AdamRuleOptions{}), options};
}

Implicit implicit_cg(int64_t iterations) {
  return Implicit(std::make_unique<Cg>(CgOptions{.iterations = iterations, .tolerance = 1e-14}));
}
Implicit implicit_dense() { return Implicit(std::make_unique<Dense>(DenseOptions{})); }
Implicit implicit_neumann(int64_t products, double scale) {
  return Implicit(std::make_unique<Neumann>(NeumannOptions{.iterations = products, .scale = scale}));
}

struct Estimated {
  Hypergradient h;
  InnerSolution solution;
};

// Solves from y₀(x), or from `y` where given, and estimates.
Estimated estimate(const Problem& problem, const InnerSolver& solver, const Estimator& estimator, const at::Tensor& x,
                   int64_t slice = 0, const at::Tensor& y = {}) {
  const AutodiffOracle oracle(problem);
  InnerStart start;
  start.y = y.defined() ? y : problem.initial_inner(x, slice).detach();
  InnerSolution solution = solver.solve(oracle, x, slice, start, estimator.trajectory());
  Batch batch;
  batch.slice = slice;
  EstimatorInput input{oracle, solver, x, solution, batch, batch, {}};
  input.cold_start = !y.defined();
  input.start = start;
  Hypergradient h = estimator.estimate(input);
  return {std::move(h), std::move(solution)};
}

DoubleLoopOptions cold_start() {
  DoubleLoopOptions options;
  options.start = Start::kCold;
  return options;
}

// ---- E0: random numbers ----

CheckResult random_numbers() {
  Comparison compare;
  compare.near("uniform", RandomState(0).uniform(), 0.5488135039273248, 1e-16);
  compare.near("permutation", RandomState(0).permutation(10).to(at::kDouble), {2, 8, 4, 9, 1, 6, 7, 3, 0, 5}, 0.5);
  compare.near("normals", RandomState(0).normals({3}), {1.76405235, 0.40015721, 0.97873798}, 1e-8);
  const RegressionData data = make_regression(5, 2, 1.0, 42);
  compare.near("make_regression X", data.X.reshape({-1}),
               {0.4967, -0.1383, 0.6477, 1.5230, -0.2342, -0.2341, -0.4695, 0.5426, 1.5792, 0.7674}, 1e-4);
  compare.near("make_regression y", data.t, {6.7376, 37.7964, -10.2766, 0.4017, 42.2268}, 1e-4);
  at::Generator generator = at::detail::createCPUGenerator(42);
  compare.near("torch randn(10)", at::randn({10}, generator, at::kFloat)[0].item<double>(), 0.33669037, 1e-8);
  compare.near("torch randn(4096, 10)",
               at::randn({4096, 10}, at::detail::createCPUGenerator(42), at::kFloat)[0][0].item<double>(), 1.92691529, 1e-8);
  const NotebookProblem notebook;
  compare.near("notebook weights", notebook.oracle, {1.62434536, -0.61175641, -0.52817175}, 1e-8);
  compare.near("notebook rows", notebook.X[0], {-1.10061918, 1.14472371, 0.90159072}, 1e-8);
  compare.near("notebook permutation", notebook.permutation.to(at::kDouble), {648, 134, 667, 844, 149}, 0.5);
  compare.near("notebook ones", notebook.targets.sum().item<double>(), 518, 0.5);
  return compare.result();
}

// ---- E1: hypertorch's notebook ----

const std::vector<double> kNotebookSolution = {0.113319891,  -0.037959359, -0.050139363, -0.053470797, 0.092252960,
                                               -0.124832331, 0.084145460,  -0.062186376, 0.017499417,  -0.003070050,
                                               0.123277519,  -0.122593349, -0.024563468, -0.033001214, 0.076236959,
                                               -0.072138145, 0.019156445,  -0.093305457, -0.007669390, 0.030859039};

CheckResult notebook_training() {
  Comparison compare;
  const NotebookProblem problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer();
  const std::vector<double> losses = {.6931471806, .6285591138, .6243904373, .6241105933, .6240913788,
                                      .6240900366, .6240899413, .6240899345, .6240899340, .6240899339};
  for (size_t i = 0; i < losses.size(); ++i) {
    const int64_t steps = 10 * static_cast<int64_t>(i);
    compare.near(fmt::format("inner loss after {} steps", steps),
                 sgd(0.1, steps).solve(oracle, x, 0, {.y = problem.initial_inner(x, 0)}, {}).loss, losses[i], 1e-10);
  }
  const InnerSolution end = sgd(0.1, 100).solve(oracle, x, 0, {.y = problem.initial_inner(x, 0)}, {});
  compare.near("inner loss after 100 steps", end.loss, 0.6240899339, 1e-10);
  compare.near("outer loss after 100 steps", oracle.outer_value(x, end.y, {}).item<double>(), 0.5743989630, 1e-10);
  const InnerSolution best = sgd(0.1, 600).solve(oracle, x, 0, {.y = problem.initial_inner(x, 0)}, {});
  compare.near("least inner loss", best.loss, 0.624089933938, 1e-12);
  compare.near("outer loss at the optimum", oracle.outer_value(x, best.y, {}).item<double>(), 0.574398771871, 1e-12);
  compare.near("distance to the optimum", norm_of(end.y - best.y), 6.238e-7, 1e-10);
  compare.near("optimum", best.y, kNotebookSolution, 1e-9);
  return compare.result();
}

CheckResult notebook_hypergradients() {
  Comparison compare;
  const NotebookProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = sgd(0.1, 100), converged = sgd(0.1, 600);
  const auto row = [&](const std::string& what, const Estimator& estimator, const std::vector<double>& published) {
    compare.near(what, estimate(problem, solver, estimator, x).h.value, published, 1e-9);
  };
  const at::Tensor exact = estimate(problem, converged, implicit_dense(), x).h.value;
  compare.near("exact", exact, {0.008659409, 0.001510141, 0.000790472,  0.003071215, 0.005326422, 0.016854399, 0.009327898,
                                0.002599377, 0.000169621, 0.000008565,  0.008584953, 0.014037093, 0.000503459, -0.000090353,
                                0.004758864, 0.004280085, -0.000279238, 0.003173979, 0.000046600, 0.000568848},
               1e-9);
  row("unrolled", Unrolled(), {0.008659258, 0.001510068, 0.000790458,  0.003071124, 0.005326387, 0.016853797, 0.009327507,
                               0.002599284, 0.000169619, 0.000008560,  0.008584764, 0.014036736, 0.000503456, -0.000090347,
                               0.004758614, 0.004279986, -0.000279255, 0.003174013, 0.000046601, 0.000568822});
  row("unrolled, last 10", Unrolled({.steps = 10}),
      {0.006463654, 0.001089672, 0.000597967,  0.002240709, 0.004055269, 0.012259269, 0.006723803,
       0.001885730, 0.000132359, 0.000003906,  0.006380325, 0.010323840, 0.000379747, -0.000055238,
       0.003366286, 0.003165118, -0.000162290, 0.002539614, 0.000036047, 0.000401987});
  row("fixed point, 10 terms", implicit_neumann(9, 0.1), {0.006463661, 0.001089675, 0.000597968, 0.002240713, 0.004055272});
  row("cg, 1", implicit_cg(1), {0.008948293, 0.001463039, 0.000843330,  0.003033078, 0.005706814, 0.016586459, 0.009007554,
                                0.002551659, 0.000191581, 0.000001835,  0.008810251, 0.014102129, 0.000529320, -0.000062156,
                                0.004423096, 0.004342774, -0.000164843, 0.003726344, 0.000051004, 0.000527705});
  row("cg, 2", implicit_cg(2), {0.008666339, 0.001507881, 0.000782652, 0.003078645, 0.005343971});
  row("cg, 5", implicit_cg(5), {0.008659400, 0.001510136, 0.000790473, 0.003071210, 0.005326421});
  row("cg, 20", implicit_cg(20), {0.008659401, 0.001510136, 0.000790472, 0.003071210, 0.005326420});
  row("dense", implicit_dense(), {0.008659401, 0.001510136, 0.000790472, 0.003071210, 0.005326420});
  row("neumann, 99 products", implicit_neumann(99, 0.1), {0.008659392, 0.001510131, 0.000790470, 0.003071204, 0.005326422});
  row("neumann, 100 products", implicit_neumann(100, 0.1), {0.008659393, 0.001510132, 0.000790471, 0.003071204, 0.005326422});
  // betty's darts has the inverse Hessian as the identity; ours as the step size 0.1 times it. The direct term is zero here.
  const std::vector<double> identity = {0.011103877, 0.001815475, 0.001046482};
  compare.near("identity", 10.0 * estimate(problem, solver, Identity(), x).h.value, identity, 1e-9);
  row("neumann, scale 1, 1 product", implicit_neumann(1, 1.0), {0.007966746, 0.001442623, 0.000698296});
  const auto error = [&](const Estimator& estimator) {
    return norm_of(estimate(problem, solver, estimator, x).h.value - exact) / norm_of(exact);
  };
  compare.near("error of neumann, 1 product", error(implicit_neumann(1, 0.1)), 0.7673, 1e-4);
  compare.near("error of neumann, 10 products", error(implicit_neumann(10, 0.1)), 0.2338, 1e-4);
  return compare.result();
}

// The outer loop's loss before each update in `steps`.
struct Trace {
  std::vector<int64_t> steps;
  std::vector<double> losses;
};

CheckResult notebook_outer_loop() {
  const Trace published = {{0, 10, 20, 30, 40, 50, 100, 200, 300, 480, 990},
                           {.5743989630, .5337679255, .3615219078, .3225042933, .2987646017, .2944669355, .2853543584,
                            .2816699681, .2813562950, .2808096157, .2805064575}};
  Comparison compare;
  const NotebookProblem problem;
  const AutodiffOracle oracle(problem);
  const DoubleLoop loop(oracle, std::make_shared<RuleSolver>(sgd(0.1, 100)),
                        std::make_shared<Unrolled>(UnrolledOptions{.steps = 10}),
                        std::make_shared<OuterSgd>(OuterSgdOptions{.lr = 1.0, .momentum = 0.9}), cold_start());
  State state = loop.init();
  size_t next = 0;
  for (int64_t k = 0; next < published.steps.size(); ++k) {
    const Record record = loop.step(state, 1);
    if (k != published.steps[next]) continue;
    compare.near(fmt::format("validation loss at step {}", k), record.outer_loss, published.losses[next++], 1e-9);
  }
  return compare.result();
}

// ---- E2: unrolled optimisers ----

CheckResult unrolled_optimizers() {
  struct Row {
    std::string name;
    RuleSolver solver;
    double outer_loss, norm;
    std::vector<double> first;
  };
  std::vector<Row> rows;
  rows.push_back({"sgd", sgd(.1, 5), 0.6311763077, 0.003873170, {0.001253168, 0.000186383, 0.000135909}});
  rows.push_back({"sgd, weight decay", sgd(.1, 5, 0, .1), 0.6323248799, 0.003799239, {0.001229617, 0.000182776, 0.000133626}});
  rows.push_back({"sgd, momentum", sgd(.1, 20, .9), 0.5947882701, 0.010357555, {-0.003913561, -0.000340690, -0.000429056}});
  rows.push_back({"adam, 5 steps", adam(.05, 5), 0.5272486759, 0.032386026, {0.008922648, 0.003366614, 0.001950426}});
  rows.push_back({"adam, 20 steps", adam(.05, 20), 0.5660182114, 0.024088390, {0.001322082, 0.000022480, 0.001541767}});
  rows.push_back({"adamw", adam(.05, 5, true), 0.5273759818, 0.032370994, {0.008918482, 0.003360367, 0.001950619}});
  Comparison compare;
  const NotebookProblem problem;
  for (const Row& row : rows) {
    const Hypergradient h = estimate(problem, row.solver, Unrolled(), problem.initial_outer()).h;
    compare.near(row.name + ", outer loss", h.outer_loss, row.outer_loss, 1e-10);
    compare.near(row.name + ", norm", norm_of(h.value), row.norm, 1e-9);
    compare.near(row.name, h.value, row.first, 1e-9);
  }
  return compare.result();
}

// ---- E3: data hyper-cleaning ----

CheckResult cleaning_hypergradients() {
  struct Row {
    std::string name;
    at::Tensor value;
    double norm;
    std::vector<double> first;
    double wrong, clean, area;
    double allowed;  // of an entry; sums of 250 of them get 30 times that, and a pair or two may change places
  };
  Comparison compare;
  const CleaningProblem problem;
  const AutodiffOracle oracle(problem);
  compare.near("labels", problem.labels.to(at::kDouble), {1, 1, 4, 3, 7, 5, 0, 7, 3, 9, 6, 1}, 0.5);
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = sgd(0.5, 100);
  const Estimated reverse = estimate(problem, solver, Unrolled(), x);
  compare.near("inner loss after 100 steps", reverse.h.inner_loss, 0.9594366947, 1e-10);
  compare.near("outer loss after 100 steps", reverse.h.outer_loss, 1.6326698867, 1e-10);
  compare.near("test accuracy after 100 steps", problem.test_accuracy(reverse.solution.y), 0.670013, 1e-6);

  const at::Tensor y = reverse.solution.y;
  const auto at_y = [&](const Estimator& estimator) { return estimate(problem, sgd(0.5, 0), estimator, x, 0, y).h.value; };
  const Estimated optimum = estimate(problem, Lbfgs({.max_iterations = 5000, .tolerance = 1e-9}), implicit_dense(), x);
  compare.near("least inner loss", optimum.h.inner_loss, 0.946830102908, 1e-11);
  compare.near("outer loss at the optimum", optimum.h.outer_loss, 1.525606819, 1e-7);
  compare.near("test accuracy at the optimum", problem.test_accuracy(optimum.solution.y), 0.712673, 1e-6);

  const std::vector<Row> rows = {
      {"unrolled",
       reverse.h.value,
       2.444055959e-2,
       {1.850383e-3, -1.488963e-3, -1.452928e-4},
       .1076732091,
       -.2530364191,
       .911344,
       3.5e-12},
      {"unrolled, last 10",
       estimate(problem, solver, Unrolled({.steps = 10}), x).h.value,
       7.702580692e-3,
       {3.978676e-4, -2.547416e-4, -1.929848e-4},
       .0246651165,
       -.0464260219,
       .725376,
       3.5e-12},
      {"cg, 1",
       at_y(implicit_cg(1)),
       1.390077997e-2,
       {2.366129e-4, -2.574407e-4, -4.471557e-4},
       .0205455625,
       -.0375347351,
       .589632,
       3.5e-12},
      {"cg, 5",
       at_y(implicit_cg(5)),
       3.021552935e-2,
       {2.778521e-3, -1.479259e-3, -3.349461e-4},
       .1586428499,
       -.2977192872,
       .917872,
       3.5e-12},
      // From the 18th iteration on CG has lost orthogonality here: the same recursion in 64 and in 80 bits differs by 6e-8 in the
      // norm, and any other order of the sums as much.
      {"cg, 20",
       at_y(implicit_cg(20)),
       2.855433134e-2,
       {2.312128e-3, -1.789378e-3, -3.076962e-4},
       .1485257912,
       -.2847882899,
       .925248,
       2e-7},
      {"fixed point, 20 terms",
       at_y(implicit_neumann(19, 0.5)),
       1.074985618e-2,
       {7.298687e-4, -4.835704e-4, -1.641720e-4},
       .0463778250,
       -.0854631160,
       .815424,
       3.5e-12},
      // published to about six digits
      {"exact", optimum.h.value, 2.604579e-2, {2.205812e-3, -1.493744e-3, -2.653037e-4}, .155480, -.238163, .919408, 2e-8},
  };
  for (const Row& row : rows) {
    compare.near(row.name + ", norm", norm_of(row.value), row.norm, std::max(row.allowed, 5e-12));
    compare.near(row.name, row.value, row.first, std::max(row.allowed, 1e-9));  // printed to nine decimals
    compare.near(row.name + ", wrong labels", row.value.masked_select(problem.wrong).sum().item<double>(), row.wrong,
                 30 * row.allowed);
    compare.near(row.name + ", clean labels", row.value.masked_select(problem.wrong.logical_not()).sum().item<double>(),
                 row.clean, 30 * row.allowed);
    compare.near(row.name + ", AUC", area_under_curve(row.value, problem.wrong), row.area, std::max(1e-6, 250 * row.allowed));
  }
  return compare.result();
}

CheckResult cleaning_outer_loop() {
  struct Row {
    int64_t step;
    double loss, accuracy;
    int64_t kept;
    double precision, recall;
  };
  const std::vector<Row> rows = {{0, 1.63266989, 0.670013, 500, .5000, 1.0000}, {1, 1.59012645, 0.700125, 301, .7774, .9360},
                                 {5, 1.43762740, 0.772898, 298, .7852, .9360},  {10, 1.28970112, 0.795483, 293, .7952, .9320},
                                 {20, 1.11693990, 0.815558, 282, .8156, .9200}, {40, 1.01128754, 0.826851, 271, .8413, .9120},
                                 {60, 0.98679633, 0.826851, 265, .8491, .9000}};
  Comparison compare;
  const CleaningProblem problem;
  const AutodiffOracle oracle(problem);
  const DoubleLoop loop(oracle, std::make_shared<RuleSolver>(sgd(0.5, 100)), std::make_shared<Unrolled>(),
                        std::make_shared<OuterAdam>(OuterAdamOptions{.lr = 0.1}), cold_start());
  State state = loop.init();
  size_t next = 0;
  for (int64_t k = 0; next < rows.size(); ++k) {
    const at::Tensor x = state.tensor("x").clone();
    const Record record = loop.step(state, 1);
    if (k != rows[next].step) continue;
    const Row& row = rows[next++];
    const std::string at_step = fmt::format(" at step {}", k);
    compare.near("validation loss" + at_step, record.outer_loss, row.loss, 1e-8);
    compare.near("test accuracy" + at_step, problem.test_accuracy(state.tensor("y")), row.accuracy, 1e-6);
    const at::Tensor kept = x.ge(0);
    const double right = kept.logical_and(problem.wrong.logical_not()).sum().item<double>();
    compare.near("kept samples" + at_step, kept.sum().item<double>(), static_cast<double>(row.kept), 0.5);
    compare.near("precision" + at_step, right / kept.sum().item<double>(), row.precision, 1e-4);
    compare.near("recall" + at_step, right / 250.0, row.recall, 1e-4);
  }
  return compare.result();
}

// ---- E4: few-shot learning ----

CheckResult few_shot() {
  Comparison compare;
  const SinusoidMamlProblem problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer();
  double query = 0, support = 0;
  for (int64_t slice = 0; slice < 4; ++slice) {
    Batch batch;
    batch.slice = slice;
    query += oracle.outer_value(x, x, batch).item<double>() / 4;
    support += oracle.inner_value(x, x, batch).item<double>() / 4;
  }
  compare.near("query loss before", query, 6.426504862408, 1e-12);
  compare.near("support loss before", support, 6.193919908650, 1e-12);

  struct Row {
    std::string name;
    RuleSolver solver;
    double loss, norm;
    std::vector<double> first;
    double last;
    double first_order_norm;
    std::vector<double> first_order;
    double first_order_last;
  };
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  std::vector<Row> rows;
  rows.push_back({"1 step",
                  sgd(.1, 1),
                  1.851725765035,
                  4.613839751231,
                  {-0.9105268321, -0.6316432911, -0.2418779126, 0.2028280055},
                  -1.2613968797,
                  3.562967494220,
                  {-0.6068921867, -0.2330788723, 0.0855883339, 0.3955516322},
                  -1.7179292164});
  rows.push_back({"3 steps",
                  sgd(.1, 3),
                  0.366958823003,
                  2.281281106048,
                  {-0.3328063653, -0.2042482772, -0.0861358784, 0.0660726066},
                  -0.3317331892,
                  1.411045658556,
                  {-0.1029662284, -0.0502552499, -0.0038925743, 0.0532091024},
                  -0.6997717364});
  rows.push_back({"5 steps",
                  sgd(.05, 5),
                  0.553577091482,
                  2.971137095976,
                  {-0.4427849232, -0.2877076467, -0.1307855732, 0.1043180121},
                  -0.4777452251,
                  2.029639542156,
                  {-0.2287577190, -0.1028590052, 0.0071883849, 0.1396195050},
                  -0.9282099651});
  rows.push_back({"adam, 3 steps",
                  adam(.05, 3),
                  1.267118398111,
                  3.475295106183,
                  {-0.9438818932, -0.2417869268, 0.1632374368},
                  kNone,
                  kNone,
                  {},
                  kNone});
  for (const Row& row : rows) {
    double loss = 0;
    at::Tensor value = at::zeros_like(x), first_order = at::zeros_like(x);
    for (int64_t slice = 0; slice < 4; ++slice) {
      const Estimated e = estimate(problem, row.solver, Unrolled(), x, slice);
      Batch batch;
      batch.slice = slice;
      loss += e.h.outer_loss / 4;
      value = value + e.h.value / 4;
      first_order = first_order + oracle.outer(x, e.solution.y, batch).y / 4;
    }
    compare.near(row.name + ", meta-loss", loss, row.loss, 1e-12);
    compare.near(row.name + ", norm", norm_of(value), row.norm, 1e-11);
    compare.near(row.name, value, row.first, 1e-10);
    if (!std::isnan(row.last)) compare.near(row.name + ", last", value[-1].item<double>(), row.last, 1e-10);
    if (row.first_order.empty()) continue;
    compare.near(row.name + ", first order, norm", norm_of(first_order), row.first_order_norm, 1e-11);
    compare.near(row.name + ", first order", first_order, row.first_order, 1e-10);
    compare.near(row.name + ", first order, last", first_order[-1].item<double>(), row.first_order_last, 1e-10);
  }
  return compare.result();
}

CheckResult implicit_few_shot() {
  Comparison compare;
  const SinusoidMamlProblem problem({.proximity = 2.0});
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer();
  const std::vector<double> distances = {0.8211065478, 1.0016764853, 1.1764341993, 1.3256270619};
  const std::vector<double> smallest = {0.875, 0.891, 0.810, 0.625};
  double loss = 0;
  at::Tensor value = at::zeros_like(x);
  for (int64_t slice = 0; slice < 4; ++slice) {
    const Estimated e = estimate(problem, Lbfgs({.max_iterations = 2000, .tolerance = 1e-10}), implicit_cg(200), x, slice);
    loss += e.h.outer_loss / 4;
    value = value + e.h.value / 4;
    Batch batch;
    batch.slice = slice;
    const auto linearization = oracle.linearize_inner(x, e.solution.y, batch);
    const at::Tensor H = linearization->jvp_y(at::eye(x.size(0), x.options()));
    compare.near(fmt::format("distance of task {}", slice), norm_of(e.solution.y - x), distances[static_cast<size_t>(slice)],
                 1e-9);
    compare.near(fmt::format("smallest eigenvalue of task {}", slice), at::linalg_eigvalsh(H).min().item<double>(),
                 smallest[static_cast<size_t>(slice)], 1e-3);
  }
  compare.near("meta-loss", loss, 0.335207645858, 1e-10);
  compare.near("norm", norm_of(value), 0.460219730369, 1e-9);
  compare.near("meta-gradient", value, {-0.0438280416, -0.0311191579, -0.0043732551, 0.0290281268}, 1e-9);
  compare.near("meta-gradient, last", value[-1].item<double>(), -0.0877725388, 1e-9);
  return compare.result();
}

// ---- G: gold tests ----

at::Tensor differences(const std::function<double(const at::Tensor&)>& f, const at::Tensor& x) {
  constexpr double kStep = 1e-5;
  at::Tensor result = at::zeros_like(x);
  for (int64_t i = 0; i < x.size(0); ++i) {
    at::Tensor plus = x.clone(), minus = x.clone();
    plus[i] += kStep;
    minus[i] -= kStep;
    result[i] = (f(plus) - f(minus)) / (2 * kStep);
  }
  return result;
}

CheckResult gold_quadratic() {
  Comparison compare;
  for (const double condition : {10.0, 100.0, 1e4}) {
    const QuadraticProblem problem({.condition = condition});
    const at::Tensor x = problem.initial_outer(), exact = problem.hypergradient(x), y = problem.solution(x);
    const std::string at_condition = fmt::format(", condition {:g}", condition);
    compare.close("dense" + at_condition, estimate(problem, sgd(1, 0), implicit_dense(), x, 0, y).h.value, exact, 1e-8);
    compare.close("cg" + at_condition, estimate(problem, sgd(1, 0), implicit_cg(40), x, 0, y).h.value, exact, 1e-8);
  }
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer();
  compare.close("unrolled to the end", estimate(problem, sgd(1, 500), Unrolled(), x).h.value, problem.hypergradient(x), 1e-10);
  compare.close("neumann to the end", estimate(problem, sgd(1, 500), implicit_neumann(500, 1.0), x).h.value,
                problem.hypergradient(x), 1e-10);
  return compare.result();
}

// The diabetes data, 300 patients inside and 142 outside.
CheckResult gold_ridge() {
  Comparison compare;
  const Diabetes data;
  compare.near("scikit-learn's X [0, 2]", data.X[0][2].item<double>(), 0.06169621, 5e-9);
  compare.near("mean of the target", data.t.mean().item<double>(), 152.13348416, 5e-9);
  const at::Tensor t = data.t / 100 - 1.5;
  const RidgeProblem problem(data.X.narrow(0, 0, 300), t.narrow(0, 0, 300), data.X.narrow(0, 300, 142), t.narrow(0, 300, 142));
  const at::Tensor x = at::linspace(-7.5, -6.0, 10, at::kDouble);
  const at::Tensor exact = problem.hypergradient(x);
  const double lr = 1 / at::linalg_eigvalsh(problem.hessian(x)).max().item<double>();
  compare.close("cg", estimate(problem, sgd(lr, 800), implicit_cg(40), x).h.value, exact, 1e-10);
  compare.close("dense", estimate(problem, sgd(lr, 800), implicit_dense(), x).h.value, exact, 1e-10);
  compare.close("unrolled to the end", estimate(problem, sgd(lr, 800), Unrolled(), x).h.value, exact, 1e-10);
  const auto F = [&](const at::Tensor& at_x) { return problem.outer_loss(at_x, problem.solution(at_x), {}).item<double>(); };
  compare.close("closed form and its differences", exact, differences(F, x), 1e-6);
  return compare.result();
}

CheckResult gold_sample_weights() {
  Comparison compare;
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x), exact = problem.hypergradient(x, y);
  compare.close("cg", estimate(problem, sgd(0.1, 0), implicit_cg(40), x, 0, y).h.value, exact, 1e-10);
  compare.close("from the start", estimate(problem, Lbfgs({.tolerance = 1e-11}), implicit_dense(), x).h.value, exact, 1e-8);
  const auto F = [&](const at::Tensor& at_x) { return problem.outer_loss(at_x, problem.solution(at_x), {}).item<double>(); };
  compare.close("differences of F", exact, differences(F, x), 1e-6);
  return compare.result();
}

CheckResult gold_differences() {
  Comparison compare;
  const LogisticWeightsProblem problem;
  const Lbfgs solver({.max_iterations = 500, .tolerance = 1e-11});
  const at::Tensor x = problem.initial_outer();
  const auto F = [&](const at::Tensor& at_x) { return estimate(problem, solver, implicit_cg(1), at_x).h.outer_loss; };
  const at::Tensor by_differences = differences(F, x);
  compare.close("cg", estimate(problem, solver, implicit_cg(40), x).h.value, by_differences, 1e-5);
  compare.close("dense", estimate(problem, solver, implicit_dense(), x).h.value, by_differences, 1e-5);
  compare.apart("the direct term alone", estimate(problem, solver, implicit_dense(), x).h.direct, by_differences, 1e-2);
  return compare.result();
}

CheckResult gold_agreement() {
  Comparison compare;
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  compare.close("unrolled to the end and implicit", estimate(problem, sgd(1.0, 1500), Unrolled(), x).h.value,
                problem.hypergradient(x, y), 1e-9);
  for (const int64_t k : {1, 4, 16}) {
    compare.close(fmt::format("last {} steps and neumann", k),
                  estimate(problem, sgd(1.0, 20), Unrolled({.steps = k}), x, 0, y).h.value,
                  estimate(problem, sgd(1.0, 0), implicit_neumann(k - 1, 1.0), x, 0, y).h.value, 1e-10);
  }
  compare.close("one step and identity", estimate(problem, sgd(1.0, 20), OneStep(), x, 0, y).h.value,
                estimate(problem, sgd(1.0, 0), Identity(), x, 0, y).h.value, 1e-10);
  const MlpProblem network;
  const at::Tensor z = network.initial_outer();
  const at::Tensor graphs = estimate(network, adam(0.03, 23), Unrolled({.memory = Memory::kGraphs}), z).h.value;
  compare.close("states and graphs", estimate(network, adam(0.03, 23), Unrolled({.memory = Memory::kStates}), z).h.value, graphs,
                1e-12);
  compare.close("checkpoints and graphs",
                estimate(network, adam(0.03, 23), Unrolled({.memory = Memory::kCheckpoints}), z).h.value, graphs, 1e-12);
  const auto F_T = [&](const at::Tensor& at_x) { return estimate(network, adam(0.03, 23), OneStep(), at_x).h.outer_loss; };
  compare.close("unrolled and differences of F_T", graphs, differences(F_T, z), 1e-6);
  for (const RuleSolver& solver : {sgd(0.05, 12, 0.9, 0.1), adam(0.03, 12), adam(0.03, 12, true)}) {
    compare.close(fmt::format("reverse and forward mode of {}", solver.name()), estimate(network, solver, Unrolled(), z).h.value,
                  estimate(network, solver, Forward(), z).h.value, 1e-12);
  }
  return compare.result();
}

CheckResult gold_invariants() {
  Comparison compare;
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  const int64_t dy = problem.inner_layout().size();
  const RotatedProblem rotated(problem, std::get<0>(at::linalg_qr(Stream(5, "rotation").at(0).normal({dy, dy}))));
  const auto both = [&](const std::string& what, const Estimator& estimator) {
    compare.close("rotation of y, " + what, estimate(rotated, sgd(0.1, 9), estimator, x).h.value,
                  estimate(problem, sgd(0.1, 9), estimator, x).h.value, 1e-10);
  };
  both("implicit", implicit_dense());
  both("neumann", implicit_neumann(5, 0.1));
  both("unrolled", Unrolled());
  both("identity", Identity());
  compare.apart("rotation of y, adam", estimate(rotated, adam(0.05, 9), Unrolled(), x).h.value,
                estimate(problem, adam(0.05, 9), Unrolled(), x).h.value, 1e-2);

  const LogisticWeightsProblem weights;
  const at::Tensor order = Stream(2, "order").at(0).permutation(weights.inner_samples()).unsqueeze(0);
  RuleSolverOptions options;
  options.lr = 0.3;
  options.steps = 9;
  const RuleSolver shuffled(std::make_unique<SgdRule>(SgdRuleOptions{}), options, BatchPlan::fixed(order));
  compare.close("order of the samples", estimate(weights, shuffled, Unrolled(), weights.initial_outer()).h.value,
                estimate(weights, sgd(0.3, 9), Unrolled(), weights.initial_outer()).h.value, 1e-12);

  const RidgeProblem ridge;
  const at::Tensor H = ridge.hessian(ridge.initial_outer());
  Operator A;
  A.dim = H.size(0);
  A.apply = [&H](const at::Tensor& v) { return H.mv(v); };
  A.step_size = 1 / at::linalg_eigvalsh(H).max();
  Draw draw = Stream(1, "right-hand sides").at(0);
  const at::Tensor b = draw.normal({A.dim}), c = draw.normal({A.dim});
  const Cg cg({.iterations = 60, .tolerance = 1e-14});
  const Neumann neumann({.iterations = 7});
  const Dense dense({});
  for (const LinearSolver* solver : std::initializer_list<const LinearSolver*>{&cg, &neumann, &dense}) {
    const auto solve = [&](const at::Tensor& right) { return solver->solve(A, right, {}).solution; };
    compare.close(fmt::format("{} of a sum", solver->name()), solve(2.5 * b - 0.1 * c), 2.5 * solve(b) - 0.1 * solve(c), 1e-11);
  }
  return compare.result();
}

// Of a solve of 16 steps: gradients (16, one at the end, one of the outer loss), products with H, cross products.
CheckResult gold_meter() {
  Comparison compare;
  const QuadraticProblem problem({.condition = 1e3});
  const AutodiffOracle autodiff(problem);
  const RuleSolver solver = sgd(0.5, 16);
  const at::Tensor x = problem.initial_outer();
  const auto costs = [&](const std::string& what, const Estimator& estimator, int64_t gradients, int64_t hvps, int64_t cross) {
    const CountedOracle oracle(autodiff);
    InnerSolution solution = solver.solve(oracle, x, 0, {.y = problem.initial_inner(x, 0)}, estimator.trajectory());
    estimator.estimate({oracle, solver, x, solution, Batch{}, Batch{}, {}});
    const auto count = [&](const char* of, int64_t measured, int64_t expected) {
      compare.near(fmt::format("{}, {}", what, of), static_cast<double>(measured), static_cast<double>(expected), 0.5);
    };
    count("gradients", oracle.cost().gradients, gradients);
    count("products with the Hessian", oracle.cost().hvps, hvps);
    count("cross products", oracle.cost().cross_products, cross);
    count("forward passes", oracle.cost().forwards, 0);
  };
  costs("unrolled", Unrolled(), 18, 16, 16);
  costs("unrolled, states", Unrolled({.memory = Memory::kStates}), 18 + 16, 16, 16);
  costs("unrolled, checkpoints", Unrolled({.memory = Memory::kCheckpoints}), 18 + 12 + 16, 16, 16);
  costs("unrolled, last 5", Unrolled({.steps = 5}), 18, 5, 5);
  costs("cg, 4", implicit_cg(4), 18 + 1, 4 + 1 + 1, 1);  // with the true residual, and the last pass for the cross product
  costs("neumann, 4", implicit_neumann(4, 0.5), 18 + 1, 4 + 1 + 1, 1);
  costs("t1-t2", T1T2(), 18 + 1, 1, 1);
  costs("darts", Darts(), 18 + 2, 0, 0);
  return compare.result();
}

}  // namespace

std::vector<Check> outside_checks() {
  return {
      {"E0 random numbers", "numpy, scikit-learn and torch", random_numbers},
      {"E1 training", "hypertorch, logistic_regression.ipynb in float64", notebook_training},
      {"E1 hypergradients", "hypertorch, higher and betty on that notebook", notebook_hypergradients},
      {"E1 outer loop", "hypertorch on that notebook, 991 outer steps", notebook_outer_loop},
      {"E2 unrolled optimizers", "higher: sgd, momentum, adam, adamw", unrolled_optimizers},
      {"E3 data cleaning hypergradients", "hypertorch and higher on digits with wrong labels", cleaning_hypergradients},
      {"E3 data cleaning outer loop", "hypertorch on digits with wrong labels, 61 outer steps", cleaning_outer_loop},
      {"E4 few-shot learning", "higher: MAML with sgd and adam, and its first-order form", few_shot},
      {"E4 implicit few-shot learning", "iMAML by a dense Newton solve", implicit_few_shot},
      {"G1 quadratic", "closed form, conditions 10 to 1e4", gold_quadratic},
      {"G2 ridge for each weight", "closed form and differences, on scikit-learn's diabetes data", gold_ridge},
      {"G3 sample weights", "closed form and differences", gold_sample_weights},
      {"G4 differences of F", "the outer loss at the inner optimum, differenced", gold_differences},
      {"G5 agreement between estimators", "each other, forward mode, and differences of F_T", gold_agreement},
      {"G6 invariants", "the same problem in other coordinates, other orders, other right-hand sides", gold_invariants},
      {"G7 meter", "what the algorithms cost on paper", gold_meter},
  };
}

CheckResult run_check(const Check& check) {
  try {
    return check.run();
  } catch (const std::exception& error) {
    return {false, error.what()};
  }
}

}  // namespace bilevel
