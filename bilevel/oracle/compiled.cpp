#include "bilevel/oracle/compiled.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/format.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <utility>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/oracle/autograd.h"

namespace bilevel {

std::string_view to_string(Derivative derivative) {
  switch (derivative) {
    case Derivative::kGradient: return "gradient";
    case Derivative::kLinearization: return "linearization";
    case Derivative::kHvp: return "hvp";
    case Derivative::kVjp: return "vjp";
    case Derivative::kJvpX: return "jvp_x";
    case Derivative::kOuter: return "outer";
  }
  return "";
}

using Tensors = std::vector<at::Tensor>;

class CompiledOracle::Program {
 public:
  explicit Program(CompiledProgram compiled)
      : compiled_(std::move(compiled)), loader_(compiled_.package, "model", /*run_single_threaded=*/true) {}

  Tensors operator()(const at::Tensor& direction, const at::Tensor& x, const at::Tensor& y, const Batch& batch,
                     const Tensors& saved = {}) const {
    Tensors inputs;
    inputs.reserve(4 + compiled_.constants.size() + saved.size());
    if (direction.defined()) inputs.push_back(direction.contiguous());
    inputs.push_back(x);
    inputs.push_back(y);
    if (!batch.full()) inputs.push_back(batch.samples);
    inputs.insert(inputs.end(), compiled_.constants.begin(), compiled_.constants.end());
    inputs.insert(inputs.end(), saved.begin(), saved.end());
    const at::NoGradGuard no_grad;
    return loader_.boxed_run(std::move(inputs));
  }

  const std::string& package() const { return compiled_.package; }

 private:
  const CompiledProgram compiled_;
  mutable torch::inductor::AOTIModelPackageLoader loader_;
};

class CompiledOracle::CompiledLinearization final : public Linearization {
 public:
  CompiledLinearization(const CompiledOracle& oracle, const Program& program, const at::Tensor& x, const at::Tensor& y, Batch batch)
      : oracle_(oracle), x_(x.detach().contiguous()), y_(y.detach().contiguous()), batch_(std::move(batch)), saved_(program({}, x_, y_, batch_)) {
    value_ = std::move(saved_[0]);
    residual_ = std::move(saved_[1]);
    saved_.erase(saved_.begin(), saved_.begin() + 2);
  }

  at::Tensor value() override { return value_; }
  at::Tensor residual() override { return residual_; }
  at::Tensor grad_x() override { return autodiff().grad_x(); }
  at::Tensor gauss_newton(const at::Tensor& v) override { return autodiff().gauss_newton(v); }

  at::Tensor jvp_y(const at::Tensor& v) override {
    const Program* hvp = find(Derivative::kHvp);
    if (!hvp) return autodiff().jvp_y(v);
    return rowwise(v, [&](const at::Tensor& row) { return (*hvp)(row, x_, y_, batch_, saved_)[0]; });
  }

  at::Tensor jvp_x(const at::Tensor& u) override {
    const Program* jvp_x = find(Derivative::kJvpX);
    if (!jvp_x) return autodiff().jvp_x(u);
    return rowwise(u, [&](const at::Tensor& row) { return (*jvp_x)(row, x_, y_, batch_, saved_)[0]; });
  }

  Vjp vjp(const at::Tensor& w) override {
    const Program* vjp = find(Derivative::kVjp);
    if (!vjp) return autodiff().vjp(w);
    if (w.dim() == 1) {
      Tensors both = (*vjp)(w, x_, y_, batch_, saved_);
      return {std::move(both[0]), std::move(both[1])};
    }
    Tensors ys, xs;
    for (const at::Tensor& row : w.unbind(0)) {
      Tensors both = (*vjp)(row, x_, y_, batch_, saved_);
      ys.push_back(std::move(both[0]));
      xs.push_back(std::move(both[1]));
    }
    return {at::stack(ys), at::stack(xs)};
  }

 private:
  const Program* find(Derivative derivative) const { return oracle_.program(derivative, x_, y_, batch_); }

  Linearization& autodiff() {
    if (!autodiff_) autodiff_ = oracle_.autodiff_.linearize_inner(x_, y_, batch_);
    return *autodiff_;
  }

  const CompiledOracle& oracle_;
  const at::Tensor x_, y_;
  const Batch batch_;
  Tensors saved_;
  at::Tensor value_, residual_;
  std::unique_ptr<Linearization> autodiff_;  // made when asked for
};

CompiledOracle::CompiledOracle(const Problem& problem, std::shared_ptr<const Programs> programs)
    : Oracle(problem), autodiff_(problem), programs_(std::move(programs)) {
  require(programs_ != nullptr, "CompiledOracle: there are no programs; oracle = \"autodiff\" needs none.");
  const auto refuse = [](const char* what) {
    throw Error(fmt::format("CompiledOracle: programs are compiled for losses {}; oracle = \"autodiff\" would be right here.", what));
  };
  if (problem.draws_random_numbers()) refuse("that draw no random numbers");
  if (problem.has_optimality_map()) refuse("and not for an optimality map given directly");
  if (problem.inner_problems() > 1) refuse("of one inner problem, and not of several that an outer step averages over");
}

CompiledOracle::~CompiledOracle() = default;

const CompiledOracle::Program* CompiledOracle::program(Derivative derivative, const at::Tensor& x, const at::Tensor& y,
                                                       const Batch& batch) const {
  const auto key = std::make_pair(derivative, batch.full() ? -1 : batch.samples.size(0));
  auto found = loaded_.find(key);
  if (found == loaded_.end()) {
    std::unique_ptr<const Program> made;
    if (auto compiled = programs_->find(derivative, x, y, batch)) {
      made = std::make_unique<const Program>(std::move(*compiled));
      compare(*made, derivative, x.detach(), y.detach(), batch);
    }
    found = loaded_.emplace(key, std::move(made)).first;
  }
  if (!found->second) ++left_to_autodiff_;
  return found->second.get();
}

namespace {

void require_equal(const at::Tensor& found, const at::Tensor& expected, const at::Tensor& value, const std::string& where) {
  const bool is_double = expected.scalar_type() == at::kDouble;
  const at::Tensor right = expected.to(at::kDouble), off = found.to(at::kDouble) - right;
  const double norm = right.norm().item<double>(), error = off.norm().item<double>();
  if (!std::isfinite(norm)) return;
  const double of_zero = (is_double ? 1e-13 : 1e-5) * (1 + std::abs(value.item<double>())) * std::sqrt(static_cast<double>(off.numel()));
  require(error <= (is_double ? 1e-6 : 1e-2) * norm + of_zero,
          fmt::format("CompiledOracle: {} differs from autodiff by {:.2g} of {:.2g} (2-norms). The losses give different values for the same "
                      "(x, y, batch), or the package is not theirs: remove it, or use oracle = \"autodiff\".",
                      where, error, norm));
}

}  // namespace

// Near a solution r is a small difference of large numbers, and nothing can be told from it: hence another y.
void CompiledOracle::compare(const Program& program, Derivative derivative, const at::Tensor& x, const at::Tensor& y0,
                             const Batch& batch) const {
  const at::Tensor y = (y0 * 1.125).contiguous();
  Tensors found, expected;
  at::Tensor value;
  if (derivative == Derivative::kGradient || derivative == Derivative::kLinearization) {
    found = program({}, x, y, batch);
    const Gradients g = autodiff_.inner(x, y, batch);
    expected = {value = g.value, g.y};
  } else if (derivative == Derivative::kOuter) {
    found = program({}, x, y, batch);
    const Gradients g = autodiff_.outer(x, y, batch);
    expected = {value = g.value, g.y, g.x};
  } else {
    const bool by_x = derivative == Derivative::kJvpX;
    const at::Tensor v = Stream(0, "compare").at(0).normal({(by_x ? x : y).size(0)}, at::kDouble).to(x.options());
    Tensors saved = (*this->program(Derivative::kLinearization, x, y, batch))({}, x, y, batch);
    saved.erase(saved.begin(), saved.begin() + 2);
    found = program(v, x, y, batch, saved);
    const auto lin = autodiff_.linearize_inner(x, y, batch);
    value = lin->value();
    if (by_x) {
      expected = {lin->jvp_x(v)};
    } else {
      const Vjp both = lin->vjp(v);
      expected = {both.y, both.x};
      if (derivative == Derivative::kHvp) expected.pop_back();
    }
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    require_equal(found[i], expected[i], value, fmt::format("result {} of the program \"{}\" in {}", i, to_string(derivative), program.package()));
  }
}

std::unique_ptr<Linearization> CompiledOracle::linearize_inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  check_point(problem(), x, y, "CompiledOracle::linearize_inner");
  const Program* linearization = program(Derivative::kLinearization, x, y, batch);
  if (!linearization) return autodiff_.linearize_inner(x, y, batch);
  return std::make_unique<CompiledLinearization>(*this, *linearization, x, y, batch);
}

Gradients CompiledOracle::inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const Program* gradient = program(Derivative::kGradient, x, y, batch);
  if (!gradient) return autodiff_.inner(x, y, batch);
  Tensors results = (*gradient)({}, x.detach().contiguous(), y.detach().contiguous(), batch);
  return {std::move(results[0]), std::move(results[1]), {}};
}

Gradients CompiledOracle::outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  check_point(problem(), x, y, "CompiledOracle::outer");
  const Program* outer = program(Derivative::kOuter, x, y, batch);
  if (!outer) return autodiff_.outer(x, y, batch);
  Tensors results = (*outer)({}, x.detach().contiguous(), y.detach().contiguous(), batch);
  return {std::move(results[0]), std::move(results[1]), std::move(results[2])};
}

at::Tensor CompiledOracle::inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return autodiff_.inner_grad_x(x, y, batch);
}

at::Tensor CompiledOracle::inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return autodiff_.inner_value(x, y, batch);
}

at::Tensor CompiledOracle::outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return autodiff_.outer_value(x, y, batch);
}

namespace {

// Programs are compiled with all instructions of the processor, of which LibTorch's capability is only a part.
size_t processor_flags() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("flags") || line.starts_with("Features")) return std::hash<std::string>()(line);
  }
  return 0;
}

}  // namespace

std::string compiled_for() {
  return fmt::format("torch {}, {} {:016x}, {} threads", TORCH_VERSION, at::get_cpu_capability(), processor_flags(), at::get_num_threads());
}

}  // namespace bilevel
