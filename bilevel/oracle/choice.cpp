#include "bilevel/oracle/choice.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/compiled.h"
#include "bilevel/oracle/finite_difference.h"
#include "bilevel/oracle/native.h"

namespace bilevel {

const std::vector<std::string>& oracle_names() {
  static const std::vector<std::string> names = {"auto", "native", "autodiff", "finite-difference", "compiled"};
  return names;
}

std::unique_ptr<Oracle> make_oracle(const Problem& problem, const std::string& name, std::shared_ptr<const Programs> programs) {
  const auto& names = oracle_names();
  require(std::find(names.begin(), names.end(), name) != names.end(),
          fmt::format("make_oracle: \"{}\" is not known.{}", name, suggestion(name, names)));
  if (name == "native" || (name == "auto" && NativeOracle::takes(problem))) return std::make_unique<NativeOracle>(problem);
  if (name == "finite-difference") return std::make_unique<FiniteDifferenceOracle>(std::make_unique<AutodiffOracle>(problem));
  if (name == "compiled") return std::make_unique<CompiledOracle>(problem, std::move(programs));
  return std::make_unique<AutodiffOracle>(problem);
}

}  // namespace bilevel
