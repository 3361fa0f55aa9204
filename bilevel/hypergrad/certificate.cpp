// φ(y) = ∂x f − (∂x r)ᵀ q,  (∂y r)ᵀ q = ∂y f;   v₁ = φ(y₁) with a q₁ that leaves ρ = ∂y f − (∂y r)ᵀ q₁
//
//   v₁ − ∇F = [v₁ − φ(y₁)] + [φ(y₁) − φ(y*)],     v₁ − φ(y₁) = M ρ,     φ(y₁) − φ(y*) ≈ (−V + M W)(y₁ − y*)
//
// because (∂x r)ᵀ(q − q₁) = M ρ, and the derivative of φ along y is that of ∂x f − (∂x r)ᵀ q₁ with q₁ fixed, and that of −M ρ.
#include "bilevel/hypergrad/certificate.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/core/vectors.h"
#include "bilevel/hypergrad/active_set_newton.h"
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/hypergrad/inner_newton.h"

namespace bilevel {
namespace {

constexpr int64_t kPowerSteps = 8;
constexpr double kPowerSafety = 1.3;  // what eight power steps from a random start leave below the norm, generously
constexpr int64_t kLanczosNumbers = int64_t{1} << 24;  // of all basis vectors together
constexpr int64_t kMostIdle = 3;                       // directions without curvature that Lanczos' method leaves out
constexpr double kLanczosFailure = 1e-3;
constexpr double kInexact = 0.3;       // relative residual up to which a solve says how large its solution is
constexpr double kSampleSafety = 3.0;  // the largest of three samples, against what rounding may do

bool finite(const at::Tensor& v) { return std::isfinite(v.abs().sum().item<double>()); }
bool names_F(const Hypergradient& h) {
  return h.certificate.differentiates == "F" || h.certificate.differentiates.starts_with("F,");
}

/// How small the curvature may be.
struct Curvature {
  double safe = 0;     // not above the smallest curvature on the way to y*; 0: nothing is known
  bool local = false;  // the curvature at y₁ stands out from rounding
  bool indefinite = false;
  std::string reason;  // "μ = …, the …"
};

/// Ritz values of k Lanczos steps from a random start, with full reorthogonalisation: {smallest, largest, k}.
struct Ritz {
  double smallest = 0, largest = 0;
  int64_t steps = 0;
  bool exact = false;  // the Krylov space is exhausted
  at::Tensor lowest;   // the Ritz vector of the smallest value
};

/// At a right angle to the rows of `idle`, which have no curvature; undefined: everywhere.
Ritz lanczos(const InnerPlace& place, int64_t steps, const at::Tensor& idle) {
  const int64_t d = place.y.size(0);
  const int64_t curved = d - (idle.defined() ? idle.size(0) : 0);
  const auto apart = [&idle](const at::Tensor& w) { return idle.defined() ? w - idle.t().mv(idle.mv(w)) : w; };
  steps = std::max<int64_t>(1, std::min({steps, curved, kLanczosNumbers / d}));
  at::Tensor v = Stream(0, "lanczos start").at(0).normal({d}).to(place.y.options());
  v = apart(v);
  v = v / v.norm();
  std::vector<at::Tensor> basis;
  at::Tensor T = at::zeros({steps, steps}, at::kDouble);
  Ritz ritz;
  for (int64_t k = 0; k < steps; ++k) {
    basis.push_back(v);
    at::Tensor w = apart(place.jvp_y(v));
    const at::Tensor V = at::stack(basis);
    at::Tensor overlap = V.mv(w);
    T[k][k] = overlap[k].item<double>();
    w = w - V.t().mv(overlap);
    w = w - V.t().mv(V.mv(w));
    ritz.steps = k + 1;
    const double beta = norm_of(w);
    if (!std::isfinite(beta)) break;
    if (beta <= 10 * rounding_unit(w) * norm_of(overlap)) {
      ritz.exact = true;
      break;
    }
    if (k + 1 < steps) T[k][k + 1] = T[k + 1][k] = beta;
    v = w / beta;
  }
  const auto [values, vectors] = at::linalg_eigh(T.narrow(0, 0, ritz.steps).narrow(1, 0, ritz.steps), "L");
  ritz.lowest = at::stack(basis).t().mv(vectors.select(1, 0).to(v.options()));
  ritz.lowest = ritz.lowest / ritz.lowest.norm();
  ritz.smallest = values[0].item<double>();
  ritz.largest = values[ritz.steps - 1].item<double>();
  ritz.exact = ritz.exact || ritz.steps == curved;
  return ritz;
}

/// What a corrected solve gave, `distance` away, and itself known to `rest`, says of the value. A known bias is no fault as long
/// as the value points downhill.
void judge(Hypergradient& h, const at::Tensor& corrected, double distance, double rest, const BoundOptions& options) {
  if (!names_F(h)) return;
  const double size = norm_of(corrected), own = norm_of(h.value);
  if (!(distance > options.off_by_half * size) || distance <= rest) return;
  if (!h.certificate.bias.empty()) {
    const double along = dot_of(h.value.to(at::kDouble), corrected.to(at::kDouble)) / own;
    demote(
        h, along + rest < 0 ? Grade::kBad : Grade::kWarn,
        fmt::format(
            "The hypergradient has {:.3g} times the length of what a corrected solve gives, and a cosine of {:.3g} with it: {}.",
            own / size, along / size, h.certificate.bias));
    return;
  }
  // Where the correction itself is not certain it cannot prove that the value is worthless.
  const bool worthless = distance - rest > options.off_by_all * std::min(size, own) && distance > options.off_by_all * size;
  demote(h, worthless ? Grade::kBad : Grade::kWarn,
         fmt::format("The hypergradient (norm {:.2e}) is about {:.2e} off from what a corrected solve gives; solving the inner "
                     "problem or the linear system further would help.",
                     own, distance));
}

/// All about one certificate.
class Certifier {
 public:
  /// `on`: in its coordinates y is constrained; null: y is free.
  Certifier(Hypergradient& h, const EstimatorInput& in, const BoundOptions& options, const OnActiveSet* on = nullptr)
      : h_(h),
        in_(in),
        on_(on),
        options_(options),
        eps_(rounding_unit(in.solution.y)),
        newton_(in, {.dense_dim = options.dense_dim, .products = options.products, .steps = options.newton_steps}),
        dense_(newton_.dense()) {}

  void run() {
    if (const std::string reason = refusal(); !reason.empty()) return refuse(reason);
    if (!newton_.solve(in_.x, in_.solution.y)) {
      return refuse(fmt::format("Newton's method does not get from ‖r‖ = {:.2e} to a solution of the inner problem near by.",
                                in_.solution.stationarity));
    }
    place_ = &newton_.place();
    newton_.renew();
    sigma_r_ = newton_.rounding_of_r();
    correct();
    if (!finite(value_)) return refuse("the corrected hypergradient is not finite.");
    const double distance = norm_of(h_.value.to(at::kDouble) - value_.to(at::kDouble));
    h_.certificate.distance_to_F = distance;
    measure_rounding();
    const double apart = norm_of(place_->linearized_r() - place_->r),
                 terms = norm_of(place_->jvp_y(place_->y)) + norm_of(place_->r);
    if (apart > 100 * sigma_r_ && apart > 1e-3 * terms) {
      refuse("the linearization is not that of the inner loss at this point.");
      demote(h_, Grade::kBad,
             fmt::format(
                 "The products are taken of another function than the inner loss: their r differs from its gradient by {:.1e}.",
                 apart));
      return;
    }
    const Curvature curvature = safe_curvature();
    if (curvature.indefinite) {
      refuse(curvature.reason);
      if (about_F())
        demote(h_, Grade::kBad, fmt::format("The point that the inner solve approaches is no minimum: {}", curvature.reason));
      return;
    }
    double rest = std::numeric_limits<double>::infinity();
    std::string set;
    if (curvature.safe > 0 && on_ != nullptr && !active_set_is_certain(curvature, set)) {
      refuse(set);
    } else if (curvature.safe > 0) {
      rest = remainder(curvature);
      if (about_F() && std::isfinite(rest)) {
        h_.certificate.error_bound = distance + rest;
        h_.certificate.curvature = curvature.safe;
        h_.certificate.bound_reason =
            fmt::format("The value is {:.2e} from that of a corrected solve, which is within {:.2e} of ∇F with {}{}{}.", distance,
                        rest, curvature.reason, set, in_.outer_batch.full() ? "" : " (∇F of this outer batch)");
      }
    } else if (about_F()) {
      h_.certificate.bound_reason = "No bound: " + curvature.reason;
    }
    judge(h_, value_, distance, rest, options_);
  }

 private:
  bool about_F() const { return names_F(h_); }

  void refuse(const std::string& reason) {
    if (about_F()) h_.certificate.bound_reason = "No bound: " + reason;
  }

  std::string refusal() const {
    const Problem& problem = in_.oracle.problem();
    if (!finite(h_.value)) return "the hypergradient is not finite.";
    if (!finite(in_.solution.y)) return "the inner solution is not finite.";
    if (problem.has_optimality_map() && !problem.optimality_map_is_symmetric() && !dense_) {
      return fmt::format("∂y r is not symmetric, and with {} inner variables it is too large to be formed.", in_.x.size(0));
    }
    if (!in_.solver.stops_at_stationarity()) return "the inner solver does not stop where the gradient is zero.";
    return "";
  }

  // v₁ = φ(y₁), by refining q until its residual no longer shrinks.
  void correct() {
    outer_ = in_.oracle.outer(in_.x, place_->y, in_.outer_batch);
    q_ = h_.q.defined() && h_.q.sizes() == place_->y.sizes() && finite(h_.q) ? h_.q.detach() : at::zeros_like(place_->y);
    Vjp both = place_->vjp(q_);
    at::Tensor rho = outer_.y - both.y;
    for (int i = 0; i < 4; ++i) {
      const at::Tensor q = q_ + newton_.inverse().apply_transposed(rho, 1e-4);
      Vjp products = place_->vjp(q);
      const at::Tensor left = outer_.y - products.y;
      const double was = norm_of(rho), now = norm_of(left);
      if (!(now < was)) break;
      q_ = q, both = std::move(products), rho = left;
      if (now > 0.5 * was) break;
    }
    rho_ = rho;
    value_ = outer_.x - both.x;
  }

  void measure_rounding() {
    const std::unique_ptr<InnerPlace> there = newton_.beside(*place_);
    const Gradients outer = in_.oracle.outer(in_.x, there->y, in_.outer_batch);
    const Vjp products = there->vjp(q_);
    sigma_rho_ = std::max(kRoundingSafety * norm_of(outer.y - products.y - rho_), eps_ * norm_of(outer_.y));
    sigma_value_ = std::max(kRoundingSafety * norm_of(outer.x - products.x - value_),
                            eps_ * (norm_of(outer_.x) + norm_of(value_ - outer_.x)));
  }

  Curvature safe_curvature() {
    const Problem& problem = in_.oracle.problem();
    Curvature found;
    const double known = place_->symmetric() ? problem.inner_strong_convexity(in_.x) : 0.0;
    if (known > 0) {
      found.safe = known + in_.solver.coupled_weight_decay();
      found.reason = fmt::format("μ = {:.2e}, which the problem guarantees", found.safe);
    }
    const double r = norm_of(place_->r) + sigma_r_;
    double local = 0, change = 0;  // the smallest curvature at y₁, and how fast it changes along y
    std::string how;
    at::Tensor u;
    if (dense_) {
      const at::Tensor& J = newton_.matrix();
      const double rounding = 4 * eps_ * std::sqrt(static_cast<double>(J.size(0)));
      if (place_->symmetric()) {
        at::Tensor values = newton_.eigenvalues(), vectors = newton_.eigenvectors();
        if (!values.defined()) {
          found.reason = "the matrix of the inner problem is not finite.";
          return found;
        }
        const double high = values.abs().max().item<double>();
        if (newton_.idle().defined()) {
          const at::Tensor curved = values.abs().gt(rounding * high).nonzero().squeeze(1);
          values = values.index_select(0, curved), vectors = vectors.index_select(1, curved);
        }
        const double low = values[0].item<double>();
        if (low < -rounding * high && known <= 0) {
          found.indefinite = true;
          found.reason = fmt::format("the smallest curvature at the inner solution is {:.2e}.", low);
          return found;
        }
        local = low - rounding * high;
        u = vectors.select(1, 0).to(place_->y.scalar_type());
      } else {
        const at::Tensor values = at::linalg_svdvals(J);
        local = values[-1].item<double>() - rounding * values[0].item<double>();
        u = newton_.inverse().apply(Stream(0, "curvature direction").at(0).normal({J.size(0)}).to(place_->y.options()), 0.1);
        u = u / u.norm();
      }
      how = newton_.idle().defined()
                ? "the smallest eigenvalue at the inner solution beside directions along which nothing happens"
                : "the smallest eigenvalue at the inner solution";
    } else {
      at::Tensor idle;
      Ritz ritz = lanczos(*place_, options_.products, idle);
      for (int64_t i = 0; i < kMostIdle && known <= 0; ++i) {
        const double flat = 8 * eps_ * std::sqrt(static_cast<double>(place_->y.size(0))) * ritz.largest;
        if (std::abs(ritz.smallest) > flat || !newton_.is_idle(ritz.lowest.unsqueeze(1))) break;
        idle = idle.defined() ? at::cat({idle, ritz.lowest.unsqueeze(0)}) : ritz.lowest.unsqueeze(0);
        ritz = lanczos(*place_, options_.products, idle);
      }
      const auto d = static_cast<double>(place_->y.size(0));
      const double root = std::log(1.648 * std::sqrt(d) / kLanczosFailure) / (2.0 * static_cast<double>(ritz.steps) - 1.0);
      const double share = ritz.exact ? 4 * eps_ * std::sqrt(d) : std::min(1.0, root * root + 4 * eps_ * std::sqrt(d));
      if (ritz.smallest < -4 * eps_ * std::sqrt(d) * ritz.largest && known <= 0) {
        found.indefinite = true;
        found.reason = fmt::format("the curvature at the inner solution falls to {:.2e} or below.", ritz.smallest);
        return found;
      }
      local = ritz.smallest - share / (1 - std::min(share, 0.5)) * (ritz.largest - std::min(0.0, ritz.smallest));
      how = fmt::format("a safe lower bound of the smallest eigenvalue from {} Lanczos steps", ritz.steps);
      if (!(local > 0) && !(found.safe > 0)) {
        found.reason = fmt::format(
            "no lower bound of the curvature is known; {} Lanczos steps found {:.2e} … {:.2e}, too wide a range to exclude 0.",
            ritz.steps, ritz.smallest, ritz.largest);
      }
      u = Stream(0, "curvature direction").at(0).normal({place_->y.size(0)}).to(place_->y.options());
      u = u / u.norm();
    }
    found.local = local > 0;
    if (!(local > found.safe)) {
      if (found.safe <= 0 && found.reason.empty()) {
        found.reason = fmt::format("the smallest curvature at the inner solution, {:.2e}, is zero to rounding.", local);
      }
      return found;
    }
    // The third derivative along u twice is the gradient of the smallest eigenvalue.
    const double s = std::cbrt(eps_) * (1 + norm_of(place_->y));
    const InnerPlace there(in_, in_.x, place_->y + s * u);
    change = 2 * norm_of(there.jvp_y(u) - place_->jvp_y(u)) / s;
    // r falls to zero within a distance of about r/μ; the curvature must not have changed much by then (Kantorovich).
    if (change * r <= 0.125 * local * local) {
      found.safe = std::max(found.safe, local - 2 * change * r / local);
      found.local = true;
      found.reason = fmt::format("μ = {:.2e}, {}", found.safe, how);
    } else if (found.safe <= 0) {
      found.reason = fmt::format("the curvature near the inner solution may fall from {:.2e} to zero before r does.", local);
    }
    return found;
  }

  /// M w = (∂x r)ᵀ (∂y r)⁻ᵀ w; false where the inverse is not good enough to say.
  bool apply_M(const at::Tensor& w, at::Tensor& Mw) const {
    const at::Tensor q = newton_.inverse().apply_transposed(w, 0.3 * kInexact);
    const Vjp both = place_->vjp(q);
    Mw = both.x;
    return norm_of(w - both.y) <= kInexact * norm_of(w);
  }

  /// Derivatives of ∂x f − (∂x r)ᵀ q₁ and of ρ along the unit vector p, by a difference.
  struct Along {
    at::Tensor V, W;
  };
  Along along(const at::Tensor& p) const {
    const double s = std::cbrt(eps_) * (1 + norm_of(place_->y));
    const InnerPlace there(in_, in_.x, place_->y + s * p);
    const Gradients outer = in_.oracle.outer(in_.x, there.y, in_.outer_batch);
    const Vjp products = there.vjp(q_);
    return {(outer.x - products.x - value_) / s, (outer.y - products.y - rho_) / s};
  }

  /// ‖(−V + M W) (∂y r)⁻¹ δ‖: what a residual δ of r changes in φ. False as above.
  bool effect_of(const at::Tensor& delta, double& effect) const {
    const at::Tensor step = newton_.inverse().apply(delta, 0.3 * kInexact);
    const double size = norm_of(step);
    if (!(size > 0) || !(norm_of(delta - place_->jvp_y(step)) <= kInexact * norm_of(delta))) return size == 0;
    const Along change = along(step / size);
    at::Tensor MW;
    if (!apply_M(change.W, MW)) return false;
    effect = std::max(effect, size * norm_of(MW - change.V));
    return true;
  }

  /// A bound of ‖v₁ − ∇F‖: of what the known ρ and r(y₁) change, and rounding as random vectors of its size would change it.
  /// Where the inverse cannot be had, the norms of its factors.
  double remainder(const Curvature& curvature) {
    const double r = norm_of(place_->r), mu = curvature.safe;
    double rest = 0;
    if (curvature.local && sampled_remainder(rest)) return rest;

    // ‖M‖ ≤ ‖∂x r‖ / μ, by power steps.
    double M = 0;
    at::Tensor u = Stream(0, "cross derivative").at(0).normal({in_.x.size(0)}).to(in_.x.options());
    for (int64_t i = 0; i < kPowerSteps; ++i) {
      const double size = norm_of(u);
      if (!(size > 0)) break;
      const at::Tensor w = place_->jvp_x(u / size);
      M = std::max(M, norm_of(w));
      u = place_->vjp(w).x;
    }
    M *= kPowerSafety / mu;
    // Along the way that y has come, and from there on by power steps on the symmetric W.
    double V = 0, W = 0;
    at::Tensor p = place_->y - in_.solution.y;
    if (!(norm_of(p) > 0)) p = random(0);
    for (int64_t i = 0; i < options_.probes; ++i) {
      const double size = norm_of(p);
      if (!(size > 0) || !std::isfinite(size)) break;
      const Along change = along(p / size);
      V = std::max(V, norm_of(change.V)), W = std::max(W, norm_of(change.W));
      p = change.W;
    }
    W *= kPowerSafety, V *= 2 * kPowerSafety;
    return M * (norm_of(rho_) + sigma_rho_) + (V + M * W) * (r + sigma_r_) / mu + sigma_value_;
  }

  bool sampled_remainder(double& rest) const {
    double known = 0, rounding = 0, of_rho = 0;
    at::Tensor M_rho, M_sample;
    if (!apply_M(rho_, M_rho) || !effect_of(place_->r, known)) return false;
    for (int64_t i = 0; i < options_.probes; ++i) {
      const at::Tensor z = random(i);
      if (!effect_of(z * (sigma_r_ / norm_of(z)), rounding) || !apply_M(z * (sigma_rho_ / norm_of(z)), M_sample)) return false;
      of_rho = std::max(of_rho, norm_of(M_sample));
    }
    // The inverse is that of a matrix with rounding in it, and few samples have been drawn.
    rest = (1 + kInexact) * (norm_of(M_rho) + known) + kSampleSafety * (rounding + of_rho) + sigma_value_;
    return std::isfinite(rest);
  }

  /// Whether y* has the active set that y₁ has: the forces that hold coordinates, and the distances of the others from bounds and
  /// kinks, against what r(y₁) and rounding may change in them. `how` says so, or why not.
  bool active_set_is_certain(const Curvature& curvature, std::string& how) const {
    const double r = norm_of(place_->r) + sigma_r_;
    const Margins here = on_->margins(in_.x, on_->y(in_.x, place_->y));
    at::Tensor force = at::zeros_like(here.force), slack = force;  // how far they may be off
    const auto grow = [](at::Tensor& off, const at::Tensor& a, const at::Tensor& b) {
      off = at::maximum(off, at::where(a.isfinite(), (a - b).abs(), at::zeros_like(off)));
    };
    for (int64_t i = 0; i < options_.probes; ++i) {
      at::Tensor step = random(i);
      step = curvature.local ? newton_.inverse().apply(step * (r / norm_of(step)), 0.1)
                             : step * (r / curvature.safe / norm_of(step));
      const Margins there = on_->margins(in_.x, on_->y(in_.x, place_->y + step));
      grow(force, here.force, there.force), grow(slack, here.slack, there.slack);
    }
    force = kSampleSafety * force + eps_ * here.scale, slack = kSampleSafety * slack + eps_ * on_->y(in_.x, place_->y).abs();
    const std::string doubt = doubt_of(here, force, slack);
    const int64_t held = on_->surface().set().held().sum().item<int64_t>(), all = here.force.size(0);
    const auto least = [](const at::Tensor& margin, const at::Tensor& off) {
      const int64_t i = (margin / off.clamp_min(std::numeric_limits<float>::min())).argmin().item<int64_t>();
      return std::isfinite(margin[i].item<double>())
                 ? fmt::format("{:.1e} ± {:.1e}", margin[i].item<double>(), off[i].item<double>())
                 : "∞";
    };
    how = !doubt.empty()
              ? doubt
              : fmt::format(
                    ", on the active set of y*: {} of {} coordinates are held, the least firmly by a force of {}, and the "
                    "nearest to being held is {} away",
                    held, all, least(here.force, force), least(here.slack, slack));
    return doubt.empty();
  }

  std::string doubt_of(const Margins& here, const at::Tensor& force, const at::Tensor& slack) const {
    const auto first = [&](const at::Tensor& margin, const at::Tensor& off, const char* what) -> std::string {
      const at::Tensor weak = margin.gt(off).logical_not().nonzero().reshape({-1});
      if (weak.size(0) == 0) return "";
      const int64_t i = weak[0].item<int64_t>();
      return fmt::format("the active set of y* is not certain: {} is {} by {:.1e} ± {:.1e}.",
                         on_->surface().problem().inner_layout().element_name(i), what, margin[i].item<double>(),
                         off[i].item<double>());
    };
    const std::string held = first(here.force, force, "held at its bound or at zero");
    return held.empty() ? first(here.slack, slack, "away from its bounds and from zero") : held;
  }

  at::Tensor random(int64_t i) const {
    return Stream(0, "certificate samples").at(i).normal({place_->y.size(0)}).to(place_->y.options());
  }

  Hypergradient& h_;
  const EstimatorInput& in_;
  const OnActiveSet* on_;
  const BoundOptions& options_;
  double eps_;
  InnerNewton newton_;
  const bool dense_;
  const InnerPlace* place_ = nullptr;
  at::Tensor q_, rho_, value_;
  Gradients outer_;
  double sigma_r_ = 0, sigma_rho_ = 0, sigma_value_ = 0;
};

/// Nothing of y is free: y* is Y(x) as long as all is held, and ∇F = ∂x f + (∂x Y)ᵀ ∂y f.
void certify_where_all_is_held(Hypergradient& h, const EstimatorInput& in, const OnActiveSet& on, const at::Tensor& y,
                               const BoundOptions& options) {
  const Margins here = on.margins(in.x, y);
  const double least = here.force.min().item<double>(), off = 32 * rounding_unit(y) * here.scale;
  const at::Tensor value = on.input().oracle.outer(in.x, on.input().solution.y, in.outer_batch).x;
  const double distance = norm_of(h.value.to(at::kDouble) - value.to(at::kDouble));
  h.certificate.distance_to_F = distance;
  if (!(least > off)) {
    h.certificate.bound_reason =
        fmt::format("No bound: all of y is held, and the least force, {:.1e} ± {:.1e}, is not certain.", least, off);
    return;
  }
  const double rest = 32 * rounding_unit(y) * (norm_of(value) + norm_of(h.direct));
  h.certificate.error_bound = distance + rest;
  h.certificate.bound_reason = fmt::format(
      "All of y is held by constraints, the least firmly by a force of {:.1e} ± {:.1e}: the value is {:.2e} "
      "from what they give, and rounding of {:.2e} is left.",
      least, off, distance, rest);
  judge(h, value, distance, rest, options);
}

void certify_on_the_active_set(Hypergradient& h, const EstimatorInput& in, const BoundOptions& options) {
  ActiveSetNewton search(in, {.dense_dim = options.dense_dim, .products = options.products, .steps = options.newton_steps});
  if (!search.solve(in.x, in.solution.y)) {
    if (names_F(h)) h.certificate.bound_reason = "No bound: " + search.why();
    return;
  }
  const OnActiveSet& on = *search.active_set();
  if (search.dim() == 0) return certify_where_all_is_held(h, in, on, search.y(), options);
  const at::Tensor q = h.q, z = search.newton().place().y;
  if (q.defined()) h.q = on.surface().pull(q);
  on.input().solution.y = z;
  Certifier(h, on.input(), options, &on).run();
  h.q = q;
}

}  // namespace

std::vector<std::string> BoundOptions::violations() const {
  std::vector<std::string> found;
  if (dense_dim < 0) found.push_back(fmt::format("dense_dim = {} must be at least 0", dense_dim));
  if (products < 1) found.push_back(fmt::format("products = {} must be at least 1", products));
  if (newton_steps < 1) found.push_back(fmt::format("newton_steps = {} must be at least 1", newton_steps));
  if (probes < 1) found.push_back(fmt::format("probes = {} must be at least 1", probes));
  return found;
}

void certify(Hypergradient& h, const EstimatorInput& in, const BoundOptions& options) {
  const auto violations = options.violations();
  require(violations.empty(), fmt::format("certify: {}.", fmt::join(violations, "; ")));
  const at::NoGradGuard no_grad;
  if (in.oracle.problem().has_inner_constraints() && finite(h.value) && finite(in.solution.y)) {
    certify_on_the_active_set(h, in, options);
  } else {
    Certifier(h, in, options).run();
  }
}

}  // namespace bilevel
