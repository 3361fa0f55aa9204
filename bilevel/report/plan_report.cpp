#include "bilevel/report/plan_report.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

}  // namespace

std::string planned_toml(const Plan& plan) {
  if (!plan.choice) return "";
  std::map<std::string, std::string> tables;
  for (const std::string& set : plan.forecasts[*plan.choice].sets) {
    const size_t dot = set.find('.'), equals = set.find('=');
    tables[set.substr(0, dot)] += fmt::format("{} = {}\n", set.substr(dot + 1, equals - dot - 1), set.substr(equals + 1));
  }
  std::string text;
  for (const auto& [table, lines] : tables) text += fmt::format("[{}]\n{}", table, lines);
  return text;
}

Report plan_report(const Plan& plan, const std::string& configuration) {
  Report report;
  report.title = "Plan: " + configuration;
  report.subtitle = fmt::format("{} outer steps; {} held before the first", format_count(plan.steps),
                                format_bytes(static_cast<double>(plan.resident_bytes)));
  report.verdict = {plan.choice ? Grade::kOk : Grade::kBad, plan.advice};
  Table table{
      .title = "",
      .columns =
          {{"way", false}, {"a step", true}, {"in all", true}, {"tensors of a step", true}, {"process", true}, {"", false}},
      .rows = {},
      .note = "Rows that are not measured are extrapolated from short inner solves."};
  for (size_t i = 0; i < plan.forecasts.size(); ++i) {
    const Forecast& one = plan.forecasts[i];
    std::string remark = one.measured ? fmt::format("measured, {} steps", one.probes) : "extrapolated";
    if (!one.fits) remark += "; does not fit";
    if (!one.same_numbers) remark += "; another function";
    table.rows.push_back({{Cell(one.name), Cell(format_seconds(one.step.seconds)), Cell(format_seconds(one.seconds)),
                           Cell(format_bytes(static_cast<double>(one.step.peak_bytes))),
                           Cell(format_bytes(static_cast<double>(one.bytes))), Cell(remark)},
                          plan.choice && *plan.choice == i});
  }
  report.sections.push_back({"Forecast", {std::move(table)}});
  if (const std::string toml = planned_toml(plan); !toml.empty()) {
    report.sections.back().blocks.push_back(Preformatted{"To paste into the configuration", toml});
  }
  return report;
}

std::string plan_json(const Plan& plan, double load_seconds) {
  Json json;
  const auto describe = [&](const Forecast& one) -> Json {
    return {{"name", one.name},
            {"sets", one.sets},
            {"same_numbers", one.same_numbers},
            {"measured", one.measured},
            {"probes", one.probes},
            {"fits", one.fits},
            {"step",
             {{"seconds", one.step.seconds},
              {"peak_bytes", one.step.peak_bytes},
              {"forwards", one.step.forwards},
              {"gradients", one.step.gradients},
              {"hvps", one.step.hvps},
              {"cross_products", one.step.cross_products}}},
            {"total", {{"seconds", one.seconds}, {"peak_bytes", one.bytes}}}};
  };
  json["steps"] = plan.steps;
  json["load_seconds"] = load_seconds;
  json["resident_bytes"] = plan.resident_bytes;
  json["memory_limit"] = plan.limit > 0 ? Json(plan.limit) : Json();
  json["configured"] = describe(plan.forecasts.front());
  json["forecasts"] = Json::array();
  for (const Forecast& one : plan.forecasts) json["forecasts"].push_back(describe(one));
  json["choice"] = plan.choice ? describe(plan.forecasts[*plan.choice]) : Json();
  json["advice"] = plan.advice;
  json["toml"] = planned_toml(plan);
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace bilevel
