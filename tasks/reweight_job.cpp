#include "tasks/reweight_job.h"

#include <cmath>
#include <stdexcept>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/core/stream.h"
#include "bilevel/problem/label_noise.h"
#include "bilevel/report/html.h"
#include "bilevel/run/run_directory.h"
#include "tasks/job.h"
#include "tasks/model_file.h"
#include "tasks/reweight_report.h"
#include "tasks/trust_learning.h"

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

CsvTable sources_csv(const ReweightResult& result) {
  CsvTable table;
  table.columns = {"source", "weight", "spread", "final_weight", "samples", "error_rate", "true_error_rate"};
  for (const SourceTrust& s : result.sources) {
    table.rows.push_back({s.name, format_fixed(s.weight, 6), format_fixed(s.spread, 6), format_fixed(s.final_weight, 6),
                          std::to_string(s.samples), format_fixed(s.error_rate, 6),
                          s.true_error_rate ? format_fixed(*s.true_error_rate, 6) : ""});
  }
  return table;
}

/// The input with weight, suspicion and suggested label of each row, in the order of the input; the trusted ones keep their
/// label.
CsvTable cleaned_table(const ReweightJob& job, const ReweightData& data, const ReweightResult& result) {
  const Dataset& given = job.given();
  std::vector<int64_t> sample_of(static_cast<size_t>(given.size()), -1);
  for (int64_t i = 0; i < data.rows.size(0); ++i) sample_of[static_cast<size_t>(data.rows[i].item<int64_t>())] = i;
  const auto class_name = [&](const at::Tensor& labels, int64_t i) {
    return data.noisy.class_names[static_cast<size_t>(labels[i].item<int64_t>())];
  };

  CsvTable table;
  if (job.is_table()) {
    table = job.table();
  } else {
    table.columns = {"row", "source", "label"};
  }
  for (std::string name : {"weight", "suspicion", "suggested_label"}) {
    while (table.has(name)) name += "_";
    table.columns.push_back(name);
  }
  std::vector<std::vector<std::string>> rows;
  for (int64_t i = 0; i < given.size(); ++i) {
    const int64_t k = sample_of[static_cast<size_t>(i)];
    if (k < 0 && job.simulated()) continue;  // the demonstration does not use all images
    std::vector<std::string> row;
    if (job.is_table()) {
      row = table.rows[static_cast<size_t>(i)];
    } else {
      const Dataset& from = k < 0 ? given : data.noisy;
      const int64_t j = k < 0 ? i : k;
      const std::string source =
          from.sources.defined() ? from.source_names[static_cast<size_t>(from.sources[j].item<int64_t>())] : "";
      row = {std::to_string(i), source, class_name(from.labels, j)};
    }
    const double weight = k < 0 ? result.trusted_weight : result.weights[k].item<double>();
    const double suspicion = k < 0 ? 0 : result.suspicion[k].item<double>();
    row.push_back(format_fixed(weight, 6));
    row.push_back(format_fixed(suspicion, 6));
    row.push_back(k < 0 ? class_name(given.labels, i) : class_name(result.suggested, k));
    rows.push_back(std::move(row));
  }
  table.rows = std::move(rows);
  return table;
}

/// Without the sources whose last samples were drawn as trusted ones.
Dataset with_present_sources(Dataset data) {
  if (!data.sources.defined()) return data;
  const at::Tensor present = data.sources.bincount({}, static_cast<int64_t>(data.source_names.size())).gt(0);
  std::vector<std::string> names;
  for (size_t s = 0; s < data.source_names.size(); ++s) {
    if (present[static_cast<int64_t>(s)].item<bool>()) names.push_back(data.source_names[s]);
  }
  data.sources = (present.cumsum(0) - 1).index_select(0, data.sources);
  data.source_names = std::move(names);
  return data;
}

Json table_json(const std::vector<TableRow>& rows) {
  Json json = Json::array();
  for (const TableRow& row : rows) {
    Json one = {{"slug", row.slug}, {"title", row.title}, {"accuracy", row.accuracy}};
    one["standard_error"] = row.standard_error ? Json(*row.standard_error) : Json(nullptr);
    one["held_back_accuracy"] = row.held_back_accuracy;
    one["ridge"] = row.ridge;
    if (row.threshold) one["threshold"] = *row.threshold;
    one["stationarity"] = row.stationarity;
    json.push_back(std::move(one));
  }
  return json;
}

/// Everything that the job leaves behind, into a directory that is not there yet.
void write_results(const ReweightJob& job, const ReweightData& first, const std::vector<ReweightResult>& results,
                   const std::vector<TableRow>& rows, const Report& report, const std::string& out) {
  const ReweightResult& result = results.front();
  const ReweightRow& chosen = result.row(result.recommended);
  const std::vector<int64_t> shape = job.options().model.kind == "cnn"
                                         ? std::vector<int64_t>{1, first.noisy.height, first.noisy.width}
                                         : std::vector<int64_t>{first.noisy.dimension()};
  TrainedModel model;
  model.model = job.options().model;
  model.sample_shape = shape;
  model.outputs = std::max(first.noisy.classes(), first.trusted.classes());
  model.weights = chosen.y;
  model.encoding = job.encoding();

  Layout x_layout;
  x_layout.add(job.options().by == "sample" ? "sample_weight" : "source_weight", {result.x.size(0)});
  RunDirectory directory = RunDirectory::create(out, job.text());
  directory.write_layout(x_layout, make_model(model.model, shape, model.outputs)->layout());
  for (const Record& record : result.records) directory.append(record, {});
  RunResult run;
  run.outcome = Outcome::kDone;
  run.message = report.verdict.sentence;
  run.worst = report.verdict.grade;
  run.state.set("x", result.x);
  run.state.set("y", chosen.y);
  run.last = result.records.back();
  run.steps = result.records.back().step;
  run.cost = result.cost;
  directory.finish(run, "double-loop");

  Json summary = Json::parse(read_file(directory.file("summary.json")));
  summary["recommended"] = result.recommended;
  summary["warning"] = result.warning.empty() ? Json(nullptr) : Json(result.warning);
  summary["seeds"] = job.seeds();
  summary["measured_on"] = first.test.features.defined() ? "test" : "held-back trusted samples";
  summary["table"] = table_json(rows);
  Json correlations = Json::array();
  double sum = 0;
  for (const ReweightResult& one : results) {
    if (!one.rank_correlation) continue;
    correlations.push_back(*one.rank_correlation);
    sum += *one.rank_correlation;
  }
  summary["rank_correlation"] = correlations.empty() ? Json(nullptr) : Json(sum / static_cast<double>(correlations.size()));
  summary["rank_correlations"] = correlations;
  summary["auc"] = result.auc;
  write_file(directory.file("summary.json"), summary.dump(2) + "\n");

  write_csv(sources_csv(result), directory.file("sources.csv"));
  write_csv(cleaned_table(job, first, result), directory.file("cleaned.csv"));
  save_model(model, directory.file("model.safetensors"));
  write_file(directory.file("report.html"), render_html(report));
}

}  // namespace

ReweightJob::~ReweightJob() = default;

ReweightJob::ReweightJob(Config config) : config_(std::move(config)) {
  Section root = config_.root();
  Section problem = root.section("problem");
  std::string task = "reweight";
  problem.read("task", task);
  read(problem, options_.model);
  problem.finish();
  Section section = root.section("reweight");
  if (options_.model.kind != "linear") {
    options_.groups = 5;  // a group's products cost a pass through the network
  }
  read(section, options_);
  section.finish();
  Section run = root.section("run");
  int64_t seed = 0, threads = 1;
  run.read("seed", seed);
  run.read("seeds", seeds_);
  run.read("threads", threads);
  if (seed < 0) run.fail("seed", "it must not be negative.");
  if (seeds_ < 1) run.fail("seeds", "it must be at least 1.");
  if (threads < 1) run.fail("threads", "it must be at least 1.");
  run.finish();
  options_.seed = static_cast<uint64_t>(seed);
  threads_ = std::make_unique<ThreadsGuard>(static_cast<int>(threads));

  Section data = root.section("data");
  if (data.has("noisy")) {
    read_files(data);
  } else {
    read_simulation(data);
  }
  data.finish();
  root.finish();
}

void ReweightJob::read_simulation(Section& data) {
  simulate_ = "mixed";
  data.read_choice("simulate", simulate_, {"mixed", "swapping"});
  builtin_ = find_fashion_mnist().empty() ? "digits" : "fashion-mnist";
  const bool asked_for = data.has("builtin");
  data.read_choice("builtin", builtin_, {"fashion-mnist", "digits"});
  const bool fashion = builtin_ == "fashion-mnist";
  samples_ = fashion ? 12000 : 1000;
  trusted_samples_ = fashion ? 200 : 100;
  data.read("samples", samples_);
  data.read("trusted_samples", trusted_samples_);
  DataSpec spec;
  spec.builtin = builtin_;
  noisy_ = load_dataset(spec, nullptr, &encoding_);
  if (fashion) {
    spec.split = "test";
    test_ = load_dataset(spec, &encoding_);
  } else if (!asked_for) {
    notes_.push_back(
        "Fashion-MNIST is not to be had here (Debian's package dataset-fashion-mnist): the embedded handwritten digits take its "
        "place.");
  }
  if (samples_ < 40 || trusted_samples_ < 10 || samples_ + trusted_samples_ > noisy_.size()) {
    data.fail("samples", fmt::format("{} samples and {} trusted ones should be at least 40 and 10, and at most {} together.",
                                     samples_, trusted_samples_, noisy_.size()));
  }
}

void ReweightJob::read_files(Section& data) {
  noisy_spec_ = read_spec(data, "noisy");
  const bool has_file = data.has("trusted");
  if (data.has("trusted_fraction")) {
    if (has_file) data.fail("trusted_fraction", "there are trusted data already; give one of the two.");
    data.read("trusted_fraction", trusted_fraction_);
    if (!(trusted_fraction_ > 0 && trusted_fraction_ < 1)) data.fail("trusted_fraction", "it must lie between 0 and 1.");
  }
  noisy_ = load_dataset(noisy_spec_, nullptr, &encoding_);
  if (options_.by == "source" && !noisy_.sources.defined()) {
    data.fail("noisy",
              "which source each sample comes from is not said: name its column or file with source (--source), or weigh the "
              "samples one by one (--by sample).");
  }
  if (bilevel::is_table(noisy_spec_)) table_ = load_table(noisy_spec_);
  if (has_file) trusted_ = load_dataset(read_spec(data, "trusted"), &encoding_);
  if (data.has("test")) test_ = load_dataset(read_spec(data, "test"), &encoding_);
  for (const Dataset* one : {&noisy_, &trusted_, &test_}) notes_.insert(notes_.end(), one->notes.begin(), one->notes.end());
  const int64_t trusted = has_file ? trusted_.size() : trusted_count();
  if ((has_file || trusted_fraction_ > 0) && trusted < kFewestTrusted) {
    data.fail(
        has_file ? "trusted" : "trusted_fraction",
        fmt::format(
            "{} trusted samples are too few: {} are the least that can tell anything, and a few dozen for each class are good.",
            trusted, kFewestTrusted));
  }
  if (trusted_fraction_ > 0 && noisy_.size() - trusted < kFewestTrusted) {
    data.fail("trusted_fraction",
              fmt::format("{} of the {} rows would be trusted, and nothing is left to learn about.", trusted, noisy_.size()));
  }
}

int64_t ReweightJob::trusted_count() const {
  return static_cast<int64_t>(std::llround(trusted_fraction_ * static_cast<double>(noisy_.size())));
}

bool ReweightJob::has_trusted() const { return !simulate_.empty() || trusted_fraction_ > 0 || trusted_.features.defined(); }
bool ReweightJob::is_table() const { return !table_.rows.empty(); }

at::Tensor ReweightJob::noisy_rows(uint64_t seed) const {
  const int64_t n = noisy_.size();
  if (!simulate_.empty()) return Stream(seed, "rows").at(0).permutation(n).narrow(0, 0, samples_);
  if (trusted_fraction_ == 0) return at::arange(n);
  const int64_t trusted = trusted_count();
  return std::get<0>(Stream(seed, "rows").at(0).permutation(n).narrow(0, trusted, n - trusted).sort());
}

ReweightData ReweightJob::data(uint64_t seed) const {
  ReweightData data;
  data.test = test_;
  data.rows = noisy_rows(seed);
  if (simulate_.empty()) {
    data.trusted = trusted_;
    if (trusted_fraction_ > 0) {
      data.trusted = noisy_.select(Stream(seed, "rows").at(0).permutation(noisy_.size()).narrow(0, 0, trusted_count()));
    }
    data.noisy = trusted_fraction_ > 0 ? with_present_sources(noisy_.select(data.rows)) : noisy_;
    return data;
  }
  const at::Tensor order = Stream(seed, "rows").at(0).permutation(noisy_.size());
  data.noisy = noisy_.select(data.rows);
  data.trusted = noisy_.select(order.narrow(0, samples_, trusted_samples_));
  if (!test_.features.defined()) {
    data.test = noisy_.select(order.narrow(0, samples_ + trusted_samples_, noisy_.size() - samples_ - trusted_samples_));
  }
  const std::vector<Labeller> labellers = simulate_ == "mixed" ? mixed_labellers(seed) : swapping_labellers(seed);
  const NoisyLabels labels = simulate_labels(data.noisy.labels, labellers,
                                             builtin_ == "digits" ? digits_look_alikes() : fashion_mnist_look_alikes(), seed);
  data.truth = data.noisy.labels;
  data.noisy.labels = labels.labels;
  data.noisy.sources = labels.sources;
  data.noisy.source_names = labels.source_names;
  return data;
}

Report run_reweight(const ReweightJob& job, const std::string& out, const RunFront& front) {
  RunDirectory::check_free(out);
  Staging staging(out);
  std::vector<ReweightResult> results;
  ReweightData first;
  for (int64_t k = 0; k < job.seeds(); ++k) {
    ReweightOptions options = job.options();
    options.seed += static_cast<uint64_t>(k);
    const ReweightData data = job.data(options.seed);
    if (k == 0) {
      first = data;
      if (job.encoding().class_names != data.noisy.class_names) first.noisy.class_names = job.encoding().class_names;
    }
    ReweightWatch watch;
    watch.interrupt = front.interrupt;
    watch.strict = front.strict;
    std::optional<Progress> progress;
    const std::string of = job.seeds() > 1 ? fmt::format("seed {} ({} of {}): ", options.seed, k + 1, job.seeds()) : "";
    watch.stage = [&](const std::string& name) {
      if (name.empty()) return;
      progress.reset();
      if (front.notice) front.notice(of + name + " …");
    };
    watch.record = [&](const Record& record) {
      if (!progress) progress.emplace(front.progress, trust_steps(options));
      progress->update(record);
    };
    results.push_back(reweight(data, options, watch));
  }

  const std::vector<TableRow> rows = mean_rows(results);
  Report report = reweight_report(job.options(), first, results, rows, job.text());
  try {
    write_results(job, first, results, rows, report, staging.path());
    staging.publish();
  } catch (const std::exception& error) {  // the disk: no misuse
    throw std::runtime_error(fmt::format("The job is done, but its results could not be written: {}", error.what()));
  }
  return report;
}

LabelFile request_labels(const ReweightJob& job, const std::string& path) {
  const Dataset& data = job.given();
  const auto sources = std::max<int64_t>(1, static_cast<int64_t>(data.source_names.size()));
  const int64_t each = std::max<int64_t>(10, (200 + sources - 1) / sources);
  CsvTable table;
  table.columns = {"row", "source", "label", "doubt", "reason"};
  for (const LabelRequest& request : rows_to_label(data, job.options(), each)) {
    const auto label = static_cast<size_t>(data.labels[request.row].item<int64_t>());
    table.rows.push_back(
        {std::to_string(request.row), request.source, data.class_names[label], format_fixed(request.doubt, 4), request.reason});
  }
  write_csv(table, path);
  const auto rows = static_cast<int64_t>(table.rows.size());
  return {rows, fmt::format("There are no trusted samples to learn from. Check the labels of the {} rows in {} (rows counted "
                            "from 0; for each source the most "
                            "doubted ones, and as many at random), put them with their right labels into a file of its own, and "
                            "give it with --trusted. "
                            "If you vouch for a random part of all rows as they are, --trusted-fraction 0.02 takes 2 % of them.",
                            rows, path)};
}

}  // namespace bilevel
