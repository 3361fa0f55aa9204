// Writes a report with every kind of block, and with texts that try to break out of the page: what
// tests/e2e/test_report_browser.py opens in a browser.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <string>

#include "bilevel/core/file.h"
#include "bilevel/report/html.h"
#include "bilevel/report/png.h"
#include "bilevel/report/report.h"
#include "bilevel/report/terminal.h"

namespace bilevel {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr const char* kHostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&<!--";

/// A shirt-like shape, 28 × 28 in 0…1.
at::Tensor picture(int kind) {
  const at::Tensor axis = at::linspace(-1, 1, 28);
  const at::Tensor u = axis.unsqueeze(0).expand({28, 28}), v = axis.unsqueeze(1).expand({28, 28});
  const at::Tensor body = (u.abs() < 0.35 + 0.05 * kind).logical_and(v.abs() < 0.8);
  const at::Tensor sleeves = (v + 0.45).abs() < 0.2 - 0.3 * u.abs() * (kind % 2);
  return body.logical_or(sleeves.logical_and(u.abs() < 0.9)).to(at::kFloat) *
         (0.7 + 0.3 * at::cos(6 * u + kind) * at::sin(5 * v));
}

LineChart curve(const char* title, const char* label, bool log_y, double from, double factor) {
  LineChart chart{.title = title, .x_label = "outer step", .y_label = label, .log_y = log_y, .series = {{label, {}, {}}}};
  for (int k = 0; k <= 30; ++k) {
    chart.series[0].x.push_back(k);
    chart.series[0].y.push_back(from *
                                (log_y ? std::pow(factor, k) * (1 + 0.3 * std::sin(k)) : 0.4 + 0.6 * std::exp(-factor * k)));
  }
  return chart;
}

Report example() {
  Report report;
  report.title = "Which labellers to trust";
  report.subtitle = "12 000 images from 20 labellers, weighed against 200 trusted images";
  report.verdict = {Grade::kWarn, "The learned weights beat every simple row, but one source has too few samples to be judged."};

  Report::Section result{"Result", {}};
  result.blocks.push_back(Figures{{{"Test accuracy", "81.4 %", "learned, mean of 5 seeds"},
                                   {"Best simple row", "78.9 %", "agreement"},
                                   {"Rank correlation with the truth", "0.93", "of trust and accuracy"},
                                   {"Time", "18.2 s", "per seed, one core"}}});
  result.blocks.push_back(
      Text{"Every row is trained to the same stationarity, with the trusted images among its training data.\n\n"
           "A weight above 1 means that the source counts for more than an average one."});
  result.blocks.push_back(Table{.title = "Test accuracy",
                                .columns = {{"training data", false}, {"accuracy, %", true}, {"against all data", true}},
                                .rows = {{{"all data equally", Cell::mean(73.21, 0.31, 1), "0.0"}},
                                         {{"trusted only", Cell::mean(73.9, 0.25, 1), "+0.7"}},
                                         {{"filtered by confidence", Cell::mean(76.8, 0.2, 1), "+3.6"}},
                                         {{"weighted by agreement", Cell::mean(78.9, 0.18, 1), "+5.7"}},
                                         {{"learned", Cell::mean(81.4, 0.12, 1), "+8.2"}, true},
                                         {{"oracle", Cell::mean(81.2, 0.15, 1), "+8.0"}}},
                                .note = "Mean ± standard error over 5 seeds."});
  result.blocks.push_back(KeyValues{"Cost",
                                    {{"gradients", format_count(12345678)},
                                     {"Hessian-vector products", "240"},
                                     {"seconds", format_seconds(18.2)},
                                     {"peak memory", format_bytes(3.4e8)}}});
  report.sections.push_back(std::move(result));

  BarChart trust{.title = "Trust per source",
                 .label_name = "source",
                 .value_label = "weight ÷ mean weight",
                 .labels = {},
                 .series = {{"learned weight", {}, {}, false}, {"true accuracy × 2", {}, {}, true}},
                 .note = "Whiskers: spread over bootstrap resamples of the trusted set."};
  for (int i = 0; i < 20; ++i) {
    trust.labels.push_back(fmt::format("labeller {}", i));
    const double truth = i < 6 ? 0.94 : i < 13 ? 0.5 : 0.25;
    trust.series[0].values.push_back(2 * truth + 0.2 * std::sin(9.0 * i));
    trust.series[0].spread.push_back(0.08 + 0.05 * std::cos(3.0 * i));
    trust.series[1].values.push_back(2 * truth + 0.1 * std::cos(7.0 * i));
  }
  trust.series[0].spread[3] = kNan;
  BarChart sideways{.title = "The most doubted",
                    .label_name = "",
                    .value_label = "suspicion",
                    .labels = {"a", "b", "c", "d", "e"},
                    .series = {{"suspicion", {0.9, 0.8, 0.75, 0.4, 0.1}, {0.05, 0.1, 0.05, 0.1, 0.02}}},
                    .horizontal = true};
  BarChart signs{.title = "Change of x",
                 .label_name = "part",
                 .value_label = "x",
                 .labels = {"l2[0]", "l2[1]", "l2[2]", "l2[3]"},
                 .series = {{"start", {0.5, -0.5, 1, kNan}}, {"end", {1.5, -1.25, 0.25, -2}}}};
  report.sections.push_back({"Trust", {trust, sideways, signs}});

  LineChart several = curve("Accuracy", "validation", false, 0.7, 0.1);
  several.y_label = "accuracy";
  several.series.push_back({"test", several.series[0].x, {}});
  for (const double y : several.series[0].y) several.series[1].y.push_back(1 - y);
  several.series[0].y[7] = kNan;
  LineChart stationarity = curve("Stationarity", "‖r‖", true, 1, 0.6);
  stationarity.series[0].y[4] = 0;
  report.sections.push_back(
      {"Curves",
       {curve("Outer loss", "f", false, 2.3, 0.2), curve("Hypergradient", "‖dF/dx‖", true, 0.1, 0.9), stationarity, several}});

  Gallery gallery{.title = "Most doubted images of labeller 14", .pictures = {}, .note = "Suspicion is 1 − the weight."};
  for (int i = 0; i < 9; ++i) {
    gallery.pictures.push_back(
        {encode_png(picture(i)),
         "An image given as shirt",
         {{"given", "shirt"}, {"suggested", "T-shirt/top"}, {"suspicion", format_fixed(0.99 - 0.01 * i, 2)}}});
  }
  report.sections.push_back({"Images", {gallery}});

  Table wide{.title = "Many columns", .columns = {{"row", false}}, .rows = {}};
  for (int j = 0; j < 14; ++j) wide.columns.push_back({fmt::format("column {}", j), true});
  for (int i = 0; i < 3; ++i) {
    Table::Row row{{Cell(fmt::format("row {}", i))}};
    for (int j = 0; j < 14; ++j) row.cells.emplace_back(std::exp(3.0 * j - 20 * i));
    wide.rows.push_back(row);
  }
  report.sections.push_back(
      {kHostile,
       {Text{"Sources may be called anything: " + std::string(kHostile), Text::Tone::kWarning},
        Table{
            .title = kHostile, .columns = {{kHostile, false}, {"n", true}}, .rows = {{{kHostile, Cell(kNan)}}}, .note = kHostile},
        BarChart{.title = kHostile,
                 .label_name = kHostile,
                 .value_label = kHostile,
                 .labels = {kHostile, "bad \xff UTF-8", "__proto__"},
                 .series = {{kHostile, {1, 2, 3}}}},
        LineChart{.title = kHostile,
                  .x_label = kHostile,
                  .y_label = kHostile,
                  .series = {{kHostile, {0, 1, 2}, {1, kNan, 2}}, {"", {0, 1, 2}, {0, 1, 0}}}},
        Gallery{.title = kHostile,
                .pictures = {{encode_png(at::rand({3, 8, 12})), kHostile, {{kHostile, kHostile}}}},
                .note = kHostile},
        KeyValues{kHostile, {{kHostile, "\x1b[31mred\x1b[0m"}}}, wide}});
  report.sections.push_back({"Configuration",
                             {Preformatted{"config.toml", "[problem]\ntask = \"supervised\"   # " + std::string(kHostile) +
                                                              "\n[outer]\nrule = \"adam\"\nlr = 0.1\n"}}});
  return report;
}

}  // namespace
}  // namespace bilevel

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: report_example FILE.html\n", stderr);
    return 2;
  }
  const bilevel::Report report = bilevel::example();
  bilevel::write_file(argv[1], bilevel::render_html(report));
  std::fputs(bilevel::render_terminal(report, 100, false).c_str(), stdout);
}
