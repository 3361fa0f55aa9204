#include <filesystem>
#include <memory>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/problem/csv.h"
#include "bilevel/problem/dataset.h"
#include "bilevel/report/report.h"
#include "cli/commands.h"
#include "tasks/model_file.h"

namespace bilevel::cli {
namespace {

/// One line for each row: the label and the probability of each class, or the predicted values.
CsvTable predictions_table(const Prediction& prediction, const TrainedModel& model) {
  CsvTable table;
  table.columns = {"row"};
  const bool classes = prediction.labels.defined();
  const at::Tensor numbers = classes ? prediction.probabilities : prediction.values;
  const auto name = [&](int64_t c) {
    const auto& names = model.encoding.class_names;
    return c < static_cast<int64_t>(names.size()) ? names[static_cast<size_t>(c)] : std::to_string(c);
  };
  if (classes) table.columns.emplace_back("label");
  for (int64_t c = 0; c < numbers.size(1); ++c)
    table.columns.push_back(classes ? "p(" + name(c) + ")" : fmt::format("value{}", c));
  for (int64_t i = 0; i < numbers.size(0); ++i) {
    std::vector<std::string> row = {std::to_string(i)};
    if (classes) row.push_back(name(prediction.labels[i].item<int64_t>()));
    for (int64_t c = 0; c < numbers.size(1); ++c) row.push_back(fmt::format("{:.6g}", numbers[i][c].item<double>()));
    table.rows.push_back(std::move(row));
  }
  return table;
}

}  // namespace

void add_predict(CLI::App& app, Action& action) {
  struct Arguments {
    std::string model, data, label, y, out;
  };
  auto a = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("predict", "Apply a trained model to new rows.");
  command->add_option("model", a->model, "model.safetensors of a run")->required()->type_name("MODEL");
  command->add_option("--data", a->data, "the rows, in the form of the training data")->required()->type_name("FILE");
  command->add_option("--label", a->label, "label column, where the rows have one: its accuracy is reported")
      ->type_name("COLUMN");
  command->add_option("--y", a->y, "labels of arrays, likewise: .npy or IDX")->type_name("FILE");
  command->add_option("--out", a->out, "a .csv file; standard output unless given")->type_name("FILE");
  command->footer("Example:\n  bilevel predict runs/trust/model.safetensors --data new.csv --out predictions.csv");
  command->callback([a, &action] {
    action = [a] {
      const TrainedModel model = load_model(a->model);
      DataSpec spec;
      spec.x = a->data;
      spec.label = a->label;
      spec.y = a->y;
      for (const std::string* input : {&a->model, &a->data, &a->y}) {
        std::error_code none;
        require(a->out.empty() || !std::filesystem::equivalent(a->out, *input, none),
                fmt::format("predict: --out {} would overwrite what is read; name another file.", a->out));
      }
      const Dataset rows = load_dataset(spec, &model.encoding);
      for (const std::string& note : rows.notes) fmt::print(stderr, "{}\n", note);
      const Prediction prediction = model.predict(rows.features);
      const CsvTable table = predictions_table(prediction, model);
      if (a->out.empty()) {
        fmt::print("{}", csv_text(table));
      } else {
        write_csv(table, a->out);
        fmt::print(stderr, "{} predictions in {}\n", table.rows.size(), a->out);
      }
      if (rows.labels.defined() && prediction.labels.defined()) {
        fmt::print(stderr, "accuracy {:.4f}\n", (prediction.labels == rows.labels).to(at::kDouble).mean().item<double>());
      }
      return 0;
    };
  });
}

}  // namespace bilevel::cli
