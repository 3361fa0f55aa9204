// All rules, clipping and schedules as a configuration names them, against torch.optim: tests/data/rules.json, which
// tests/data/rules.py writes.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "bilevel/inner/registry.h"
#include "bilevel/inner/rules_for_tests.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/function_problem.h"

namespace bilevel {
namespace {

nlohmann::json table() {
  std::ifstream file(BILEVEL_SOURCE_DIR "/tests/data/rules.json");
  return nlohmann::json::parse(file);
}

at::Tensor tensor_of(const nlohmann::json& rows) {
  std::vector<double> values;
  for (const auto& row : rows.flatten()) values.push_back(row.get<double>());
  return at::tensor(values, at::kDouble);
}

TEST(TorchOptim, EveryRuleTakesItsStepsToTwelveDigits) {
  const nlohmann::json gold = table();
  const at::Tensor A = tensor_of(gold["A"]).view({3, 3}), b = tensor_of(gold["b"]), y0 = tensor_of(gold["y0"]);
  std::set<std::string> seen;
  for (const at::ScalarType dtype : {at::kDouble, at::kFloat}) {
    const auto loss = [&](const at::Tensor&, const at::Tensor& y) {
      return 0.5 * y.dot(A.to(dtype).mv(y)) - b.to(dtype).dot(y) + 0.05 * y.pow(4).sum();
    };
    const FunctionProblem problem({.inner_loss = loss, .outer_loss = loss, .x0 = at::zeros({1}, dtype), .y0 = y0.to(dtype)});
    const AutodiffOracle oracle(problem);
    for (const auto& row : gold["cases"]) {
      const auto keys = row["keys"].get<std::string>();
      SCOPED_TRACE(keys);
      Section section = Config::parse(keys, "case.toml").root();
      const auto solver = make_inner_solver(section, problem, problem.initial_outer(), 0, {});
      section.finish();
      seen.insert(std::string(solver->name()));
      const auto& rule = dynamic_cast<const RuleSolver&>(*solver);
      const at::Tensor x = problem.initial_outer();
      Tensors h = rule.rule().default_h(y0.to(dtype));
      h[0] = at::scalar_tensor(*rule.options().lr, dtype);
      const SolveContext context{oracle, x, 0, 0, h};
      Point point{y0.to(dtype), rule.rule().fresh_state(y0.to(dtype)), 0};
      double farthest = 0;
      for (int64_t t = 0; t < 20; ++t) {
        point = rule.replay(context, point, t);
        farthest = std::max(farthest, (point.y - tensor_of(row["y"][static_cast<size_t>(t)])).abs().max().item<double>());
      }
      EXPECT_LT(farthest, dtype == at::kDouble ? 1e-12 : 2e-5);
      EXPECT_EQ(point.y.scalar_type(), dtype);
    }
  }
  for (const auto& row : rules()) EXPECT_TRUE(seen.contains(row.name)) << row.name << " is not compared";
}

}  // namespace
}  // namespace bilevel
