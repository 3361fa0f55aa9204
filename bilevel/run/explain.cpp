// c = ∂xᵢ r,  A = ∂y r,  b = ∂y f,   Aᵀ q = b,   A u = c
//
//   dF/dxᵢ = ∂xᵢ f − cᵀ q = ∂xᵢ f − uᵀ b = (1/n) Σ_k (∂xᵢ f_k − uᵀ ∂y f_k)
#include "bilevel/run/explain.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/hypergrad/active_set.h"
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/hypergrad/optimality.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/linear/registry.h"
#include "bilevel/oracle/autograd.h"

namespace bilevel {
namespace {

constexpr double kResidualWarning = 1e-6;

std::unique_ptr<LinearSolver> registered(const std::string& name, const ExplainOptions& options) {
  Config config =
      Config::parse(fmt::format("iterations = {}\ntolerance = {:e}\n", options.iterations, options.tolerance), "explain");
  Section section = config.root();
  return make_linear_solver(name, section);
}

LinearResult solve(const Operator& A, const at::Tensor& b, const ExplainOptions& options) {
  if (A.dim <= options.dense_up_to) return Dense(DenseOptions{.max_dim = A.dim}).solve(A, b, {});
  if (!A.symmetric) return registered("gmres", options)->solve(A, b, {});
  LinearResult result = Cg(CgOptions{.iterations = options.iterations, .tolerance = options.tolerance}).solve(A, b, {});
  // A network that is not at its optimum has directions of negative curvature; the equation has its solution all the same.
  if (result.status == Status::kIndefinite) result = registered("minres", options)->solve(A, b, result.solution);
  return result;
}

/// A as the solver of Aᵀ q = b needs it.
Operator transposed(Operator A) {
  if (!A.symmetric) std::swap(A.apply, A.apply_transposed);
  return A;
}

/// (∂xᵢ f_k − uᵀ ∂y f_k)/n for all k, and the losses. The derivative of J v by v, v the cotangent of the losses, is J: so one
/// pass backwards and one through it give all samples, however many there are.
std::pair<at::Tensor, at::Tensor> shares_of(const Problem& problem, const at::Tensor& x, const at::Tensor& y, int64_t index,
                                            const at::Tensor& u, const Batch& batch) {
  const at::AutoGradMode grad_mode(true);
  const SeedGuard guard(batch.seed);
  const at::Tensor x_leaf = leaf(x), y_leaf = leaf(y);
  const at::Tensor losses = problem.outer_sample_losses(x_leaf, y_leaf, batch);
  const at::Tensor v = leaf(at::ones_like(losses));
  const std::vector<at::Tensor> pulled = gradients(losses, {x_leaf, y_leaf}, v, /*retain_graph=*/true, /*create_graph=*/true);
  const at::Tensor along = pulled[0].select(0, index) - pulled[1].dot(u);
  const at::Tensor shares = along.requires_grad() ? gradients(along, {v})[0] : at::zeros_like(losses);
  return {shares.detach() / static_cast<double>(losses.size(0)), losses.detach()};
}

void check_that_x_enters(const Problem& problem, const InnerSolver& solver, int64_t index) {
  const std::string name = problem.outer_layout().element_name(index);
  for (const std::string& objection : object_to_parts_beyond_the_inner_problem(problem, solver)) {
    if (objection.starts_with('"' + name.substr(0, name.find('[')) + '"')) throw Error("explain: " + objection);
  }
}

void sort_by_size(std::vector<Explanation::Part>& parts) {
  std::stable_sort(parts.begin(), parts.end(),
                   [](const auto& a, const auto& b) { return std::abs(a.value) > std::abs(b.value); });
}

void list_samples(Explanation& out, const at::Tensor& losses, int64_t most) {
  const at::Tensor order = out.shares.abs().argsort(/*stable=*/true, /*dim=*/0, /*descending=*/true);
  for (int64_t i = 0; i < std::min(most, order.size(0)); ++i) {
    Explanation::Sample sample;
    sample.index = order[i].item<int64_t>();
    sample.value = out.shares[sample.index].item<double>();
    sample.loss = losses[sample.index].item<double>();
    out.samples.push_back(std::move(sample));
  }
}

}  // namespace

std::vector<std::string> ExplainOptions::violations() const {
  std::vector<std::string> found;
  if (!(tolerance > 0)) found.push_back(fmt::format("tolerance = {} should be positive", tolerance));
  if (iterations < 1) found.push_back(fmt::format("iterations = {} should be at least 1", iterations));
  if (most_samples < 0) found.push_back(fmt::format("most_samples = {} is negative", most_samples));
  if (!(damping >= 0)) found.push_back(fmt::format("damping = {} is negative", damping));
  return found;
}

int64_t element_index(const Layout& layout, const std::string& name) {
  const size_t bracket = name.find('[');
  const std::string part_name = name.substr(0, bracket);
  std::vector<std::string> names;
  for (const Part& part : layout.parts()) names.push_back(part.name);
  require(layout.has(part_name),
          fmt::format("There is no hyperparameter \"{}\" in this run.{}", part_name, suggestion(part_name, names)));
  const Part& part = layout.part(part_name);
  const auto fail = [&] {
    std::vector<std::string> last;
    for (const int64_t n : part.shape) last.push_back(std::to_string(n - 1));
    throw Error(part.shape.empty()
                    ? fmt::format("\"{}\" is one number; write it without an index.", part_name)
                    : fmt::format("\"{0}\" names no element of {1}; they are {1}[{2}] to {1}[{3}].", name, part_name,
                                  fmt::join(std::vector<int>(part.shape.size(), 0), ","), fmt::join(last, ",")));
  };
  std::vector<int64_t> indices;
  if (bracket != std::string::npos) {
    if (!name.ends_with(']')) fail();
    for (size_t begin = bracket + 1; begin < name.size();) {
      const size_t end = std::min(name.find(',', begin), name.size() - 1);
      int64_t value = -1;
      const auto [rest, error] = std::from_chars(name.data() + begin, name.data() + end, value);
      if (error != std::errc() || rest != name.data() + end) fail();
      indices.push_back(value);
      begin = end + 1;
    }
  }
  if (indices.empty() && part.size == 1) return part.offset;
  if (indices.size() != part.shape.size()) fail();
  int64_t flat = 0;
  for (size_t d = 0; d < indices.size(); ++d) {
    if (indices[d] < 0 || indices[d] >= part.shape[d]) fail();
    flat = flat * part.shape[d] + indices[d];
  }
  return part.offset + flat;
}

Explanation explain(const Oracle& oracle, const InnerSolver& solver, const at::Tensor& x, const at::Tensor& y, int64_t index,
                    const ExplainOptions& options) {
  const Problem& problem = oracle.problem();
  for (const auto& violation : options.violations()) throw Error(fmt::format("explain: {}.", violation));
  require(index >= 0 && index < x.numel(), fmt::format("explain: index {} is not below the {} elements of x.", index, x.numel()));
  check_that_x_enters(problem, solver, index);
  require(solver.stops_at_stationarity(),
          fmt::format("explain: nothing says where the inner solver \"{}\" stops, so there is no condition to differentiate.",
                      solver.name()));

  const at::NoGradGuard no_grad;
  const int64_t k = problem.inner_problems();
  const auto n = static_cast<double>(k);
  Explanation out;
  out.name = problem.outer_layout().element_name(index);
  out.index = index;
  out.outer_size = x.numel();
  out.x = x[index].item<double>();
  for (const Part& part : problem.inner_layout().parts()) out.parts.push_back({part.name, 0.0, 0.0});
  at::Tensor e = at::zeros_like(x);
  e[index] = 1;

  at::Tensor losses;
  bool indefinite = false;
  std::string kink;
  for (int64_t s = 0; s < k; ++s) {
    const at::Tensor y_s = k == 1 ? y.reshape({-1}) : y.select(0, s);
    check_point(problem, x, y_s, "explain");
    Batch batch;
    batch.slice = s;
    const Gradients outer = oracle.outer(x, y_s, batch);
    const auto given = oracle.linearize_inner(x, y_s, batch);
    const Optimality moved = optimality(solver, problem, x, y_s, *given);
    Linearization& free = moved.linearization ? *moved.linearization : *given;
    std::unique_ptr<ActiveSet> active;
    if (problem.has_inner_constraints()) {
      active = std::make_unique<ActiveSet>(problem, x, y_s, free, KinkTolerance{.relative = KinkTolerance::of(x.scalar_type())});
      if (kink.empty()) kink = active->kink();
    }
    Linearization& r = active ? *active : free;
    Operator A;
    A.dim = y_s.size(0);
    A.blocks = true;
    A.symmetric = r.symmetric();
    A.apply = [&r, &options](const at::Tensor& v) { return r.jvp_y(v) + options.damping * v; };
    if (!A.symmetric) A.apply_transposed = [&r, &options](const at::Tensor& v) { return r.vjp(v).y + options.damping * v; };
    if (!active) A.precondition = problem.inner_preconditioner(x);

    const at::Tensor c = r.jvp_x(e);
    const LinearResult q = solve(transposed(A), outer.y, options);
    const at::Tensor product = c * q.solution;  // cᵀ q, element by element
    for (size_t l = 0; l < out.parts.size(); ++l) {
      const Part& part = problem.inner_layout().parts()[l];
      out.parts[l].value -= product.narrow(0, part.offset, part.size).sum().item<double>() / n;
      out.parts[l].weight_norm = std::max(out.parts[l].weight_norm, y_s.narrow(0, part.offset, part.size).norm().item<double>());
    }
    const double direct = outer.x[index].item<double>(), implicit = -product.sum().item<double>();
    out.direct += direct / n;
    out.implicit += implicit / n;
    if (k > 1) out.inner_problems.push_back((direct + implicit) / n);
    out.stationarity = std::max(out.stationarity, r.residual().norm().item<double>());
    out.residual = std::max(out.residual, q.relative_residual);
    indefinite = indefinite || q.status == Status::kIndefinite;

    if (k > 1 || !problem.has_outer_sample_losses()) continue;
    const LinearResult u = solve(A, c, options);
    out.residual = std::max(out.residual, u.relative_residual);
    out.mismatch = std::abs(implicit + u.solution.dot(outer.y).item<double>());
    std::tie(out.shares, losses) = shares_of(problem, x, y_s, index, u.solution, batch);
  }
  out.value = out.direct + out.implicit;
  sort_by_size(out.parts);
  if (out.shares.defined()) list_samples(out, losses, options.most_samples);

  const bool finite = std::isfinite(out.value);
  if (!finite) {
    out.grade = Grade::kBad;
    out.message = "The component is not finite.";
  } else if (!kink.empty()) {
    out.grade = Grade::kBad;
    out.message = kink;
  } else if (out.residual > kResidualWarning) {
    out.grade = Grade::kWarn;
    out.message = fmt::format("The linear solves left a relative residual of {:.1e}, so the parts are right to about as much.",
                              out.residual);
  } else if (indefinite) {
    out.grade = Grade::kWarn;
    out.message = "The inner Hessian is singular or indefinite at this point, so that y* need not move as the split says.";
  } else {
    out.message = fmt::format("Both splits are exact to {:.1e} (residual {:.1e}).", out.mismatch, out.residual);
  }
  return out;
}

}  // namespace bilevel
