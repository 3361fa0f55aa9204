// What forward mode gains by handing the rule all columns of ∂y/∂x as one block: UpdateRule::jvp of a block beside that of its
// rows one by one. Prints one JSON object.
//
// Processor time, not that of the wall, and in turns: what else the machine does counts for little. The ratio is that of the
// medians.
#include <algorithm>
#include <ctime>
#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "bilevel/core/guards.h"
#include "bilevel/core/stream.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/rmsprop.h"
#include "bilevel/inner/sgd.h"

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size()) / 2, values.end());
  return values[values.size() / 2];
}

Json measure(const std::string& name, const UpdateRule& rule, int64_t dx, int64_t dy, double seconds) {
  Draw draw = Stream(0, "forward bench").at(0);
  RuleInput in;
  in.y = draw.normal({dy}, at::kFloat);
  in.gradient = draw.normal({dy}, at::kFloat);
  RuleCotangent block{draw.normal({dx, dy}, at::kFloat), {}, draw.normal({dx, dy}, at::kFloat), {}};
  for (int64_t i = 0; i < rule.slots(); ++i) {
    in.state.push_back(0.2 + draw.uniform({dy}).to(at::kFloat));
    block.state.push_back(draw.normal({dx, dy}, at::kFloat));
  }
  in.h = rule.default_h(in.y);
  for (const at::Tensor& h : in.h) block.h.push_back(at::zeros_like(h));
  in.step = 3;
  const auto at_once = [&] { rule.jvp(in, block); };
  const auto one_by_one = [&] {
    at::Tensor y = at::empty_like(block.y);
    for (int64_t k = 0; k < dx; ++k) {
      RuleCotangent row{block.y[k], {}, block.gradient[k], block.h};
      for (const at::Tensor& slot : block.state) row.state.push_back(slot[k]);
      y[k].copy_(rule.jvp(in, row).y);
    }
  };
  const auto time = [](const std::function<void()>& f) {
    const std::clock_t began = std::clock();
    f();
    return 1e6 * static_cast<double>(std::clock() - began) / CLOCKS_PER_SEC;
  };
  at_once(), one_by_one();
  std::vector<double> a, b;
  for (double spent = 0; spent < seconds * 1e6 || a.size() < 11; spent += a.back() + b.back()) {
    a.push_back(time(at_once));
    b.push_back(time(one_by_one));
  }
  return {{"rule", name},
          {"dx", dx},
          {"dy", dy},
          {"microseconds_block", median(a)},
          {"microseconds_rows", median(b)},
          {"gain", median(b) / median(a)},
          {"repetitions", a.size()}};
}

int run(int argc, char** argv) {
  CLI::App app("What forward mode gains by blocks");
  double seconds = 1.0;
  app.add_option("--seconds", seconds, "for each comparison");
  CLI11_PARSE(app, argc, argv);
  const ThreadsGuard one(1);
  const at::NoGradGuard no_grad;
  SgdRuleOptions momentum;
  momentum.momentum = 0.9;
  const std::vector<std::pair<std::string, std::unique_ptr<UpdateRule>>> rules = [&] {
    std::vector<std::pair<std::string, std::unique_ptr<UpdateRule>>> all;
    all.emplace_back("sgd", std::make_unique<SgdRule>(SgdRuleOptions{}));
    all.emplace_back("sgd, momentum", std::make_unique<SgdRule>(momentum));
    all.emplace_back("adam", std::make_unique<AdamRule>(AdamRuleOptions{}));
    all.emplace_back("rmsprop, by autograd", std::make_unique<RmspropRule>(RmspropRuleOptions{}));
    return all;
  }();
  Json rows = Json::array();
  for (const auto& [name, rule] : rules) {
    for (const auto& [dx, dy] : {std::pair<int64_t, int64_t>{10, 650}, {100, 650}, {20, 20000}}) {
      rows.push_back(measure(name, *rule, dx, dy, seconds));
    }
  }
  fmt::print(
      "{}\n",
      Json{{"command", fmt::format("forward_bench --seconds {}", seconds)}, {"threads", 1}, {"dtype", "float32"}, {"rows", rows}}
          .dump(2));
  return 0;
}

}  // namespace
}  // namespace bilevel

int main(int argc, char** argv) {
  try {
    return bilevel::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
}
