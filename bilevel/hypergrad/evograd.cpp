// y* = y + Σ a_k ε_k. With b = ∂y f(x, y*), s_k = bᵀ ε_k, s̄ = Σ a_k s_k and ∂a_k/∂g_j = −a_k (δ_kj − a_j)/τ
//
//   value = ∂x f(x, y*) + Σ c_k ∂x g(x, y_k),   c_k = −a_k (s_k − s̄)/τ
//
// Σ c_k = 0: the common y drops out of s_k, which is why ε_k stands there and not y_k, that would lose digits.
#include "bilevel/hypergrad/evograd.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/hypergrad/assembly.h"

namespace bilevel {
namespace {

// 1 − max a, below which hardly anything of the derivative is left: it goes with a_k (1 − a_k).
constexpr double kSaturated = 0.01;

}  // namespace

std::vector<std::string> EvoGradOptions::violations() const {
  std::vector<std::string> found;
  if (copies < 2) found.push_back(fmt::format("copies should be at least 2, got {}: a single one has no derivative.", copies));
  if (!(sigma > 0 && std::isfinite(sigma))) found.push_back(fmt::format("sigma should be positive, got {}.", sigma));
  if (!(temperature > 0 && std::isfinite(temperature))) {
    found.push_back(fmt::format("temperature should be positive, got {}.", temperature));
  }
  return found;
}

void read(Section& section, EvoGradOptions& options) {
  section.read("copies", options.copies);
  section.read("sigma", options.sigma);
  section.read("temperature", options.temperature);
  section.read_choice("noise", options.noise, {"rademacher", "gaussian"});
  section.check(options.violations());
}

EvoGrad::EvoGrad(EvoGradOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("EvoGrad: " + violation);
}

double EvoGrad::step_size() const {
  return options_.sigma * options_.sigma * (1 - 1 / static_cast<double>(options_.copies)) / options_.temperature;
}

at::Tensor EvoGrad::noise(Draw draw, int64_t dy) const {
  if (options_.noise == EvoGradOptions::Noise::kGaussian) return draw.normal({options_.copies, dy});
  const SeedGuard guard(draw.seed());  // LibTorch's bits are drawn faster than our own numbers, which counts for a small network
  return 2 * at::randint(2, {options_.copies, dy}, at::kDouble) - 1;
}

std::vector<std::string> EvoGrad::objections(const Problem& problem, const InnerSolver&) const {
  if (problem.has_optimality_map()) {
    return {
        "\"evograd\" weighs copies of y by their loss g, and this problem gives an optimality map. Use estimator = "
        "\"implicit\"."};
  }
  return object_to_parts_beyond_the_inner_loss(problem, name());
}

Hypergradient EvoGrad::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  const at::Tensor& y = in.solution.y;
  const Batch& batch = in.batch_of_cross_product();
  // Drawn anew at each outer step.
  const at::Tensor epsilon = (options_.sigma * noise(Stream(in.outer_batch.seed, "evograd").at(0), y.size(0))).to(y.options());

  std::vector<at::Tensor> losses;
  for (const at::Tensor& one : epsilon.unbind(0)) losses.push_back(in.oracle.inner_value(in.x, y + one, batch));
  const at::Tensor a = at::softmax(at::stack(losses) / -options_.temperature, 0);

  const Gradients outer = in.oracle.outer(in.x, y + a.matmul(epsilon), in.outer_batch);
  Hypergradient h = direct_term(in, outer, "f after one evolutionary step");
  h.outer_loss = in.oracle.outer_value(in.x, y, in.outer_batch).item<double>();
  const at::Tensor s = epsilon.mv(outer.y);
  const at::Tensor c = a * (s - a.dot(s)) / -options_.temperature;
  for (int64_t k = 0; k < options_.copies; ++k) h.value = h.value + c[k] * in.oracle.inner_grad_x(in.x, y + epsilon[k], batch);

  h.certificate.bias = "one evolutionary step stands for the inner solve";
  h.certificate.bound_reason = "No bound: a random estimate of one step's derivative.";
  h.message =
      fmt::format("An evolutionary step of {} copies: in expectation a gradient step of size {:.2g} from the y that was reached.",
                  options_.copies, step_size());
  const double spread = 1 - a.max().item<double>();
  if (spread < kSaturated) {
    demote(h, Grade::kWarn,
           fmt::format("One of the {} copies has all but {:.1e} of the weight, and the derivative is nearly gone: lower sigma, "
                       "or raise temperature.",
                       options_.copies, spread));
  }
  check_finite(h, in.solution);
  return h;
}

}  // namespace bilevel
