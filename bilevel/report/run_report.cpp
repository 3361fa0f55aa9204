#include "bilevel/report/run_report.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "bilevel/core/config.h"
#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/core/layout.h"
#include "bilevel/problem/npy.h"
#include "bilevel/report/explain_report.h"
#include "bilevel/report/terminal.h"

namespace bilevel {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int64_t kMostBars = 50;  // a part of x with more elements is shown as a histogram
constexpr int64_t kBins = 24;
constexpr size_t kMostPoints = 2000;   // of a curve: more cannot be told apart
constexpr size_t kMostWarnings = 100;  // rows

struct Run {
  std::string path, config;
  std::vector<Json> log;
  Json summary;  // null while the run has not come to its end
  Json layout;
  at::Tensor x;  // undefined where there is none
};

/// The number under `key`; NaN where it is null or missing, as numbers that are not finite are written.
double number(const Json& json, const std::string& key) {
  const auto found = json.is_object() ? json.find(key) : json.end();
  return json.is_object() && found != json.end() && found->is_number() ? found->get<double>() : NAN;
}

const Json& member(const Json& json, const std::string& key) {
  static const Json kNothing;
  return json.is_object() && json.contains(key) ? json.at(key) : kNothing;
}

std::string text(const Json& json, const std::string& key) {
  const Json& value = member(json, key);
  return value.is_string() ? value.get<std::string>() : "";
}

int64_t count(const Json& json, const std::string& key) {
  const Json& value = member(json, key);
  return value.is_number_integer() ? value.get<int64_t>() : 0;
}

Grade grade_of(const std::string& name) {
  if (name == to_string(Grade::kBad)) return Grade::kBad;
  return name == to_string(Grade::kWarn) ? Grade::kWarn : Grade::kOk;
}

std::vector<Json> read_log(const std::string& path) {
  std::vector<Json> records;
  if (!fs::exists(path)) return records;
  const std::string bytes = read_file(path);
  for (size_t begin = 0, end = 0; (end = bytes.find('\n', begin)) != std::string::npos; begin = end + 1) {
    Json record = Json::parse(bytes.begin() + static_cast<std::ptrdiff_t>(begin),
                              bytes.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    if (record.is_object()) records.push_back(std::move(record));
  }
  return records;  // a torn last line has no end and is left out
}

Json read_json(const std::string& path) {
  if (!fs::exists(path)) return {};
  Json json = Json::parse(read_file(path), nullptr, false);
  require(!json.is_discarded(), fmt::format("{} is no JSON; the run directory has been changed by hand.", path));
  return json;
}

Run read_run(const std::string& directory) {
  const fs::path path(directory);
  require(fs::exists(path / "config.toml"), fmt::format("{} holds no run: there is no config.toml in it.", directory));
  Run run;
  run.path = directory;
  run.config = read_file(path / "config.toml");
  run.log = read_log(path / "log.jsonl");
  run.summary = read_json(path / "summary.json");
  run.layout = read_json(path / "layout.json");
  if (fs::exists(path / "x.npy")) run.x = read_npy(path / "x.npy").to(at::kDouble).flatten();
  return run;
}

Report::Verdict verdict(const Run& run) {
  if (run.summary.is_null()) {
    return {Grade::kWarn,
            fmt::format("The run has not come to its end; {} records are in its log. `bilevel resume {}` continues it.",
                        run.log.size(), run.path)};
  }
  std::string sentence = text(run.summary, "message");
  if (sentence.empty())
    sentence = fmt::format("The run ended ({}) after {} steps.", text(run.summary, "outcome"), count(run.summary, "steps"));
  return {grade_of(text(run.summary, "status")), sentence};
}

/// "double-loop · implicit · 60 steps", as far as it is known.
std::string subtitle(const Run& run) {
  std::vector<std::string> facts;
  if (const std::string algorithm = text(run.summary, "algorithm"); !algorithm.empty()) facts.push_back(algorithm);
  Section root = Config::parse(run.config, "config.toml").root();
  if (root.is_table("hypergradient") && root.section("hypergradient").is_text("estimator")) {
    std::string estimator;
    root.section("hypergradient").read("estimator", estimator);
    facts.push_back(estimator + " hypergradient");
  }
  if (!run.summary.is_null()) facts.push_back(fmt::format("{} steps", count(run.summary, "steps")));
  return fmt::format("{}", fmt::join(facts, " · "));
}

/// The least and the greatest point of each of at most kMostPoints / 2 stretches: what is left out cannot be seen.
LineChart::Series thinned(LineChart::Series series) {
  const size_t points = series.y.size();
  if (points <= kMostPoints) return series;
  const size_t stretches = kMostPoints / 2;
  std::set<size_t> kept = {0, points - 1};
  for (size_t k = 0; k < stretches; ++k) {
    const size_t begin = k * points / stretches, end = (k + 1) * points / stretches;
    size_t low = begin, high = begin;
    for (size_t i = begin; i < end; ++i) {
      if (!(series.y[i] >= series.y[low])) low = i;  // a NaN is kept too: it is a gap
      if (series.y[i] > series.y[high]) high = i;
    }
    kept.insert({low, high});
  }
  LineChart::Series thin{series.name, {}, {}};
  for (const size_t i : kept) thin.x.push_back(series.x[i]), thin.y.push_back(series.y[i]);
  return thin;
}

LineChart::Series curve(const Run& run, const std::string& name, const std::function<double(const Json&)>& value) {
  LineChart::Series series{name, {}, {}};
  for (const Json& record : run.log) {
    series.x.push_back(number(record, "step"));
    series.y.push_back(value(record));
  }
  return thinned(std::move(series));
}

/// Whether all the values are positive and span two decades: then their logarithm is what is to be seen.
bool spans_decades(const std::vector<double>& values) {
  double low = INFINITY, high = 0;
  for (const double v : values) {
    if (std::isfinite(v)) low = std::min(low, v), high = std::max(high, v);
  }
  return low > 0 && high > 100 * low;
}

LineChart chart_of(const std::string& title, const std::string& symbol, LineChart::Series series, bool log_y) {
  return {.title = title, .x_label = "outer step", .y_label = symbol, .log_y = log_y, .series = {std::move(series)}};
}

std::set<std::string> metric_names(const Run& run) {
  std::set<std::string> names;
  for (const Json& record : run.log) {
    const Json& metrics = member(record, "metrics");
    if (!metrics.is_object()) continue;
    for (const auto& [name, value] : metrics.items()) names.insert(name);
  }
  return names;
}

Report::Section curves(const Run& run) {
  Report::Section section{"Curves", {}};
  const auto of = [&](const char* name, const char* key) {
    return curve(run, name, [key](const Json& record) { return number(record, key); });
  };
  const auto any_positive = [](const std::vector<double>& y) {
    return std::any_of(y.begin(), y.end(), [](double v) { return v > 0; });
  };
  LineChart::Series outer = of("outer loss", "outer_loss"), inner = of("inner loss", "inner_loss");
  LineChart::Series norm = of("hypergradient norm", "hypergradient_norm"), stationarity = of("stationarity", "stationarity");
  const bool log_outer = spans_decades(outer.y), log_inner = spans_decades(inner.y);
  const bool log_norm = spans_decades(norm.y), log_stationarity = any_positive(stationarity.y);
  section.blocks.push_back(chart_of("Outer loss", "f(x, y)", std::move(outer), log_outer));
  section.blocks.push_back(chart_of("Inner loss", "g(x, y)", std::move(inner), log_inner));
  section.blocks.push_back(chart_of("Hypergradient norm", "‖dF/dx‖", std::move(norm), log_norm));
  section.blocks.push_back(chart_of("Inner stationarity", "‖r(x, y)‖", std::move(stationarity), log_stationarity));

  LineChart shares{.title = "Metrics", .x_label = "outer step", .y_label = "", .series = {}};  // those in 0…1 share their axis
  std::vector<Block> others;
  for (const std::string& name : metric_names(run)) {
    LineChart::Series series = curve(run, name, [&name](const Json& record) { return number(member(record, "metrics"), name); });
    const bool share = std::all_of(series.y.begin(), series.y.end(), [](double v) { return !(v < 0 || v > 1); });
    const bool log_y = spans_decades(series.y);
    if (share && shares.series.size() < 8) {
      shares.series.push_back(std::move(series));
    } else {
      others.push_back(chart_of(name, name, std::move(series), log_y));
    }
  }
  if (shares.series.size() == 1) shares.title = shares.series[0].name;
  if (!shares.series.empty()) section.blocks.push_back(std::move(shares));
  section.blocks.insert(section.blocks.end(), others.begin(), others.end());
  return section;
}

/// What the certificates of the run say, where one was worked for. Empty: none was.
Report::Section certificates(const Run& run) {
  Report::Section section{"Certificates", {}};
  LineChart::Series norm{"hypergradient norm", {}, {}}, bound{"error at most", {}, {}},
      distance{"distance to F, estimated", {}, {}};
  Table table{.title = "How right the hypergradients are",
              .columns = {{"step", true},
                          {"status", false},
                          {"norm", true},
                          {"error at most", true},
                          {"distance to F", true},
                          {"slopes", false}},
              .rows = {}};
  std::string reason;
  size_t more = 0;
  for (const Json& record : run.log) {
    const Json& certificate = member(record, "certificate");
    if (!certificate.is_object()) continue;
    const double step = number(record, "step"), most = number(certificate, "error_bound"),
                 off = number(certificate, "distance_to_F");
    const Json& check = member(certificate, "spot_check");
    if (!std::isfinite(most) && !std::isfinite(off) && !check.is_object()) continue;
    norm.x.push_back(step), norm.y.push_back(number(record, "hypergradient_norm"));
    if (std::isfinite(most)) bound.x.push_back(step), bound.y.push_back(most);
    if (std::isfinite(off)) distance.x.push_back(step), distance.y.push_back(off);
    if (!std::isfinite(most)) reason = text(certificate, "bound_reason");
    if (table.rows.size() >= kMostWarnings) {
      ++more;
      continue;
    }
    const double disagreement = number(check, "disagreement");
    const bool conclusive = check.is_object() && check.value("conclusive", false);
    const std::string slopes = !check.is_object() ? ""
                               : !conclusive      ? "cannot be certified"
                                                  : fmt::format("differ by {}", format_number(disagreement, 2));
    table.rows.push_back(
        {{Cell(std::to_string(count(record, "step"))), Cell(text(record, "status")), Cell(number(record, "hypergradient_norm")),
          std::isfinite(most) ? Cell(most) : Cell("no bound"), Cell(off), Cell(slopes)}});
  }
  if (table.rows.empty()) return section;
  table.note = fmt::format("Of the function “{}”. {}", text(member(run.log.front(), "certificate"), "differentiates"), reason);
  if (more > 0) table.note += fmt::format(" … and {} more, in log.jsonl.", more);
  if (norm.x.size() > 1) {
    LineChart chart{
        .title = "Hypergradient and its error", .x_label = "outer step", .y_label = "2-norm", .log_y = true, .series = {}};
    for (LineChart::Series* series : {&norm, &bound, &distance}) {
      const bool shown = std::any_of(series->y.begin(), series->y.end(), [](double v) { return v > 0; });
      if (shown) chart.series.push_back(thinned(std::move(*series)));
    }
    if (!chart.series.empty()) section.blocks.push_back(std::move(chart));
  }
  section.blocks.push_back(std::move(table));
  return section;
}

Report::Section result(const Run& run) {
  Report::Section section{"Result", {}};
  // The summary repeats the last record; before the run's end there is only the log.
  const Json& last = run.summary.is_null() && !run.log.empty() ? run.log.back() : run.summary;
  const auto since = [&](double start) {
    return run.log.size() > 1 && std::isfinite(start) ? "from " + format_number(start) : "";
  };
  const Json first = run.log.empty() ? Json() : run.log.front();
  Figures figures;
  const auto add = [&](const char* label, const char* key) {
    figures.figures.push_back({label, format_number(number(last, key)), since(number(first, key))});
  };
  add("Outer loss", "outer_loss");
  add("Inner loss", "inner_loss");
  add("Hypergradient norm", "hypergradient_norm");
  add("Stationarity", "stationarity");
  for (const std::string& name : metric_names(run)) {
    figures.figures.push_back(
        {name, format_number(number(member(last, "metrics"), name)), since(number(member(first, "metrics"), name))});
  }
  section.blocks.push_back(std::move(figures));

  // What `reweight` adds.
  if (const Json& rows = member(run.summary, "table"); rows.is_array()) {
    Table table{
        .title = "Comparison", .columns = {{"row", false}, {"accuracy", true}}, .rows = {}, .note = "Mean ± standard error."};
    for (const Json& row : rows) {
      const double accuracy = number(row, "accuracy"), error = number(row, "standard_error");
      table.rows.push_back({{Cell(text(row, "slug")), Cell::mean(accuracy, error, 4)}, text(row, "slug") == "learned"});
    }
    section.blocks.push_back(std::move(table));
  }

  Table warnings{
      .title = "What the run warned of", .columns = {{"step", true}, {"grade", false}, {"message", false}}, .rows = {}};
  size_t more = 0;
  const auto warn = [&](int64_t step, const std::string& grade, const std::string& message) {
    if (warnings.rows.size() >= kMostWarnings) {
      ++more;
    } else {
      warnings.rows.push_back({{Cell(std::to_string(step)), Cell(grade), Cell(message)}});
    }
  };
  for (const Json& record : run.log) {
    if (const Json& backs = member(record, "roll_backs"); backs.is_array()) {
      for (const Json& back : backs) {
        warn(count(back, "from"), "roll-back",
             fmt::format("Back to step {1}, with outer step × {2} and damping {3}, because {0}.", text(back, "reason"),
                         count(back, "to"), format_number(number(back, "outer_scale")), format_number(number(back, "damping"))));
      }
    }
    if (grade_of(text(record, "status")) != Grade::kOk)
      warn(count(record, "step"), text(record, "status"), text(record, "message"));
  }
  if (more > 0) warnings.note = fmt::format("… and {} more, in log.jsonl.", more);
  if (!warnings.rows.empty()) section.blocks.push_back(std::move(warnings));
  return section;
}

BarChart histogram(const std::string& name, const at::Tensor& values) {
  BarChart chart{.title = name,
                 .label_name = "value",
                 .value_label = "elements",
                 .labels = {},
                 .series = {{"elements", {}}},
                 .note = fmt::format("Histogram of {} elements.", format_count(values.numel()))};
  const at::Tensor finite = values.masked_select(values.isfinite());
  if (finite.numel() == 0) return chart;
  const double low = finite.min().item<double>(), high = finite.max().item<double>();
  const int64_t bins = high > low ? kBins : 1;
  const at::Tensor counts = high > low ? at::histc(finite, bins, low, high) : at::full({1}, finite.numel(), at::kDouble);
  for (int64_t b = 0; b < bins; ++b) {
    chart.labels.push_back(format_number(low + (high - low) * (static_cast<double>(b) + 0.5) / static_cast<double>(bins), 3));
    chart.series[0].values.push_back(counts[b].item<double>());
  }
  return chart;
}

BarChart bars(const Layout& layout, const Part& part, const at::Tensor& values) {
  BarChart chart{.title = part.name, .label_name = "element", .value_label = "x", .labels = {}, .series = {{"x at the end", {}}}};
  for (int64_t i = 0; i < part.size; ++i) {
    chart.labels.push_back(layout.element_name(part.offset + i).substr(part.name.size()));
    chart.series[0].values.push_back(values[i].item<double>());
  }
  return chart;
}

Report::Section hyperparameters(const Run& run) {
  Report::Section section{"Hyperparameters", {}};
  Layout layout;
  const Json& parts = member(member(run.layout, "x"), "parts");
  if (!run.x.defined() || !parts.is_array()) return section;
  for (const Json& part : parts) layout.add(text(part, "name"), member(part, "shape").get<std::vector<int64_t>>());
  require(layout.size() == run.x.numel(),
          fmt::format("{}: x.npy holds {} numbers, and layout.json describes {}.", run.path, run.x.numel(), layout.size()));

  Table table{.title = "x at the end",
              .columns = {{"part", false}, {"shape", false}, {"least", true}, {"mean", true}, {"greatest", true}},
              .rows = {}};
  std::vector<Block> charts;
  for (const Part& part : layout.parts()) {
    if (part.size == 0) continue;
    const at::Tensor values = run.x.narrow(0, part.offset, part.size);
    table.rows.push_back(
        {{Cell(part.name), Cell(part.shape.empty() ? "one number" : fmt::format("{}", fmt::join(part.shape, " × "))),
          Cell(values.min().item<double>()), Cell(values.mean().item<double>()), Cell(values.max().item<double>())}});
    if (part.size > kMostBars) {
      charts.emplace_back(histogram(part.name, values));
    } else if (part.size > 1) {
      charts.emplace_back(bars(layout, part, values));
    }
  }
  section.blocks.push_back(std::move(table));
  section.blocks.insert(section.blocks.end(), charts.begin(), charts.end());
  return section;
}

Report::Section cost(const Run& run) {
  const char* const keys[] = {"gradients", "hvps", "cross_products", "forwards"};
  const char* const names[] = {"gradients", "Hessian-vector products", "cross products", "losses alone"};
  const bool ended = !run.summary.is_null();
  const auto steps = static_cast<double>(std::max<size_t>(run.log.size(), 2) - 1);
  Table table{.title = "", .columns = {{"what", false}, {"in all", true}, {"per step", true}}, .rows = {}};
  for (size_t i = 0; i < std::size(keys); ++i) {
    int64_t total = ended ? count(member(run.summary, "cost"), keys[i]) : 0;
    for (size_t k = 0; !ended && k < run.log.size(); ++k) total += count(member(run.log[k], "cost"), keys[i]);
    table.rows.push_back(
        {{Cell(names[i]), Cell(format_count(total)), Cell(format_number(static_cast<double>(total) / steps, 3))}});
  }
  double seconds = ended ? number(member(run.summary, "machine"), "seconds") : 0;
  double bytes = ended ? number(member(run.summary, "machine"), "peak_bytes") : 0;
  for (size_t k = 0; !ended && k < run.log.size(); ++k) {
    const double s = number(member(run.log[k], "machine"), "seconds"), b = number(member(run.log[k], "machine"), "peak_bytes");
    if (std::isfinite(s)) seconds += s;
    if (b > bytes) bytes = b;
  }
  table.rows.push_back({{Cell("time"), Cell(format_seconds(seconds)), Cell(format_seconds(seconds / steps))}});
  const double beside = number(member(run.summary, "machine"), "hidden_seconds");
  if (beside > 0)
    table.rows.push_back(
        {{Cell("work of a second thread, hidden"), Cell(format_seconds(beside)), Cell(format_seconds(beside / steps))}});
  if (bytes > 0) table.rows.push_back({{Cell("peak memory of tensors"), Cell(format_bytes(bytes)), Cell("")}});
  return {"Cost", {std::move(table)}};
}

}  // namespace

Report run_report(const std::string& directory) {
  const Run run = read_run(directory);
  const fs::path path = fs::absolute(directory).lexically_normal();
  Report report;
  report.title = "Run " + (path.has_filename() ? path : path.parent_path()).filename().string();
  report.subtitle = subtitle(run);
  report.verdict = verdict(run);
  if (!run.log.empty()) report.sections.push_back(result(run));
  if (!run.log.empty()) report.sections.push_back(curves(run));
  if (Report::Section section = certificates(run); !section.blocks.empty()) report.sections.push_back(std::move(section));
  if (Report::Section section = hyperparameters(run); !section.blocks.empty()) report.sections.push_back(std::move(section));
  for (const Explanation& one : kept_explanations(directory)) report.sections.push_back(explanation_section(one));
  if (!run.log.empty()) report.sections.push_back(cost(run));
  report.sections.push_back({"Configuration", {Preformatted{"config.toml", run.config}}});
  return report;
}

std::string terminal_summary(const std::string& directory, int width, bool color) {
  Report report = run_report(directory);
  // The table of the parts says enough here; their bars are for the page.
  for (auto& section : report.sections) {
    std::erase_if(section.blocks, [](const Block& block) { return std::holds_alternative<BarChart>(block); });
    if (section.title != "Certificates") continue;
    // The last rows are about what the run ended with.
    constexpr size_t kShown = 5;
    for (Block& block : section.blocks) {
      if (auto* table = std::get_if<Table>(&block); table != nullptr && table->rows.size() > kShown) {
        table->rows.erase(table->rows.begin(), table->rows.end() - kShown);
      }
    }
  }
  std::string summary = render_terminal(report, width, color);
  const fs::path page = fs::path(directory) / "report.html";
  if (fs::exists(page)) summary += fmt::format("\nThe whole report: {}\n", page.string());
  return summary;
}

}  // namespace bilevel
