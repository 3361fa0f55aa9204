#pragma once
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>

#include "bilevel/oracle/compiled.h"

namespace bilevel::python {

/// A program that is kept loaded by Python: a package, or in its place a function of tensors that gives a tuple of tensors.
struct LoadedProgram {
  explicit LoadedProgram(const std::string& package) : program(Program::load(package)) {}
  explicit LoadedProgram(const pybind11::function& function);
  std::shared_ptr<const Program> program;
};

/// The losses of a problem of the engine, as Python calls those of its own. The problem must outlive it.
struct ProblemLosses {
  const Problem* problem;
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const std::optional<at::Tensor>& samples, int64_t step) const;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const std::optional<at::Tensor>& samples, int64_t step) const;
};

/// Programs that are traced and compiled in this process when they are first asked for (python/bilevel/_compile.py). `losses` has
/// the methods `inner_loss` and `outer_loss` of `bilevel._problem.Problem`.
std::shared_ptr<const Programs> compiling_programs(const pybind11::object& losses);

}  // namespace bilevel::python
