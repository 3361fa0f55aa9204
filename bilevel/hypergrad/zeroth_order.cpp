// value = (1/N) Σ dᵢ uᵢ,   dᵢ = [F_T(x + σ uᵢ) − F_T(x − σ uᵢ)] / (2σ),   uᵢ ~ N(0, I)
// standard error = √(Σᵢ ‖dᵢ uᵢ − value‖² / (N (N − 1)))
#include "bilevel/hypergrad/zeroth_order.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/hypergrad/assembly.h"

namespace bilevel {

std::vector<std::string> ZerothOrderOptions::violations() const {
  std::vector<std::string> found;
  if (samples < 1) found.push_back(fmt::format("samples should be at least 1, got {}.", samples));
  if (!(sigma > 0 && std::isfinite(sigma))) found.push_back(fmt::format("sigma should be positive, got {}.", sigma));
  return found;
}

void read(Section& section, ZerothOrderOptions& options) {
  section.read("samples", options.samples);
  section.read("sigma", options.sigma);
  section.check(options.violations());
}

ZerothOrder::ZerothOrder(ZerothOrderOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("ZerothOrder: " + violation);
}

std::vector<std::string> ZerothOrder::objections(const Problem&, const InnerSolver&) const { return {}; }

Hypergradient ZerothOrder::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  require(in.start.y.defined(), "ZerothOrder::estimate: EstimatorInput::start, where the inner solve began, is needed.");
  const Problem& problem = in.oracle.problem();
  const int64_t slice = in.inner_batch.slice, N = options_.samples;
  const bool start_moves = in.cold_start && problem.initial_inner_depends_on_outer();
  Status worst = Status::kConverged;
  std::string failure;
  const auto F_T = [&](const at::Tensor& x) {
    InnerStart start = in.start;
    if (start_moves) start.y = problem.initial_inner(x, slice).detach();
    const InnerSolution solution = in.solver.solve(in.oracle, x, slice, start, {});
    if (failed(solution.status) && !failed(worst)) {
      worst = solution.status;
      failure = solution.message;
    }
    return in.oracle.outer_value(x, solution.y, in.outer_batch).item<double>();
  };

  const Stream stream(in.outer_batch.seed, "zeroth-order");  // another seed at each outer step
  at::Tensor mean = at::zeros({in.x.size(0)}, at::kDouble);
  double squares = 0;  // Σ ‖dᵢ uᵢ − mean‖², by Welford's recurrence
  for (int64_t i = 0; i < N; ++i) {
    const at::Tensor u = stream.at(i).normal({in.x.size(0)});
    const at::Tensor step = options_.sigma * u.to(in.x.options());
    const at::Tensor term = (F_T(in.x + step) - F_T(in.x - step)) / (2 * options_.sigma) * u;
    const at::Tensor off = term - mean;
    mean = mean + off / static_cast<double>(i + 1);
    squares += dot_of(off, term - mean);
  }

  const Gradients outer = in.oracle.outer(in.x, in.solution.y, in.outer_batch);
  Hypergradient h = direct_term(in, outer, fmt::format("F_T, smoothed by a Gaussian of σ = {:g}", options_.sigma));
  h.certificate.bias = "F_T is smoothed";
  h.value = mean.to(in.x.options());
  if (N > 1) h.certificate.standard_error = std::sqrt(squares / (static_cast<double>(N) * static_cast<double>(N - 1)));
  h.certificate.bound_reason = "No bound: a random estimate, whose standard error is given.";
  h.message = N > 1 ? fmt::format("{} antithetic pairs of inner solves, with a standard error of {:.2e} (2-norm).", N,
                                  *h.certificate.standard_error)
                    : "One antithetic pair of inner solves: a random direction, whose error is not known.";
  check_finite(h, in.solution);
  if (failed(worst)) demote(h, Grade::kBad, fmt::format("An inner solve at x ± σu failed ({}): {}", to_string(worst), failure));
  return h;
}

}  // namespace bilevel
