#include "bilevel/oracle/output_space.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/oracle/finite_difference.h"
#include "bilevel/oracle/micro_batch.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::output_space_test {
namespace {

at::Tensor gradient_of(const at::Tensor& loss, const at::Tensor& by, bool create_graph = false) {
  return torch::autograd::grad({loss}, {by}, {}, /*retain_graph=*/create_graph, create_graph)[0];
}

at::Tensor variable(const at::Tensor& value) { return value.detach().clone().requires_grad_(true); }

double relative(const at::Tensor& a, const at::Tensor& b) { return ((a - b).norm() / b.norm()).item<double>(); }

struct Point {
  const MlpProblem problem;
  at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  at::Tensor w = Stream(1, "w").at(0).normal({y.size(0)}), v = Stream(1, "v").at(0).normal({7});
  // A few samples in any order; the outer ones are others.
  OutputSamples some{.inner = {.samples = at::tensor({4, 2, 11, 7, 15}, at::kLong)},
                     .outer = {.samples = at::tensor({3, 9, 1}, at::kLong)},
                     .inner_weight = 0.7,
                     .outer_weight = 1.3};
};

// The Hessian of g by z formed element by element, and the adjoint's loss written out.
at::Tensor adjoint_loss_written_out(const Point& p, const OutputSamples& s, const at::Tensor& a, const at::Tensor& outer_a) {
  const at::Tensor z = variable(p.problem.inner_outputs(p.y, s.inner));
  const at::Tensor slope = gradient_of(p.problem.inner_loss_of_outputs(p.x, p.y, z, s.inner), z, /*create_graph=*/true);
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < z.size(0); ++i) rows.push_back(torch::autograd::grad({slope[i]}, {z}, {}, true)[0]);
  const at::Tensor zo = variable(p.problem.outer_outputs(p.y, s.outer));
  const at::Tensor d = gradient_of(p.problem.outer_loss_of_outputs(p.x, p.y, zo, s.outer), zo);
  return 0.5 * s.inner_weight * a.dot(at::stack(rows).mv(a)) + s.outer_weight * outer_a.dot(d);
}

TEST(OutputSpace, GivesTheAdjointsLossAndItsGradient) {
  const Point p;
  const auto space = AutodiffOracle(p.problem).output_space(p.x, p.y, p.some);
  const Gradients E = space->adjoint_loss(p.w);
  const at::Tensor w = variable(p.w);
  const at::Tensor expected =
      adjoint_loss_written_out(p, p.some, p.problem.inner_outputs(w, p.some.inner), p.problem.outer_outputs(w, p.some.outer));
  EXPECT_NEAR(E.value.item<double>(), expected.item<double>(), 1e-12 * std::abs(expected.item<double>()));
  EXPECT_LT(relative(E.y, gradient_of(expected, w)), 1e-12);
  EXPECT_FALSE(E.y.requires_grad());
}

// ½ on the quadratic term, its own samples for each term: what a port forgets silently.
TEST(OutputSpace, TakesTheCurvatureOnInnerAndTheSlopeOnOuterSamples) {
  const Point p;
  OutputSamples inner = p.some, outer = p.some;
  inner.outer_weight = 0;
  outer.inner_weight = 0;
  const AutodiffOracle oracle(p.problem);
  const double quadratic = oracle.output_space(p.x, p.y, inner)->adjoint_loss(p.w).value.item<double>();
  const double linear = oracle.output_space(p.x, p.y, outer)->adjoint_loss(p.w).value.item<double>();
  const at::Tensor a = p.problem.inner_outputs(p.w, p.some.inner), o = p.problem.outer_outputs(p.w, p.some.outer);
  const at::Tensor weights = p.x.narrow(0, 0, 20).sigmoid().index_select(0, p.some.inner.samples);
  EXPECT_NEAR(quadratic, 0.5 * 0.7 * (weights * a * a).mean().item<double>(), 1e-12);
  Point q;
  q.some.outer.samples = at::tensor({3, 9, 2}, at::kLong);
  EXPECT_GT(std::abs(linear), 1e-3);
  EXPECT_GT(std::abs(linear - oracle.output_space(q.x, q.y, q.some)->adjoint_loss(q.w).value.item<double>() + quadratic), 1e-3);
}

TEST(OutputSpace, CrossesTheSlopeOfGWithAnAdjointThatStands) {
  const Point p;
  const auto space = AutodiffOracle(p.problem).output_space(p.x, p.y, p.some);
  const at::Tensor x = variable(p.x), z = variable(p.problem.inner_outputs(p.y, p.some.inner));
  const at::Tensor slope = gradient_of(p.problem.inner_loss_of_outputs(x, p.y, z, p.some.inner), z, /*create_graph=*/true);
  const at::Tensor a = p.problem.inner_outputs(p.w, p.some.inner);
  EXPECT_LT(relative(space->cross(p.w), 0.7 * gradient_of(slope.dot(a), x)), 1e-12);
}

// The head of a model whose other layers stand: its matrix is the block of ∂yy g, since outputs are linear in it.
TEST(OutputSpace, HasTheHessiansBlockOfTheLastLayerAsMatrix) {
  const Point p;
  const at::Tensor positions = output_layer_positions(p.problem);
  ASSERT_EQ(positions.size(0), 7);
  const auto space = AutodiffOracle(p.problem).output_space(p.x, p.y, p.some);
  const OutputSpace::Quadratic head = space->head();
  const at::Tensor x = variable(p.x), y = variable(p.y);
  const at::Tensor r = 0.7 * gradient_of(p.problem.inner_loss(x, y, p.some.inner), y, /*create_graph=*/true);
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < 7; ++i) {
    rows.push_back(torch::autograd::grad({r[positions[i].item<int64_t>()]}, {y}, {}, true)[0].index_select(0, positions));
  }
  EXPECT_LT(relative(head.matrix, at::stack(rows)), 1e-12);
  const at::Tensor outer = 1.3 * gradient_of(p.problem.outer_loss(p.x, y, p.some.outer), y);
  EXPECT_LT(relative(head.linear, outer.index_select(0, positions)), 1e-12);
  const at::Tensor v = at::zeros_like(p.y).index_copy_(0, positions, p.v);
  EXPECT_LT(relative(space->head_cross(p.v), torch::autograd::grad({r}, {x}, {v})[0]), 1e-12);
}

/// z = W φ + b with three outputs, the losses softmax: blocks of C_s that are no multiples of I.
class Softmax final : public TestProblem {
 public:
  Softmax() {
    Draw draw = Stream(0, "softmax head").at(0);
    X_ = draw.normal({4, 9});
    outer_X_ = draw.normal({4, 6});
    outer_layout_.add("weights", {9});
    inner_layout_.add("bias", {3}).add("W", {3, 4});  // b first, to be found by name
    x0_ = draw.normal({9});
    y0_ = draw.normal({15});
  }
  bool has_outputs() const override { return true; }
  bool has_outer_outputs() const override { return true; }
  std::optional<OutputLayer> output_layer() const override { return OutputLayer{"W", "bias"}; }
  at::Tensor inner_features(const at::Tensor&, const Batch&) const override { return X_; }
  at::Tensor outer_features(const at::Tensor&, const Batch&) const override { return outer_X_; }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch&) const override { return logits(y, X_); }
  at::Tensor outer_outputs(const at::Tensor& y, const Batch&) const override { return logits(y, outer_X_); }
  at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor&, const at::Tensor& z, const Batch&) const override {
    return (x.sigmoid() * (z.logsumexp(0) - z[0])).mean();
  }
  at::Tensor outer_loss_of_outputs(const at::Tensor&, const at::Tensor&, const at::Tensor& z, const Batch&) const override {
    return (z.logsumexp(0) - z[1]).mean();
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return inner_loss_of_outputs(x, y, inner_outputs(y, b), b);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return outer_loss_of_outputs(x, y, outer_outputs(y, b), b);
  }

 private:
  at::Tensor logits(const at::Tensor& y, const at::Tensor& X) const {
    const auto parts = inner_layout_.split(y);
    return parts[1].mm(X) + parts[0].unsqueeze(1);
  }
  at::Tensor X_, outer_X_;
};

TEST(OutputSpace, HasTheHessiansBlockWithSeveralOutputsToo) {
  const Softmax problem;
  const at::Tensor x = variable(problem.initial_outer()), y = variable(problem.initial_inner(x, 0));
  const at::Tensor positions = output_layer_positions(problem);
  EXPECT_EQ(positions[0].item<int64_t>(), 3);
  EXPECT_EQ(positions[12].item<int64_t>(), 0);
  const auto space = AutodiffOracle(problem).output_space(x, y, {});
  const at::Tensor r = gradient_of(problem.inner_loss(x, y, {}), y, /*create_graph=*/true);
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < 15; ++i) {
    rows.push_back(torch::autograd::grad({r[positions[i].item<int64_t>()]}, {y}, {}, true)[0].index_select(0, positions));
  }
  EXPECT_LT(relative(space->head().matrix, at::stack(rows)), 1e-12);
  const at::Tensor v = Stream(1, "v").at(0).normal({15});
  const at::Tensor in_y = at::zeros({15}, at::kDouble).index_copy_(0, positions, v);
  EXPECT_LT(relative(space->head_cross(v), torch::autograd::grad({r}, {x}, {in_y}, true)[0]), 1e-12);
  const at::Tensor sums = space->compare(in_y, v);  // the same function twice
  EXPECT_NEAR(sums[1].item<double>(), sums[0].item<double>(), 1e-12 * sums[0].item<double>());
  EXPECT_NEAR(sums[2].item<double>(), sums[0].item<double>(), 1e-12 * sums[0].item<double>());
}

void expect_same(OutputSpace& a, OutputSpace& b, const Point& p) {
  const Gradients E = a.adjoint_loss(p.w), F = b.adjoint_loss(p.w);
  EXPECT_LT(relative(E.value, F.value), 1e-12);
  EXPECT_LT(relative(E.y, F.y), 1e-12);
  EXPECT_LT(relative(a.cross(p.w), b.cross(p.w)), 1e-12);
  EXPECT_LT(relative(a.head_cross(p.v), b.head_cross(p.v)), 1e-12);
  const OutputSpace::Quadratic A = a.head(), B = b.head();
  EXPECT_LT(relative(A.matrix, B.matrix), 1e-12);
  EXPECT_LT(relative(A.linear, B.linear), 1e-12);
  EXPECT_LT(relative(a.compare(p.w, p.v), b.compare(p.w, p.v)), 1e-12);
}

TEST(OutputSpace, IsTheSameInMicroBatchesAndByAnOracleOfDifferences) {
  const Point p;
  const AutodiffOracle oracle(p.problem);
  for (const OutputSamples& samples : {OutputSamples{}, p.some}) {
    const auto whole = oracle.output_space(p.x, p.y, samples);
    for (const int64_t size : {2, 4, 30}) expect_same(*MicroBatchOracle(oracle, size).output_space(p.x, p.y, samples), *whole, p);
    expect_same(*FiniteDifferenceOracle(oracle).output_space(p.x, p.y, samples), *whole, p);
  }
}

TEST(OutputSpace, CountsNoProductWithTheHessian) {
  const Point p;
  const AutodiffOracle plain(p.problem);
  const CountedOracle oracle(plain);
  const auto space = oracle.output_space(p.x, p.y, {});
  expect_same(*space, *plain.output_space(p.x, p.y, {}), p);
  EXPECT_EQ(oracle.cost().hvps, 0);
  EXPECT_EQ(oracle.cost().gradients, 2);
  EXPECT_EQ(oracle.cost().cross_products, 2);
  EXPECT_EQ(oracle.cost().forwards, 6);
}

TEST(OutputSpace, IsRefusedWhereThereAreNoOutputs) {
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer();
  EXPECT_THROW(AutodiffOracle(problem).output_space(x, problem.initial_inner(x, 0), {}), Error);
  EXPECT_THROW(output_layer_positions(problem), Error);
}

}  // namespace
}  // namespace bilevel::output_space_test
