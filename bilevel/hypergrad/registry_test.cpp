#include "bilevel/hypergrad/registry.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

using namespace testing;

std::unique_ptr<Estimator> estimator_of(const std::string& name, const std::string& keys) {
  const Config config = Config::parse(keys, "test.toml");
  Section section = config.root();
  auto estimator = make_estimator(name, section);
  section.finish();
  return estimator;
}

// Gᵀ at y_c times q
at::Tensor minus_cross(const Problem& problem, const at::Tensor& x, const at::Tensor& y, const at::Tensor& at_y,
                       const at::Tensor& q) {
  return outer_grad_x(problem, x, y) - cross(problem, x, at_y).t().mv(q);
}

struct Expected {
  std::string name, keys;
  at::Tensor value;  // by its definition, without the engine
};

// Every quantity that an estimator defines, at the end of a solve of 7 steps by `rule`.
std::vector<Expected> definitions(const Problem& problem, const at::Tensor& x, const PlainRule& rule) {
  const int64_t T = 7;
  const at::Tensor y = unrolled_end(problem, x, rule, T), previous = unrolled_end(problem, x, rule, T - 1);
  const at::Tensor b = outer_grad_y(problem, x, y);
  const at::Tensor H = hessian(problem, x, y);
  const double eta = rule.lr;

  // Neumann: η Σ_{i≤3} (I − ηH)^i b
  at::Tensor term = b, sum = b;
  for (int i = 0; i < 3; ++i) {
    term = term - eta * H.mv(term);
    sum = sum + term;
  }
  // DARTS: ∂x g by differences of the loss' own x-gradient
  const double epsilon = 0.01 / b.norm().item<double>();
  const auto gx = [&](const at::Tensor& at_y) {
    const at::AutoGradMode grad_mode(true);
    const at::Tensor xv = x.detach().clone().requires_grad_(true);
    return torch::autograd::grad({problem.inner_loss(xv, at_y, Batch{})}, {xv})[0];
  };
  const at::Tensor darts =
      outer_grad_x(problem, x, y) - eta * (gx(previous + epsilon * b) - gx(previous - epsilon * b)) / (2 * epsilon);
  return {
      {"unrolled", "", unrolled_gradient(problem, x, rule, T)},
      {"unrolled", "steps = 3", unrolled_gradient(problem, x, rule, T, T - 3)},
      {"implicit", "solver = \"dense\"", minus_cross(problem, x, y, y, at::linalg_solve(H, b))},
      {"implicit", "solver = \"neumann\"\niterations = 3", minus_cross(problem, x, y, y, eta * sum)},
      {"one-step", "", unrolled_gradient(problem, x, rule, T, T - 1)},
      {"t1-t2", "", minus_cross(problem, x, y, previous, eta * b)},
      {"identity", "", minus_cross(problem, x, y, y, eta * b)},
      {"darts", "", darts},
  };
}

void each_is_its_own_and_no_other(const Problem& problem, const PlainRule& rule) {
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver(rule, 7);
  const auto expected = definitions(problem, x, rule);
  std::vector<at::Tensor> values;
  for (const Expected& row : expected) {
    const auto estimator = estimator_of(row.name, row.keys);
    EXPECT_EQ(estimator->name(), row.name);
    ASSERT_TRUE(estimator->objections(problem, solver).empty()) << row.name;
    const Hypergradient h = estimate(*estimator, problem, solver, x);
    EXPECT_NE(h.grade, Grade::kBad) << row.name << ": " << h.message;
    EXPECT_FALSE(h.message.empty()) << row.name;
    EXPECT_LT(relative_error(h.direct, outer_grad_x(problem, x, unrolled_end(problem, x, rule, 7))), 1e-12) << row.name;
    values.push_back(h.value);
  }
  constexpr double kTolerance = 1e-10;
  for (size_t i = 0; i < expected.size(); ++i) {
    const std::string row = expected[i].name + " " + expected[i].keys;
    EXPECT_LT(relative_error(values[i], expected[i].value), kTolerance) << row;
    // Nothing else passes for it.
    const at::Tensor direct = outer_grad_x(problem, x, unrolled_end(problem, x, rule, 7));
    EXPECT_GT(relative_error(at::zeros_like(direct), expected[i].value), 100 * kTolerance) << row;
    EXPECT_GT(relative_error(direct, expected[i].value), 100 * kTolerance) << row;
    for (size_t j = 0; j < expected.size(); ++j) {
      if (j != i) {
        EXPECT_GT(relative_error(values[j], expected[i].value), 100 * kTolerance) << row << " and " << expected[j].name;
      }
    }
  }
}

TEST(Estimators, EachIsWhatItDefinesAndNoOtherPassesForItWithMomentum) {
  PlainRule rule;
  rule.lr = 0.2;
  rule.momentum = 0.8;
  rule.nesterov = true;  // the last step of plain momentum moves y by −η ∂y g, as t1-t2 has it
  each_is_its_own_and_no_other(MlpProblem(), rule);
  each_is_its_own_and_no_other(LogisticWeightsProblem(), rule);
}

TEST(Estimators, EachIsWhatItDefinesAndNoOtherPassesForItWithAdam) {
  PlainRule rule;
  rule.kind = PlainRule::Kind::kAdam;
  rule.lr = 0.05;
  each_is_its_own_and_no_other(MlpProblem(), rule);
}

TEST(Estimators, OneStepIsT1T2ForPlainGradientDescentOnly) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  PlainRule rule;  // plain gradient descent
  const auto value = [&](const std::string& name) {
    return estimate(*estimator_of(name, ""), problem, rule_solver(rule, 6), x).value;
  };
  EXPECT_LT(relative_error(value("one-step"), value("t1-t2")), 1e-12);
  rule.momentum = 0.9;
  rule.nesterov = true;
  EXPECT_GT(relative_error(value("one-step"), value("t1-t2")), 1e-3);
}

TEST(Estimators, IdentityIsNeumannWithoutProducts) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver({}, 6);
  EXPECT_LT(relative_error(estimate(*estimator_of("identity", ""), problem, solver, x).value,
                           estimate(*estimator_of("implicit", "solver = \"neumann\"\niterations = 0"), problem, solver, x).value),
            1e-12);
}

TEST(Estimators, GradeNonFiniteNumbersBad) {
  const MlpProblem problem;
  const at::Tensor nan = at::full_like(problem.initial_outer(), std::numeric_limits<double>::quiet_NaN());
  for (const EstimatorRow& row : estimators()) {
    const auto estimator = estimator_of(row.name, "");
    EXPECT_EQ(estimate(*estimator, problem, rule_solver({}, 3), nan).grade, Grade::kBad) << row.name;
  }
}

TEST(Estimators, WorkInSinglePrecision) {
  const MlpProblem problem({.dtype = at::kFloat}), reference;
  const at::Tensor x = problem.initial_outer();
  PlainRule rule;
  rule.momentum = 0.8;
  for (const Expected& row : definitions(reference, x.to(at::kDouble), rule)) {
    const at::Tensor value = estimate(*estimator_of(row.name, row.keys), problem, rule_solver(rule, 7), x).value;
    EXPECT_EQ(value.scalar_type(), at::kFloat);
    // The difference of two float gradients over a distance of 0.02 keeps three digits; a dense solve loses the condition number.
    EXPECT_LT(relative_error(value.to(at::kDouble), row.value), row.name == "darts"      ? 5e-3
                                                                : row.name == "implicit" ? 1e-3
                                                                                         : 1e-4)
        << row.name;
  }
}

TEST(Estimators, ThatNeedAStepSizeSayWhereThereIsNone) {
  const MlpProblem mlp;
  PlainRule with_lr;
  with_lr.learned_lr = true;
  const LearnedRuleProblem learned(mlp, 0.1);
  for (const std::string name : {"t1-t2", "identity", "darts"}) {
    EXPECT_FALSE(estimator_of(name, "")->objections(learned, rule_solver(with_lr, 5)).empty()) << name;
  }
  EXPECT_TRUE(estimator_of("one-step", "")->objections(learned, rule_solver(with_lr, 5)).empty());
}

TEST(Estimators, AreMadeFromTheirKeysAndRefuseOthers) {
  EXPECT_EQ(estimator_of("unrolled", "steps = 5\nmemory = \"checkpoints\"")->trajectory().last, 5);
  EXPECT_EQ(estimator_of("unrolled", "memory = \"checkpoints\"")->trajectory().memory, Memory::kCheckpoints);
  EXPECT_EQ(estimator_of("unrolled", "")->trajectory().last, -1);
  EXPECT_THROW(estimator_of("unrolled", "steps = -5"), Error);
  EXPECT_THROW(estimator_of("unrolled", "memory = \"disk\""), Error);
  EXPECT_THROW(estimator_of("unrolled", "solver = \"cg\""), Error);
  EXPECT_THROW(estimator_of("implicit", "curvature = \"fisher\""), Error);
  EXPECT_THROW(estimator_of("implicit", "solver = \"gc\""), Error);
  try {
    estimator_of("unroled", "");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("unrolled"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace bilevel
