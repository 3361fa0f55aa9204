#include "tasks/experiment.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/problem/npy.h"

namespace bilevel {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr const char* kConfig = R"(
[problem]
dtype = "float64"
[problem.hyperparameters]
sample_weight = { init = 0.0, param = "sigmoid" }
l2 = { per = "one", init = -2.0 }
[data]
inner = { builtin = "digits", count = 40 }
outer = { builtin = "digits", first = 40, count = 40 }
[inner]
lr = 0.1
steps = 5
[hypergradient]
estimator = "unrolled"
[outer]
steps = 6
[run]
seed = 2
checkpoint_every = 1
)";

Config config(const std::vector<std::string>& sets = {}) {
  Config parsed = Config::parse(kConfig, "digits.toml");
  for (const std::string& assignment : sets) parsed.set(assignment);
  return parsed;
}

std::string message(const std::function<void()>& misuse) {
  try {
    misuse();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

class ExperimentTest : public testing::Test {
 protected:
  ExperimentTest() : root_(fs::temp_directory_path() / fmt::format("bilevel-experiment-{}", getpid())) {
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  ~ExperimentTest() override { fs::remove_all(root_); }
  std::string at(const std::string& name) const { return (root_ / name).string(); }
  fs::path root_;
};

TEST_F(ExperimentTest, WritesAConfigurationThatIsCompleteAndStaysTheSame) {
  const Experiment first(config());
  EXPECT_THAT(first.text(), HasSubstr("carry_state = false"));
  EXPECT_THAT(first.text(), HasSubstr("checkpoint_seconds = 30.0"));
  const Experiment second(Config::parse(first.text(), "complete.toml"));
  EXPECT_EQ(second.text(), first.text());
  EXPECT_TRUE(at::equal(second.double_loop("the test").hypergradient(second.algorithm().init()).value,
                        first.double_loop("the test").hypergradient(first.algorithm().init()).value));
}

TEST_F(ExperimentTest, KeepsTheOrderOfThePartsOfX) {
  const Experiment experiment(config());
  ASSERT_EQ(experiment.problem().outer_layout().parts().size(), 2u);
  EXPECT_THAT(experiment.problem().outer_layout().parts()[0].name, HasSubstr("sample_weight"));
  EXPECT_EQ(experiment.problem().outer_layout().parts()[1].offset, 40);
}

TEST_F(ExperimentTest, RefusesKeysThatNobodyReadsWithASuggestion) {
  EXPECT_THAT(message([] { Experiment{config({"inner.setps=3"})}; }), HasSubstr("Did you mean \"steps\"?"));
  EXPECT_THAT(message([] { Experiment{config({"outer.momentun=3"})}; }), HasSubstr("momentun"));
  EXPECT_THAT(message([] { Experiment{config({"run.checkpoint_evry=3"})}; }), HasSubstr("checkpoint_every"));
  EXPECT_THAT(message([] { Experiment{config({"hypergradient.steps_=3"})}; }), HasSubstr("steps"));
  EXPECT_THAT(message([] { Experiment{config({"data.outr.x=3"})}; }), HasSubstr("outr"));
}

TEST_F(ExperimentTest, SetsThreadsForItsLifetimeOnly) {
  const int before = at::get_num_threads();
  {
    const Experiment experiment(config({fmt::format("run.threads={}", before + 1)}));
    EXPECT_EQ(at::get_num_threads(), before + 1);
  }
  EXPECT_EQ(at::get_num_threads(), before);
}

TEST_F(ExperimentTest, FixesTheBatchesFromAFileAndChecksThem) {
  write_npy(at::arange(0, 20, at::kLong).view({4, 5}), at("batches.npy"));
  const std::string set = fmt::format("inner.batches={}", at("batches.npy"));
  const Experiment fixed(config({set})), full(config());
  EXPECT_FALSE(at::equal(fixed.double_loop("the test").hypergradient(fixed.algorithm().init()).value,
                         full.double_loop("the test").hypergradient(full.algorithm().init()).value));
  write_npy(at::full({2, 3}, 40, at::kLong), at("batches.npy"));
  EXPECT_THAT(message([&] { Experiment{config({set})}; }), HasSubstr("there are 0 to 39"));
  write_npy(at::zeros({2, 3}, at::kDouble), at("batches.npy"));
  EXPECT_THAT(message([&] { Experiment{config({set})}; }), HasSubstr("whole numbers [T, B]"));
}

TEST_F(ExperimentTest, AnInterruptedRunResumesToTheUninterruptedEnd) {
  const Experiment experiment(config({"inner.batch=8", "inner.momentum=0.9", "inner.carry_state=true", "outer.batch=16"}));
  const RunResult whole = run_experiment(experiment, at("whole"));
  EXPECT_EQ(whole.outcome, Outcome::kDone);
  std::atomic<bool> interrupt = false;
  RunFront front;
  front.interrupt = &interrupt;
  front.record = [&](const Record& record) {
    interrupt = record.step == 3;
    return Signal::kContinue;
  };
  EXPECT_EQ(run_experiment(experiment, at("cut"), front).outcome, Outcome::kInterrupted);
  EXPECT_FALSE(fs::exists(at("cut/summary.json")));
  EXPECT_EQ(resume_experiment(at("cut")).outcome, Outcome::kDone);
  for (const char* file : {"x.npy", "y.npy", "config.toml", "layout.json"}) {
    EXPECT_EQ(read_file(at("whole/" + std::string(file))), read_file(at("cut/" + std::string(file)))) << file;
  }
  EXPECT_THAT(message([&] { run_experiment(experiment, at("cut")); }), HasSubstr("holds another run"));
}

TEST_F(ExperimentTest, SingleLoopRunsResumeToTheUninterruptedEndToo) {
  for (const std::string algorithm : {"soba", "saba", "ma-soba", "srba", "bome"}) {
    Config single = Config::parse(kConfig, "digits.toml");
    for (const std::string& set : {"run.algorithm=" + algorithm, std::string("inner.batch=7"), std::string("outer.batch=16"),
                                   std::string("outer.steps=40"), std::string("run.record_every=5")}) {
      single.set(set);
    }
    const Experiment experiment(std::move(single));
    EXPECT_EQ(experiment.algorithm().name(), algorithm);
    EXPECT_THAT(experiment.task().notes, testing::Contains(HasSubstr("hypergradient.estimator is ignored")));
    EXPECT_THAT(message([&] { experiment.double_loop("`bilevel doctor`"); }), HasSubstr("`bilevel doctor` looks at"));
    EXPECT_EQ(run_experiment(experiment, at(algorithm)).outcome, Outcome::kDone);
    std::atomic<bool> interrupt = false;
    RunFront front;
    front.interrupt = &interrupt;
    front.record = [&](const Record& record) {
      interrupt = record.step == 15;
      return Signal::kContinue;
    };
    EXPECT_EQ(run_experiment(experiment, at(algorithm + "-cut"), front).outcome, Outcome::kInterrupted);
    EXPECT_EQ(resume_experiment(at(algorithm + "-cut")).outcome, Outcome::kDone);
    for (const char* file : {"/x.npy", "/y.npy", "/config.toml"}) {
      EXPECT_EQ(read_file(at(algorithm + file)), read_file(at(algorithm + "-cut" + file))) << file;
    }
  }
}

TEST_F(ExperimentTest, PopulationsResumeToTheUninterruptedEndToo) {
  for (const std::string algorithm : {"hpm", "pbt", "random-search"}) {
    Config population = Config::parse(kConfig, "digits.toml");
    population.set("run.algorithm=" + algorithm);
    for (const char* set : {"outer.steps=9", "outer.population.members=4", "inner.batch=7",
                            "problem.hyperparameters.sample_weight.min=-3.0", "problem.hyperparameters.sample_weight.max=3.0",
                            "problem.hyperparameters.l2.min=-9.0", "problem.hyperparameters.l2.max=3.0"}) {
      population.set(set);
    }
    if (algorithm != "random-search") population.set("outer.population.exploit_every=2");
    const Experiment experiment(std::move(population));
    EXPECT_EQ(experiment.algorithm().name(), algorithm);
    EXPECT_THAT(message([&] { experiment.double_loop("`bilevel doctor`"); }), HasSubstr("`bilevel doctor` looks at"));
    EXPECT_EQ(run_experiment(experiment, at(algorithm)).outcome, Outcome::kDone);
    std::atomic<bool> interrupt = false;
    RunFront front;
    front.interrupt = &interrupt;
    front.record = [&](const Record& record) {
      EXPECT_TRUE(record.metrics.contains("best_member"));
      interrupt = record.step == 4;
      return Signal::kContinue;
    };
    EXPECT_EQ(run_experiment(experiment, at(algorithm + "-cut"), front).outcome, Outcome::kInterrupted);
    EXPECT_EQ(resume_experiment(at(algorithm + "-cut")).outcome, Outcome::kDone);
    for (const char* file : {"/x.npy", "/y.npy", "/config.toml"}) {
      EXPECT_EQ(read_file(at(algorithm + file)), read_file(at(algorithm + "-cut" + file))) << file;
    }
    // And back to a double loop, whose sections are as they were.
    Config again = Config::load(at(algorithm + "/config.toml"));
    again.set("run.algorithm=double-loop");
    const Experiment single(std::move(again));
    EXPECT_THAT(single.task().notes, testing::Contains(HasSubstr("outer.population is ignored")));
    EXPECT_EQ(single.double_loop("the test").init().tensor("x").numel(), single.problem().outer_layout().size());
  }
}

TEST_F(ExperimentTest, RefusesToResumeWithOtherData) {
  const Experiment experiment(config());
  std::atomic<bool> interrupt = false;
  RunFront front;
  front.interrupt = &interrupt;
  front.record = [&](const Record&) {
    interrupt = true;
    return Signal::kContinue;
  };
  run_experiment(experiment, at("run"), front);
  const Experiment other(config({"data.inner.count=39"}));
  write_file(at("run/config.toml"), other.text());
  EXPECT_THAT(message([&] { resume_experiment(at("run")); }), HasSubstr("other shapes, dtypes or data"));
}

TEST(Experiment, IgnoresKeysOfTheEstimatorThatSetHasReplacedAndSaysSo) {
  // As in a file: solver and iterations belong to implicit.
  std::string text = kConfig;
  const std::string old = "estimator = \"unrolled\"";
  text.replace(text.find(old), old.size(), "estimator = \"implicit\"\nsolver = \"cg\"\niterations = 5");
  Config replaced = Config::parse(text, "digits.toml");
  replaced.set("hypergradient.estimator=unrolled");
  const Experiment experiment(std::move(replaced));
  ASSERT_EQ(experiment.task().notes.size(), 2u);
  EXPECT_THAT(experiment.task().notes[0], HasSubstr("hypergradient.solver is ignored"));
  EXPECT_THAT(experiment.text(), testing::Not(HasSubstr("solver = \"cg\"")));
  // In the file itself, on the command line, and where nobody knows the key, it stays an error.
  std::string in_file = text;
  in_file.replace(in_file.find("\"implicit\""), 10, "\"unrolled\"");
  EXPECT_THAT(message([&] { const Experiment e(Config::parse(in_file, "digits.toml")); }), HasSubstr("unknown key"));
  Config both = Config::parse(kConfig, "digits.toml");
  both.set("hypergradient.estimator=unrolled");
  both.set("hypergradient.iterations=7");
  EXPECT_THAT(message([&] { const Experiment e(std::move(both)); }), HasSubstr("unknown key"));
  Config typo =
      Config::parse(text.substr(0, text.find("iterations")) + "iteratoins" + text.substr(text.find("iterations") + 10), "t");
  typo.set("hypergradient.estimator=unrolled");
  EXPECT_THAT(message([&] { const Experiment e(std::move(typo)); }), HasSubstr("iteratoins: unknown key"));
}

TEST(Experiment, IgnoresKeysOfTheRulesThatSetHasReplaced) {
  std::string text = kConfig;
  text.replace(text.find("lr = 0.1"), 8, "rule = \"sgd\"\nmomentum = 0.9\nlr = 0.1");
  Config replaced = Config::parse(text, "digits.toml");
  replaced.set("inner.rule=adam");
  replaced.set("outer.rule=sgd");
  const Experiment experiment(std::move(replaced));
  ASSERT_EQ(experiment.task().notes.size(), 1u);
  EXPECT_THAT(experiment.task().notes[0], HasSubstr("inner.momentum is ignored"));
  EXPECT_THAT(message([] { const Experiment e(config({"inner.rule=adam", "inner.momentum=0.9"})); }), HasSubstr("unknown key"));
}

TEST(Experiment, GivesTheWholeBatchsHypergradientByMicroBatches) {
  for (const char* estimator : {"unrolled", "implicit", "identity"}) {
    const std::string chosen = fmt::format("hypergradient.estimator={}", estimator);
    const auto value = [&](const std::string& micro) {
      const Experiment experiment(config({chosen, "run.oracle=autodiff", "run.micro_batch=" + micro}));
      return experiment.double_loop("the test").hypergradient(experiment.algorithm().init()).value;
    };
    const at::Tensor whole = value("0");
    EXPECT_LT((value("7") - whole).norm().item<double>(), 1e-12 * whole.norm().item<double>()) << estimator;
  }
  EXPECT_THAT(message([] { const Experiment e(config({"run.micro_batch=-1"})); }), HasSubstr("micro_batch"));
}

TEST(Experiment, ReadsABatchForEachRoleAndTheNumberOfDraws) {
  const std::vector<std::string> sets = {"hypergradient.estimator=implicit", "hypergradient.hvp_batch=8",
                                         "hypergradient.cross_batch=9", "hypergradient.variance_samples=3", "outer.batch=10"};
  const Experiment experiment(config(sets));
  const Hypergradient h = experiment.double_loop("the test").hypergradient(experiment.algorithm().init());
  ASSERT_TRUE(h.certificate.standard_error.has_value());
  EXPECT_GT(*h.certificate.standard_error, 0.0);
  EXPECT_THAT(message([&] {
                const Experiment e(config({"hypergradient.estimator=implicit", "hypergradient.hvp_batch=41"}));
              }),
              HasSubstr("does not fit the 40 inner samples"));
  EXPECT_THAT(message([&] { const Experiment e(config({"hypergradient.hvp_batch=8"})); }), HasSubstr("hvp_batch"));
  EXPECT_THAT(message([&] { const Experiment e(config({"hypergradient.variance_samples=0"})); }), HasSubstr("variance_samples"));
}

}  // namespace
}  // namespace bilevel
