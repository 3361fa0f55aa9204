#include "bilevel/oracle/compiled.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <fmt/format.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/version.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <utility>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/oracle/autograd.h"
#include "bilevel/oracle/output_space.h"

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

std::shared_ptr<const Program> Program::load(const std::string& package) {
  const auto loader = [&] {
    try {
      return std::make_shared<torch::inductor::AOTIModelPackageLoader>(package, "model", /*run_single_threaded=*/true);
    } catch (const std::exception& error) {
      throw Error(
          fmt::format("Program::load: {} is no compiled program that can be used here; remove it. ({})", package, error.what()));
    }
  }();
  return std::make_shared<const Program>(package, [loader](Tensors inputs) { return loader->boxed_run(std::move(inputs)); });
}

namespace {

Tensors run(const CompiledProgram& compiled, const at::Tensor& direction, const at::Tensor& x, const at::Tensor& y,
            const Batch& batch, const Tensors& saved = {}) {
  Tensors inputs;
  inputs.reserve(4 + compiled.constants.size() + saved.size());
  if (direction.defined()) inputs.push_back(direction.detach().contiguous());
  inputs.push_back(x);
  inputs.push_back(y);
  if (!batch.full()) inputs.push_back(batch.samples.contiguous());
  inputs.insert(inputs.end(), compiled.constants.begin(), compiled.constants.end());
  inputs.insert(inputs.end(), saved.begin(), saved.end());
  const at::NoGradGuard no_grad;
  return (*compiled.program)(std::move(inputs));
}

at::Tensor plain(const at::Tensor& point) { return point.detach().contiguous(); }

}  // namespace

class CompiledOracle::CompiledLinearization final : public Linearization {
 public:
  CompiledLinearization(const CompiledOracle& oracle, const CompiledProgram& program, const at::Tensor& x, const at::Tensor& y,
                        Batch batch)
      : oracle_(oracle), x_(plain(x)), y_(plain(y)), batch_(std::move(batch)), saved_(run(program, {}, x_, y_, batch_)) {
    value_ = std::move(saved_[0]);
    residual_ = std::move(saved_[1]);
    saved_.erase(saved_.begin(), saved_.begin() + 2);
  }

  at::Tensor value() override { return value_; }
  at::Tensor residual() override { return residual_; }
  at::Tensor grad_x() override { return autodiff().grad_x(); }
  at::Tensor gauss_newton(const at::Tensor& v) override { return autodiff().gauss_newton(v); }

  at::Tensor jvp_y(const at::Tensor& v) override {
    const CompiledProgram* hvp = find(Derivative::kHvp);
    if (!hvp) return autodiff().jvp_y(v);
    return rowwise(v, [&](const at::Tensor& row) { return run(*hvp, row, x_, y_, batch_, saved_)[0]; });
  }

  at::Tensor jvp_x(const at::Tensor& u) override {
    const CompiledProgram* jvp_x = find(Derivative::kJvpX);
    if (!jvp_x) return autodiff().jvp_x(u);
    return rowwise(u, [&](const at::Tensor& row) { return run(*jvp_x, row, x_, y_, batch_, saved_)[0]; });
  }

  Vjp vjp(const at::Tensor& w) override {
    const CompiledProgram* vjp = find(Derivative::kVjp);
    if (!vjp) return autodiff().vjp(w);
    if (w.dim() == 1) {
      Tensors both = run(*vjp, w, x_, y_, batch_, saved_);
      return {std::move(both[0]), std::move(both[1])};
    }
    Tensors ys, xs;
    for (const at::Tensor& row : w.unbind(0)) {
      Tensors both = run(*vjp, row, x_, y_, batch_, saved_);
      ys.push_back(std::move(both[0]));
      xs.push_back(std::move(both[1]));
    }
    return {at::stack(ys), at::stack(xs)};
  }

 private:
  const CompiledProgram* find(Derivative derivative) const { return oracle_.program(derivative, x_, y_, batch_); }

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
    throw Error(
        fmt::format("CompiledOracle: programs are compiled for losses {}; oracle = \"autodiff\" would be right here.", what));
  };
  if (problem.draws_random_numbers()) refuse("that draw no random numbers");
  if (problem.has_optimality_map()) refuse("and not for an optimality map given directly");
  if (problem.inner_problems() > 1) refuse("of one inner problem, and not of several that an outer step averages over");
}

CompiledOracle::~CompiledOracle() = default;

const CompiledProgram* CompiledOracle::program(Derivative derivative, const at::Tensor& x, const at::Tensor& y,
                                               const Batch& batch) const {
  const auto key = std::make_pair(derivative, batch.full() ? -1 : batch.samples.size(0));
  const std::lock_guard lock(mutex_);
  auto found = found_.find(key);
  if (found == found_.end()) {
    auto compiled = programs_->find(derivative, x, y, batch);
    if (compiled && !compiled->program->compared) compare(*compiled, derivative, plain(x), plain(y), batch);
    found = found_.emplace(key, std::move(compiled)).first;
  }
  if (!found->second) ++left_to_autodiff_;
  return found->second ? &*found->second : nullptr;
}

namespace {

// To rounding, in float of the sum of many terms; 0 may come out as such a sum.
void require_equal(const at::Tensor& found, const at::Tensor& expected, const at::Tensor& value, const std::string& where) {
  const bool is_double = expected.scalar_type() == at::kDouble;
  const at::Tensor right = expected.to(at::kDouble), off = found.to(at::kDouble) - right;
  const double norm = right.norm().item<double>(), error = off.norm().item<double>();
  if (!std::isfinite(norm)) return;
  const double size = std::sqrt(static_cast<double>(off.numel()));
  const double of_zero = (is_double ? 1e-13 : 1e-5) * (1 + std::abs(value.item<double>())) * size;
  require(error <= (is_double ? 1e-6 : 1e-2) * norm + of_zero,
          fmt::format(
              "CompiledOracle: {} differs from autodiff by {:.2g} of {:.2g} (2-norms). The losses give different values for the "
              "same (x, y, batch), or the package is not theirs: remove it, or use oracle = \"autodiff\".",
              where, error, norm));
}

}  // namespace

// Near a solution r is a small difference of large numbers, and nothing can be told from it: hence another y.
void CompiledOracle::compare(const CompiledProgram& program, Derivative derivative, const at::Tensor& x, const at::Tensor& y0,
                             const Batch& batch) const {
  const at::Tensor y = (y0 * 1.125).contiguous();
  Tensors found, expected;
  at::Tensor value;
  if (derivative == Derivative::kGradient || derivative == Derivative::kLinearization) {
    found = run(program, {}, x, y, batch);
    const Gradients g = autodiff_.inner(x, y, batch);
    expected = {value = g.value, g.y};
  } else if (derivative == Derivative::kOuter) {
    found = run(program, {}, x, y, batch);
    const Gradients g = autodiff_.outer(x, y, batch);
    expected = {value = g.value, g.y, g.x};
  } else {
    const bool by_x = derivative == Derivative::kJvpX;
    const at::Tensor v = Stream(0, "compare").at(0).normal({(by_x ? x : y).size(0)}, at::kDouble).to(x.options());
    Tensors saved = run(*this->program(Derivative::kLinearization, x, y, batch), {}, x, y, batch);
    saved.erase(saved.begin(), saved.begin() + 2);
    found = run(program, v, x, y, batch, saved);
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
    const std::string where =
        fmt::format("result {} of the program \"{}\" in {}", i, to_string(derivative), program.program->name());
    require_equal(found[i], expected[i], value, where);
  }
  program.program->compared = true;
}

std::unique_ptr<Linearization> CompiledOracle::linearize_inner(const at::Tensor& x, const at::Tensor& y,
                                                               const Batch& batch) const {
  check_point(problem(), x, y, "CompiledOracle::linearize_inner");
  const CompiledProgram* linearization = program(Derivative::kLinearization, x, y, batch);
  if (!linearization) return autodiff_.linearize_inner(x, y, batch);
  return std::make_unique<CompiledLinearization>(*this, *linearization, x, y, batch);
}

Gradients CompiledOracle::inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const CompiledProgram* gradient = program(Derivative::kGradient, x, y, batch);
  if (!gradient) return autodiff_.inner(x, y, batch);
  Tensors results = run(*gradient, {}, plain(x), plain(y), batch);
  return {std::move(results[0]), std::move(results[1]), {}};
}

Gradients CompiledOracle::outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  check_point(problem(), x, y, "CompiledOracle::outer");
  const CompiledProgram* outer = program(Derivative::kOuter, x, y, batch);
  if (!outer) return autodiff_.outer(x, y, batch);
  Tensors results = run(*outer, {}, plain(x), plain(y), batch);
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

std::unique_ptr<OutputSpace> CompiledOracle::output_space(const at::Tensor& x, const at::Tensor& y,
                                                          const OutputSamples& samples) const {
  return autodiff_.output_space(x, y, samples);
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

std::string compiled_cache() {
  const auto set = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value ? value : "");
  };
  if (const std::string own = set("BILEVEL_CACHE"); !own.empty()) return own;
  const std::string users = set("XDG_CACHE_HOME");
  return (users.empty() ? set("HOME") + "/.cache" : users) + "/bilevel";
}

std::string compiled_for() {
  return fmt::format("torch {}, {} {:016x}, {} threads", TORCH_VERSION, at::get_cpu_capability(), processor_flags(),
                     at::get_num_threads());
}

}  // namespace bilevel
