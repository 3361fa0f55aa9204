#include "bilevel/linear/system.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

constexpr int64_t kBlock = 64;  // products at a time: beyond that a block gains nothing and needs memory

std::string shape_of(const at::Tensor& t) {
  return t.defined() ? fmt::format("[{}]", fmt::join(t.sizes(), ", ")) : std::string("undefined");
}

LinearResult trivial(bool zero, const at::Tensor& b) {
  LinearResult result;
  result.solution = at::zeros_like(b);
  result.status = zero ? Status::kConverged : Status::kNonFinite;
  result.message = zero ? "The right-hand side is zero." : "The right-hand side is not finite.";
  result.relative_residual = zero ? 0 : std::numeric_limits<double>::infinity();
  return result;
}

bool worse(const LinearResult& a, const LinearResult& b) {
  if (failed(a.status) != failed(b.status)) return failed(a.status);
  return !(a.relative_residual <= b.relative_residual);
}

}  // namespace

System::System(const Operator& A, double damping, const at::Tensor& b, const at::Tensor& q0, std::string_view caller)
    : A_(A), damping_(damping), block_(b.defined() && b.dim() == 2) {
  require(static_cast<bool>(A.apply), fmt::format("{}: A.apply is empty; give the product A v.", caller));
  require(b.defined() && (b.dim() == 1 || b.dim() == 2) && b.size(-1) == A.dim && at::isFloatingType(b.scalar_type()),
          fmt::format("{}: b has shape {}, expected a real vector [{}], the dimension of A, or a block of them.", caller,
                      shape_of(b), A.dim));
  require(!block_ || A.blocks,
          fmt::format("{}: b is a block {}, but the products of A take vectors only; solve for one row at a time.", caller,
                      shape_of(b)));
  require(!q0.defined() || (q0.sizes() == b.sizes() && q0.scalar_type() == b.scalar_type() && q0.device() == b.device()),
          fmt::format("{}: q0 differs from b in shape, dtype or device; expected those of b, or an undefined tensor.", caller));
  b_ = block_ ? b.detach() : b.detach().unsqueeze(0);
  const int64_t given = b_.size(0);
  largest_.assign(static_cast<size_t>(given), 0.0);
  length_ = largest_;
  if (b_.numel() == 0) return;

  const at::Tensor largest = b_.abs().amax(1, /*keepdim=*/true);  // NaN where b holds one
  largest_ = numbers(largest);
  for (int64_t i = 0; i < given; ++i) {
    if (largest_[i] != 0 && std::isfinite(largest_[i])) kept_.push_back(i);
  }
  if (kept_.empty()) return;
  const auto rows = [&](const at::Tensor& all) {
    return this->rows() == given ? all : all.index_select(0, at::tensor(kept_, b.options().dtype(at::kLong)));
  };
  const at::Tensor scale = rows(largest);
  b_ = rows(b_) / scale;
  const at::Tensor length = at::linalg_vector_norm(b_, 2, {1}, /*keepdim=*/true);
  b_ = b_ / length;
  if (q0.defined()) q0_ = rows(block_ ? q0.detach() : q0.detach().unsqueeze(0)) / scale / length;
  const auto lengths = numbers(length);
  for (size_t i = 0; i < kept_.size(); ++i) length_[kept_[i]] = lengths[i];
}

double System::epsilon() const {
  return b_.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
}

at::Tensor System::product(const std::function<at::Tensor(const at::Tensor&)>& of, const at::Tensor& v, at::Tensor sum) const {
  // One row goes as a vector, which every operator takes.
  const at::Tensor Av = v.dim() == 2 && v.size(0) == 1 ? of(v[0]).detach().unsqueeze(0) : of(v).detach();
  if (damping_ == 0) return Av;
  return sum.defined() ? at::add_out(sum, Av, v, damping_) : Av.add(v, damping_);
}

at::Tensor System::apply(const at::Tensor& v, at::Tensor sum) const { return product(A_.apply, v, std::move(sum)); }

at::Tensor System::apply_transposed(const at::Tensor& v) const {
  return product(A_.apply_transposed ? A_.apply_transposed : A_.apply, v, {});
}

System::Start System::start() const {
  Start start{at::zeros_like(b_), b_.clone(), std::vector<double>(static_cast<size_t>(rows()), 1.0)};
  if (!q0_.defined()) return start;
  const at::Tensor r0 = b_ - apply(q0_);
  const auto residuals = numbers(at::linalg_vector_norm(r0, 2, {1}));
  for (int64_t i = 0; i < rows(); ++i) {
    const double residual = residuals[static_cast<size_t>(i)];
    if (!(residual < 1)) continue;  // NaN among them
    start.q[i].copy_(q0_[i]);
    start.r[i].copy_(r0[i]);
    start.residuals[static_cast<size_t>(i)] = residual;
  }
  return start;
}

std::string System::stopped_by_rounding(double residual) const {
  return fmt::format("The residual stopped falling at {:.3g}, the rounding of {}.", residual, toString(b_.scalar_type()));
}

LinearResult System::result(std::vector<LinearResult> rows) const {
  std::vector<LinearResult> all;
  auto next = rows.begin();
  for (size_t i = 0, kept = 0; i < largest_.size(); ++i) {
    if (kept < kept_.size() && kept_[kept] == static_cast<int64_t>(i)) {
      all.push_back(std::move(*next++));
      all.back().solution = all.back().solution * length_[i] * largest_[i];
      ++kept;
    } else {
      all.push_back(trivial(largest_[i] == 0, at::empty({A_.dim}, b_.options())));
    }
  }
  if (!block_) return std::move(all[0]);

  LinearResult whole;
  whole.solution = at::zeros({static_cast<int64_t>(all.size()), A_.dim}, b_.options());
  whole.status = Status::kConverged;
  size_t worst = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    whole.solution[static_cast<int64_t>(i)].copy_(all[i].solution);
    whole.iterations = std::max(whole.iterations, all[i].iterations);
    if (worse(all[i], all[worst])) worst = i;
    const auto lower = [](std::optional<double>& into, const std::optional<double>& value) {
      if (value) into = std::min(into.value_or(*value), *value);
    };
    lower(whole.smallest_curvature, all[i].smallest_curvature);
    lower(whole.negative_curvature, all[i].negative_curvature);
  }
  if (all.empty()) return whole;
  whole.status = all[worst].status;
  whole.message = fmt::format("Of {} right-hand sides, number {} fared worst: {}", all.size(), worst + 1, all[worst].message);
  whole.relative_residual = all[worst].relative_residual;
  whole.history = std::move(all[worst].history);
  return whole;
}

LinearResult System::each(const std::function<LinearResult(const at::Tensor& b, const at::Tensor& q0)>& solve) const {
  std::vector<LinearResult> results;
  for (int64_t i = 0; i < rows(); ++i) results.push_back(solve(b_[i], q0_.defined() ? q0_[i] : q0_));
  return result(std::move(results));
}

void describe(LinearResult& result) {
  if (!result.message.empty()) return;
  const char* how = result.status == Status::kConverged ? "Converged in {} iterations to a relative residual of {:.3g}."
                                                        : "Did {} iterations, to a relative residual of {:.3g}.";
  result.message = fmt::format(fmt::runtime(how), result.iterations, result.relative_residual);
}

at::Tensor products(const Operator& A, const at::Tensor& v) {
  std::vector<at::Tensor> parts;
  for (int64_t from = 0; from < v.size(0); from += kBlock) {
    const int64_t size = std::min(kBlock, v.size(0) - from);
    if (A.blocks) {
      parts.push_back(A.apply(v.narrow(0, from, size)).detach());
    } else {
      for (int64_t i = 0; i < size; ++i) parts.push_back(A.apply(v[from + i]).detach().unsqueeze(0));
    }
  }
  return at::cat(parts);
}

void keep_rows(const std::vector<int64_t>& left, std::initializer_list<at::Tensor*> tensors) {
  for (at::Tensor* t : tensors) {
    if (t->defined()) *t = t->index_select(0, at::tensor(left, t->options().dtype(at::kLong)));
  }
}

at::Tensor step_scale(double scale, const Operator& A, const at::Tensor& b, std::string_view caller) {
  if (scale > 0) return at::full({}, scale, b.options());
  const at::Tensor& s = A.step_size;
  require(s.defined(), fmt::format("{}: no scale is known; give `scale` > 0, below 2 / (largest eigenvalue of A).", caller));
  require(s.dim() == 0 || (s.dim() == 1 && s.size(0) == A.dim),
          fmt::format("{}: A.step_size has shape {}, expected a scalar or [{}].", caller, shape_of(s), A.dim));
  require((s > 0).all().item<bool>(),
          fmt::format("{}: A.step_size is not positive; it must be, and below 2 / (largest eigenvalue of A).", caller));
  return s.detach().to(b.options());
}

at::Tensor row_dots(const at::Tensor& a, const at::Tensor& b) {
  if (a.size(0) == 1) return a[0].dot(b[0]).view({1, 1});
  return a.unsqueeze(1).bmm(b.unsqueeze(2)).squeeze(2);
}

std::vector<double> numbers(const at::Tensor& values) {
  const at::Tensor all = values.to(at::kCPU, at::kDouble).contiguous();
  return {all.const_data_ptr<double>(), all.const_data_ptr<double>() + all.numel()};
}

std::vector<double> numbers(std::initializer_list<at::Tensor> values) {
  std::vector<at::Tensor> flat;
  for (const at::Tensor& value : values) flat.push_back(value.reshape({-1}));
  return numbers(at::cat(flat));
}

double smallest_eigenvalue(const std::vector<double>& diagonal, const std::vector<double>& squares) {
  const size_t n = diagonal.size();
  double low = diagonal[0],
         high = diagonal[0];  // Gershgorin; a diagonal entry is a Rayleigh quotient, so never below the smallest
  for (size_t i = 0; i < n; ++i) {
    const double radius = (i > 0 ? std::sqrt(squares[i - 1]) : 0) + (i + 1 < n ? std::sqrt(squares[i]) : 0);
    low = std::min(low, diagonal[i] - radius);
    high = std::min(high, diagonal[i]);
  }
  // One below `shift` exists if and only if the factorisation LDLᵀ of T − shift·I meets a negative pivot.
  const auto below = [&](double shift) {
    double pivot = 1;
    for (size_t i = 0; i < n; ++i) {
      pivot = diagonal[i] - shift - (i > 0 ? squares[i - 1] / pivot : 0);
      if (pivot < 0) return true;
      pivot = std::max(pivot, std::numeric_limits<double>::min());
    }
    return false;
  };
  const double scale = std::max(std::abs(low), std::abs(high));
  for (int step = 0; step < 200 && high - low > 1e-15 * scale; ++step) {
    const double middle = 0.5 * (low + high);
    (below(middle) ? high : low) = middle;
  }
  return high;
}

void check_common(int64_t iterations, int64_t least, double tolerance, double damping, std::vector<std::string>& found) {
  if (iterations < least) found.push_back(fmt::format("iterations = {} must be at least {}", iterations, least));
  if (!(tolerance >= 0)) found.push_back(fmt::format("tolerance = {} must be at least 0", tolerance));
  if (!(damping >= 0 && std::isfinite(damping))) {
    found.push_back(fmt::format("damping = {} must be finite and at least 0", damping));
  }
}

}  // namespace bilevel
