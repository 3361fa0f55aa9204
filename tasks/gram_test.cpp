#include "tasks/gram.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/linear/cg.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "tasks/supervised.h"

namespace bilevel::gram_test {
namespace {

constexpr int64_t kN = 60, kD = 5, kC = 3;

Draw draw(int64_t t) { return Stream(11, "gram test").at(t); }

double number(const at::Tensor& tensor) { return tensor.item<double>(); }

double distance(const at::Tensor& a, const at::Tensor& b) { return number((a - b).norm() / b.norm()); }

/// M of the header on flat [W | b], entry by entry.
at::Tensor dense(const at::Tensor& X, double curvature, double ridge, bool bias) {
  const int64_t d = X.size(1), size = kC * (d + (bias ? 1 : 0));
  const at::Tensor G = X.t().mm(X) / static_cast<double>(X.size(0)) * curvature, mean = X.mean(0) * curvature;
  at::Tensor M = at::zeros({size, size}, at::kDouble);
  for (int64_t c = 0; c < kC; ++c) {
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t j = 0; j < d; ++j) M[c * d + i][c * d + j] = G[i][j] + (i == j ? ridge : 0.0);
      if (bias) M[c * d + i][kC * d + c] = M[kC * d + c][c * d + i] = mean[i];
    }
    if (bias) M[kC * d + c][kC * d + c] = curvature + ridge;
  }
  return M;
}

TEST(Gram, SolvesWithTheCurvatureOfEachClassOnTheFlatLayout) {
  const at::Tensor X = draw(0).normal({kN, kD}) + 0.7;
  for (const bool bias : {true, false}) {
    const at::Tensor M = dense(X, 0.25, 0.1, bias);
    const at::Tensor v = draw(1).normal({M.size(0)});
    const at::Tensor solved = Gram(X, bias).inverse(kC, 0.25, 0.1)(v);
    // The bias has 1e-3 of the curvature as a ridge of its own, and all of M's diagonal a millionth of its mean.
    EXPECT_LT(distance(M.mv(solved), v), bias ? 2e-3 : 1e-5) << bias;
    EXPECT_LT(distance(solved, at::linalg_solve(M, v)), bias ? 5e-3 : 1e-5) << bias;
    EXPECT_GT(distance(solved, v / 0.35), 0.1) << "the identity, scaled, is no inverse here";
  }
}

TEST(Gram, RoundsTheCurvatureToAPowerOfTwo) {
  const at::Tensor X = draw(0).normal({kN, kD}), v = draw(1).normal({kC * (kD + 1)});
  const Gram gram(X, true);
  EXPECT_TRUE(gram.inverse(kC, 0.27, 0.1)(v).equal(gram.inverse(kC, 0.25, 0.1)(v)));
  EXPECT_GT(distance(gram.inverse(kC, 0.5, 0.1)(v), gram.inverse(kC, 0.25, 0.1)(v)), 0.1);
  EXPECT_GT(distance(gram.inverse(kC, 0.25, 0.2)(v), gram.inverse(kC, 0.25, 0.1)(v)), 0.05);
}

TEST(Gram, IsSymmetricAndPositiveDefiniteEvenForDependentFeatures) {
  at::Tensor X = draw(0).normal({kN, kD});
  X = at::cat({X, X.narrow(1, 0, 2), at::zeros({kN, 1}, at::kDouble)}, 1);  // two columns twice, and one that is empty
  const auto inverse = Gram(X, true).inverse(kC, 0.25, 1e-9);
  const int64_t size = kC * (X.size(1) + 1);
  std::vector<at::Tensor> columns;
  for (int64_t j = 0; j < size; ++j) columns.push_back(inverse(at::eye(size, at::kDouble)[j]));
  const at::Tensor inverse_matrix = at::stack(columns);
  EXPECT_LT(distance(inverse_matrix, inverse_matrix.t()), 1e-9);
  EXPECT_GT(number(at::linalg_eigvalsh(inverse_matrix).min()), 0.0);
}

/// The same problem without its preconditioner.
class Plain final : public SupervisedProblem {
 public:
  using SupervisedProblem::SupervisedProblem;
  Preconditioner inner_preconditioner(const at::Tensor&) const override { return {}; }
};

SupervisedOptions options() {
  SupervisedOptions options;
  options.dtype = at::kDouble;
  options.hyperparameters = {{.kind = Hyperparameter::Kind::kSourceWeight}};
  options.outputs = kC;
  options.l2 = 1e-3;
  return options;
}

/// Features of very different scales, as tables and images have them.
SupervisedData data() {
  const at::Tensor scale = at::logspace(-1, 1, kD, 10.0, at::kDouble);
  SupervisedData data;
  data.inner = {draw(0).normal({kN, kD}) * scale + 0.5, draw(1).integers(kC, {kN})};
  data.outer = {draw(2).normal({kN, kD}) * scale + 0.5, draw(3).integers(kC, {kN})};
  data.sources = at::arange(kN).remainder(4);
  return data;
}

TEST(Gram, LetsLbfgsReachTheSameMinimumInFewerGradients) {
  const SupervisedProblem with(options(), data());
  const Plain without(options(), data());
  LbfgsOptions lbfgs;
  lbfgs.tolerance = 1e-9;
  lbfgs.max_iterations = 5000;
  std::vector<at::Tensor> y;
  std::vector<int64_t> gradients;
  for (const Problem* problem : {static_cast<const Problem*>(&with), static_cast<const Problem*>(&without)}) {
    const AutodiffOracle autodiff(*problem);
    const CountedOracle oracle(autodiff);
    const at::Tensor x = problem->initial_outer();
    const InnerSolution solution = Lbfgs(lbfgs).solve(oracle, x, 0, {problem->initial_inner(x, 0)}, {});
    EXPECT_EQ(solution.status, Status::kConverged) << solution.message;
    y.push_back(solution.y);
    gradients.push_back(oracle.cost().gradients);
  }
  // All biases may rise alike.
  for (at::Tensor& one : y)
    one = at::cat({one.narrow(0, 0, kC * kD), one.narrow(0, kC * kD, kC) - one.narrow(0, kC * kD, kC).mean()});
  EXPECT_LT(distance(y[0], y[1]), 1e-5);
  EXPECT_GT(number(y[0].norm()), 0.1);
  EXPECT_LT(gradients[0], gradients[1]);
}

TEST(Gram, LetsConjugateGradientsReachTheSameHypergradientInFewerProducts) {
  const SupervisedProblem problem(options(), data());
  const AutodiffOracle autodiff(problem);
  LbfgsOptions lbfgs;
  lbfgs.tolerance = 1e-9;
  const Lbfgs solver(lbfgs);
  const at::Tensor x = problem.initial_outer();
  InnerSolution solution = solver.solve(autodiff, x, 0, {problem.initial_inner(x, 0)}, {});
  const auto estimate = [&](bool precondition, int64_t iterations, int64_t& products) {
    CgOptions cg;
    cg.iterations = iterations;
    cg.tolerance = 1e-10;
    ImplicitOptions implicit;
    implicit.precondition = precondition;
    const CountedOracle oracle(autodiff);
    const Hypergradient h = Implicit(std::make_unique<Cg>(cg), implicit).estimate({oracle, solver, x, solution, {}, {}, {}});
    products = oracle.cost().hvps;
    EXPECT_LT(h.certificate.relative_residual.value_or(1), 1e-9) << precondition;
    return h.value;
  };
  int64_t with_products = 0, without_products = 0;
  const at::Tensor with = estimate(true, 200, with_products), without = estimate(false, 200, without_products);
  EXPECT_LT(distance(with, without), 1e-7);
  EXPECT_GT(number(with.norm()), 1e-4);
  EXPECT_LT(with_products, without_products);
}

}  // namespace
}  // namespace bilevel::gram_test
