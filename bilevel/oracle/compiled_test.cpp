#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/oracle/choice.h"
#include "bilevel/oracle/compiled.h"

namespace bilevel::compiled_test {
namespace {

// g = Σ_i ¼ (A y − e^x)_i⁴,  f = ½ ‖y − x‖²: what a compiler would make of them is written out by hand below.
class Quartic : public Problem {
 public:
  Quartic() {
    outer_.add("x", {5});
    inner_.add("y", {3});
  }
  const Layout& outer_layout() const override { return outer_; }
  const Layout& inner_layout() const override { return inner_; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    const at::Tensor e = a_.mv(y) - x.exp();
    return (batch.full() ? e : e.index_select(0, batch.samples)).pow(4).sum() / 4;
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return (y - x.narrow(0, 0, 3)).pow(2).sum() / 2;
  }
  bool draws_random_numbers() const override { return random_; }
  int64_t inner_problems() const override { return problems_; }
  at::Tensor a_ = Stream(1, "a").at(0).normal({5, 3});
  bool random_ = false;
  int64_t problems_ = 1;

 private:
  Layout outer_, inner_;
};

// Programs for full batches alone. Inputs as `Derivative` says: a direction, x, y, the constant A, what was saved.
class ByHand : public Programs {
 public:
  explicit ByHand(at::Tensor a, double factor = 1) : a_(std::move(a)), factor_(factor) {}

  std::optional<CompiledProgram> find(Derivative derivative, const at::Tensor&, const at::Tensor&,
                                      const Batch& batch) const override {
    if (!batch.full()) return std::nullopt;
    ++asked_;
    return CompiledProgram{std::make_shared<Program>(std::string(to_string(derivative)), function(derivative)), {a_}};
  }
  mutable int64_t asked_ = 0, ran_ = 0;

 private:
  Program::Function function(Derivative derivative) const {
    return [this, derivative](std::vector<at::Tensor> in) -> std::vector<at::Tensor> {
      ++ran_;
      const bool is_product = derivative == Derivative::kHvp || derivative == Derivative::kVjp || derivative == Derivative::kJvpX;
      const at::Tensor x = in[is_product], y = in[is_product + 1], A = in[is_product + 2];
      if (derivative == Derivative::kOuter) {
        const at::Tensor e = y - x.narrow(0, 0, 3);
        return {e.pow(2).sum() / 2, factor_ * e, at::cat({-e, at::zeros_like(x.narrow(0, 3, 2))})};
      }
      if (!is_product) {
        const at::Tensor e = A.mv(y) - x.exp();
        return {e.pow(4).sum() / 4, factor_ * A.t().mv(e.pow(3)), 3 * e * e};
      }
      const at::Tensor curvature = in[4];
      if (derivative == Derivative::kJvpX) return {-factor_ * A.t().mv(curvature * x.exp() * in[0])};
      const at::Tensor Av = curvature * A.mv(in[0]);
      if (derivative == Derivative::kHvp) return {factor_ * A.t().mv(Av)};
      return {A.t().mv(Av), -factor_ * x.exp() * Av};
    };
  }
  const at::Tensor a_;
  const double factor_;  // 1 would be right
};

struct CompiledTest : testing::Test {
  Quartic problem;
  std::shared_ptr<ByHand> programs = std::make_shared<ByHand>(problem.a_);
  CompiledOracle oracle{problem, programs};
  AutodiffOracle autodiff{problem};
  at::Tensor x = Stream(2, "x").at(0).normal({5}) / 2, y = Stream(2, "y").at(0).normal({3});
  at::Tensor vs = Stream(2, "v").at(0).normal({2, 3}), us = Stream(2, "u").at(0).normal({2, 5});
  Batch half = [] {
    Batch batch;
    batch.samples = at::tensor({0, 4}, at::kLong);
    return batch;
  }();
};

void expect_near(const at::Tensor& found, const at::Tensor& expected) {
  ASSERT_EQ(found.sizes(), expected.sizes());
  EXPECT_LT((found - expected).norm().item<double>(), 1e-12 * expected.norm().item<double>());
  EXPECT_GT(expected.norm().item<double>(), 0.0);
}

TEST_F(CompiledTest, AnswersByItsProgramsWhatAutodiffAnswers) {
  const auto lin = oracle.linearize_inner(x, y, {}), exact = autodiff.linearize_inner(x, y, {});
  expect_near(lin->value(), exact->value());
  expect_near(lin->residual(), exact->residual());
  expect_near(lin->jvp_y(vs[0]), exact->jvp_y(vs[0]));
  expect_near(lin->vjp(vs[0]).y, exact->vjp(vs[0]).y);
  expect_near(lin->vjp(vs[0]).x, exact->vjp(vs[0]).x);
  expect_near(lin->jvp_x(us[0]), exact->jvp_x(us[0]));
  expect_near(oracle.inner(x, y, {}).y, autodiff.inner(x, y, {}).y);
  expect_near(oracle.outer(x, y, {}).y, autodiff.outer(x, y, {}).y);
  expect_near(oracle.outer(x, y, {}).x, autodiff.outer(x, y, {}).x);
  EXPECT_EQ(oracle.left_to_autodiff(), 0);
  EXPECT_EQ(programs->asked_, 6);  // each once
}

TEST_F(CompiledTest, DoesBlocksRowByRow) {
  const auto lin = oracle.linearize_inner(x, y, {}), exact = autodiff.linearize_inner(x, y, {});
  expect_near(lin->jvp_y(vs), exact->jvp_y(vs));
  expect_near(lin->vjp(vs).y, exact->vjp(vs).y);
  expect_near(lin->vjp(vs).x, exact->vjp(vs).x);
  expect_near(lin->jvp_x(us), exact->jvp_x(us));
}

TEST_F(CompiledTest, AProductRunsOneProgramAndNoLinearizationAgain) {
  const auto lin = oracle.linearize_inner(x, y, {});
  lin->jvp_y(vs[0]);
  programs->ran_ = 0;
  lin->jvp_y(vs[1]);
  EXPECT_EQ(programs->ran_, 1);
}

TEST_F(CompiledTest, LeavesToAutodiffWhatHasNoProgramAndCountsIt) {
  const auto lin = oracle.linearize_inner(x, y, half);
  EXPECT_TRUE(at::equal(lin->vjp(vs[0]).x, autodiff.linearize_inner(x, y, half)->vjp(vs[0]).x));
  EXPECT_TRUE(at::equal(oracle.inner(x, y, half).y, autodiff.inner(x, y, half).y));
  EXPECT_EQ(oracle.left_to_autodiff(), 2);
}

TEST_F(CompiledTest, RefusesProgramsOfOtherLosses) {
  const CompiledOracle wrong(problem, std::make_shared<ByHand>(problem.a_, 1.001));
  EXPECT_THROW(wrong.inner(x, y, {}), Error);
  EXPECT_THROW(wrong.outer(x, y, {}), Error);
  EXPECT_THROW(wrong.linearize_inner(x, y, {}), Error);
  const CompiledOracle stale(problem, std::make_shared<ByHand>(problem.a_ + 0.01));
  EXPECT_THROW(stale.inner(x, y, {}), Error);
}

TEST_F(CompiledTest, RefusesWhatCannotBeCompiled) {
  EXPECT_THROW(make_oracle(problem, "compiled"), Error);
  problem.random_ = true;
  EXPECT_THROW(make_oracle(problem, "compiled", programs), Error);
  problem.random_ = false;
  problem.problems_ = 2;
  EXPECT_THROW(make_oracle(problem, "compiled", programs), Error);
}

TEST(CompiledProgram, OfAFileThatIsNoneIsAnError) { EXPECT_THROW(Program::load("/nonexistent/program.pt2"), Error); }

}  // namespace
}  // namespace bilevel::compiled_test
