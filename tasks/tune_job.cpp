#include "tasks/tune_job.h"

#include <algorithm>
#include <stdexcept>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/core/stream.h"
#include "bilevel/problem/csv.h"
#include "bilevel/problem/npy.h"
#include "bilevel/report/html.h"
#include "bilevel/run/run_directory.h"
#include "tasks/model_file.h"
#include "tasks/tune_report.h"

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

Json optional(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

CsvTable strengths_table(const TuneResult& result) {
  CsvTable table;
  table.columns = {"name", "strength"};
  const TuneRow& learned = result.rows.front();
  for (size_t j = 0; j < learned.strengths.size(); ++j) {
    table.rows.push_back({result.names[j], fmt::format("{:.6g}", learned.strengths[j])});
  }
  if (learned.step_size) table.rows.push_back({"(step size)", fmt::format("{:.6g}", *learned.step_size)});
  return table;
}

Json table_json(const TuneResult& result, const std::string& score) {
  Json json = Json::array();
  for (const TuneRow& row : result.rows) {
    Json one = {{"slug", row.slug},
                {"title", row.title},
                {"cv_loss", row.validation.loss},
                {"cv_loss_error", row.validation.loss_error},
                {"cv_" + score, row.validation.score},
                {"cv_" + score + "_error", row.validation.score_error}};
    one["test_loss"] = optional(row.test_loss);
    one["test_" + score] = optional(row.test_score);
    one["strengths"] = row.strengths;
    one["step_size"] = optional(row.step_size);
    one["evaluations"] = row.evaluations;
    one["oracle_calls"] = row.oracle_calls;
    one["stationarity"] = row.stationarity;
    one["machine"] = {{"seconds", row.seconds}};
    json.push_back(std::move(one));
  }
  return json;
}

void write_results(const TuneJob& job, const TuneResult& result, const Report& report, const std::string& out) {
  const TuneRow& learned = result.rows.front();
  const Dataset& train = job.data().train;
  const Loss loss(job.options().loss);
  TrainedModel model;
  model.model = job.options().model;
  model.loss = job.options().loss;
  model.sample_shape = {train.dimension()};
  model.outputs = loss.kind() == Loss::Kind::kSoftmax ? std::max<int64_t>(train.classes(), 2) : 1;
  model.weights = learned.y;
  model.encoding = job.encoding();

  Layout x_layout;
  x_layout.add("l2", {static_cast<int64_t>(learned.strengths.size())});
  if (learned.step_size) x_layout.add("step_size", {1});
  RunDirectory directory = RunDirectory::create(out, job.text());
  directory.write_layout(x_layout, make_model(model.model, model.sample_shape, model.outputs)->layout());
  for (const Record& record : result.records) directory.append(record, {});
  RunResult run;
  run.outcome = Outcome::kDone;
  run.message = result.warning.empty() ? "The strengths minimise the cross-validated loss." : result.warning;
  run.worst = result.warning.empty() ? Grade::kOk : Grade::kWarn;
  run.state.set("x", result.x);
  run.state.set("y", learned.y);
  run.last = result.records.back();
  run.steps = result.records.back().step;
  run.cost = result.cost;
  directory.finish(run, "double-loop");

  Json summary = Json::parse(read_file(directory.file("summary.json")));
  summary["warning"] = result.warning.empty() ? Json(nullptr) : Json(result.warning);
  summary["table"] = table_json(result, loss.score_name());
  summary["prior_width"] = optional(result.width);
  summary["common_kept"] = result.common_kept;
  Json widths = Json::array();
  for (const WidthTrial& t : result.widths) {
    widths.push_back({{"width", t.width}, {"loss", t.loss}, {"difference_error", t.difference_error}});
  }
  summary["widths"] = widths;
  write_file(directory.file("summary.json"), summary.dump(2) + "\n");
  write_csv(strengths_table(result), directory.file("strengths.csv"));
  save_model(model, directory.file("model.safetensors"));
  write_file(directory.file("report.html"), render_html(report));
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> out(1);
  for (const char c : text) {
    if (c == ',') {
      out.emplace_back();
    } else {
      out.back() += c;
    }
  }
  return out;
}

}  // namespace

TuneJob::~TuneJob() = default;

TuneJob::TuneJob(Config config) : config_(std::move(config)) {
  Section root = config_.root();
  read(root, options_);
  Section run = root.section("run");
  int64_t seed = 0, threads = 1;
  run.read("seed", seed);
  run.read("threads", threads);
  if (seed < 0) run.fail("seed", "it must not be negative.");
  if (threads < 1) run.fail("threads", "it must be at least 1.");
  run.finish();
  options_.seed = static_cast<uint64_t>(seed);
  threads_ = std::make_unique<ThreadsGuard>(static_cast<int>(threads));

  Section data = root.section("data");
  if (data.has("train")) {
    read_files(data);
  } else {
    read_builtin(data);
  }
  if (data.has("folds")) {
    std::string path;
    data.read_path("folds", path);
    const at::Tensor folds = read_npy(path).reshape({-1}).to(at::kLong);
    const int64_t n = data_.train.size(), count = folds.numel() > 0 ? folds.max().item<int64_t>() + 1 : 0;
    if (folds.size(0) != n)
      data.fail("folds", fmt::format("{} has the folds of {} samples, and there are {}.", path, folds.size(0), n));
    if (folds.min().item<int64_t>() < 0 || count < 2 || folds.bincount({}, count).eq(0).any().item<bool>()) {
      data.fail("folds", fmt::format("{} should hold the numbers 0 to K − 1, each of them, with K at least 2.", path));
    }
    data_.folds = folds;
    options_.folds = count;
  }
  std::string groups;
  const bool grouped = options_.per == "group";
  if (data.has("groups")) {
    if (!grouped) data.fail("groups", "groups of columns serve per = \"group\" (--per group) only.");
    if (data.is_text("groups")) data.read("groups", groups);
  }
  if (grouped) {
    if (groups.empty()) {
      data.fail(
          "groups",
          "per = \"group\" needs the groups of the columns (--groups): prefixes of their names separated by commas, or a .npy or "
          ".csv file with a group for each column.");
    }
    const bool is_file = groups.ends_with(".npy") || groups.ends_with(".csv");
    if (is_file) data.read_path("groups", groups);
    read_groups(groups);
  }
  data.finish();
  root.finish();
  if (options_.loss == "squared" && options_.per == "class") throw Error("tune: a strength per class needs classes.");
  for (const Dataset* one : {&data_.train, &data_.test}) notes_.insert(notes_.end(), one->notes.begin(), one->notes.end());
}

void TuneJob::read_builtin(Section& data) {
  std::string builtin = find_fashion_mnist().empty() ? "digits" : "fashion-mnist";
  const bool asked_for = data.has("builtin");
  data.read_choice("builtin", builtin, {"fashion-mnist", "digits"});
  const bool fashion = builtin == "fashion-mnist";
  int64_t samples = fashion ? 5000 : 1000;
  data.read("samples", samples);
  DataSpec spec;
  spec.builtin = builtin;
  const Dataset all = load_dataset(spec, nullptr, &encoding_);
  if (samples < 40 || samples > all.size()) {
    data.fail("samples", fmt::format("{} samples should be at least 40 and at most {}.", samples, all.size()));
  }
  const at::Tensor order = Stream(options_.seed, "rows").at(0).permutation(all.size());
  data_.train = all.select(order.narrow(0, 0, samples));
  if (fashion) {
    spec.split = "test";
    data_.test = load_dataset(spec, &encoding_);
    return;
  }
  if (samples < all.size()) data_.test = all.select(order.narrow(0, samples, all.size() - samples));
  if (!asked_for) {
    notes_.push_back(
        "Fashion-MNIST is not to be had here (Debian's package dataset-fashion-mnist): the embedded handwritten digits take its "
        "place.");
  }
}

void TuneJob::read_files(Section& data) {
  DataSpec train = read_spec(data, "train");
  train.regression = options_.loss == "squared";
  data_.train = load_dataset(train, nullptr, &encoding_);
  if (!data_.train.labels.defined()) {
    data.fail("train", "the labels are missing: name the label column of a .csv (--label), or a file of labels (--y).");
  }
  if (!data.has("test")) return;
  DataSpec test = read_spec(data, "test");
  test.regression = train.regression;
  data_.test = load_dataset(test, &encoding_);
  if (!data_.test.labels.defined()) data.fail("test", "its labels are missing.");
}

/// Names and numbers of the groups, from a file or from prefixes of the columns' names.
void TuneJob::read_groups(const std::string& groups) {
  const int64_t d = data_.train.dimension();
  std::vector<std::string> of_column;
  if (groups.ends_with(".npy")) {
    const at::Tensor numbers = read_npy(groups).reshape({-1}).to(at::kLong);
    for (int64_t j = 0; j < numbers.size(0); ++j) of_column.push_back(std::to_string(numbers[j].item<int64_t>()));
  } else if (groups.ends_with(".csv")) {
    const CsvTable table = read_csv(groups);
    for (const auto& row : table.rows) of_column.push_back(row.back());
  } else {
    require(!data_.train.feature_names.empty(),
            "tune: these data have no names of columns, so groups cannot be given by prefixes. Give a .npy or .csv file with a "
            "group for "
            "each column.");
    const std::vector<std::string> prefixes = split(groups);
    for (const std::string& name : data_.train.feature_names) {
      const auto found =
          std::find_if(prefixes.begin(), prefixes.end(), [&](const auto& p) { return !p.empty() && name.starts_with(p); });
      of_column.push_back(found == prefixes.end() ? "(others)" : *found);
    }
    for (const std::string& prefix : prefixes) {
      require(std::find(of_column.begin(), of_column.end(), prefix) != of_column.end(),
              fmt::format("tune: no column begins with \"{}\" of --groups {}; the first is \"{}\".", prefix, groups,
                          data_.train.feature_names.front()));
    }
  }
  require(static_cast<int64_t>(of_column.size()) == d,
          fmt::format("tune: {} gives the groups of {} columns, and the data have {}.", groups, of_column.size(), d));
  std::vector<int64_t> numbers;
  for (const std::string& name : of_column) {
    auto at = std::find(data_.group_names.begin(), data_.group_names.end(), name);
    if (at == data_.group_names.end()) at = data_.group_names.insert(at, name);
    numbers.push_back(at - data_.group_names.begin());
  }
  data_.column_groups = at::tensor(numbers, at::kLong);
}

Report run_tune(const TuneJob& job, const std::string& out, const RunFront& front) {
  RunDirectory::check_free(out);
  Staging staging(out);
  TuneWatch watch;
  watch.interrupt = front.interrupt;
  std::optional<Progress> progress;
  std::optional<StageProgress> share;
  std::string doing;
  watch.stage = [&](const std::string& name) {
    progress.reset();
    share.reset();
    doing = name;
    if (front.notice) front.notice(name + " …");
  };
  int64_t first = 0;
  watch.record = [&](const Record& record) {
    if (!progress) {
      first = record.step;
      progress.emplace(front.progress, job.options().steps);
    }
    Record shown = record;
    shown.step -= first;
    progress->update(shown);
  };
  watch.fraction = [&](double fraction) {
    if (!share) share.emplace(front.progress);
    share->update(doing, fraction);
  };
  const TuneResult result = tune(job.data(), job.options(), watch);
  progress.reset();
  share.reset();
  Report report = tune_report(job.options(), job.data(), result, job.text());
  try {
    write_results(job, result, report, staging.path());
    staging.publish();
  } catch (const std::exception& error) {  // the disk: no misuse
    throw std::runtime_error(fmt::format("The job is done, but its results could not be written: {}", error.what()));
  }
  return report;
}

}  // namespace bilevel
