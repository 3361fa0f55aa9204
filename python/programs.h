#pragma once
#include <pybind11/pybind11.h>

#include <memory>

#include "bilevel/oracle/compiled.h"

namespace bilevel::python {

/// Programs that are traced and compiled in this process when they are first asked for (python/bilevel/_compile.py). `losses` has the
/// methods `inner_loss` and `outer_loss` of `bilevel._problem.Problem`; other Python objects are not needed for it.
std::shared_ptr<const Programs> compiling_programs(const pybind11::object& losses);

}  // namespace bilevel::python
