#include <memory>

#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/report/terminal.h"
#include "bilevel/run/run_directory.h"
#include "cli/commands.h"
#include "tasks/job.h"
#include "tasks/tune_job.h"

namespace bilevel::cli {
namespace {

struct TuneArguments {
  std::string data, label, y, test, test_y, groups, per, folds, prior, loss, model, seed, threads, builtin, out;
  std::vector<std::string> sets;
  bool step_size = false, json = false;
};

/// The configuration that the command line stands for.
Config configuration(const TuneArguments& a) {
  Config config = Config::parse("[problem]\ntask = \"tune\"\n", "(command line)");
  const auto set = [&](const std::string& key, const std::string& value) {
    if (!value.empty()) config.set(key + "=" + value);
  };
  const auto text = [&](const std::string& key, const std::string& value) {
    if (!value.empty()) config.set(key + "=" + quoted(value));
  };
  text("problem.model", a.model);
  text("problem.loss", a.loss);
  text("tune.per", a.per);
  if (a.folds.ends_with(".npy")) {
    text("data.folds", a.folds);
  } else {
    set("tune.folds", a.folds);
  }
  text("tune.prior", a.prior);
  if (a.step_size) set("tune.step_size", "true");
  set("run.seed", a.seed);
  set("run.threads", a.threads);
  if (!a.data.empty()) {
    require(a.builtin.empty(), "tune: --builtin belongs to the demonstration, which runs without --data.");
    text("data.train.x", a.data);
    text("data.train.label", a.label);
    text("data.train.y", a.y);
    text("data.test.x", a.test);
    if (!a.test.empty()) text("data.test.label", a.label);
    text("data.test.y", a.test_y);
  } else {
    require((a.label + a.y + a.test + a.test_y).empty(),
            "tune: --label, --y and --test belong to --data, which is missing. Without any of them the demonstration runs.");
    text("data.builtin", a.builtin);
  }
  text("data.groups", a.groups);
  for (const std::string& assignment : a.sets) config.set(assignment);
  return config;
}

}  // namespace

int tune(Config config, std::string out, bool json) {
  const RunFront front = terminal_front();
  if (out.empty()) out = default_run_directory("tune");
  RunDirectory::check_free(out);
  const TuneJob job(std::move(config));
  for (const std::string& note : job.notes()) front.notice(note);
  try {
    const Report report = run_tune(job, out, front);
    if (json) {
      fmt::print("{}", read_file(beside(out, "/summary.json")));
    } else {
      fmt::print("{}\nThe whole report: {}\n", render_terminal(report, terminal_width(), color_on_stdout()),
                 beside(out, "/report.html"));
    }
  } catch (const Interrupted&) {
    fmt::print(stderr, "Interrupted; nothing was written. The job takes the same way again when it is started again.\n");
    return 130;
  }
  return 0;
}

void add_tune(CLI::App& app, Action& action) {
  auto a = std::make_shared<TuneArguments>();
  CLI::App* command = app.add_subcommand(
      "tune", "Choose regularisation strengths by the hypergradient of a cross-validated loss, and fit with them.");
  command->add_option("--data", a->data, "samples with labels: .csv, .npy or IDX")->type_name("FILE");
  command->add_option("--label", a->label, "label column of a .csv")->type_name("COLUMN");
  command->add_option("--y", a->y, "labels of arrays: .npy or IDX")->type_name("FILE");
  command->add_option("--test", a->test, "samples to report loss and accuracy on; nothing is chosen by them")->type_name("FILE");
  command->add_option("--test-y", a->test_y, "their labels, of arrays")->type_name("FILE");
  command->add_option("--per", a->per, "what has a strength of its own")
      ->check(CLI::IsMember({"one", "class", "group", "feature", "layer"}));
  command
      ->add_option(
          "--groups", a->groups,
          "for --per group: prefixes of column names separated by commas, or a .npy or .csv file with a group per column")
      ->type_name("GROUPS");
  command
      ->add_option("--folds", a->folds,
                   "folds of the cross-validation, 5 unless given; or a .npy file with the fold of each sample")
      ->type_name("K|FILE");
  command->add_option("--prior", a->prior, "width of the prior that holds log strengths together: auto, none, or a number")
      ->type_name("WIDTH");
  command->add_flag("--step-size", a->step_size, "choose the step size of the training too");
  command->add_option("--model", a->model, "model")->check(CLI::IsMember({"linear", "mlp"}));
  command->add_option("--loss", a->loss, "loss")->check(CLI::IsMember({"softmax", "logistic", "squared"}));
  command->add_option("--seed", a->seed, "seed of the folds and of first weights")->type_name("N");
  command->add_option("--threads", a->threads, "threads of LibTorch")->type_name("N");
  command->add_option("--builtin", a->builtin, "images of the demonstration")->check(CLI::IsMember({"fashion-mnist", "digits"}));
  command->add_option("--set", a->sets, "change one key, for example --set tune.compare=false; may be given again")
      ->type_name("KEY=VALUE")
      ->take_all()
      ->expected(1);
  command->add_option("--out", a->out, "the results' directory, new or empty; runs/tune-<n> unless given")->type_name("DIR");
  command->add_flag("--json", a->json, "print one JSON object (summary.json) on stdout, and nothing else");
  command->footer(
      "Without --data, the demonstration: 5,000 images of Fashion-MNIST, or 1,000 of the embedded digits.\n\n"
      "Example:\n  bilevel tune --data houses.csv --label price --loss squared --per group --groups lot_,floor_ --test new.csv "
      "--out "
      "runs/houses");
  command->callback([a, &action] { action = [a] { return tune(configuration(*a), a->out, a->json); }; });
}

}  // namespace bilevel::cli
