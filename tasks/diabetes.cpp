#include "tasks/diabetes.h"

#include <ATen/ATen.h>

#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "bilevel/core/error.h"
#include "bilevel/problem/gzip.h"

// The files go into the object as they are, so that the data are there wherever the library is.
asm(".pushsection .rodata\n"
    ".globl bilevel_diabetes_begin\n.hidden bilevel_diabetes_begin\n"
    ".globl bilevel_diabetes_end\n.hidden bilevel_diabetes_end\n"
    ".globl bilevel_diabetes_target_end\n.hidden bilevel_diabetes_target_end\n"
    "bilevel_diabetes_begin:\n.incbin \"" BILEVEL_DIABETES
    "\"\n"
    "bilevel_diabetes_end:\n.incbin \"" BILEVEL_DIABETES_TARGET
    "\"\n"
    "bilevel_diabetes_target_end:\n"
    ".popsection\n");
extern "C" {
__attribute__((visibility("hidden"))) extern const char bilevel_diabetes_begin[];
__attribute__((visibility("hidden"))) extern const char bilevel_diabetes_end[];
__attribute__((visibility("hidden"))) extern const char bilevel_diabetes_target_end[];
}

namespace bilevel {
namespace {

at::Tensor numbers(const char* begin, const char* end, int64_t columns) {
  const std::string name = "the embedded diabetes data";
  std::istringstream text(gunzip({begin, static_cast<size_t>(end - begin)}, name));
  std::vector<double> values;
  for (double value = 0; text >> value;) values.push_back(value);
  require(text.eof() && static_cast<int64_t>(values.size()) == 442 * columns, "Diabetes: " + name + " are damaged.");
  return at::tensor(values, at::kDouble).reshape({442, columns});
}

}  // namespace

Diabetes::Diabetes()
    : X(numbers(bilevel_diabetes_begin, bilevel_diabetes_end, 10)),
      t(numbers(bilevel_diabetes_end, bilevel_diabetes_target_end, 1).squeeze(1)) {
  X = X - X.mean(0);
  X = X / X.square().sum(0).sqrt();
}

}  // namespace bilevel
