#include <filesystem>
#include <memory>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/report/html.h"
#include "bilevel/report/terminal.h"
#include "bilevel/run/run_directory.h"
#include "cli/commands.h"
#include "tasks/reweight_job.h"

namespace bilevel::cli {
namespace {

struct ReweightArguments {
  std::string data, label, source, y, trusted, trusted_y, test, test_y, trusted_fraction;
  std::string by, model, seeds, seed, threads, simulate, builtin, out;
  std::vector<std::string> sets;
  bool json = false, strict = false;
};

/// The configuration that the command line stands for.
Config configuration(const ReweightArguments& a) {
  Config config = Config::parse("[problem]\ntask = \"reweight\"\n", "(command line)");
  const auto set = [&](const std::string& key, const std::string& value) {
    if (!value.empty()) config.set(key + "=" + value);
  };
  const auto text = [&](const std::string& key, const std::string& value) {
    if (!value.empty()) config.set(key + "=" + quoted(value));
  };
  text("problem.model", a.model);
  text("reweight.by", a.by);
  set("run.seed", a.seed);
  set("run.seeds", a.seeds);
  set("run.threads", a.threads);
  if (!a.data.empty()) {
    text("data.noisy.x", a.data);
    text("data.noisy.label", a.label);
    text("data.noisy.y", a.y);
    text("data.noisy.source", a.source);
    const auto more = [&](const std::string& key, const std::string& x, const std::string& y) {
      text(key + ".x", x);
      if (!x.empty()) text(key + ".label", a.label);
      text(key + ".y", y);
    };
    more("data.trusted", a.trusted, a.trusted_y);
    more("data.test", a.test, a.test_y);
    set("data.trusted_fraction", a.trusted_fraction);
    require(a.simulate.empty() && a.builtin.empty(),
            "reweight: --simulate and --builtin belong to the demonstration, which runs without --data.");
  } else {
    require((a.label + a.source + a.y + a.trusted + a.trusted_y + a.trusted_fraction + a.test + a.test_y).empty(),
            "reweight: --label, --source, --y, --trusted and --test belong to --data, which is missing. Without any of them the "
            "demonstration runs.");
    text("data.simulate", a.simulate);
    text("data.builtin", a.builtin);
  }
  for (const std::string& assignment : a.sets) config.set(assignment);
  return config;
}

}  // namespace

int reweight(Config config, std::string out, bool json, bool strict) {
  RunFront front = terminal_front();
  front.strict = strict;
  if (out.empty()) out = default_run_directory("reweight");
  RunDirectory::check_free(out);
  const ReweightJob job(std::move(config));
  for (const std::string& note : job.notes()) front.notice(note);
  if (!job.has_trusted()) {
    const std::string path = beside(out, ".to_label.csv");
    if (const auto parent = std::filesystem::path(path).parent_path(); !parent.empty()) {
      std::error_code none;  // write_csv says what is wrong
      std::filesystem::create_directories(parent, none);
    }
    const LabelFile file = request_labels(job, path);
    if (json)
      fmt::print(
          "{}\n",
          nlohmann::ordered_json{{"status", "BAD"}, {"message", file.message}, {"rows_to_label", file.rows}, {"file", path}}.dump(
              2));
    fmt::print(stderr, "{}\n", file.message);
    return 1;
  }
  try {
    const Report report = run_reweight(job, out, front);
    if (json) {
      fmt::print("{}", read_file(beside(out, "/summary.json")));
    } else {
      fmt::print("{}\nThe whole report: {}\n", render_terminal(report, terminal_width(), color_on_stdout()),
                 beside(out, "/report.html"));
    }
    return report.verdict.grade == Grade::kBad ? 1 : 0;
  } catch (const Interrupted&) {
    fmt::print(stderr, "Interrupted; nothing was written. The job takes the same way again when it is started again.\n");
    return 130;
  }
}

void add_reweight(CLI::App& app, Action& action) {
  auto a = std::make_shared<ReweightArguments>();
  CLI::App* command = app.add_subcommand(
      "reweight", "Learn from a few trusted samples how far to trust each source of labels, and train a better model for it.");
  command
      ->add_option("--data", a->data, "samples with doubtful labels: .csv, .npy, IDX, or a folder of .csv files, one per source")
      ->type_name("FILE");
  command->add_option("--label", a->label, "label column of a .csv")->type_name("COLUMN");
  command->add_option("--source", a->source, "source column of a .csv, or a .npy file of source numbers")->type_name("COLUMN");
  command->add_option("--y", a->y, "labels of arrays: .npy or IDX")->type_name("FILE");
  command->add_option("--trusted", a->trusted, "samples whose labels you vouch for, in the same form")->type_name("FILE");
  command->add_option("--trusted-y", a->trusted_y, "their labels, of arrays")->type_name("FILE");
  command->add_option("--trusted-fraction", a->trusted_fraction, "or: the random part of all rows whose labels you vouch for")
      ->type_name("P");
  command->add_option("--test", a->test, "samples to report accuracy on")->type_name("FILE");
  command->add_option("--test-y", a->test_y, "their labels, of arrays")->type_name("FILE");
  command->add_option("--by", a->by, "what has a weight of its own")->check(CLI::IsMember({"source", "sample"}));
  command->add_option("--model", a->model, "model")->check(CLI::IsMember({"linear", "mlp", "cnn"}));
  command->add_option("--seeds", a->seeds, "repeat with so many seeds; the table shows mean ± standard error")->type_name("N");
  command->add_option("--seed", a->seed, "the first seed")->type_name("N");
  command->add_option("--threads", a->threads, "threads of LibTorch")->type_name("N");
  command
      ->add_option("--simulate", a->simulate,
                   "labellers of the demonstration: mixed, or swapping (14 of 20 swap look-alike classes)")
      ->check(CLI::IsMember({"mixed", "swapping"}));
  command->add_option("--builtin", a->builtin, "images of the demonstration")->check(CLI::IsMember({"fashion-mnist", "digits"}));
  command->add_option("--set", a->sets, "change one key, for example --set reweight.steps=20; may be given again")
      ->type_name("KEY=VALUE")
      ->take_all()
      ->expected(1);
  command->add_option("--out", a->out, "the results' directory, new or empty; runs/reweight-<n> unless given")->type_name("DIR");
  command->add_flag("--json", a->json, "print one JSON object (summary.json) on stdout, and nothing else");
  command->add_flag("--strict", a->strict, "end with the first hypergradient whose status is BAD, and write nothing");
  command->footer(
      "Without --data, the demonstration: 12,000 images, each labelled by one of twenty simulated labellers, and 200 trusted "
      "ones.\n\n"
      "Example:\n  bilevel reweight --data labels.csv --label species --source observer --trusted checked.csv --out runs/trust");
  command->callback([a, &action] { action = [a] { return reweight(configuration(*a), a->out, a->json, a->strict); }; });
}

}  // namespace bilevel::cli
