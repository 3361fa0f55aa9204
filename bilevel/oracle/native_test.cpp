#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ATen/ATen.h>

#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/core/stream.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/choice.h"
#include "bilevel/oracle/native.h"
#include "bilevel/oracle/native_kernels.h"
#include "bilevel/problem/linear_form.h"

namespace bilevel {
namespace {

enum class Weights { kNone, kFixed, kPerSample, kPerSource, kBoth };
enum class Ridge { kNone, kFixed, kScalar, kPerWeight, kGrouped };

struct Case {
  std::string loss = "softmax";
  int64_t n = 70, d = 19, C = 3;
  bool bias = true;
  bool sparse = false;
  bool maps = false;  // weights and ridge as maps of elements, and not as functions
  Weights weights = Weights::kPerSample;
  Ridge ridge = Ridge::kScalar;
  at::ScalarType dtype = at::kDouble;
  int64_t models = 1;
};

at::Tensor cut(const at::Tensor& t, const Batch& batch, int64_t dimension) {
  return batch.full() ? t : t.index_select(dimension, batch.samples);
}

/// Losses by tensor operations, and the same as linear forms; x = (weights' part, ridge's part).
class Glm : public Problem {
 public:
  explicit Glm(const Case& c) : case_(c), loss_(c.loss == "poisson" ? "squared" : c.loss) {
    Draw draw = Stream(7, "glm").at(0);
    const bool per_sample = c.weights == Weights::kPerSample || c.weights == Weights::kBoth;
    weight_count_ = per_sample ? c.models * c.n : c.weights == Weights::kPerSource ? 4 : 0;
    dy_ = c.models * c.C * (c.d + (c.bias ? 1 : 0));
    ridge_count_ = c.ridge == Ridge::kScalar ? 1 : c.ridge == Ridge::kPerWeight ? dy_ : c.ridge == Ridge::kGrouped ? 3 : 0;
    outer_.add("weights", {weight_count_}).add("ridge", {ridge_count_});
    for (int64_t k = 0; k < c.models; ++k) {
      inner_.add(fmt::format("W{}", k), {c.C, c.d});
      if (c.bias) inner_.add(fmt::format("c{}", k), {c.C});
    }
    dense_ = draw.normal({c.n, c.d}).to(c.dtype);
    if (c.sparse) dense_.masked_fill_(draw.uniform({c.n, c.d}).gt(0.2), 0);  // some rows are empty
    form_.features = c.sparse ? dense_.to_sparse_csr() : dense_;
    at::Tensor labels = draw.integers(c.loss == "logistic" ? 2 : c.C, {c.n});
    if (c.loss == "squared") labels = draw.normal({c.n, c.C});
    if (c.loss == "poisson") labels = draw.integers(6, {c.n, c.C}).to(c.dtype);
    form_.targets = loss_.targets(labels, c.C, c.dtype, "Glm");
    form_.link = c.loss == "poisson" ? LinearForm::Link::kPoisson : LinearForm::link_of(loss_);
    form_.outputs = c.C;
    form_.bias = c.bias;
    form_.models = c.models;
    sources_ = at::arange(c.n).remainder(4);
    fixed_ = draw.uniform({c.n}).to(c.dtype);
    if (c.weights != Weights::kNone) form_.sample_weights = [this](const at::Tensor& x, const Batch& b) { return s(x, b); };
    if (c.models > 1) form_.prior = [](const at::Tensor& x) { return x.sin().sum() / 3; };
    if (c.ridge != Ridge::kNone) form_.ridge = [this](const at::Tensor& x) { return lambda(x); };
    if (c.maps) offer_maps();
  }

  // The native oracle then has nothing to call: what is left of the functions is for the losses below.
  void offer_maps() {
    const at::Tensor two = at::full({1}, 2.0, dense_.options()), third = at::full({1}, 0.3, dense_.options());
    using Phi = SpreadMap::Phi;
    if (case_.weights == Weights::kFixed) form_.sample_weight_maps = {{.size = 0, .factor = fixed_}};
    if (case_.weights == Weights::kPerSample)
      form_.sample_weight_maps = {{.first = 0, .size = case_.n, .phi = Phi::kSigmoid, .factor = two}};
    if (case_.weights == Weights::kPerSource)
      form_.sample_weight_maps = {{.first = 0, .size = 4, .phi = Phi::kExp, .index = sources_}};
    if (case_.weights == Weights::kBoth) {
      form_.sample_weight_maps = {{.first = 0, .size = case_.n, .phi = Phi::kSoftplus, .factor = fixed_},
                                  {.first = 0, .size = 4, .phi = Phi::kIdentity, .index = sources_}};
    }
    if (case_.ridge == Ridge::kFixed) form_.ridge_map = {.size = 0, .factor = third};
    if (case_.ridge == Ridge::kScalar) form_.ridge_map = {.first = weight_count_, .size = 1, .phi = Phi::kExp};
    if (case_.ridge == Ridge::kPerWeight) form_.ridge_map = {.first = weight_count_, .size = ridge_count_, .phi = Phi::kExp};
    if (case_.ridge == Ridge::kGrouped) {
      form_.ridge_map = {
          .first = weight_count_, .size = ridge_count_, .phi = Phi::kSoftplus, .index = groups(), .factor = members()};
    }
  }

  const Layout& outer_layout() const override { return outer_; }
  const Layout& inner_layout() const override { return inner_; }
  const LinearForm* inner_linear_form() const override { return offers_ ? &form_ : nullptr; }
  const LinearForm* outer_linear_form() const override { return offers_ && both_ ? &form_ : nullptr; }

  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    const at::Tensor t = cut(form_.targets, batch, 1);
    std::vector<at::Tensor> losses;
    for (int64_t k = 0; k < case_.models; ++k) {
      const at::Tensor z = logits(y, batch, k);
      losses.push_back(case_.loss == "poisson" ? (z.exp() - t * z).sum(0) : loss_.losses(z, t));
    }
    at::Tensor l = case_.models == 1 ? losses[0] : at::stack(losses);
    if (form_.sample_weights) l = l * s(x, batch);
    at::Tensor g = l.sum() / l.size(-1);
    if (form_.ridge) g = g + (lambda(x) * y * y).sum() / 2;
    if (form_.prior) g = g + form_.prior(x);
    return g;
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return both_ ? inner_loss(x, y, batch) : y.dot(y);
  }

  at::Tensor s(const at::Tensor& x, const Batch& batch) const {
    switch (case_.weights) {
      case Weights::kPerSample: {
        const at::Tensor all = x.narrow(0, 0, weight_count_);
        return cut(case_.models == 1 ? all : all.view({case_.models, case_.n}), batch, case_.models == 1 ? 0 : 1).sigmoid() * 2;
      }
      case Weights::kPerSource: return of_each_model(x.narrow(0, 0, 4).exp().index_select(0, cut(sources_, batch, 0)));
      case Weights::kBoth:
        return cut(x.narrow(0, 0, case_.n), batch, 0).exp().log1p() * cut(fixed_, batch, 0) *
               x.narrow(0, 0, 4).index_select(0, cut(sources_, batch, 0));
      default: return of_each_model(cut(fixed_, batch, 0));
    }
  }
  at::Tensor lambda(const at::Tensor& x) const {
    switch (case_.ridge) {
      case Ridge::kScalar: return x[weight_count_].exp();
      case Ridge::kPerWeight: return x.narrow(0, weight_count_, ridge_count_).exp();
      case Ridge::kGrouped: return x.narrow(0, weight_count_, 3).exp().log1p().index_select(0, groups()) * members();
      default: return at::scalar_tensor(0.3, dense_.options());
    }
  }
  at::Tensor of_each_model(const at::Tensor& weights) const {
    if (case_.models == 1) return weights;
    std::vector<at::Tensor> rows;
    for (int64_t k = 0; k < case_.models; ++k) rows.push_back(weights * static_cast<double>(k + 1));
    return at::stack(rows);
  }
  at::Tensor logits(const at::Tensor& y, const Batch& batch, int64_t k) const {
    const auto parts = inner_.split(y);
    const auto first = static_cast<size_t>(case_.bias ? 2 * k : k);
    const at::Tensor z = parts[first].mm(cut(dense_, batch, 0).t());
    return case_.bias ? z + parts[first + 1].unsqueeze(1) : z;
  }

  at::Tensor groups() const { return at::arange(dy_).remainder(3); }
  at::Tensor members() const { return at::arange(dy_).remainder(2).to(case_.dtype); }

  LinearForm form_;
  bool offers_ = true, both_ = true;

 private:
  Case case_;
  Loss loss_;
  Layout outer_, inner_;
  int64_t weight_count_, ridge_count_, dy_;
  at::Tensor sources_, fixed_, dense_;
};

struct At {
  at::Tensor x, y, v, u;
  explicit At(const Problem& problem, at::ScalarType dtype) {
    Draw draw = Stream(8, "point").at(0);
    x = draw.normal({problem.outer_layout().size()}).to(dtype) / 2;
    y = draw.normal({problem.inner_layout().size()}).to(dtype);
    y = y / std::max(3.0, std::sqrt(static_cast<double>(problem.inner_layout().parts()[0].shape[1])));  // logits of order one
    v = draw.normal({3, problem.inner_layout().size()}).to(dtype);
    u = draw.normal({3, problem.outer_layout().size()}).to(dtype);
  }
};

void expect_near(const at::Tensor& actual, const at::Tensor& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(actual.sizes(), expected.sizes()) << what;
  ASSERT_EQ(actual.scalar_type(), expected.scalar_type()) << what;
  EXPECT_FALSE(actual.requires_grad()) << what;
  const double scale = expected.to(at::kDouble).norm().item<double>();
  EXPECT_LE((actual - expected).to(at::kDouble).norm().item<double>(), tolerance * scale) << what << ", of norm " << scale;
}

// Every product of the interface, for all samples and for a batch with a repeated one.
void expect_equal_to_autodiff(const Case& c) {
  const Glm problem(c);
  const At at(problem, c.dtype);
  const NativeOracle native(problem);
  const AutodiffOracle autodiff(problem);
  const double tolerance = c.dtype == at::kDouble ? 1e-13 : 2e-6;
  Batch some;
  some.samples = at::tensor({int64_t{5}, c.n - 1, int64_t{0}, int64_t{5}, int64_t{2}}).remainder(c.n);
  for (const Batch& batch : {Batch{}, some}) {
    const auto a = native.linearize_inner(at.x, at.y, batch);
    const auto b = autodiff.linearize_inner(at.x, at.y, batch);
    expect_near(a->value(), b->value(), tolerance, "value");
    expect_near(a->residual(), b->residual(), tolerance, "residual after the value");
    expect_near(a->grad_x(), b->grad_x(), tolerance, "grad_x");
    expect_near(a->jvp_y(at.v), b->jvp_y(at.v), tolerance, "jvp_y of a block");
    expect_near(a->jvp_y(at.v[1]), b->jvp_y(at.v[1]), tolerance, "jvp_y");
    expect_near(a->gauss_newton(at.v[1]), b->jvp_y(at.v[1]), tolerance, "gauss_newton");
    for (const at::Tensor& w : {at.v, at.v[0]}) {
      const Vjp p = a->vjp(w), q = b->vjp(w);
      expect_near(p.y, q.y, tolerance, "vjp.y");
      expect_near(p.x, q.x, tolerance, "vjp.x");
    }
    expect_near(a->jvp_x(at.u), b->jvp_x(at.u), tolerance, "jvp_x of a block");
    expect_near(a->jvp_x(at.u[2]), b->jvp_x(at.u[2]), tolerance, "jvp_x");
    const Gradients p = native.inner(at.x, at.y, batch), q = autodiff.inner(at.x, at.y, batch);
    expect_near(p.value, q.value, tolerance, "inner value");
    expect_near(p.y, q.y, tolerance, "inner gradient");
    EXPECT_FALSE(p.x.defined());
    const Gradients f = native.outer(at.x, at.y, batch), h = autodiff.outer(at.x, at.y, batch);
    expect_near(f.value, h.value, tolerance, "outer value");
    expect_near(f.y, h.y, tolerance, "outer gradient");
    expect_near(f.x, h.x, tolerance, "outer gradient by x");
    expect_near(native.inner_grad_x(at.x, at.y, batch), autodiff.inner_grad_x(at.x, at.y, batch), tolerance, "inner_grad_x");
    expect_near(native.inner_value(at.x, at.y, batch), autodiff.inner_value(at.x, at.y, batch), tolerance, "inner_value");
    expect_near(native.outer_value(at.x, at.y, batch), autodiff.outer_value(at.x, at.y, batch), tolerance, "outer_value");
  }
  // One object for one point after another, with batches of different sizes.
  const auto fused = native.joint_pass(), apart = autodiff.joint_pass();
  const auto results = [&](JointPass& pass, const Batch& batch, const at::Tensor& y) {
    const at::Tensor r = at::empty_like(y), Hv = at::empty_like(y), cross = at::empty_like(at.x), f_y = at::empty_like(y),
                     f_x = at::empty_like(at.x);
    const double g = pass.inner(at.x, y, at.v[0], batch, r, Hv, cross), f = pass.outer(at.x, y, batch, f_y, f_x);
    return std::vector<at::Tensor>{r, Hv, cross, f_y, f_x, at::tensor({g, f}, at::kDouble)};
  };
  for (const auto& [batch, y] : {std::pair(some, at.y), std::pair(Batch{}, at.y), std::pair(some, at.y * 0.5)}) {
    const auto a = results(*fused, batch, y), b = results(*apart, batch, y);
    for (size_t i = 0; i < a.size(); ++i) expect_near(a[i], b[i], tolerance, fmt::format("result {} of the joint pass", i));
  }
}

struct NativeOracleCases : testing::TestWithParam<Case> {};
TEST_P(NativeOracleCases, EqualAutodiffInEveryProduct) { expect_equal_to_autodiff(GetParam()); }

std::vector<Case> all_cases() {
  std::vector<Case> list;
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    for (const char* loss : {"squared", "logistic", "softmax", "poisson"}) {
      for (const Weights weights : {Weights::kNone, Weights::kFixed, Weights::kPerSample, Weights::kPerSource}) {
        for (const Ridge ridge : {Ridge::kNone, Ridge::kFixed, Ridge::kScalar, Ridge::kPerWeight}) {
          Case c;
          c.loss = loss;
          c.C = c.loss == "logistic" ? 1 : 3;
          c.weights = weights;
          c.ridge = ridge;
          c.dtype = dtype;
          list.push_back(c);
        }
      }
    }
    // Several models of the same samples.
    for (const char* loss : {"squared", "logistic", "softmax", "poisson"}) {
      for (const Weights weights : {Weights::kNone, Weights::kFixed, Weights::kPerSample, Weights::kPerSource}) {
        Case c;
        c.loss = loss;
        c.C = c.loss == "logistic" ? 1 : 3;
        c.weights = weights;
        c.ridge = weights == Weights::kFixed ? Ridge::kPerWeight : Ridge::kScalar;
        c.bias = weights != Weights::kPerSource;
        c.dtype = dtype;
        c.models = 4;
        list.push_back(c);
      }
    }
    for (const char* loss : {"logistic", "softmax"}) {
      for (const Weights weights : {Weights::kNone, Weights::kFixed, Weights::kPerSample, Weights::kPerSource, Weights::kBoth}) {
        for (const Ridge ridge : {Ridge::kNone, Ridge::kFixed, Ridge::kScalar, Ridge::kPerWeight, Ridge::kGrouped}) {
          Case c;
          c.loss = loss;
          c.C = c.loss == "logistic" ? 1 : 3;
          c.maps = true;
          c.weights = weights;
          c.ridge = ridge;
          c.dtype = dtype;
          list.push_back(c);
        }
      }
    }
    for (const char* loss : {"squared", "logistic", "softmax", "poisson"}) {
      for (const int64_t classes : {1, 2, 5, 10, 45}) {
        if ((classes > 1) == (loss == std::string("logistic"))) continue;
        for (const bool bias : {true, false}) {
          Case c;
          c.loss = loss;
          c.C = classes;
          c.n = classes == 2 ? 2100 : 70;
          c.bias = bias;
          c.sparse = true;
          c.dtype = dtype;
          list.push_back(c);
        }
      }
    }
    // Shapes: features that end in the middle of a vector, at its end, within one; classes that fill no tile, one, several.
    for (const auto& [n, d, C] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
             {1, 1, 2}, {7, 5, 2}, {32, 16, 5}, {33, 64, 10}, {31, 130, 7}, {2100, 37, 4}, {40, 6000, 2}, {17, 15, 40}}) {
      for (const bool bias : {true, false}) {
        Case c;
        c.n = std::max<int64_t>(n, 3);
        c.d = d;
        c.C = C;
        c.bias = bias;
        c.dtype = dtype;
        list.push_back(c);
      }
    }
  }
  return list;
}

INSTANTIATE_TEST_SUITE_P(All, NativeOracleCases, testing::ValuesIn(all_cases()), [](const auto& one) {
  const Case& c = one.param;
  return fmt::format("{}_{}x{}x{}_{}{}{}_weights{}_ridge{}_models{}_{}", c.loss, c.n, c.d, c.C, c.bias ? "bias" : "nobias",
                     c.maps ? "_maps" : "", c.sparse ? "_sparse" : "", static_cast<int>(c.weights), static_cast<int>(c.ridge),
                     c.models, c10::toString(c.dtype));
});

// Written out by hand for one sample and two classes: not by way of autodiff.
TEST(NativeOracle, EqualsTheClosedFormOfOneSample) {
  Case c;
  c.n = 1, c.d = 2, c.C = 2, c.bias = false, c.weights = Weights::kNone, c.ridge = Ridge::kNone;
  Glm problem(c);
  problem.form_.features = at::tensor({1.0, 2.0}, at::kDouble).unsqueeze(0);
  problem.form_.targets = at::zeros({1, 1}, at::kLong);
  const NativeOracle oracle(problem);
  const at::Tensor y = at::tensor({0.5, 0.0, 0.0, 0.25}, at::kDouble), x = at::empty({0}, at::kDouble);  // z = (0.5, 0.5)
  const auto lin = oracle.linearize_inner(x, y, {});
  EXPECT_NEAR(lin->value().item<double>(), std::log(2.0), 1e-15);
  EXPECT_TRUE(at::allclose(lin->residual(), at::tensor({-0.5, -1.0, 0.5, 1.0}, at::kDouble), 0, 1e-15));
  // K = ¼ (1, −1; −1, 1), u = (1, 0): K u = (¼, −¼).
  EXPECT_TRUE(at::allclose(lin->jvp_y(at::tensor({1.0, 0.0, 0.0, 0.0}, at::kDouble)),
                           at::tensor({0.25, 0.5, -0.25, -0.5}, at::kDouble), 0, 1e-15));
}

TEST(NativeOracle, OverflowsNowhereForLogitsOfAThousand) {
  for (const char* loss : {"softmax", "logistic"}) {
    Case c;
    c.loss = loss;
    c.C = c.loss == "logistic" ? 1 : 3;
    const Glm problem(c);
    const At at(problem, c.dtype);
    const Gradients p = NativeOracle(problem).inner(at.x, at.y * 1e4, {}),
                    q = AutodiffOracle(problem).inner(at.x, at.y * 1e4, {});
    expect_near(p.value, q.value, 1e-13, "value");
    expect_near(p.y, q.y, 1e-13, "gradient");
  }
}

TEST(NativeOracle, GivesNoNumberWhereTheWeightsAreNone) {
  for (const char* loss : {"softmax", "logistic", "squared", "poisson"}) {
    Case c;
    c.loss = loss;
    c.C = c.loss == "logistic" ? 1 : 3;
    const Glm problem(c);
    At at(problem, c.dtype);
    at.y.fill_(std::nan(""));
    const Gradients p = NativeOracle(problem).inner(at.x, at.y, {});
    EXPECT_TRUE(std::isnan(p.value.item<double>())) << loss;
    EXPECT_TRUE(p.y.isnan().all().item<bool>()) << loss;
  }
}

TEST(NativeOracle, SumsFloatsUpToTheirOwnPrecision) {
  Case c;
  c.n = 40000, c.d = 3, c.ridge = Ridge::kNone;
  const Glm exact(c);
  const At at(exact, at::kDouble);
  Case rough_case = c;
  rough_case.dtype = at::kFloat;
  const Glm rough(rough_case);
  const Gradients p = NativeOracle(rough).inner(at.x.to(at::kFloat), at.y.to(at::kFloat), {});
  const Gradients q = NativeOracle(exact).inner(at.x.to(at::kFloat).to(at::kDouble), at.y.to(at::kFloat).to(at::kDouble), {});
  expect_near(p.y.to(at::kDouble), q.y, 1e-6, "gradient");
  EXPECT_NEAR(p.value.item<double>(), q.value.item<double>(), 2e-7 * q.value.item<double>());
}

TEST(NativeOracle, GivesTheSameBitsAgainAndNearlyThoseOfAnotherNumberOfThreads) {
  Case c;
  c.n = 5000, c.dtype = at::kFloat;
  const Glm problem(c);
  const At at(problem, c.dtype);
  const NativeOracle oracle(problem);
  const at::Tensor one = oracle.inner(at.x, at.y, {}).y;
  EXPECT_TRUE(at::equal(one, oracle.inner(at.x, at.y, {}).y));
  const ThreadsGuard two(2);
  const at::Tensor both = oracle.inner(at.x, at.y, {}).y;
  EXPECT_TRUE(at::equal(both, oracle.inner(at.x, at.y, {}).y));
  expect_near(both, one, 1e-6, "two threads");
}

TEST(NativeOracle, EqualsAutodiffOnEveryInstructionSet) {
  ASSERT_FALSE(native::instruction_sets().empty());
  for (const int64_t set : native::instruction_sets()) {
    native::pretend(set);
    SCOPED_TRACE(native::instruction_set());
    for (const char* loss : {"softmax", "logistic", "squared", "poisson"}) {
      for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
        Case c;
        c.loss = loss;
        c.C = c.loss == "logistic" ? 1 : 7;
        c.d = 61;
        c.dtype = dtype;
        expect_equal_to_autodiff(c);
      }
    }
  }
  native::pretend(0);
}

TEST(NativeOracle, LeavesALossWithoutAFormToAutodiff) {
  Glm problem(Case{});
  problem.both_ = false;
  const At at(problem, at::kDouble);
  const Gradients f = NativeOracle(problem).outer(at.x, at.y, {});
  EXPECT_TRUE(at::equal(f.y, 2 * at.y));
}

TEST(NativeOracle, RefusesWhatDoesNotFit) {
  Glm problem(Case{});
  const At at(problem, at::kDouble);
  const NativeOracle oracle(problem);
  Batch batch;
  batch.samples = at::tensor({int64_t{0}, int64_t{70}});
  EXPECT_THROW(oracle.inner(at.x, at.y, batch), Error);
  EXPECT_THROW(oracle.inner(at.x.to(at::kFloat), at.y.to(at::kFloat), {}), Error);
  EXPECT_THROW(oracle.inner(at.x, at.y.narrow(0, 0, 5), {}), Error);
  EXPECT_THROW(oracle.linearize_inner(at.x, at.y, {})->jvp_y(at.y.narrow(0, 0, 5)), Error);
  problem.form_.targets = problem.form_.targets + 1;
  EXPECT_THROW(NativeOracle{problem}, Error);
  for (const SpreadMap& map : {SpreadMap{.first = 71, .size = 1}, SpreadMap{.size = 3},
                               SpreadMap{.size = 2, .index = at::arange(60)}, SpreadMap{.size = 0, .factor = at::ones({60})}}) {
    Glm other(Case{});
    other.form_.ridge_map = map;
    EXPECT_THROW(NativeOracle{other}, Error);
  }
  problem.offers_ = false;
  EXPECT_THROW(NativeOracle{problem}, Error);
}

TEST(MakeOracle, TakesTheNativeOneWhereThereIsAForm) {
  Glm problem(Case{});
  const auto is_native = [&](const std::string& name) {
    return dynamic_cast<const NativeOracle*>(make_oracle(problem, name).get()) != nullptr;
  };
  EXPECT_TRUE(is_native("auto"));
  EXPECT_TRUE(is_native("native"));
  EXPECT_FALSE(is_native("autodiff"));
  EXPECT_FALSE(is_native("finite-difference"));
  EXPECT_THROW(make_oracle(problem, "fast"), Error);
  problem.offers_ = false;
  EXPECT_FALSE(is_native("auto"));
  EXPECT_THROW(make_oracle(problem, "native"), Error);
}

TEST(MakeOracle, GivesDifferencesThatOwnWhatTheyStandOn) {
  const Glm problem(Case{});
  const At at(problem, at::kDouble);
  const auto oracle = make_oracle(problem, "finite-difference");
  const at::Tensor exact = AutodiffOracle(problem).linearize_inner(at.x, at.y, {})->jvp_y(at.v[0]);
  expect_near(oracle->linearize_inner(at.x, at.y, {})->jvp_y(at.v[0]), exact, 1e-7, "a product");
}

}  // namespace
}  // namespace bilevel
