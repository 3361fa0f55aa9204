// value = ∂x f + ∂x⟨∂z g, a⟩,   a = argmin E(a),   E(a) = ½⟨a, ∂zz g a⟩ + ⟨a, ∂z f⟩
//
// head: a = W φ + b, v = (W, b):   (M + δI) v = −l,   E(v) = ½ vᵀ M v + vᵀ l
// network: a = z(w), w by Adam on E(z(w))
#include "bilevel/hypergrad/functional.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/hypergrad/optimality.h"
#include "bilevel/inner/adam.h"
#include "bilevel/linear/dense.h"
#include "bilevel/oracle/autograd.h"

namespace bilevel {
namespace {

constexpr double kAlike = 0.5;        // a cosine with the closed form below which the adjoint points elsewhere
constexpr double kSolvedHead = 1e-6;  // relative residual of a singular head's system that has a solution all the same

/// The inner problem without its loss: what the solver adds to r by itself is left.
class NoLoss final : public Linearization {
 public:
  NoLoss(at::Tensor residual, int64_t dx) : residual_(std::move(residual)), dx_(dx) {}
  at::Tensor value() override { return at::zeros({}, residual_.options()); }
  at::Tensor residual() override { return residual_; }
  at::Tensor grad_x() override { return at::zeros({dx_}, residual_.options()); }
  at::Tensor jvp_y(const at::Tensor& v) override { return at::zeros_like(v); }
  Vjp vjp(const at::Tensor& w) override { return {at::zeros_like(w), grad_x()}; }
  at::Tensor jvp_x(const at::Tensor&) override { return at::zeros_like(residual_); }
  at::Tensor gauss_newton(const at::Tensor& v) override { return jvp_y(v); }

 private:
  const at::Tensor residual_;
  const int64_t dx_;
};

// What a weight decay of the rule adds to the diagonal of ∂yy g [dy]; undefined: nothing.
at::Tensor decay_of_the_rule(const EstimatorInput& in) {
  const Problem& problem = in.oracle.problem();
  const at::Tensor& y = in.solution.y;
  if (in.solver.residual(problem, in.x, y, y).is_same(y)) return {};
  NoLoss none(in.oracle.inner(in.x, y, in.inner_batch).y, in.x.size(0));
  const auto moved = optimality(in.solver, problem, in.x, y, none).linearization;
  return moved == nullptr ? at::Tensor() : moved->jvp_y(at::ones_like(y));
}

at::Tensor point(const Problem& problem, const at::Tensor& x, double phase) {
  const at::Tensor y = problem.initial_inner(x, 0).detach();
  return y + 0.1 * at::sin(phase + at::arange(1, y.size(0) + 1, y.options()));
}

// Elements of x that ∂x g depends on y for, but not by way of its outputs, nor of the `own` weights beside them (undefined:
// none).
at::Tensor beside_the_outputs(const Problem& problem, const at::Tensor& own) {
  const at::Tensor x = problem.initial_outer(), one = point(problem, x, 0), other = point(problem, x, 1);
  const Batch batch;
  const auto slope = [&](const at::Tensor& y, const at::Tensor& of_outputs) {
    const at::AutoGradMode grad_mode(true);
    const at::Tensor x_leaf = leaf(x);
    return gradients(problem.inner_loss_of_outputs(x_leaf, y, problem.inner_outputs(of_outputs, batch), batch), {x_leaf})[0];
  };
  const at::Tensor mixed = own.defined() ? one.index_copy(0, own, other.index_select(0, own)) : one;
  const at::Tensor start = slope(one, one);
  return slope(other, other).ne(start).logical_and_(slope(mixed, other).eq(start));
}

}  // namespace

std::vector<std::string> FunctionalOptions::violations() const {
  std::vector<std::string> found;
  if (!(damping >= 0 && std::isfinite(damping))) found.push_back(fmt::format("damping should be at least 0, got {}.", damping));
  if (adjoint_steps < 1) found.push_back(fmt::format("adjoint_steps should be at least 1, got {}.", adjoint_steps));
  if (!(adjoint_lr > 0 && std::isfinite(adjoint_lr))) {
    found.push_back(fmt::format("adjoint_lr should be positive, got {}.", adjoint_lr));
  }
  return found;
}

void read(Section& section, FunctionalOptions& options) {
  section.read_choice("adjoint", options.adjoint, {"head", "network"});
  if (options.adjoint == FunctionalOptions::Adjoint::kHead) {
    section.read("damping", options.damping);
  } else {
    section.read("adjoint_steps", options.adjoint_steps);
    section.read("adjoint_lr", options.adjoint_lr);
  }
  section.check(options.violations());
}

Functional::Functional(FunctionalOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("Functional: " + violation);
}

std::vector<std::string> Functional::objections(const Problem& problem, const InnerSolver& solver) const {
  if (problem.has_optimality_map() || !problem.has_outputs() || !problem.has_outer_outputs()) {
    return {
        "\"functional\" needs losses of a model's outputs on both levels (Problem::has_outputs, Problem::has_outer_outputs), "
        "which this "
        "problem does not offer. Use estimator = \"implicit\"."};
  }
  if (!solver.stops_at_stationarity()) {
    return {
        fmt::format("Where the inner rule \"{}\" stops depends on the way there, so there is no optimality condition to "
                    "differentiate. Use amsgrad = false, or estimator = \"unrolled\".",
                    solver.name())};
  }
  std::vector<std::string> objections = object_to_parts_beyond_the_inner_loss(problem, name());
  if (!objections.empty()) return objections;
  const bool head = options_.adjoint == FunctionalOptions::Adjoint::kHead;
  if (head && !problem.output_layer()) {
    return {
        "adjoint = \"head\" needs the features of a linear last layer (Problem::output_layer), which this problem does not "
        "offer. Use "
        "adjoint = \"network\"."};
  }
  const at::Tensor blind =
      beside_the_outputs(problem, head ? output_layer_positions(problem).to(problem.initial_outer().device()) : at::Tensor())
          .nonzero();
  if (blind.size(0) > 0) {
    objections.push_back(
        fmt::format("{} of {} elements of x, {} among them, move the inner problem beside the model's outputs alone (a weight "
                    "decay{}), where the "
                    "functional derivative is zero. Use estimator = \"implicit\".",
                    blind.size(0), problem.outer_layout().size(), problem.outer_layout().element_name(blind[0].item<int64_t>()),
                    head ? " of other layers than the last" : ""));
  }
  return objections;
}

at::Tensor Functional::head(const EstimatorInput& in, OutputSpace& space, Hypergradient& h) const {
  OutputSpace::Quadratic system = space.head();
  if (const at::Tensor decay = decay_of_the_rule(in); decay.defined()) {
    const at::Tensor own = output_layer_positions(in.oracle.problem()).to(decay.device());
    system.matrix = system.matrix + at::diag(decay.index_select(0, own));
  }
  Operator A;
  A.dim = system.linear.size(0);
  A.blocks = true;
  A.apply = [&](const at::Tensor& v) { return v.dim() == 2 ? v.mm(system.matrix) : system.matrix.mv(v); };
  const LinearResult linear = Dense({.damping = options_.damping + in.damping, .max_dim = A.dim}).solve(A, -system.linear, {});
  h.certificate.relative_residual = linear.relative_residual;
  h.message = fmt::format(
      "The adjoint is a head of {} weights on the last layer's features; its equations are left a relative residual of "
      "{:.2e}.",
      A.dim, linear.relative_residual);
  if (linear.status == Status::kSingular && linear.relative_residual < kSolvedHead) {
    demote(h, Grade::kWarn,
           "The last layer's features are linearly dependent, and the smallest head was taken; a damping would say so.");
  } else if (failed(linear.status)) {
    demote(h, Grade::kBad,
           fmt::format("The equations of the adjoint's head cannot be solved: {} Raise damping.", linear.message));
  }
  return linear.solution;
}

// w, Adam's moments, and the number of steps they have seen, from where the outer step before has left them.
Tensors Functional::train(const EstimatorInput& in, OutputSpace& space) const {
  const AdamRule adam({.lr = options_.adjoint_lr});
  at::Tensor w = in.carried.empty() ? in.oracle.problem().initial_inner(in.x, in.inner_batch.slice).detach() : in.carried[0];
  Tensors moments = in.carried.empty() ? adam.fresh_state(w) : Tensors{in.carried[1], in.carried[2]};
  int64_t t = in.carried.empty() ? 0 : in.carried[3].item<int64_t>();
  const Tensors h = adam.default_h(w);
  for (int64_t k = 0; k < options_.adjoint_steps; ++k, ++t) {
    RuleOutput next = adam.step({.y = w, .state = moments, .gradient = space.adjoint_loss(w).y, .h = h, .step = t});
    w = std::move(next.y);
    moments = std::move(next.state);
  }
  return {w, moments[0], moments[1], at::scalar_tensor(t, at::kLong)};
}

void Functional::compare(const EstimatorInput& in, OutputSpace& space, const at::Tensor& w, Hypergradient& h) const {
  Hypergradient of_head;
  const at::Tensor sums = space.compare(w, head(in, space, of_head)).to(at::kDouble);
  if (of_head.grade == Grade::kBad) return;
  const double cosine = (sums[1] / (sums[0] * sums[2]).sqrt()).item<double>();
  h.certificate.adjoint_cosine = cosine;
  h.message += fmt::format(" Its cosine with the closed form on the last layer's features is {:.3f}.", cosine);
  if (cosine < kAlike) {
    demote(
        h, Grade::kWarn,
        fmt::format(
            "The adjoint network has a cosine of {:.2f} with the closed form on the last layer's features: it lags behind. More "
            "adjoint_steps, or a larger adjoint_lr, would help.",
            cosine));
  }
}

Hypergradient Functional::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  const Problem& problem = in.oracle.problem();
  const Gradients outer = in.oracle.outer(in.x, in.solution.y, in.outer_batch);
  const auto space = in.oracle.output_space(in.x, in.solution.y, {.inner = in.batch_of_cross_product(), .outer = in.outer_batch});
  Hypergradient h = direct_term(in, outer, "F");
  if (options_.adjoint == FunctionalOptions::Adjoint::kHead) {
    const at::Tensor v = head(in, *space, h);
    h.value = outer.x + space->head_cross(v);
    if (v.size(0) < in.solution.y.size(0)) h.certificate.bias = "the adjoint is sought among heads on the last layer's features";
  } else {
    h.carried = train(in, *space);
    h.value = outer.x + space->cross(h.carried[0]);
    h.certificate.bias = "the adjoint is what a network has reached";
    h.message = fmt::format("The adjoint is a network after {} steps of Adam.", h.carried[3].item<int64_t>());
    if (in.bound && problem.output_layer()) compare(in, *space, h.carried[0], h);
  }
  check_finite(h, in.solution);
  return h;
}

}  // namespace bilevel
