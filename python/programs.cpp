#include "python/programs.h"

#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <utility>

namespace py = pybind11;

namespace bilevel::python {
namespace {

class CompilingPrograms final : public Programs {
 public:
  explicit CompilingPrograms(py::object losses) : losses_(std::move(losses)) {}
  ~CompilingPrograms() override {
    const py::gil_scoped_acquire gil;
    losses_ = programs_ = py::object();
  }

  std::optional<CompiledProgram> find(Derivative derivative, const at::Tensor& x, const at::Tensor& y,
                                      const Batch& batch) const override {
    const py::gil_scoped_acquire gil;
    if (!programs_) programs_ = py::module_::import("bilevel._compile").attr("Programs")(losses_);
    const py::object samples = batch.full() ? py::none() : py::cast(batch.samples);
    auto [loaded, constants] = programs_.attr("program")(std::string(to_string(derivative)), x.detach(), y.detach(), samples)
                                   .cast<std::pair<LoadedProgram, std::vector<at::Tensor>>>();
    return CompiledProgram{std::move(loaded.program), std::move(constants)};
  }

 private:
  py::object losses_;
  mutable py::object programs_;  // made when first asked: importing the compiler takes seconds
};

Batch batch_of(const std::optional<at::Tensor>& samples, int64_t step) {
  Batch batch;
  batch.step = step;
  if (samples) batch.samples = *samples;
  return batch;
}

}  // namespace

LoadedProgram::LoadedProgram(const py::function& function) {
  const std::shared_ptr<const py::function> held(new py::function(function), [](const py::function* f) {
    const py::gil_scoped_acquire gil;
    delete f;
  });
  program = std::make_shared<const Program>("a Python function", [held](const std::vector<at::Tensor>& inputs) {
    const py::gil_scoped_acquire gil;
    return (*held)(*py::cast(inputs)).cast<std::vector<at::Tensor>>();
  });
}

at::Tensor ProblemLosses::inner_loss(const at::Tensor& x, const at::Tensor& y, const std::optional<at::Tensor>& samples,
                                     int64_t step) const {
  return problem->inner_loss(x, y, batch_of(samples, step));
}

at::Tensor ProblemLosses::outer_loss(const at::Tensor& x, const at::Tensor& y, const std::optional<at::Tensor>& samples,
                                     int64_t step) const {
  return problem->outer_loss(x, y, batch_of(samples, step));
}

std::shared_ptr<const Programs> compiling_programs(const py::object& losses) {
  return std::make_shared<CompilingPrograms>(losses);
}

}  // namespace bilevel::python
