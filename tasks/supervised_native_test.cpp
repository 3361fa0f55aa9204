#include <fmt/format.h>
#include <gtest/gtest.h>

#include "bilevel/core/stream.h"
#include "bilevel/oracle/choice.h"
#include "bilevel/oracle/native.h"
#include "bilevel/problem/likelihood.h"
#include "tasks/supervised.h"

namespace bilevel::supervised_native_test {
namespace {

using Kind = Hyperparameter::Kind;
using Map = Hyperparameter::Map;
using Per = Hyperparameter::Per;

struct Case {
  std::string name, loss = "softmax";
  std::vector<Hyperparameter> hyperparameters;
  double l2 = 0;
  bool l2_bias = false, bias = true, fixed_weights = false;
};

std::vector<Case> cases() {
  std::vector<Case> list = {
      {"sample_weights", "softmax", {{.kind = Kind::kSampleWeight}}, 0.3},
      {"source_weights", "softmax", {{.kind = Kind::kSourceWeight, .map = Map::kSoftplus}}, 0.3, true},
      {"both_and_fixed", "logistic", {{.kind = Kind::kSampleWeight}, {.kind = Kind::kSourceWeight}}, 0, false, true, true},
      {"fixed_only", "squared", {}, 0.2, false, true, true},
      {"step_size", "softmax", {{.kind = Kind::kStepSize, .map = Map::kIdentity, .init = at::scalar_tensor(0.1)}}, 0.2},
  };
  for (const auto& [per, name] : {std::pair(Per::kOne, "one"), std::pair(Per::kFeature, "feature"),
                                  std::pair(Per::kClass, "class"), std::pair(Per::kLayer, "layer")}) {
    for (const bool penalise : {false, true}) {
      for (const bool bias : {false, true}) {
        list.push_back({fmt::format("l2_{}{}{}", name, penalise ? "_bias" : "", bias ? "" : "_of_no_bias"),
                        "softmax",
                        {{.kind = Kind::kL2, .map = Map::kExp, .per = per, .bias = penalise}, {.kind = Kind::kSampleWeight}},
                        0,
                        false,
                        bias});
      }
    }
  }
  return list;
}

struct SupervisedForms : testing::TestWithParam<Case> {};

// The losses are tested in supervised_test.cpp; here, that the forms offered say the same.
TEST_P(SupervisedForms, SayWhatTheLossesSay) {
  const Case& c = GetParam();
  const auto draw = [](int64_t t) { return Stream(11, "supervised forms").at(t); };
  constexpr int64_t kN = 24, kM = 9, kD = 5, kC = 3;
  const auto labels = [&](int64_t t, int64_t n) {
    return c.loss == "squared" ? draw(t).normal({n, kC}) : draw(t).integers(c.loss == "logistic" ? 2 : kC, {n});
  };
  SupervisedData data;
  data.inner = {draw(0).normal({kN, kD}), labels(1, kN)};
  data.outer = {draw(2).normal({kM, kD}), labels(3, kM)};
  data.sources = at::arange(kN).remainder(4);
  if (c.fixed_weights) data.sample_weights = draw(4).uniform({kN});
  SupervisedOptions options;
  options.loss = c.loss;
  options.dtype = at::kDouble;
  options.model.bias = c.bias;
  options.hyperparameters = c.hyperparameters;
  options.l2 = c.l2;
  options.l2_bias = c.l2_bias;
  options.outputs = c.loss == "logistic" ? 1 : kC;
  const SupervisedProblem problem(options, data);

  const auto native = make_oracle(problem), autodiff = make_oracle(problem, "autodiff");
  ASSERT_NE(dynamic_cast<const NativeOracle*>(native.get()), nullptr);
  const at::Tensor x = draw(5).normal({problem.outer_layout().size()}), y = draw(6).normal({problem.inner_layout().size()});
  const at::Tensor w = draw(7).normal({y.size(0)}), u = draw(8).normal({x.size(0)});
  Batch batch;
  batch.samples = at::tensor({int64_t{3}, int64_t{20}, int64_t{3}});
  for (const Batch& b : {Batch{}, batch}) {
    const auto p = native->linearize_inner(x, y, b), q = autodiff->linearize_inner(x, y, b);
    EXPECT_TRUE(at::allclose(p->value(), q->value(), 1e-12, 0));
    EXPECT_TRUE(at::allclose(p->residual(), q->residual(), 1e-12, 1e-14));
    EXPECT_TRUE(at::allclose(p->grad_x(), q->grad_x(), 1e-12, 1e-14));
    EXPECT_TRUE(at::allclose(p->vjp(w).y, q->vjp(w).y, 1e-12, 1e-14));
    EXPECT_TRUE(at::allclose(p->vjp(w).x, q->vjp(w).x, 1e-12, 1e-14));
    EXPECT_TRUE(at::allclose(p->jvp_x(u), q->jvp_x(u), 1e-12, 1e-14));
    const Gradients f = native->outer(x, y, b.full() ? b : Batch{.samples = at::tensor({int64_t{8}, int64_t{1}})});
    const Gradients h = autodiff->outer(x, y, b.full() ? b : Batch{.samples = at::tensor({int64_t{8}, int64_t{1}})});
    EXPECT_TRUE(at::allclose(f.value, h.value, 1e-12, 0));
    EXPECT_TRUE(at::allclose(f.y, h.y, 1e-12, 1e-14));
    EXPECT_TRUE(at::allclose(f.x, h.x, 1e-12, 1e-14));
    for (const Labels whose : {Labels::kObserved, Labels::kSampled, Labels::kEnumerated}) {
      EXPECT_TRUE(at::allclose(native->scores(x, y, b, whose), autodiff->scores(x, y, b, whose), 1e-12, 1e-14));
    }
    const at::Tensor S = native->scores(x, y, b, Labels::kEnumerated).flatten(0, 1), l = problem.inner_likelihood(x, b).ridge;
    EXPECT_TRUE(at::allclose(S.t().mm(S) + at::diag(l), q->gauss_newton(at::eye(y.size(0), y.options())), 1e-11, 1e-13));
    const at::Tensor drawn = autodiff->scores(x, y, b, Labels::kSampled);
    EXPECT_GT((drawn - autodiff->scores(x, y, b, Labels::kObserved)).norm().item<double>(), 0.01 * drawn.norm().item<double>());
  }
}

INSTANTIATE_TEST_SUITE_P(All, SupervisedForms, testing::ValuesIn(cases()), [](const auto& one) { return one.param.name; });

TEST(SupervisedForm, IsNotOfferedByANetwork) {
  SupervisedOptions options;
  options.model.kind = "mlp";
  SupervisedData data;
  data.inner = data.outer = {at::ones({2, 3}), at::tensor({int64_t{0}, int64_t{1}})};
  EXPECT_FALSE(NativeOracle::takes(SupervisedProblem(options, data)));
}

}  // namespace
}  // namespace bilevel::supervised_native_test
