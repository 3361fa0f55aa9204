#include "tasks/reweight_report.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/standard_error.h"
#include "bilevel/report/png.h"
#include "tasks/job.h"

namespace bilevel {
namespace {

std::string percent(double share) { return format_fixed(100 * share, 1) + " %"; }

Table results_table(const std::vector<TableRow>& rows, const ReweightResult& first, bool tested, size_t seeds) {
  Table table;
  table.title = "Accuracy, %";
  table.columns = {{"trained on", false}, {tested ? "test" : "held back", true}, {"held-back trusted", true}, {"ridge", true}};
  for (const TableRow& row : rows) {
    const Cell accuracy = row.standard_error ? Cell::mean(100 * row.accuracy, 100 * *row.standard_error, 1)
                                             : Cell(format_fixed(100 * row.accuracy, 1));
    const std::string title = row.threshold ? fmt::format("{} (≥ {:g})", row.title, *row.threshold) : row.title;
    table.rows.push_back(
        {{Cell(title), accuracy, Cell(format_fixed(100 * row.held_back_accuracy, 1)), Cell(fmt::format("{:g}", row.ridge))},
         row.slug == first.recommended});
  }
  table.note = fmt::format(
      "Every row has the trusted samples in its training data, is trained to the same stationarity, and has its ridge (and "
      "threshold) "
      "chosen on the trusted samples from the same grid. {} \"held-back trusted\" is the cross-validation that made this choice; "
      "the "
      "learned row's trust has seen these samples, so it is a little high there.",
      seeds > 1 ? fmt::format("Mean ± standard error over {} seeds.", seeds) : "One seed.");
  return table;
}

BarChart trust_chart(const ReweightResult& result, const char* label) {
  BarChart chart;
  chart.title = "Trust per source";
  chart.label_name = "source";
  chart.value_label = label;
  std::vector<const SourceTrust*> sorted;
  for (const SourceTrust& source : result.sources) sorted.push_back(&source);
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto* a, const auto* b) { return a->weight > b->weight; });
  if (sorted.size() > 60) sorted.resize(60);
  BarChart::Series weight{"learned weight", {}, {}, false}, estimate{"estimated share of right labels", {}, {}, true},
      truth{"true share of right labels", {}, {}, true};
  for (const SourceTrust* source : sorted) {
    chart.labels.push_back(source->name);
    weight.values.push_back(source->weight);
    weight.spread.push_back(source->spread);
    estimate.values.push_back(1 - source->error_rate);
    if (source->true_error_rate) truth.values.push_back(1 - *source->true_error_rate);
  }
  chart.series = {weight, estimate};
  if (!truth.values.empty()) chart.series.push_back(truth);
  chart.horizontal = true;
  chart.note = "The whisker is the standard deviation over resamples of the trusted set; it errs on the large side.";
  return chart;
}

Table sources_table(const ReweightResult& result) {
  Table table;
  table.title = "Sources";
  table.columns = {{"source", false},
                   {"samples", true},
                   {"learned weight", true},
                   {"weight in the final fit", true},
                   {"estimated wrong labels", true}};
  const bool truth = result.sources.front().true_error_rate.has_value();
  if (truth) table.columns.push_back({"truly wrong labels", true});
  for (const SourceTrust& s : result.sources) {
    Table::Row row{{Cell(s.name), Cell(format_count(s.samples)),
                    s.spread > 0 ? Cell::mean(s.weight, s.spread, 3) : Cell(format_fixed(s.weight, 3)),
                    Cell(format_fixed(s.final_weight, 2)), Cell(percent(s.error_rate))},
                   false};
    if (truth) row.cells.emplace_back(percent(*s.true_error_rate));
    table.rows.push_back(std::move(row));
  }
  return table;
}

/// Indices of the `count` most suspicious samples of source s.
std::vector<int64_t> most_doubted(const ReweightData& data, const ReweightResult& result, int64_t s, int64_t count) {
  const at::Tensor rows =
      data.noisy.sources.defined() ? (data.noisy.sources == s).nonzero().squeeze(1) : at::arange(data.noisy.size());
  const at::Tensor order = result.suspicion.index_select(0, rows).argsort(0, /*descending=*/true);
  std::vector<int64_t> doubted;
  for (int64_t j = 0; j < std::min(count, rows.size(0)); ++j) doubted.push_back(rows[order[j].item<int64_t>()].item<int64_t>());
  return doubted;
}

void add_doubted(Report::Section& section, const ReweightData& data, const ReweightResult& result) {
  const auto& classes = data.noisy.class_names;
  const auto name = [&](const at::Tensor& labels, int64_t i) { return classes[static_cast<size_t>(labels[i].item<int64_t>())]; };
  const auto row_of = [&](int64_t i) { return data.rows.defined() ? data.rows[i].item<int64_t>() : i; };
  const auto sources = std::min<int64_t>(static_cast<int64_t>(result.sources.size()), 40);
  if (data.noisy.images()) {
    for (int64_t s = 0; s < sources; ++s) {
      Gallery gallery;
      gallery.title = result.sources[static_cast<size_t>(s)].name;
      for (const int64_t i : most_doubted(data, result, s, sources == 1 ? 24 : 6)) {
        Gallery::Picture picture;
        picture.png = encode_png(data.noisy.features[i].view({data.noisy.height, data.noisy.width}));
        picture.description = fmt::format("sample {}, labelled {}", row_of(i), name(data.noisy.labels, i));
        picture.captions = {{"given", name(data.noisy.labels, i)},
                            {"suggested", name(result.suggested, i)},
                            {"suspicion", format_fixed(result.suspicion[i].item<double>(), 2)}};
        gallery.pictures.push_back(std::move(picture));
      }
      section.blocks.emplace_back(std::move(gallery));
    }
    return;
  }
  Table table;
  table.title = "Rows";
  table.columns = {{"row", true}, {"source", false}, {"given label", false}, {"suggested label", false}, {"suspicion", true}};
  for (int64_t s = 0; s < sources; ++s) {
    for (const int64_t i : most_doubted(data, result, s, sources == 1 ? 40 : 5)) {
      table.rows.push_back(
          {{Cell(std::to_string(row_of(i))), Cell(result.sources[static_cast<size_t>(s)].name), Cell(name(data.noisy.labels, i)),
            Cell(name(result.suggested, i)), Cell(format_fixed(result.suspicion[i].item<double>(), 2))},
           false});
    }
  }
  table.note = "Rows of the input are counted from 0.";
  section.blocks.emplace_back(std::move(table));
}

Report::Verdict verdict_of(const std::vector<ReweightResult>& results) {
  for (const ReweightResult& result : results) {
    for (const Record& record : result.records) {
      if (record.grade != Grade::kBad) continue;
      return {Grade::kBad, fmt::format("The hypergradient at step {} of learning trust is BAD: {}", record.step, record.message)};
    }
  }
  if (!results.front().warning.empty()) return {Grade::kWarn, results.front().warning};
  return {Grade::kOk, "The learned weights beat the trusted samples alone on held-back trusted samples."};
}

}  // namespace

std::vector<TableRow> mean_rows(const std::vector<ReweightResult>& results) {
  std::vector<TableRow> rows;
  const auto n = static_cast<double>(results.size());
  for (const ReweightRow& first : results.front().rows) {
    TableRow row{first.slug, first.title, 0, {}, 0, first.ridge, first.threshold, first.stationarity};
    std::vector<double> values;
    for (const ReweightResult& result : results) {
      const ReweightRow& one = result.row(first.slug);
      values.push_back(one.accuracy.value_or(one.held_back_accuracy));
      row.accuracy += values.back() / n;
      row.held_back_accuracy += one.held_back_accuracy / n;
    }
    if (results.size() > 1) row.standard_error = standard_error(values, row.accuracy);
    rows.push_back(std::move(row));
  }
  return rows;
}

Report reweight_report(const ReweightOptions& options, const ReweightData& data, const std::vector<ReweightResult>& results,
                       const std::vector<TableRow>& rows, const std::string& config) {
  const ReweightResult& result = results.front();
  const bool tested = data.test.features.defined();
  const auto find = [&](const std::string& slug) {
    return std::find_if(rows.begin(), rows.end(), [&](const TableRow& row) { return row.slug == slug; });
  };
  Report report;
  report.title = "Whom to trust";
  report.subtitle = fmt::format("{} samples from {} sources, {} trusted samples, model {}", format_count(data.noisy.size()),
                                result.sources.size(), format_count(data.trusted.size()), options.model.kind);
  report.verdict = verdict_of(results);

  double best_simple = 0;
  std::string best_title;
  for (const char* slug : {"all", "trusted", "filtered", "agreement"}) {
    const auto row = find(slug);
    if (row != rows.end() && row->accuracy > best_simple) {
      best_simple = row->accuracy;
      best_title = row->title;
    }
  }
  Report::Section answer{"The answer", {}};
  Figures figures;
  figures.figures.push_back({"learned", percent(find("learned")->accuracy),
                             tested ? "of the test samples right" : "of held-back trusted samples right"});
  figures.figures.push_back({"best simple way", percent(best_simple), best_title});
  if (find("oracle") != rows.end())
    figures.figures.push_back({"oracle", percent(find("oracle")->accuracy), "knows every wrong label"});
  if (result.rank_correlation) {
    double sum = 0;
    for (const ReweightResult& one : results) sum += one.rank_correlation.value_or(0) / static_cast<double>(results.size());
    figures.figures.push_back({"rank correlation", format_fixed(sum, 2), "of trust with the true share of right labels"});
  }
  answer.blocks.emplace_back(std::move(figures));
  answer.blocks.emplace_back(results_table(rows, result, tested, results.size()));
  report.sections.push_back(std::move(answer));

  Report::Section trust{"Trust", {}};
  trust.blocks.emplace_back(
      Text{"A weight near 1 means: labels like these made the model better on the trusted samples. A weight near 0 means: they "
           "made it worse, "
           "so they were left out. The sign in one sentence: where the hypergradient of a source's weight is negative, more "
           "weight lowers the "
           "loss on the trusted samples, and the weight goes up.\n\nA weight is not the share of right labels: that is estimated "
           "apart, from a model that has not seen the labels it judges, and is shown beside it.",
           Text::Tone::kNote});
  if (result.sources.size() > 1) trust.blocks.emplace_back(trust_chart(result, "weight and share, 0…1"));
  trust.blocks.emplace_back(sources_table(result));
  if (!result.auc.empty()) {
    KeyValues auc{"How well wrong labels are ranked first (area under the ROC curve; 1 is perfect, 0.5 is chance)", {}};
    for (const auto& [name, value] : result.auc) auc.rows.emplace_back(name, format_fixed(value, 3));
    trust.blocks.emplace_back(std::move(auc));
  }
  report.sections.push_back(std::move(trust));

  Report::Section doubted{"The most doubted samples", {}};
  doubted.blocks.emplace_back(Text{
      options.by == "sample"
          ? "Suspicion is a rank: 1 for the most doubted label of all, 0 for the least. It joins what the habits of the source "
            "say "
            "with the confidence of a model that has not seen the label."
          : "Suspicion is the probability that the given label is wrong, as the model and the habits of the source say together.",
      Text::Tone::kPlain});
  add_doubted(doubted, data, result);
  report.sections.push_back(std::move(doubted));

  Report::Section learning{"How trust was learned", {}};
  learning.blocks.emplace_back(curve(result.records, "Losses", "loss", false,
                                     {{"outer: on the trusted samples", [](const Record& r) { return r.outer_loss; }},
                                      {"inner: weighted, on the others", [](const Record& r) { return r.inner_loss; }}}));
  learning.blocks.emplace_back(curve(result.records, "Hypergradient and stationarity", "norm", true,
                                     {{"‖hypergradient‖", [](const Record& r) { return r.hypergradient_norm; }},
                                      {"‖∂y g‖ after the inner solve", [](const Record& r) { return r.stationarity; }}}));
  report.sections.push_back(std::move(learning));

  Report::Section cost{"Cost and configuration", {}};
  cost.blocks.emplace_back(KeyValues{"Cost of the first seed",
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
