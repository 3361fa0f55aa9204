#include "bilevel/hypergrad/certificate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "bilevel/hypergrad/darts.h"
#include "bilevel/hypergrad/identity.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/spot_check.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/proximal_gradient.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/autograd.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/function_problem.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::certificate_test {
namespace {

using ::testing::HasSubstr;

RuleSolver descent(int64_t steps, double lr) {
  RuleSolverOptions options;
  options.steps = steps;
  options.lr = lr;
  return {std::make_unique<SgdRule>(SgdRuleOptions{}), options};
}

Implicit implicit(int64_t iterations) {
  CgOptions options;
  options.iterations = iterations;
  return Implicit(std::make_unique<Cg>(options));
}

double length(const at::Tensor& v) { return v.norm().item<double>(); }

/// One estimate with its certificate, and all that it refers to.
struct Certified {
  AutodiffOracle autodiff;
  CountedOracle oracle;
  std::shared_ptr<const InnerSolver> solver;
  at::Tensor x;
  InnerSolution solution;
  EstimatorInput in;
  Hypergradient h;

  template <class Solver>
  Certified(const Problem& problem, Solver with, const Estimator& estimator, const BoundOptions& options = {})
      : autodiff(problem),
        oracle(autodiff),
        solver(std::make_shared<const Solver>(std::move(with))),
        x(problem.initial_outer()),
        solution(solver->solve(oracle, x, 0, {problem.initial_inner(x, 0)}, estimator.trajectory())),
        in{oracle, *solver, x, solution, {}, {}, {}} {
    in.start.y = problem.initial_inner(x, 0);
    h = estimator.estimate(in);
    certify(h, in, options);
  }

  SpotCheck check(const SpotCheckOptions& options = {}, int64_t t = 0) const {
    std::string why;
    std::vector<std::unique_ptr<NamedFunction>> functions;
    functions.push_back(NamedFunction::of(in, h.certificate.differentiates, options, why));
    EXPECT_NE(functions.front(), nullptr) << why;
    return spot_check(h, x, functions, Stream(1, "test").at(t), options);
  }
};

void expect_bound(const Certified& c, const at::Tensor& exact, double tightness) {
  const double error = length(c.h.value - exact);
  ASSERT_TRUE(c.h.certificate.error_bound.has_value()) << c.h.certificate.bound_reason;
  EXPECT_GE(*c.h.certificate.error_bound, error);
  EXPECT_LE(*c.h.certificate.error_bound, tightness * error);
  EXPECT_NEAR(*c.h.certificate.distance_to_F / error, 1.0, 0.1);
}

// Both errors that an implicit hypergradient has: y_T is not y*, and the linear system is solved in part.
TEST(Certificate, BoundsTheErrorOfAnImplicitHypergradientTightly) {
  for (const int64_t dense_dim : {0, 200}) {
    BoundOptions options;
    options.dense_dim = dense_dim;
    for (const double condition : {10.0, 300.0}) {
      QuadraticOptions quadratic;
      quadratic.condition = condition;
      const QuadraticProblem problem(quadratic);
      for (const auto& [steps, iterations] : {std::pair<int64_t, int64_t>{30, 8}, {4000, 3}, {30, 3}}) {
        SCOPED_TRACE(fmt::format("dense {} condition {} steps {} iterations {}", dense_dim, condition, steps, iterations));
        const Certified c(problem, descent(steps, 1.0), implicit(iterations), options);
        expect_bound(c, problem.hypergradient(problem.initial_outer()), 1.5);
      }
    }
    const RidgeProblem ridge;
    expect_bound(Certified(ridge, descent(20, 0.2), implicit(3), options), ridge.hypergradient(ridge.initial_outer()), 1.5);
    const LogisticWeightsProblem logistic;
    const at::Tensor x = logistic.initial_outer();
    expect_bound(Certified(logistic, descent(50, 1.0), implicit(3), options), logistic.hypergradient(x, logistic.solution(x)),
                 1.5);
  }
}

TEST(Certificate, RestsOnTheSmallestEigenvalueWhereTheMatrixIsSmall) {
  QuadraticOptions options;
  options.condition = 100;
  const QuadraticProblem problem(options);
  const Certified c(problem, descent(30, 1.0), implicit(8));
  EXPECT_NEAR(c.h.certificate.curvature.value(), 0.01, 1e-4);
}

// Lanczos' Ritz values lie above the smallest eigenvalue; what is taken for μ must not.
TEST(Certificate, TakesNoCurvatureAboveTheSmallestEigenvalueFromRitzValues) {
  QuadraticOptions quadratic;
  quadratic.inner = 120;
  BoundOptions options;
  options.dense_dim = 0;
  int64_t found = 0;
  for (const double condition : {3.0, 30.0, 1e3, 1e5}) {
    for (const int64_t products : {15, 40, 80}) {
      quadratic.condition = condition;
      options.products = products;
      const QuadraticProblem problem(quadratic);
      const Certified c(problem, descent(200, 1.0), implicit(40), options);
      if (!c.h.certificate.curvature) {
        EXPECT_TRUE(c.h.certificate.bound_reason.starts_with("No bound: ")) << c.h.certificate.bound_reason;
        continue;
      }
      ++found;
      EXPECT_LE(*c.h.certificate.curvature, 1.0 / condition);
    }
  }
  EXPECT_GE(found, 3);
}

TEST(Certificate, CountsRoundingInFloat) {
  for (const double condition : {3.0, 100.0}) {
    QuadraticOptions quadratic;
    quadratic.condition = condition;
    const QuadraticProblem exact(quadratic);
    quadratic.dtype = at::kFloat;
    const QuadraticProblem problem(quadratic);
    const Certified c(problem, descent(3000, 1.0), Implicit(std::make_unique<Dense>(DenseOptions{})));
    const at::Tensor off = c.h.value.to(at::kDouble) - exact.hypergradient(exact.initial_outer());
    // `exact` differs from the problem by the rounding of its data too, which is of the same size.
    ASSERT_TRUE(c.h.certificate.error_bound.has_value());
    EXPECT_GE(10 * *c.h.certificate.error_bound, length(off));
    EXPECT_GT(*c.h.certificate.error_bound, 1e-8 * length(c.h.value));
    EXPECT_LE(*c.h.certificate.error_bound, 1e-4 * condition * length(c.h.value));
  }
}

TEST(Certificate, GivesTheDistanceToFOfAnUnrolledHypergradientAndNoBoundInItsName) {
  const RidgeProblem problem;
  const Certified c(problem, descent(20, 0.2), Unrolled());
  const double distance = length(c.h.value - problem.hypergradient(problem.initial_outer()));
  EXPECT_NEAR(c.h.certificate.distance_to_F.value() / distance, 1.0, 1e-6);
  EXPECT_EQ(c.h.grade, Grade::kOk);
}

TEST(Certificate, BoundsTheBiasOfAnEstimatorThatNamesF) {
  const RidgeProblem problem;
  expect_bound(Certified(problem, descent(2000, 0.2), Identity()), problem.hypergradient(problem.initial_outer()), 1.001);
}

/// A ridge problem that sees of its last two inner variables their difference alone, as a softmax sees its biases.
class Redundant final : public TestProblem {
 public:
  explicit Redundant(const RidgeProblem& base) : base_(base) {
    outer_layout_ = base.outer_layout();
    inner_layout_.add("y", {base.inner_layout().size() + 1});
    x0_ = base.initial_outer();
    y0_ = at::zeros({inner_layout_.size()}, x0_.options());
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return base_.inner_loss(x, seen(y), batch);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return base_.outer_loss(x, seen(y), batch);
  }

 private:
  static at::Tensor seen(const at::Tensor& y) {
    const int64_t n = y.size(0) - 1;
    return at::cat({y.narrow(0, 0, n - 1), (y[n - 1] - y[n]).unsqueeze(0)});
  }
  const RidgeProblem& base_;
};

TEST(Certificate, LeavesDirectionsOutAlongWhichNothingHappens) {
  const RidgeProblem ridge;
  const Redundant problem(ridge);
  for (const int64_t dense_dim : {0, 200}) {
    BoundOptions options;
    options.dense_dim = dense_dim;
    const Certified c(problem, descent(20, 0.1), implicit(3), options);
    expect_bound(c, ridge.hypergradient(ridge.initial_outer()), 1.5);
    EXPECT_LE(*c.h.certificate.curvature, 2 * at::linalg_eigvalsh(ridge.hessian(ridge.initial_outer()))[0].item<double>());
  }
}

// g = ½ yᵀ diag(h) y − ⟨z(x), y⟩, z = B x + c, f = ½‖y − d‖² + ½‖x‖², whose solutions under constraints have closed forms.
constexpr int64_t kX = 4, kY = 6;
at::Tensor numbers(double offset, at::IntArrayRef sizes) {
  return 1.4 *
         at::sin(0.77 * at::arange(1, c10::multiply_integers(sizes) + 1, at::kDouble).square() + 10 * offset).reshape(sizes);
}
struct Separable {
  at::Tensor h = at::pow(10.0, -at::arange(0, kY, at::kDouble) / 2), B = h.sqrt().unsqueeze(1) * numbers(0.2, {kY, kX});
  at::Tensor d = numbers(0.4, {kY}), x0 = numbers(0.1, {kX});
  at::Tensor c =
      h * at::tensor({0.3, -0.5, 1.5, 0.6, -0.1, 0.4}, at::kDouble) - B.mv(x0);  // y* without constraints: these numbers
  FunctionProblemOptions::Constraints constraints;
  std::function<at::Tensor(const at::Tensor& x)> solve;  // y*(x), differentiable

  at::Tensor z(const at::Tensor& x) const { return B.mv(x) + c; }
  FunctionProblem problem() const {
    return FunctionProblem(
        {.inner_loss = [this](const at::Tensor& x, const at::Tensor& y) { return (h * y).dot(y) / 2 - z(x).dot(y); },
         .outer_loss = [this](const at::Tensor& x, const at::Tensor& y) { return f(x, y); },
         .x0 = x0,
         .y0 = at::zeros({kY}, at::kDouble),
         .inner_constraints = constraints});
  }
  at::Tensor f(const at::Tensor& x, const at::Tensor& y) const { return (y - d).square().sum() / 2 + x.square().sum() / 2; }
  at::Tensor hypergradient() const {
    const at::AutoGradMode grad_mode(true);
    const at::Tensor x = leaf(x0);
    return gradients(f(x, solve(x)), {x})[0];
  }
};

Separable box() {
  Separable made;
  made.constraints = [](const at::Tensor& x) {
    return InnerConstraints{.lower = at::full({}, -0.2, at::kDouble), .upper = 0.8 + 0.1 * x[0].tanh()};
  };
  const at::Tensor h = made.h, B = made.B, c = made.c;
  made.solve = [=](const at::Tensor& x) {
    return at::minimum(((B.mv(x) + c) / h).clamp_min(-0.2), (0.8 + 0.1 * x[0].tanh()).expand({kY}));
  };
  return made;
}
Separable non_negative() {
  Separable made;
  made.constraints = [](const at::Tensor&) { return InnerConstraints{.lower = at::zeros({}, at::kDouble)}; };
  const at::Tensor h = made.h, B = made.B, c = made.c;
  made.solve = [=](const at::Tensor& x) { return ((B.mv(x) + c) / h).clamp_min(0); };
  return made;
}
Separable lasso() {
  Separable made;
  const at::Tensor h = made.h, B = made.B, c = made.c, x0 = made.x0;
  const auto weights = [=](const at::Tensor& x) { return 0.35 * h * (0.5 * (x[3] - x0[3])).exp(); };
  made.constraints = [=](const at::Tensor& x) { return InnerConstraints{.l1 = weights(x)}; };
  made.solve = [=](const at::Tensor& x) {
    const at::Tensor z = B.mv(x) + c;
    return z.sign() * (z.abs() - weights(x)).clamp_min(0) / h;
  };
  return made;
}
Separable equalities() {
  Separable made;
  const at::Tensor E = numbers(0.6, {2, kY}), M = numbers(0.7, {2, kX});
  made.constraints = [=](const at::Tensor& x) {
    return InnerConstraints{.equality = E * (1 + 0.3 * x[1]), .equality_rhs = M.mv(x) + 0.5};
  };
  const at::Tensor h = made.h, B = made.B, c = made.c;
  made.solve = [=](const at::Tensor& x) {
    const at::Tensor z = B.mv(x) + c, E_x = E * (1 + 0.3 * x[1]);
    const at::Tensor nu = at::linalg_solve((E_x / h).mm(E_x.t()), (E_x / h).mv(z) - M.mv(x) - 0.5);
    return (z - E_x.t().mv(nu)) / h;
  };
  return made;
}
std::vector<std::pair<std::string, Separable>> constrained_problems() {
  return {{"box", box()}, {"non-negative", non_negative()}, {"lasso", lasso()}, {"equalities", equalities()}};
}
ProximalGradient prox(double tolerance, int64_t steps = 20000) {
  return ProximalGradient({.max_iterations = steps, .tolerance = tolerance});
}

// Where the solve ends early, where the linear system is solved in part, or both.
TEST(Certificate, BoundsTheErrorTightlyWhereYIsConstrained) {
  for (const auto& [name, made] : constrained_problems()) {
    const FunctionProblem problem = made.problem();
    const at::Tensor exact = made.hypergradient();
    for (const int64_t dense_dim : {0, 200}) {
      BoundOptions options;
      options.dense_dim = dense_dim;
      for (const auto& [tolerance, iterations] : {std::pair<double, int64_t>{1e-3, 20}, {1e-12, 1}, {1e-3, 1}}) {
        SCOPED_TRACE(fmt::format("{}, dense {}, tolerance {}, iterations {}", name, dense_dim, tolerance, iterations));
        const Certified c(problem, prox(tolerance), implicit(iterations), options);
        expect_bound(c, exact, 1.5);
        EXPECT_THAT(c.h.certificate.bound_reason, HasSubstr("on the active set of y*"));
      }
    }
  }
}

// One step of the inner solve ends on another active set than y* has; the certificate is about y*.
TEST(Certificate, FindsTheActiveSetThatTheInnerSolveHasNot) {
  for (const auto& [name, made] : constrained_problems()) {
    if (name == "equalities") continue;
    SCOPED_TRACE(name);
    const FunctionProblem problem = made.problem();
    const Certified c(problem, prox(1e-12, 1), implicit(20));
    ASSERT_FALSE((c.solution.y == made.solve(made.x0)).all().item<bool>());
    expect_bound(c, made.hypergradient(), 1.5);
    EXPECT_NE(c.h.grade, Grade::kOk);
    EXPECT_NE(c.check().grade, Grade::kOk);
  }
}

TEST(Certificate, FindsWrongValuesWhereYIsConstrained) {
  for (const auto& [name, made] : constrained_problems()) {
    SCOPED_TRACE(name);
    const FunctionProblem problem = made.problem();
    Certified c(problem, prox(1e-12), implicit(20));
    const at::Tensor right = c.h.value;
    EXPECT_EQ(c.h.grade, Grade::kOk) << c.h.message;
    const SpotCheck check = c.check();
    EXPECT_EQ(check.grade, Grade::kOk) << check.message;
    EXPECT_TRUE(check.conclusive) << check.message;
    EXPECT_LT(check.disagreement, 1e-5);
    EXPECT_NEAR(check.slopes[0].measured / length(made.hypergradient()), 1.0, 1e-6);
    for (const at::Tensor& wrong : {at::zeros_like(right), c.h.direct, 2 * c.h.direct - right, -right, 1.3 * right}) {
      Certified damaged(problem, prox(1e-12), implicit(20));
      damaged.h.value = wrong;
      certify(damaged.h, damaged.in);
      EXPECT_NE(damaged.h.grade, Grade::kOk);
      EXPECT_GE(*damaged.h.certificate.error_bound, length(wrong - made.hypergradient()));
      EXPECT_NE(damaged.check().grade, Grade::kOk);
    }
  }
}

// All of y at zero under a large penalty: y* does not move, and the direct term is all.
TEST(Certificate, BoundsTheErrorWhereAllOfYIsHeld) {
  Separable made = lasso();
  made.constraints = [](const at::Tensor& x) { return InnerConstraints{.l1 = 10 * x[3].exp()}; };
  const FunctionProblem problem = made.problem();
  Certified c(problem, prox(1e-12), implicit(20));
  ASSERT_TRUE(c.h.certificate.error_bound.has_value()) << c.h.certificate.bound_reason;
  EXPECT_LT(*c.h.certificate.error_bound, 1e-13);
  EXPECT_EQ(c.check().grade, Grade::kOk) << c.check().message;
  c.h.value = c.h.value + 0.5;
  certify(c.h, c.in);
  EXPECT_NEAR(*c.h.certificate.error_bound, 0.5 * std::sqrt(kX), 1e-12);
  EXPECT_NE(c.h.grade, Grade::kOk);
}

// z[2] so that the upper bound of y[2] is met with a force of 1e-17, or none.
TEST(Certificate, GivesNoBoundWhereTheActiveSetIsNotCertain) {
  Separable made = box();
  for (const double beyond : {0.0, 1e-17, -1e-17}) {
    made.c[2] = 0.0;
    made.c[2] = (0.8 + 0.1 * made.x0[0].tanh()) * made.h[2] - made.z(made.x0)[2] + beyond;
    const FunctionProblem problem = made.problem();
    const Certified c(problem, prox(1e-12), implicit(20));
    EXPECT_FALSE(c.h.certificate.error_bound.has_value());
    EXPECT_THAT(c.h.certificate.bound_reason, HasSubstr("the active set of y* is not certain: y[2] is"));
  }
}

/// g = ½ yᵀ diag(1, −1) y − yᵀ x
class Saddle final : public TestProblem {
 public:
  Saddle() {
    outer_layout_.add("x", {2});
    inner_layout_.add("y", {2});
    x0_ = at::ones({2}, at::kDouble);
    y0_ = at::tensor({1.0, -1.0}, at::kDouble);  // the saddle itself
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return 0.5 * (y[0].square() - y[1].square()) - y.dot(x);
  }
  at::Tensor outer_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override { return y.square().sum(); }
};

TEST(Certificate, IsBadAtASaddle) {
  const Saddle problem;
  const Certified c(problem, descent(1, 0.1), Implicit(std::make_unique<Dense>(DenseOptions{})));
  EXPECT_EQ(c.h.grade, Grade::kBad);
  EXPECT_FALSE(c.h.certificate.error_bound.has_value());
  EXPECT_NE(c.h.certificate.bound_reason.find("-1.00e+00"), std::string::npos) << c.h.certificate.bound_reason;
}

TEST(Certificate, FindsAValueOfTheWrongSign) {
  const RidgeProblem problem;
  Certified c(problem, descent(2000, 0.2), implicit(30));
  EXPECT_EQ(c.h.grade, Grade::kOk);
  c.h.value = -c.h.value;
  certify(c.h, c.in);
  EXPECT_EQ(c.h.grade, Grade::kBad);
  EXPECT_NEAR(*c.h.certificate.error_bound / length(c.h.value), 2.0, 1e-3);
}

// The slope along a biased value, and its length and cosine, are those of the closed form; that is a warning and no more.
TEST(Certificate, MeasuresHowFarAKnownBiasIsOff) {
  const RidgeProblem problem;
  Certified c(problem, descent(2000, 0.02), Identity());
  const at::Tensor exact = problem.hypergradient(problem.initial_outer());
  const double own = length(c.h.value), along = c.h.value.dot(exact).item<double>() / own;
  EXPECT_EQ(c.h.grade, Grade::kWarn);
  EXPECT_THAT(c.h.message, HasSubstr(fmt::format("has {:.3g} times the length", own / length(exact))));
  EXPECT_THAT(c.h.message, HasSubstr(fmt::format("a cosine of {:.3g} with it", along / length(exact))));
  const SpotCheck check = c.check();
  EXPECT_EQ(check.grade, Grade::kWarn);
  EXPECT_NEAR(check.slopes[0].measured / along, 1.0, 1e-6);
  EXPECT_THAT(check.message, HasSubstr(fmt::format("{:.3g} times as much", own / along)));
  // The same vector from an estimator that says nothing of a bias is worthless here.
  c.h.grade = Grade::kOk;
  c.h.certificate.bias.clear();
  EXPECT_EQ(c.check().grade, Grade::kBad);
  certify(c.h, c.in);
  EXPECT_NE(c.h.grade, Grade::kOk);
}

TEST(Certificate, IsBadWhereABiasedValuePointsUphill) {
  const RidgeProblem problem;
  Certified c(problem, descent(2000, 0.2), Identity());
  c.h.value = -c.h.value;
  EXPECT_EQ(c.check().grade, Grade::kBad);
  EXPECT_THAT(c.check().message, HasSubstr("it points uphill"));
  certify(c.h, c.in);
  EXPECT_EQ(c.h.grade, Grade::kBad);
}

// With a step of 1 for the Hessian I the identity is the inverse Hessian; a difference of a quadratic is exact for any radius.
TEST(Certificate, IsOkWhereABiasThatIsKnownDoesNotShow) {
  QuadraticOptions options;
  options.condition = 1.0;
  const QuadraticProblem problem(options);
  Certified c(problem, descent(50, 1.0), Identity());
  EXPECT_FALSE(c.h.certificate.bias.empty());
  EXPECT_EQ(c.h.grade, Grade::kOk) << c.h.message;
  EXPECT_EQ(c.check().grade, Grade::kOk) << c.check().message;
  const Certified difference(problem, descent(50, 0.5), Darts(1.0));
  EXPECT_EQ(difference.check().grade, Grade::kOk) << difference.check().message;
}

TEST(Certificate, CostsProductsThatAreCounted) {
  const RidgeProblem problem;
  const Certified c(problem, descent(200, 0.2), implicit(10));
  const int64_t before = c.oracle.cost().oracle_calls();
  Hypergradient again = c.h;
  certify(again, c.in);
  EXPECT_GT(c.oracle.cost().oracle_calls(), before + 10);
}

TEST(SpotCheck, MeasuresTheSlopesOfF) {
  QuadraticOptions options;
  options.condition = 30;
  const QuadraticProblem problem(options);
  const Certified c(problem, descent(2000, 1.0), implicit(30));
  const SpotCheck check = c.check();
  EXPECT_EQ(check.grade, Grade::kOk);
  EXPECT_TRUE(check.conclusive);
  ASSERT_EQ(check.slopes.size(), 2u);
  const double size = length(problem.hypergradient(problem.initial_outer()));
  EXPECT_EQ(check.slopes[0].direction, "gradient");
  EXPECT_NEAR(check.slopes[0].measured, size, 1e-7 * size);
  EXPECT_NEAR(check.slopes[1].predicted, check.slopes[1].measured, 1e-7 * size);
  EXPECT_LT(check.disagreement, 1e-6);
}

// F_T ends far from F here; each is checked against itself.
TEST(SpotCheck, IsAboutTheFunctionThatIsNamed) {
  const RidgeProblem problem;
  for (const int64_t last : {0, 4}) {
    UnrolledOptions options;
    options.steps = last;
    const Certified c(problem, descent(8, 0.2), Unrolled(options));
    EXPECT_GT(*c.h.certificate.distance_to_F, 0.05 * length(c.h.value));
    const SpotCheck check = c.check();
    EXPECT_EQ(check.grade, Grade::kOk) << check.message;
    EXPECT_LT(check.disagreement, 1e-6);
  }
  // One that names F without having solved for it is found out.
  const Certified early(problem, descent(1, 0.05), implicit(30));
  EXPECT_GT(*early.h.certificate.distance_to_F, 0.2 * length(early.h.value));
  EXPECT_NE(early.check().grade, Grade::kOk);
}

TEST(SpotCheck, FindsZeroTheDirectTermAloneAndTheWrongSign) {
  const QuadraticProblem problem;
  Certified c(problem, descent(2000, 1.0), implicit(30));
  const at::Tensor right = c.h.value;
  EXPECT_EQ(c.check().grade, Grade::kOk);
  for (const at::Tensor& wrong : {at::zeros_like(right), c.h.direct, 2 * c.h.direct - right, -right, 1.3 * right}) {
    c.h.value = wrong;
    EXPECT_NE(c.check().grade, Grade::kOk);
  }
  c.h.value = -right;
  EXPECT_EQ(c.check().grade, Grade::kBad);
}

TEST(SpotCheck, DrawsAnotherDirectionForEachStepAndTheSameAgain) {
  const RidgeProblem problem;
  const Certified c(problem, descent(500, 0.2), implicit(30));
  EXPECT_EQ(c.check({}, 3).slopes[1].measured, c.check({}, 3).slopes[1].measured);
  EXPECT_NE(c.check({}, 3).slopes[1].measured, c.check({}, 4).slopes[1].measured);
}

/// Without a minimum beside x: g = y³/3 − x y has none for x < 0, and x is 0 here.
class Edge final : public TestProblem {
 public:
  Edge() {
    outer_layout_.add("x", {1});
    inner_layout_.add("y", {1});
    x0_ = at::full({1}, 1e-12, at::kDouble);
    y0_ = at::full({1}, 1e-6, at::kDouble);
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return (y.pow(3) / 3 - x * y).sum();
  }
  at::Tensor outer_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override { return y.sum(); }
};

TEST(SpotCheck, SaysThatItCannotCertify) {
  const Edge problem;
  Certified c(problem, descent(1, 1e-3), Implicit(std::make_unique<Dense>(DenseOptions{})));
  SpotCheckOptions options;
  options.step = 1e-2;
  options.tries = 1;
  const SpotCheck check = c.check(options);
  EXPECT_FALSE(check.conclusive);
  EXPECT_EQ(check.grade, Grade::kWarn);
  EXPECT_NE(check.message.find("cannot be certified"), std::string::npos);
}

}  // namespace
}  // namespace bilevel::certificate_test
