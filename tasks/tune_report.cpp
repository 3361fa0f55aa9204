#include "tasks/tune_report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "tasks/job.h"

namespace bilevel {
namespace {

Table results_table(const TuneResult& result, const Loss& loss, bool tested) {
  Table table;
  table.title = "Ways to choose";
  const bool percent = loss.classifies();
  const std::string score = percent ? "accuracy, %" : "squared error";
  table.columns = {{"chosen by", false}, {"cross-validated loss", true}, {"cross-validated " + score, true}};
  if (tested) {
    table.columns.push_back({"test loss", true});
    table.columns.push_back({"test " + score, true});
  }
  table.columns.push_back({"strengths tried", true});
  table.columns.push_back({"oracle calls", true});
  for (const TuneRow& row : result.rows) {
    const double unit = percent ? 100 : 1;
    Table::Row cells{{Cell(row.title), Cell::mean(row.validation.loss, row.validation.loss_error, 4),
                      Cell::mean(unit * row.validation.score, unit * row.validation.score_error, percent ? 1 : 4)},
                     &row == &result.rows.front()};
    if (tested) {
      cells.cells.emplace_back(format_fixed(*row.test_loss, 4));
      cells.cells.emplace_back(format_fixed(unit * *row.test_score, percent ? 1 : 4));
    }
    cells.cells.emplace_back(format_count(row.evaluations));
    cells.cells.emplace_back(format_count(row.oracle_calls));
    table.rows.push_back(std::move(cells));
  }
  table.note =
      "Mean ± standard error over the folds. The figures of every row are those of the strengths that it chose, so the "
      "cross-validated "
      "loss flatters a little, and the more the more strengths there are; the test loss does not. An oracle call is a gradient "
      "or a "
      "product with second derivatives, of all folds at once; grid search and random search had as many as the hypergradient, "
      "what the "
      "outer fold took included, and began each solve at the nearest one before.";
  return table;
}

BarChart strengths_chart(const TuneResult& result) {
  const TuneRow& learned = result.rows.front();
  BarChart chart;
  chart.title = "Strengths";
  chart.label_name = "of";
  chart.value_label = "log₁₀ λ";
  chart.horizontal = true;
  std::vector<size_t> order(learned.strengths.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return learned.strengths[a] > learned.strengths[b]; });
  constexpr size_t kMost = 60;
  if (order.size() > kMost) {
    order.erase(order.begin() + kMost / 2, order.end() - kMost / 2);
    chart.note = fmt::format("The {} strongest and the {} weakest of {}; all are in strengths.csv.", kMost / 2, kMost / 2,
                             learned.strengths.size());
  }
  BarChart::Series series{"learned", {}, {}, false};
  for (const size_t j : order) {
    chart.labels.push_back(result.names[j]);
    series.values.push_back(std::log10(learned.strengths[j]));
  }
  chart.series = {series};
  return chart;
}

Table widths_table(const TuneResult& result) {
  Table table;
  table.title = "What the outer fold says";
  table.columns = {{"width of the prior on log λ", true},
                   {"loss on the outer fold", true},
                   {"standard error of the difference to the best", true}};
  for (const WidthTrial& t : result.widths) {
    const bool chosen = result.common_kept ? t.width == 0 : result.width && t.width == *result.width;
    table.rows.push_back({{Cell(t.width == 0 ? std::string("0 (one common strength)") : fmt::format("{:g}", t.width)),
                           Cell(format_fixed(t.loss, 4)), Cell(format_fixed(t.difference_error, 4))},
                          chosen});
  }
  table.note = "The smallest width within one standard error of the best is taken.";
  return table;
}

}  // namespace

Report tune_report(const TuneOptions& options, const TuneData& data, const TuneResult& result, const std::string& config) {
  const TuneRow& learned = result.rows.front();
  const Loss loss(options.loss);
  const bool tested = learned.test_loss.has_value();
  const auto shown = [&](double score) { return loss.classifies() ? format_fixed(100 * score, 1) + " %" : format_number(score); };
  Report report;
  report.title = "Regularisation strengths";
  report.subtitle = fmt::format("{} samples, {} features, model {}, {} loss, {} folds", format_count(data.train.size()),
                                format_count(data.train.dimension()), options.model.kind, options.loss, options.folds);
  report.verdict =
      result.warning.empty()
          ? Report::Verdict{Grade::kOk, fmt::format("Cross-validated loss {} ± {}.", format_fixed(learned.validation.loss, 4),
                                                    format_fixed(learned.validation.loss_error, 4))}
          : Report::Verdict{Grade::kWarn, result.warning};

  Report::Section answer{"The answer", {}};
  Figures figures;
  figures.figures.push_back(
      {"cross-validated " + loss.score_name(), shown(learned.validation.score), "on samples not trained on"});
  if (tested) figures.figures.push_back({"test " + loss.score_name(), shown(*learned.test_score), "of the refit to all samples"});
  if (learned.strengths.size() == 1) figures.figures.push_back({"strength λ", format_number(learned.strengths[0]), "½ λ ‖w‖²"});
  if (learned.step_size) figures.figures.push_back({"step size", format_number(*learned.step_size), "of the update rule"});
  answer.blocks.emplace_back(std::move(figures));
  if (result.common_kept) {
    answer.blocks.emplace_back(
        Text{"An outer fold, held out from the whole choice, was predicted no better with several strengths than with "
             "one common strength. So one is what was chosen.",
             Text::Tone::kNote});
  }
  answer.blocks.emplace_back(results_table(result, loss, tested));
  report.sections.push_back(std::move(answer));

  if (learned.strengths.size() > 1 || !result.widths.empty()) {
    Report::Section strengths{"Strengths", {}};
    if (learned.strengths.size() > 1) strengths.blocks.emplace_back(strengths_chart(result));
    if (result.width) {
      strengths.blocks.emplace_back(
          Text{fmt::format(
                   "The strengths are held together by a Gaussian prior on their logarithms of width {:g} around a common one.",
                   *result.width),
               Text::Tone::kPlain});
    }
    if (!result.widths.empty()) strengths.blocks.emplace_back(widths_table(result));
    report.sections.push_back(std::move(strengths));
  }

  Report::Section way{"How they were found", {}};
  way.blocks.emplace_back(curve(result.records, "Cross-validated loss", "loss", false,
                                {{"held-out samples", [](const Record& r) { return r.metrics.at("cv_loss"); }},
                                 {"with the prior", [](const Record& r) { return r.outer_loss; }}}));
  way.blocks.emplace_back(curve(result.records, "Hypergradient and stationarity", "norm", true,
                                {{"‖hypergradient‖", [](const Record& r) { return r.hypergradient_norm; }},
                                 {"‖∂y g‖ of all folds", [](const Record& r) { return r.stationarity; }}}));
  report.sections.push_back(std::move(way));

  Report::Section cost{"Cost and configuration", {}};
  cost.blocks.emplace_back(KeyValues{"Cost, the comparison included",
                                     {{"gradients", format_count(result.cost.gradients)},
                                      {"Hessian–vector products", format_count(result.cost.hvps)},
                                      {"cross products", format_count(result.cost.cross_products)},
                                      {"seconds", format_seconds(result.cost.seconds)},
                                      {"most tensor memory", format_bytes(static_cast<double>(result.cost.peak_bytes))}}});
  cost.blocks.emplace_back(Preformatted{"config.toml", config});
  report.sections.push_back(std::move(cost));
  return report;
}

}  // namespace bilevel
