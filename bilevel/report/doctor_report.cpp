#include "bilevel/report/doctor_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

std::string percent(double fraction) {
  if (!std::isfinite(fraction)) return "—";
  return fraction != 0 && fraction < 1e-5 ? fmt::format("{:.0e} %", 100 * fraction) : fmt::format("{:.3g} %", 100 * fraction);
}

std::optional<size_t> recommended(const Diagnosis& diagnosis) {
  return diagnosis.within_1 ? diagnosis.within_1 : diagnosis.within_5 ? diagnosis.within_5 : diagnosis.best;
}

/// Done ones by error, then the others.
std::vector<size_t> order_of(const Diagnosis& diagnosis) {
  std::vector<size_t> order;
  for (size_t i = 0; i < diagnosis.trials.size(); ++i) {
    if (diagnosis.trials[i].outcome == Trial::Outcome::kDone) order.push_back(i);
  }
  const auto key = [&](size_t i) {
    const double error = diagnosis.trials[i].error;
    return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
  };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key(a) < key(b); });
  return order;
}

Table trials_table(const Diagnosis& diagnosis) {
  Table table{
      .title = fmt::format("Against the reference ({})", diagnosis.reference.differentiates),
      .columns = {{"estimator", false},
                  {"error", true},
                  {"cosine", true},
                  {"norm ratio", true},
                  {"time of a step", true},
                  {"oracle calls", true},
                  {"memory", true},
                  {"status", false}},
      .rows = {},
      .note =
          "Time, calls and memory are those of an outer step: the inner solve and the estimate. ▶ is what the configuration "
          "has, or what is recommended."};
  if (diagnosis.reference.how.empty()) table.title = "Without a reference";
  const std::optional<size_t> best = recommended(diagnosis);
  for (const size_t i : order_of(diagnosis)) {
    const Trial& trial = diagnosis.trials[i];
    Table::Row row;
    row.highlight = trial.configured || (best && *best == i);
    row.cells = {Cell(trial.configured ? trial.name + " (yours)" : trial.name),
                 Cell(percent(trial.error)),
                 Cell(format_number(trial.cosine, 4)),
                 Cell(format_number(trial.norm_ratio, 3)),
                 Cell(format_seconds(trial.seconds)),
                 Cell(format_count(trial.cost.oracle_calls())),
                 Cell(format_bytes(static_cast<double>(trial.cost.peak_bytes))),
                 Cell(std::string(to_string(trial.grade)))};
    table.rows.push_back(std::move(row));
  }
  return table;
}

LineChart scatter(const Diagnosis& diagnosis, bool memory) {
  LineChart chart{.title = memory ? "Error against memory" : "Error against time",
                  .x_label = memory ? "peak memory of a step, MB" : "seconds of an outer step",
                  .y_label = "relative error",
                  .log_y = true,
                  .series = {},
                  .note = "To the left and down is better. Points of one kind of estimator are joined."};
  chart.scatter = true;
  chart.log_x = true;
  std::map<std::string, std::vector<const Trial*>> families;
  for (const Trial& trial : diagnosis.trials) {
    if (trial.outcome == Trial::Outcome::kDone && std::isfinite(trial.error)) families[trial.family].push_back(&trial);
  }
  for (auto& [family, trials] : families) {
    const auto x_of = [memory](const Trial& t) { return memory ? 1e-6 * static_cast<double>(t.cost.peak_bytes) : t.seconds; };
    std::stable_sort(trials.begin(), trials.end(), [&](const Trial* a, const Trial* b) { return x_of(*a) < x_of(*b); });
    LineChart::Series series{family, {}, {}};
    for (const Trial* trial : trials) {
      series.x.push_back(x_of(*trial));
      series.y.push_back(std::max(trial->error, 1e-16));  // a logarithm has no zero
      series.labels.push_back(trial->name);
    }
    chart.series.push_back(std::move(series));
  }
  return chart;
}

Table others_table(const Diagnosis& diagnosis) {
  Table table{.title = "", .columns = {{"estimator", false}, {"", false}, {"why", false}}, .rows = {}};
  for (const Trial& trial : diagnosis.trials) {
    if (trial.outcome == Trial::Outcome::kDone) continue;
    table.rows.push_back({{Cell(trial.name), Cell(std::string(to_string(trial.outcome))), Cell(trial.remark)}});
  }
  return table;
}

/// How near the implicit ones come to what an exact one gives where the inner solve stops.
Table there_table(const Diagnosis& diagnosis) {
  std::vector<const Trial*> trials;
  for (const Trial& trial : diagnosis.trials) {
    if (trial.outcome == Trial::Outcome::kDone && trial.differentiates == "F" && trial.error_there) trials.push_back(&trial);
  }
  std::stable_sort(trials.begin(), trials.end(),
                   [](const Trial* a, const Trial* b) { return *a->error_there < *b->error_there; });
  Table table{
      .title = "",
      .columns = {{"estimator", false}, {"error there", true}, {"time of a step", true}},
      .rows = {},
      .note =
          "Against the implicit hypergradient at the y where the inner solve stops, its linear system solved exactly. Solved "
          "further, these would be about as near to dF/dx."};
  const std::optional<size_t> best = recommended(diagnosis);
  for (const Trial* trial : trials) {
    table.rows.push_back({{Cell(trial->name), Cell(percent(*trial->error_there)), Cell(format_seconds(trial->seconds))},
                          best && trial == &diagnosis.trials[*best]});
  }
  return table;
}

Table remarks_table(const Diagnosis& diagnosis) {
  Table table{.title = "What they say of themselves",
              .columns = {{"estimator", false}, {"status", false}, {"message", false}},
              .rows = {}};
  for (const size_t i : order_of(diagnosis)) {
    const Trial& trial = diagnosis.trials[i];
    table.rows.push_back({{Cell(trial.name), Cell(std::string(to_string(trial.grade))), Cell(trial.remark)}});
  }
  return table;
}

Json optional(const std::optional<double>& value) { return value ? Json(*value) : Json(); }

}  // namespace

std::string recommended_toml(const Diagnosis& diagnosis) {
  const std::optional<size_t> best = recommended(diagnosis);
  return best && diagnosis.configurable ? "[hypergradient]\n" + to_toml(diagnosis.trials[*best].settings) : "";
}

Report doctor_report(const Diagnosis& diagnosis, const std::string& configuration) {
  const Diagnosis::Reference& reference = diagnosis.reference;
  Report report;
  report.title = "Doctor: " + configuration;
  report.subtitle = fmt::format("{} hyperparameters, {} weights, {} trials in {}", format_count(diagnosis.outer_size),
                                format_count(diagnosis.inner_size), diagnosis.trials.size(), format_seconds(diagnosis.seconds));
  report.verdict = {!diagnosis.best ? Grade::kBad : diagnosis.traps.empty() ? Grade::kOk : Grade::kWarn, diagnosis.advice};

  Report::Section advice{"Advice", {}};
  for (const std::string& trap : diagnosis.traps) advice.blocks.push_back(Text{trap, Text::Tone::kWarning});
  if (const std::string toml = recommended_toml(diagnosis); !toml.empty()) {
    advice.blocks.push_back(Preformatted{"To paste into the configuration", toml});
  }
  KeyValues facts{.title = "The reference", .rows = {}};
  facts.rows.emplace_back("how", reference.how.empty() ? "none" : reference.how);
  if (!reference.how.empty()) {
    facts.rows.emplace_back("differentiates", reference.differentiates);
    facts.rows.emplace_back(
        "norm", fmt::format("{} (its direct part {})", format_number(reference.norm), format_number(reference.direct_norm)));
  }
  facts.rows.emplace_back(
      "inner solve", fmt::format("{} steps, ‖r‖ from {:.1e} to {:.1e}, {}", diagnosis.inner_steps, diagnosis.initial_stationarity,
                                 diagnosis.stationarity, format_seconds(diagnosis.inner_seconds)));
  if (reference.stopping_error) facts.rows.emplace_back("of stopping there", percent(*reference.stopping_error) + " of dF/dx");
  if (reference.largest) {
    facts.rows.emplace_back("curvature",
                            reference.smallest
                                ? fmt::format("{} {:.2g} to {:.2g}", reference.eigenvalues ? "eigenvalues from" : "from at least",
                                              *reference.smallest, *reference.largest)
                                : fmt::format("up to {:.2g}", *reference.largest));
  }
  advice.blocks.push_back(std::move(facts));
  report.sections.push_back(std::move(advice));

  Report::Section trials{"Trials", {trials_table(diagnosis)}};
  if (!reference.how.empty()) {
    trials.blocks.push_back(scatter(diagnosis, false));
    trials.blocks.push_back(scatter(diagnosis, true));
  }
  report.sections.push_back(std::move(trials));
  if (reference.stopping_error.value_or(0.0) > 0.05)
    report.sections.push_back({"At the y that was reached", {there_table(diagnosis)}});
  if (Table others = others_table(diagnosis); !others.rows.empty()) report.sections.push_back({"Not tried", {std::move(others)}});
  report.sections.push_back({"Messages", {remarks_table(diagnosis)}});
  return report;
}

std::string doctor_json(const Diagnosis& diagnosis) {
  const Diagnosis::Reference& reference = diagnosis.reference;
  Json json;
  json["reference"] = {{"how", reference.how.empty() ? Json() : Json(reference.how)},
                       {"differentiates", reference.differentiates},
                       {"norm", reference.norm},
                       {"direct_norm", reference.direct_norm},
                       {"stationarity", reference.stationarity},
                       {"relative_residual", optional(reference.relative_residual)},
                       {"trusted", reference.trusted},
                       {"stopping_error", optional(reference.stopping_error)},
                       {"smallest_curvature", optional(reference.smallest)},
                       {"largest_curvature", optional(reference.largest)}};
  json["inner"] = {{"steps", diagnosis.inner_steps},
                   {"initial_stationarity", diagnosis.initial_stationarity},
                   {"stationarity", diagnosis.stationarity},
                   {"seconds", diagnosis.inner_seconds}};
  json["trials"] = Json::array();
  for (const Trial& trial : diagnosis.trials) {
    Json one = {{"name", trial.name},
                {"toml", to_toml(trial.settings)},
                {"outcome", to_string(trial.outcome)},
                {"configured", trial.configured},
                {"message", trial.remark}};
    if (trial.outcome == Trial::Outcome::kDone) {
      one["status"] = to_string(trial.grade);
      one["differentiates"] = trial.differentiates;
      one["error"] = trial.error;
      one["error_at_reached"] = optional(trial.error_there);
      one["cosine"] = trial.cosine;
      one["norm_ratio"] = trial.norm_ratio;
      one["seconds"] = trial.seconds;
      one["estimate_seconds"] = trial.estimate_seconds;
      one["peak_bytes"] = trial.cost.peak_bytes;
      one["cost"] = {{"forwards", trial.cost.forwards},
                     {"gradients", trial.cost.gradients},
                     {"hvps", trial.cost.hvps},
                     {"cross_products", trial.cost.cross_products}};
    }
    json["trials"].push_back(std::move(one));
  }
  json["traps"] = diagnosis.traps;
  const auto name = [&](const std::optional<size_t>& i) { return i ? Json(diagnosis.trials[*i].name) : Json(); };
  json["recommendation"] = {{"within_1_percent", name(diagnosis.within_1)},
                            {"within_5_percent", name(diagnosis.within_5)},
                            {"nearest", name(diagnosis.best)},
                            {"text", diagnosis.advice},
                            {"toml", recommended_toml(diagnosis)}};
  json["seconds"] = diagnosis.seconds;
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace bilevel
