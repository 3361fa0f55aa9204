#include "bilevel/hypergrad/active_set.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/proximal_gradient.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/function_problem.h"

namespace bilevel::active_set_test {
namespace {

using namespace testing;
using ::testing::HasSubstr;

constexpr int64_t kDim = 4;

at::Tensor vec(std::initializer_list<double> values) { return at::tensor(std::vector<double>(values), at::kDouble); }
// Numbers without a pattern.
at::Tensor numbers(double offset, at::IntArrayRef sizes) {
  return 1.4 *
         at::sin(0.77 * at::arange(1, c10::multiply_integers(sizes) + 1, at::kDouble).square() + 10 * offset).reshape(sizes);
}

// g = ½ yᵀ H(x) y − c(x)ᵀ y,  H = A Aᵀ + diag(1 + x²/4),  c = B x + c₀,  f = ½‖y − d‖² + ⟨k, x⟩ y₀,  under given constraints.
struct Qp {
  at::Tensor A = numbers(0.1, {kDim, kDim}), B = numbers(0.2, {kDim, kDim}), c0 = 2 * numbers(0.3, {kDim});
  at::Tensor d = numbers(0.4, {kDim}), k = numbers(0.5, {kDim});
  FunctionProblemOptions::Constraints constraints;

  at::Tensor H(const at::Tensor& x) const { return A.mm(A.t()) + at::diag(1 + x * x / 4); }
  at::Tensor c(const at::Tensor& x) const { return B.mv(x) + c0; }
  at::Tensor f(const at::Tensor& x, const at::Tensor& y) const { return (y - d).square().sum() / 2 + k.dot(x) * y[0]; }

  FunctionProblem problem(at::ScalarType dtype = at::kDouble) const {
    return FunctionProblem(
        {.inner_loss = [this](const at::Tensor& x, const at::Tensor& y) { return y.dot(H(x).mv(y)) / 2 - c(x).dot(y); },
         .outer_loss = [this](const at::Tensor& x, const at::Tensor& y) { return f(x, y); },
         .x0 = at::zeros({kDim}, dtype),
         .y0 = at::zeros({kDim}, dtype),
         .inner_constraints = constraints});
  }

  // The minimum by trying every pattern of bounds and signs: each gives a linear system, and the lowest feasible point is it.
  at::Tensor solve(const at::Tensor& x) const {
    const at::NoGradGuard no_grad;
    const InnerConstraints C = constraints(x);
    const auto of = [&](const at::Tensor& t, double otherwise) {
      return t.defined() ? t.reshape({-1}).expand({kDim}).contiguous() : at::full({kDim}, otherwise, at::kDouble);
    };
    const double infinity = std::numeric_limits<double>::infinity();
    const at::Tensor lower = of(C.lower, -infinity), upper = of(C.upper, infinity), l1 = of(C.l1, 0.0);
    const int64_t m = C.equality.defined() ? C.equality.size(0) : 0;
    const at::Tensor Hx = H(x), cx = c(x);
    at::Tensor best;
    double lowest = infinity;
    std::vector<int> kinds{0};  // 0, 1: free with sign +, −; 2: at zero; 3, 4: at the lower, at the upper bound
    if (C.l1.defined()) kinds.insert(kinds.end(), {1, 2});
    if (C.lower.defined()) kinds.push_back(3);
    if (C.upper.defined()) kinds.push_back(4);
    std::vector<size_t> pattern(kDim, 0);
    while (true) {
      std::vector<int> state;
      for (const size_t kind : pattern) state.push_back(kinds[kind]);
      at::Tensor K = at::zeros({kDim + m, kDim + m}, at::kDouble), rhs = at::zeros({kDim + m}, at::kDouble);
      for (int64_t i = 0; i < kDim; ++i) {
        if (state[static_cast<size_t>(i)] < 2) {
          K[i].narrow(0, 0, kDim).copy_(Hx[i]);
          if (m > 0) K[i].narrow(0, kDim, m).copy_(C.equality.select(1, i));
          rhs[i] = cx[i] - (state[static_cast<size_t>(i)] == 0 ? 1.0 : -1.0) * l1[i];
        } else {
          K[i][i] = 1.0;
          rhs[i] = state[static_cast<size_t>(i)] == 2   ? at::zeros({}, at::kDouble)
                   : state[static_cast<size_t>(i)] == 3 ? lower[i]
                                                        : upper[i];
        }
      }
      for (int64_t j = 0; j < m; ++j) {
        K[kDim + j].narrow(0, 0, kDim).copy_(C.equality[j]);
        rhs[kDim + j] = C.equality_rhs[j];
      }
      const auto [solution, info] = at::linalg_solve_ex(K, rhs);
      const at::Tensor y = solution.narrow(0, 0, kDim);
      bool feasible = info.item<int>() == 0 && y.isfinite().all().item<bool>() && (y >= lower - 1e-12).all().item<bool>() &&
                      (y <= upper + 1e-12).all().item<bool>();
      if (feasible && m > 0) feasible = (C.equality.mv(y) - C.equality_rhs).norm().item<double>() < 1e-9;
      if (feasible) {
        const double value = (y.dot(Hx.mv(y)) / 2 - cx.dot(y) + (l1 * y.abs()).sum()).item<double>();
        if (value < lowest - 1e-13) lowest = value, best = y.clone();
      }
      size_t i = 0;
      while (i < pattern.size() && ++pattern[i] == kinds.size()) pattern[i++] = 0;
      if (i == pattern.size()) break;
    }
    return best;
  }
};

// A solver that knows the answer.
class Known final : public InnerSolver {
 public:
  explicit Known(std::function<at::Tensor(const at::Tensor&)> solve) : solve_(std::move(solve)) {}
  std::string_view name() const override { return "known"; }
  InnerSolution solve(const Oracle&, const at::Tensor& x, int64_t, const InnerStart&, const TrajectoryPolicy&) const override {
    InnerSolution solution;
    solution.y = solve_(x.to(at::kDouble)).to(x.scalar_type());
    solution.status = Status::kConverged;
    return solution;
  }
  at::Tensor step_size(const Problem&, const at::Tensor&) const override { throw Error("none"); }

 private:
  std::function<at::Tensor(const at::Tensor&)> solve_;
};

Implicit dense() { return Implicit(std::make_unique<Dense>(DenseOptions{})); }
Implicit cg() { return Implicit(std::make_unique<Cg>(CgOptions{.iterations = 20, .tolerance = 1e-14})); }

int64_t active(const Qp& qp, const FunctionProblem& problem, const at::Tensor& x) {
  const auto lin = AutodiffOracle(problem).linearize_inner(x, qp.solve(x), {});
  return ActiveSet(problem, x, qp.solve(x), *lin, {.relative = 1e-7}).held();
}

// Against differences of the re-solved problem, at a point with both active and free coordinates.
void expect_matches_differences(const Qp& qp, const at::Tensor& x, int64_t held) {
  const FunctionProblem problem = qp.problem();
  const Known solver([&](const at::Tensor& at_x) { return qp.solve(at_x); });
  EXPECT_EQ(active(qp, problem, x), held);
  const auto F = [&](const at::Tensor& at_x) { return qp.f(at_x, qp.solve(at_x)).item<double>(); };
  const at::Tensor expected = differences(F, x);
  for (const Implicit& estimator : {dense(), cg()}) {
    const Hypergradient h = estimate(estimator, problem, solver, x);
    EXPECT_EQ(h.grade, Grade::kOk) << h.message;
    EXPECT_LT(relative_error(h.value, expected), 1e-7) << h.value << expected;
    EXPECT_GT(relative_error(h.direct, expected), 0.02);
  }
  // The neighbour: the same y as if it moved freely.
  FunctionProblem free(
      {.inner_loss = [&](const at::Tensor& at_x, const at::Tensor& y) { return problem.inner_loss(at_x, y, {}); },
       .outer_loss = [&](const at::Tensor& at_x, const at::Tensor& y) { return qp.f(at_x, y); },
       .x0 = x,
       .y0 = x});
  EXPECT_GT(relative_error(estimate(dense(), free, solver, x).value, expected), 0.02);
}

TEST(ActiveSet, DifferentiatesNonNegativeLeastSquares) {
  Qp qp;
  qp.constraints = [](const at::Tensor&) { return InnerConstraints{.lower = at::zeros({}, at::kDouble)}; };
  expect_matches_differences(qp, vec({0.3, -0.7, 0.5, 0.2}), 2);
}

TEST(ActiveSet, DifferentiatesBoundsThatXMoves) {
  Qp qp;
  const double infinity = std::numeric_limits<double>::infinity();
  const at::Tensor open = vec({0.0, 0.0, 0.0, -infinity});
  qp.constraints = [open](const at::Tensor& x) {
    return InnerConstraints{.lower = -0.2 - x * x / 2 + open, .upper = 0.3 + x.exp() / 10};
  };
  expect_matches_differences(qp, vec({0.3, -0.7, 0.5, 0.2}), 2);
}

TEST(ActiveSet, DifferentiatesTheWeightsOfTheLasso) {
  Qp qp;
  qp.constraints = [](const at::Tensor& x) { return InnerConstraints{.l1 = (x - 0.5).exp()}; };
  expect_matches_differences(qp, vec({0.3, -0.7, 0.5, 0.2}), 2);
}

TEST(ActiveSet, DifferentiatesEqualitiesWithMatrixAndRightHandSide) {
  Qp qp;
  const at::Tensor E = numbers(0.6, {2, kDim}), M = numbers(0.7, {2, kDim});
  qp.constraints = [=](const at::Tensor& x) {
    return InnerConstraints{.equality = E * (1 + x / 3), .equality_rhs = M.mv(x) + 0.5};
  };
  expect_matches_differences(qp, vec({0.3, -0.7, 0.5, 0.2}), 0);
}

TEST(ActiveSet, DifferentiatesASimplexWithL1AndAMovingTotal) {
  Qp qp;
  qp.constraints = [](const at::Tensor& x) {
    return InnerConstraints{.lower = at::zeros({}, at::kDouble),
                            .upper = at::full({}, 0.9, at::kDouble) + x[1] / 10,
                            .equality = at::ones({1, kDim}, at::kDouble),
                            .equality_rhs = (1.5 + x[0]).reshape({1}),
                            .l1 = x.exp() / 4};
  };
  expect_matches_differences(qp, vec({0.3, -0.7, 0.5, 0.2}), 1);
}

// The solver of the house finds the same active set and the same derivative.
TEST(ActiveSet, DifferentiatesWhatProximalGradientFinds) {
  Qp qp;
  qp.constraints = [](const at::Tensor& x) { return InnerConstraints{.upper = 0.25 + x[1] / 10, .l1 = (x - 1.5).exp()}; };
  const FunctionProblem problem = qp.problem();
  const at::Tensor x = vec({0.3, -0.7, 0.5, 0.2});
  const ProximalGradient solver({.max_iterations = 20000, .tolerance = 1e-13});
  const auto F = [&](const at::Tensor& at_x) { return qp.f(at_x, qp.solve(at_x)).item<double>(); };
  ASSERT_EQ(active(qp, problem, x), 3);
  const Hypergradient h = estimate(cg(), problem, solver, x);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
  EXPECT_LT(relative_error(h.value, differences(F, x)), 1e-6);
}

// min ½‖y − x‖² + λ‖y‖₁ is the soft threshold: ∂y/∂x = 1 where |x| > λ, else 0; ∂y/∂λ = −sign.
TEST(ActiveSet, IsTheDerivativeOfTheSoftThreshold) {
  const FunctionProblem problem(
      {.inner_loss = [](const at::Tensor& x, const at::Tensor& y) { return (y - x.narrow(0, 0, 3)).square().sum() / 2; },
       .outer_loss =
           [](const at::Tensor&, const at::Tensor& y) {
             return y.dot(vec({1.0, 2.0, 4.0}));
           },
       .x0 = vec({1.5, -2.0, 0.3, 0.5}),
       .y0 = at::zeros({3}, at::kDouble),
       .inner_constraints = [](const at::Tensor& x) { return InnerConstraints{.l1 = x[3]}; }});
  const Known solver([](const at::Tensor& x) {
    const at::Tensor z = x.narrow(0, 0, 3);
    return z.sign() * (z.abs() - x[3]).clamp_min(0);
  });
  const Hypergradient h = estimate(dense(), problem, solver, problem.initial_outer());
  EXPECT_TRUE(at::allclose(h.value, vec({1.0, 2.0, 0.0, -1.0 + 2.0}), 1e-14, 1e-14)) << h.value;
}

// A variational inequality 0 ≤ y ⊥ M y − x ≥ 0 with M not symmetric: on the free coordinates y = M_FF⁻¹ x_F.
TEST(ActiveSet, ServesMapsThatAreNoGradient) {
  const at::Tensor M = at::tensor({4.0, 1.0, -1.0, -2.0, 3.0, 0.5, 1.0, 1.0, 5.0}, at::kDouble).reshape({3, 3});
  const at::Tensor b = vec({1.0, -2.0, 3.0});
  const FunctionProblem problem(
      {.outer_loss = [b](const at::Tensor&, const at::Tensor& y) { return y.dot(b); },
       .x0 = vec({2.0, -4.0, 3.0}),
       .y0 = at::zeros({3}, at::kDouble),
       .optimality_map = [M](const at::Tensor& x, const at::Tensor& y) { return M.mv(y) - x; },
       .inner_constraints = [](const at::Tensor&) { return InnerConstraints{.lower = at::zeros({}, at::kDouble)}; }});
  const at::Tensor F = at::tensor({0, 2}, at::kLong);
  const at::Tensor M_FF = M.index_select(0, F).index_select(1, F);
  const Known solver([&](const at::Tensor& x) {
    return at::zeros({3}, at::kDouble).index_copy(0, F, at::linalg_solve(M_FF, x.index_select(0, F)));
  });
  const at::Tensor y = solver.solve(AutodiffOracle(problem), problem.initial_outer(), 0, {}, {}).y;
  ASSERT_TRUE(y.ge(0).all().item<bool>() && (M.mv(y) - problem.initial_outer())[1].item<double>() > 0.1);
  const at::Tensor expected = at::zeros({3}, at::kDouble).index_copy(0, F, at::linalg_solve(M_FF.t(), b.index_select(0, F)));
  const Hypergradient h = estimate(dense(), problem, solver, problem.initial_outer());
  EXPECT_LT(relative_error(h.value, expected), 1e-13);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
}

TEST(ActiveSet, RefusesAKinkAndSaysWhere) {
  const FunctionProblem problem(
      {.inner_loss = [](const at::Tensor& x, const at::Tensor& y) { return (y - x).square().sum() / 2; },
       .outer_loss = [](const at::Tensor&, const at::Tensor& y) { return y.sum(); },
       .x0 = vec({1.0, 0.0, -1.0}),
       .y0 = at::zeros({3}, at::kDouble),
       .inner_constraints = [](const at::Tensor&) { return InnerConstraints{.lower = at::zeros({}, at::kDouble)}; }});
  const Known solver([](const at::Tensor& x) { return x.clamp_min(0); });
  for (const double nearly : {0.0, 1e-10, -1e-10}) {
    const Hypergradient h = estimate(cg(), problem, solver, vec({1.0, nearly, -1.0}));
    EXPECT_EQ(h.grade, Grade::kBad);
    EXPECT_THAT(h.message, HasSubstr("Strict complementarity fails at y[1]:"));
  }
  for (const double off : {1e-4, -1e-4}) {
    const Hypergradient h = estimate(cg(), problem, solver, vec({1.0, off, -1.0}));
    EXPECT_EQ(h.grade, Grade::kOk) << h.message;
    EXPECT_TRUE(at::allclose(h.value, vec({1.0, off > 0 ? 1.0 : 0.0, 0.0}), 1e-13, 1e-13)) << h.value;
  }
}

// A solution as a solver leaves it, with what it says of itself.
InnerSolution left_at(const at::Tensor& y, double stationarity) {
  InnerSolution solution;
  solution.y = y;
  solution.status = Status::kConverged;
  solution.stationarity = stationarity;
  solution.step_size = at::ones({}, y.options());
  return solution;
}

// min ½‖y − x‖² over y ≥ 0, with y[1] held by a force of 5e-3, and y[2], which a force of 1 holds, 1e-4 off its bound.
TEST(ActiveSet, TakesNoMultiplierForBetterKnownThanTheSolveIs) {
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    const FunctionProblem problem(
        {.inner_loss = [](const at::Tensor& x, const at::Tensor& y) { return (y - x).square().sum() / 2; },
         .outer_loss = [](const at::Tensor&, const at::Tensor& y) { return y.sum(); },
         .x0 = vec({1.0, -5e-3, -1.0}).to(dtype),
         .y0 = at::zeros({3}, dtype),
         .inner_constraints = [](const at::Tensor& x) { return InnerConstraints{.lower = at::zeros({}, x.options())}; }});
    const AutodiffOracle oracle(problem);
    const Known solver([](const at::Tensor& x) { return x.clamp_min(0); });
    const at::Tensor x = problem.initial_outer();
    const auto grade = [&](double stationarity, at::Tensor* value) {
      InnerSolution solution = left_at(vec({1.0, 0.0, 1e-4}).to(dtype), stationarity);
      const Hypergradient h = dense().estimate({oracle, solver, x, solution, {}, {}, {}});
      *value = h.value.to(at::kDouble);
      if (h.grade == Grade::kWarn) {
        EXPECT_THAT(h.message, HasSubstr("At y[1] y lies on a bound or at zero"));
      }
      return h.grade;
    };
    at::Tensor value;
    EXPECT_EQ(grade(1e-3, &value), Grade::kWarn);
    EXPECT_TRUE(at::allclose(value, vec({1.0, 0.0, 0.0}), 1e-6, 1e-6)) << value;
    EXPECT_EQ(grade(3e-4, &value), Grade::kOk);
    EXPECT_TRUE(at::allclose(value, vec({1.0, 0.0, 0.0}), 1e-6, 1e-6)) << value;
    if (dtype == at::kFloat) continue;  // there 1e-4 of the largest y is rounding
    grade(1e-5, &value);
    EXPECT_TRUE(at::allclose(value, vec({1.0, 0.0, 1.0}), 1e-6, 1e-6)) << value;
  }
}

TEST(ActiveSet, ServesFloat) {
  Qp qp;
  qp.constraints = [](const at::Tensor& x) { return InnerConstraints{.upper = 0.25 + x[1] / 10, .l1 = (x - 1.5).exp()}; };
  const at::Tensor x = vec({0.3, -0.7, 0.5, 0.2});
  const FunctionProblem in_double = qp.problem();
  const at::Tensor exact = estimate(dense(), in_double, ProximalGradient({.max_iterations = 20000, .tolerance = 1e-13}), x).value;
  for (at::Tensor* data : {&qp.A, &qp.B, &qp.c0, &qp.d, &qp.k}) *data = data->to(at::kFloat);
  const FunctionProblem in_float = qp.problem(at::kFloat);
  const Hypergradient h =
      estimate(cg(), in_float, ProximalGradient({.max_iterations = 20000, .tolerance = 1e-4}), x.to(at::kFloat));
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
  EXPECT_LT(relative_error(h.value.to(at::kDouble), exact), 1e-3);  // H ⪰ I, and the solve leaves 1e-4
  EXPECT_GT(relative_error(h.direct.to(at::kDouble), exact), 0.02);
}

TEST(ActiveSet, RefusesAKinkInFloat) {
  const FunctionProblem problem(
      {.inner_loss = [](const at::Tensor& x, const at::Tensor& y) { return (y - x).square().sum() / 2; },
       .outer_loss = [](const at::Tensor&, const at::Tensor& y) { return y.sum(); },
       .x0 = at::zeros({3}, at::kFloat),
       .y0 = at::zeros({3}, at::kFloat),
       .inner_constraints = [](const at::Tensor& x) { return InnerConstraints{.lower = at::zeros({}, x.options())}; }});
  const Known solver([](const at::Tensor& x) { return x.clamp_min(0); });
  for (const double nearly : {0.0, 1e-6, -1e-6}) {
    EXPECT_EQ(estimate(cg(), problem, solver, vec({1.0, nearly, -1.0}).to(at::kFloat)).grade, Grade::kBad) << nearly;
  }
  for (const double off : {1e-2, -1e-2}) {
    const Hypergradient h = estimate(cg(), problem, solver, vec({1.0, off, -1.0}).to(at::kFloat));
    EXPECT_EQ(h.grade, Grade::kOk) << h.message;
    EXPECT_NEAR(h.value[1].item<double>(), off > 0 ? 1.0 : 0.0, 1e-6);
  }
}

TEST(ActiveSet, RefusesTheKinkOfTheLassoAndDependentEqualities) {
  Qp lasso;
  lasso.constraints = [](const at::Tensor& x) { return InnerConstraints{.l1 = x[0] + 100.0}; };
  const at::Tensor x = vec({0.3, -0.7, 0.5, 0.2});
  // The least weight that holds every coordinate at zero is max |c|: just there, the largest one is at its kink.
  const double edge = lasso.c(x).abs().max().item<double>();
  lasso.constraints = [edge](const at::Tensor&) { return InnerConstraints{.l1 = at::full({}, edge, at::kDouble)}; };
  const Known zeros([](const at::Tensor& at_x) { return at::zeros_like(at_x); });
  const Hypergradient h = estimate(cg(), lasso.problem(), zeros, x);
  EXPECT_EQ(h.grade, Grade::kBad);
  EXPECT_THAT(h.message, HasSubstr("Strict complementarity"));

  Qp twice;
  const at::Tensor E = numbers(0.6, {1, kDim});
  twice.constraints = [E](const at::Tensor& at_x) {
    return InnerConstraints{.equality = at::cat({E, 2 * E}), .equality_rhs = at::stack({at_x[0], 2 * at_x[0]})};
  };
  const Hypergradient dependent = estimate(cg(), twice.problem(), zeros, vec({0.0, 0.1, 0.2, 0.3}));
  EXPECT_EQ(dependent.grade, Grade::kBad);
  EXPECT_THAT(dependent.message, HasSubstr("not independent"));
}

TEST(ActiveSet, IsWhatOtherEstimatorsObjectToLackingIt) {
  Qp qp;
  qp.constraints = [](const at::Tensor&) { return InnerConstraints{.lower = at::zeros({}, at::kDouble)}; };
  const FunctionProblem problem = qp.problem();
  PlainRule rule;
  const RuleSolver solver = rule_solver(rule, 3);
  for (const char* name : {"unrolled", "one-step", "t1-t2", "identity", "darts"}) {
    Section section = Config::parse("", "test.toml").root();
    EXPECT_THAT(make_estimator(name, section)->objections(problem, solver),
                ::testing::Contains(HasSubstr("as if y moved freely")))
        << name;
  }
}

// The two sides of one Jacobian, and blocks.
TEST(ActiveSet, IsALinearizationWithBothSidesAlike) {
  Qp qp;
  qp.constraints = [](const at::Tensor& x) {
    return InnerConstraints{
        .lower = -0.1 - x * x / 5, .equality = at::ones({1, kDim}, at::kDouble) + x, .equality_rhs = x.narrow(0, 0, 1)};
  };
  const FunctionProblem problem = qp.problem();
  const at::Tensor x = vec({0.3, -0.7, 0.5, 0.2}), y = qp.solve(x), u = numbers(0.8, {kDim}), v = numbers(0.9, {kDim}),
                   w = numbers(1.0, {kDim});
  const auto lin = AutodiffOracle(problem).linearize_inner(x, y, {});
  ActiveSet r(problem, x, y, *lin, {.relative = 1e-7});
  EXPECT_EQ(r.kink(), "");
  EXPECT_GT(r.held(), 0);
  EXPECT_LT(r.residual().norm().item<double>(), 1e-12);
  EXPECT_NEAR(r.jvp_y(v).dot(w).item<double>(), r.vjp(w).y.dot(v).item<double>(), 1e-12);
  EXPECT_NEAR(r.jvp_x(u).dot(w).item<double>(), r.vjp(w).x.dot(u).item<double>(), 1e-12);
  EXPECT_LT(relative_error(r.jvp_y(at::stack({v, w}))[1], r.jvp_y(w)), 1e-14);
  EXPECT_LT(relative_error(r.vjp(at::stack({v, w})).x[1], r.vjp(w).x), 1e-14);
  EXPECT_LT(relative_error(r.jvp_x(at::stack({v, w}))[0], r.jvp_x(v)), 1e-14);
  // dy*/dx of its own implicit function theorem is that of the differences.
  at::Tensor J = at::empty({kDim, kDim}, at::kDouble), K = J.clone(), expected = J.clone();
  for (int64_t i = 0; i < kDim; ++i) {
    const at::Tensor e = at::eye(kDim, at::kDouble)[i];
    J.select(1, i).copy_(r.jvp_y(e));
    K.select(1, i).copy_(r.jvp_x(e));
    expected.select(1, i).copy_((qp.solve(x + 1e-5 * e) - qp.solve(x - 1e-5 * e)) / 2e-5);
  }
  EXPECT_LT(relative_error(-at::linalg_solve(J, K), expected), 1e-7);
}

}  // namespace
}  // namespace bilevel::active_set_test
