// Shrinkage by bilevel optimisation, from an installed library:
//   minimise over x  ½‖y*(x) − a‖²   with   y*(x) = argmin over y of ½‖y − b‖² + ½eˣ‖y‖² = b / (1 + eˣ).
// The best factor s = 1/(1 + eˣ) is aᵀb/bᵀb.
#include <ATen/ATen.h>

#include <cmath>
#include <cstdio>
#include <string_view>

#include "bilevel/problem/csv.h"
#include "bilevel/problem/digits.h"
#include "bilevel/problem/function_problem.h"
#include "bilevel/report/assets.h"
#include "bilevel/run/minimize.h"

int main() {
  const at::Tensor b = at::tensor({1.0, 2.0, -3.0}, at::kDouble), a = at::tensor({0.5, 0.7, -1.2}, at::kDouble);
  const bilevel::FunctionProblem problem(
      {.inner_loss = [&](const at::Tensor& x,
                         const at::Tensor& y) { return 0.5 * ((y - b).square() + x.exp() * y.square()).sum(); },
       .outer_loss = [&](const at::Tensor&, const at::Tensor& y) { return 0.5 * (y - a).square().sum(); },
       .x0 = at::zeros({1}, at::kDouble),
       .y0 = at::zeros({3}, at::kDouble)});
  const bilevel::MinimizeResult result = bilevel::minimize(problem, {.outer_lr = 0.05, .steps = 200});

  const double factor = 1 / (1 + std::exp(result.x.item<double>())), expected = (a.dot(b) / b.dot(b)).item<double>();
  std::printf("factor %.6f, expected %.6f\n", factor, expected);

  // What the library carries inside itself came along: the digits and the chart library; and so did libcsv.
  const bilevel::Digits& digits = bilevel::digits();
  const std::string_view charts = bilevel::chart_js();
  const bilevel::CsvTable table = bilevel::parse_csv("u,v\n1,2\n", "text");
  std::printf("%ld digits, %zu bytes of Chart.js, %zu columns\n", static_cast<long>(digits.labels.size(0)), charts.size(),
              table.columns.size());

  const bool right =
      std::abs(factor - expected) < 1e-3 && digits.labels.size(0) == 1797 && charts.size() > 100'000 && table.columns.size() == 2;
  return right ? 0 : 1;
}
