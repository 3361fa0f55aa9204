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

  std::optional<CompiledProgram> find(Derivative derivative, const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    const py::gil_scoped_acquire gil;
    if (!programs_) programs_ = py::module_::import("bilevel._compile").attr("Programs")(losses_);
    const py::object samples = batch.full() ? py::none() : py::cast(batch.samples);
    auto [package, constants] = programs_.attr("program")(std::string(to_string(derivative)), x.detach(), y.detach(), samples)
                                    .cast<std::pair<std::string, std::vector<at::Tensor>>>();
    return CompiledProgram{std::move(package), std::move(constants)};
  }

 private:
  py::object losses_;
  mutable py::object programs_;  // made when first asked: importing the compiler takes seconds
};

}  // namespace

std::shared_ptr<const Programs> compiling_programs(const py::object& losses) { return std::make_shared<CompilingPrograms>(losses); }

}  // namespace bilevel::python
