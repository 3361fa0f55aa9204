#pragma once
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "bilevel/core/stream.h"
#include "bilevel/inner/update_rule.h"

namespace bilevel::test {

inline Tensors flat(const at::Tensor& y, const Tensors& state, const at::Tensor& gradient, const Tensors& h) {
  Tensors all{y, gradient};
  all.insert(all.end(), state.begin(), state.end());
  all.insert(all.end(), h.begin(), h.end());
  return all;
}
inline Tensors flat(const RuleInput& in) { return flat(in.y, in.state, in.gradient, in.h); }
inline Tensors flat(const RuleCotangent& bar) { return flat(bar.y, bar.state, bar.gradient, bar.h); }
inline Tensors flat(const RuleOutput& out) { return flat(out.y, out.state, at::zeros_like(out.y), {}); }

template <class T>
T unflat(const RuleInput& like, const Tensors& all) {
  T made;
  made.y = all[0];
  made.gradient = all[1];
  const auto states = all.begin() + 2, hs = states + static_cast<int64_t>(like.state.size());
  made.state.assign(states, hs);
  made.h.assign(hs, all.end());
  return made;
}

inline double dot(const Tensors& a, const Tensors& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] * b[i]).sum().item<double>();
  return sum;
}

inline double distance(const Tensors& a, const Tensors& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]).pow(2).sum().item<double>();
  return std::sqrt(sum);
}

inline double size(const Tensors& a) { return std::sqrt(dot(a, a)); }

/// Values of the order that the rules meet; the state is positive, as squares are.
inline RuleInput random_input(const UpdateRule& rule, int64_t step, bool elementwise_h, int64_t dy = 6) {
  Draw draw = Stream(7, "rule input").at(step);
  RuleInput in;
  in.y = draw.normal({dy});
  in.gradient = draw.normal({dy});
  for (int64_t i = 0; i < rule.slots(); ++i) in.state.push_back(0.2 + draw.uniform({dy}));
  for (double value : rule.defaults()) {
    in.h.push_back(elementwise_h ? value * (0.8 + 0.4 * draw.uniform({dy})) + 0.01 * draw.uniform({dy})
                                 : at::scalar_tensor(value + 0.01, at::kDouble));
  }
  in.step = step;
  return in;
}

inline RuleCotangent random_tangent(const RuleInput& in, int64_t t) {
  Draw draw = Stream(8, "tangent").at(t);
  Tensors all;
  for (const auto& input : flat(in)) all.push_back(draw.normal(input.sizes()));
  return unflat<RuleCotangent>(in, all);
}

/// jvp of a block of directions against that of each, in the rule's own form and in the base class's.
inline void check_blocks(const UpdateRule& rule, const RuleInput& in) {
  const RuleCotangent first = random_tangent(in, 100 + in.step), second = random_tangent(in, 200 + in.step);
  const Tensors a = flat(first), b = flat(second);
  Tensors block;
  for (size_t i = 0; i < a.size(); ++i)
    block.push_back(a[i].dim() == 0 ? at::stack({a[i], b[i]}).unsqueeze(1) : at::stack({a[i], b[i]}));
  const auto both = unflat<RuleCotangent>(in, block);
  for (const Tensors& pushed : {flat(rule.jvp(in, both)), flat(rule.UpdateRule::jvp(in, both))}) {
    for (const auto& [row, tangent] : {std::pair<int64_t, const RuleCotangent&>{0, first}, {1, second}}) {
      const Tensors one = flat(rule.jvp(in, tangent));
      ASSERT_EQ(pushed.size(), one.size());
      for (size_t i = 0; i < one.size(); ++i) EXPECT_LT(distance({pushed[i][row]}, {one[i]}), 1e-13 * (1 + size({one[i]})));
    }
  }
}

/// jvp against central differences of `step`, one input at a time; vjp by ⟨w, J dz⟩ = ⟨Jᵀ w, dz⟩, one input at a time; and both
/// against those of the base class, by autograd through `step`.
inline void check_derivatives(const UpdateRule& rule, const RuleInput& in) {
  check_blocks(rule, in);
  const int64_t step = in.step;
  const RuleCotangent tangent = random_tangent(in, step);
  const Tensors inputs = flat(in), directions = flat(tangent);
  Draw draw = Stream(9, "cotangent").at(step);
  RuleOutput w{draw.normal(in.y.sizes()), {}};
  for (const auto& s : in.state) w.state.push_back(draw.normal(s.sizes()));
  const Tensors bars = flat(rule.vjp(in, w.y, w.state)), by_autograd = flat(rule.UpdateRule::vjp(in, w.y, w.state));
  ASSERT_EQ(bars.size(), inputs.size());

  RuleInput constant = in;
  constant.h_is_constant = true;
  const Tensors without_h(bars.begin(), bars.end() - static_cast<int64_t>(in.h.size()));
  for (const Tensors& rest : {flat(rule.vjp(constant, w.y, w.state)), flat(rule.UpdateRule::vjp(constant, w.y, w.state))}) {
    ASSERT_EQ(rest.size(), without_h.size());
    EXPECT_LT(distance(rest, without_h), 1e-13 * (1 + size(without_h)));
  }

  for (size_t i = 0; i < inputs.size(); ++i) {
    SCOPED_TRACE(fmt::format("input {} of (y, gradient, state…, h…)", i));
    Tensors only;
    for (const auto& direction : directions) only.push_back(at::zeros_like(direction));
    only[i] = directions[i];
    const auto one = unflat<RuleCotangent>(in, only);
    const double eps = 1e-5;
    const auto shifted = [&](double by) {
      Tensors moved = inputs;
      moved[i] = moved[i] + by * directions[i];
      auto at = unflat<RuleInput>(in, moved);
      at.step = step;
      return flat(rule.step(at));
    };
    const Tensors plus = shifted(eps), minus = shifted(-eps);
    Tensors difference;
    for (size_t k = 0; k < plus.size(); ++k) difference.push_back((plus[k] - minus[k]) / (2 * eps));
    const Tensors pushed = flat(rule.jvp(in, one));
    EXPECT_LT(distance(pushed, difference), 1e-8 * (1 + size(difference)));
    EXPECT_LT(distance(flat(rule.UpdateRule::jvp(in, one)), pushed), 1e-13 * (1 + size(pushed)));

    ASSERT_EQ(bars[i].sizes(), inputs[i].sizes());
    EXPECT_NEAR(dot(flat(w), pushed), (bars[i] * directions[i]).sum().item<double>(), 1e-13 * (1 + size(pushed)));
    EXPECT_LT(distance({bars[i]}, {by_autograd[i]}), 1e-13 * (1 + size({bars[i]})));
  }
}

inline void check_derivatives(const UpdateRule& rule, int64_t step, bool elementwise_h) {
  SCOPED_TRACE(fmt::format("{} at step {}, h {}", rule.name(), step, elementwise_h ? "[dy]" : "scalar"));
  check_derivatives(rule, random_input(rule, step, elementwise_h));
}

/// From a fresh state, with one element that has never had a gradient and one that has: every derivative is finite, and the one
/// of the first element's step by its gradient is 0.
inline void expect_finite_derivatives_at_rest(const UpdateRule& rule, double of_dead = 0.0) {
  RuleInput in = random_input(rule, 0, false, 2);
  in.state = rule.fresh_state(in.y);
  in.h.back() = at::zeros({}, at::kDouble);  // weight_decay
  in.gradient = at::tensor({0.0, 1.0}, at::kDouble);
  Tensors ones;
  for (const auto& s : in.state) ones.push_back(at::ones_like(s));
  for (int64_t step = 0; step < 3; ++step) {
    in.step = step;
    const RuleOutput out = rule.step(in);
    EXPECT_EQ(out.y[0].item<double>(), in.y[0].item<double>());
    Tensors none;
    for (const auto& s : in.state) none.push_back(at::zeros_like(s));
    EXPECT_NEAR(rule.vjp(in, at::ones({2}, at::kDouble), none).gradient[0].item<double>(), of_dead, 1e-12);
    for (const auto& tensor : flat(rule.vjp(in, at::ones({2}, at::kDouble), ones))) {
      EXPECT_LT(tensor.abs().max().item<double>(), 1e3) << rule.name() << " at step " << step;
    }
    const RuleOutput pushed = rule.jvp(in, random_tangent(in, step));
    for (const auto& tensor : flat(pushed)) EXPECT_LT(tensor.abs().max().item<double>(), 1e3) << rule.name();
    in.y = out.y;
    in.state = out.state;
  }
}

/// y after `steps` steps on ½ yᵀA y − bᵀy + 0.05 Σ y⁴ from (0.3, −0.2, 0.9), as in the Python program beside the numbers.
inline at::Tensor run_small_problem(const UpdateRule& rule, at::ScalarType dtype = at::kDouble, int64_t steps = 7) {
  const at::Tensor A = at::tensor({2.0, 0.5, 0.0, 0.5, 1.0, 0.2, 0.0, 0.2, 0.5}, at::kDouble).view({3, 3}).to(dtype);
  const at::Tensor b = at::tensor({1.0, -2.0, 0.5}, at::kDouble).to(dtype);
  at::Tensor y = at::tensor({0.3, -0.2, 0.9}, at::kDouble).to(dtype);
  Tensors state = rule.fresh_state(y);
  for (int64_t t = 0; t < steps; ++t) {
    RuleOutput out = rule.step({y, state, A.mv(y) - b + 0.2 * y.pow(3), rule.default_h(y), t});
    y = out.y;
    state = out.state;
  }
  return y;
}

inline void expect_end(const UpdateRule& rule, at::ArrayRef<double> torch_optim) {
  const at::Tensor expected = at::tensor(torch_optim, at::kDouble);
  EXPECT_LT((run_small_problem(rule) - expected).abs().max().item<double>(), 1e-12);
  const at::Tensor in_float = run_small_problem(rule, at::kFloat);
  EXPECT_EQ(in_float.scalar_type(), at::kFloat);
  EXPECT_LT((in_float - expected).abs().max().item<double>(), 3e-6);
}

}  // namespace bilevel::test
