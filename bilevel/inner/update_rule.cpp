#include "bilevel/inner/update_rule.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "bilevel/oracle/autograd.h"

namespace bilevel {
namespace {

Tensors flat(const RuleInput& in) {
  Tensors all{in.y, in.gradient};
  all.insert(all.end(), in.state.begin(), in.state.end());
  all.insert(all.end(), in.h.begin(), in.h.end());
  return all;
}

RuleInput unflat(const RuleInput& like, const Tensors& all) {
  const auto states = all.begin() + 2, hs = states + static_cast<int64_t>(like.state.size());
  return {all[0], Tensors(states, hs), all[1], Tensors(hs, all.end()), like.step};
}

// One step as a graph over leaves, with the outputs that depend on any of them.
struct Graph {
  Tensors inputs, outputs;
  std::vector<size_t> differentiable;  // among (y', s'…)
};

Graph trace(const UpdateRule& rule, const RuleInput& in) {
  Graph graph;
  for (const auto& input : flat(in)) graph.inputs.push_back(leaf(input));
  const RuleOutput out = rule.step(unflat(in, graph.inputs));
  Tensors all{out.y};
  all.insert(all.end(), out.state.begin(), out.state.end());
  for (size_t i = 0; i < all.size(); ++i) {
    if (!all[i].requires_grad()) continue;
    graph.differentiable.push_back(i);
    graph.outputs.push_back(all[i]);
  }
  return graph;
}

Tensors defined(Tensors gradients, const Tensors& like) {
  for (size_t i = 0; i < gradients.size(); ++i) {
    if (!gradients[i].defined()) gradients[i] = at::zeros_like(like[i]);
  }
  return gradients;
}

}  // namespace

RuleCotangent UpdateRule::vjp(const RuleInput& in, const at::Tensor& y_bar, const Tensors& state_bar) const {
  at::AutoGradMode on(true);
  const Graph graph = trace(*this, in);
  Tensors bars;
  for (size_t i : graph.differentiable) bars.push_back(i == 0 ? y_bar : state_bar.at(i - 1));
  const Tensors wanted(graph.inputs.begin(), graph.inputs.end() - (in.h_is_constant ? static_cast<int64_t>(in.h.size()) : 0));
  const Tensors all = defined(torch::autograd::grad(graph.outputs, wanted, bars, false, false, true), wanted);
  RuleInput bar = unflat(in, all);
  return {std::move(bar.y), std::move(bar.state), std::move(bar.gradient), std::move(bar.h)};
}

// J dz = ∂w ⟨Jᵀ w, dz⟩, for Jᵀ w is linear in w: two reverse passes, because the level of forward AD is global to the process.
RuleOutput UpdateRule::jvp(const RuleInput& in, const RuleCotangent& tangent) const {
  at::AutoGradMode on(true);
  const Graph graph = trace(*this, in);
  Tensors w;
  for (const auto& output : graph.outputs) w.push_back(at::zeros_like(output).requires_grad_());
  const Tensors pulled = torch::autograd::grad(graph.outputs, graph.inputs, w, true, true, true);
  const auto push = [&](const Tensors& directions) {
    Tensors along, tangents, out(in.state.size() + 1);
    for (size_t i = 0; i < pulled.size(); ++i) {
      if (!pulled[i].defined() || !pulled[i].requires_grad()) continue;
      along.push_back(pulled[i]);
      tangents.push_back(directions[i]);
    }
    for (auto& tensor : out) tensor = at::zeros_like(in.y);
    if (along.empty()) return out;
    const Tensors pushed = defined(torch::autograd::grad(along, w, tangents, /*retain_graph=*/true, false, true), w);
    for (size_t i = 0; i < pushed.size(); ++i) out[graph.differentiable[i]] = pushed[i];
    return out;
  };
  const Tensors directions = flat({tangent.y, tangent.state, tangent.gradient, tangent.h, in.step});
  Tensors out;
  if (tangent.y.dim() == 1) {
    out = push(directions);
  } else {
    std::vector<Tensors> rows(in.state.size() + 1);
    for (int64_t k = 0; k < tangent.y.size(0); ++k) {
      Tensors row;
      for (size_t i = 0; i < directions.size(); ++i) {
        const at::Tensor &all = directions[i], &like = graph.inputs[i];
        row.push_back(all.dim() > like.dim() ? all[k].reshape(like.sizes()) : all);
      }
      Tensors pushed = push(row);
      for (size_t j = 0; j < pushed.size(); ++j) rows[j].push_back(std::move(pushed[j]));
    }
    for (const Tensors& block : rows) out.push_back(at::stack(block));
  }
  return {out[0], Tensors(out.begin() + 1, out.end())};
}

at::Tensor UpdateRule::residual(const at::Tensor&, const at::Tensor& gradient, const Tensors&) const { return gradient; }
at::Tensor UpdateRule::preconditioner(const Tensors&, int64_t) const { return {}; }

Tensors UpdateRule::fresh_state(const at::Tensor& y) const {
  Tensors state;
  for (int64_t i = 0; i < slots(); ++i) state.push_back(at::zeros_like(y));
  return state;
}

Tensors UpdateRule::default_h(const at::Tensor& y) const {
  Tensors h;
  for (double value : defaults()) h.push_back(at::scalar_tensor(value, y.options()));
  return h;
}

}  // namespace bilevel
