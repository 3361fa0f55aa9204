#include "bilevel/run/plan.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>

#include "bilevel/core/error.h"
#include "bilevel/core/state.h"

namespace bilevel::plan_test {
namespace {

using testing::HasSubstr;

constexpr int64_t kUnit = 4096;

/// A step that holds so many bytes at once, and says that it asked for T gradients.
class Holds final : public Algorithm {
 public:
  Holds(int64_t bytes, int64_t calls) : bytes_(bytes), calls_(calls) {}
  std::string_view name() const override { return "holds"; }
  State init() const override {
    State state;
    state.set("x", at::zeros({1}, at::kDouble));
    state.set("y", at::zeros({1}, at::kDouble));
    state.set("step", int64_t{0});
    return state;
  }
  Record evaluate(State& state) const override {
    const at::Tensor held = at::zeros({bytes_}, at::kByte);
    Record record;
    record.step = state.integer("step");
    record.outer_loss = held[0].item<double>();
    record.cost.gradients = calls_;
    return record;
  }
  Record step(State& state, int64_t) const override {
    const Record record = evaluate(state);
    state.set("step", state.integer("step") + 1);
    return record;
  }

 private:
  int64_t bytes_, calls_;
};

/// T inner steps, graphs of 8 units a step, states of one, √T checkpoints and as many states between two of them.
struct Maker {
  int64_t T = 1000, units = 8;
  bool keeps = true;
  mutable std::vector<int64_t> taken;  // T of each algorithm that was made

  int64_t bytes(const std::string& memory, int64_t steps) const {
    const auto root = static_cast<int64_t>(std::sqrt(static_cast<double>(steps)));
    return kUnit * (5 + (memory == "graphs" ? units * steps : memory == "states" ? steps : 2 * root));
  }
  PlanSubject operator()(const std::vector<std::string>& sets) const {
    std::map<std::string, std::string> keys;
    for (const std::string& set : sets) keys[set.substr(0, set.find('='))] = set.substr(set.find('=') + 1);
    const int64_t steps = keys.contains("inner.steps") ? std::stoll(keys["inner.steps"]) : T;
    std::string memory = "graphs";
    if (keys.contains("hypergradient.memory"))
      memory = keys["hypergradient.memory"].substr(1, keys["hypergradient.memory"].size() - 2);
    const int64_t last =
        keys.contains("hypergradient.steps") ? std::min<int64_t>(steps, std::stoll(keys["hypergradient.steps"])) : steps;
    taken.push_back(steps);
    auto algorithm = std::make_shared<Holds>(keeps ? bytes(memory, last) : 5 * kUnit, 3 * steps + 7);
    PlanSubject subject;
    subject.algorithm = algorithm.get();
    subject.owner = algorithm;
    subject.steps = 20;
    subject.inner_steps = steps;
    subject.keeps_trajectory = keeps;
    return subject;
  }
};

const Forecast* find(const Plan& plan, const std::string& name) {
  for (const Forecast& one : plan.forecasts) {
    if (one.name == name) return &one;
  }
  return nullptr;
}

TEST(Plan, MetersWholeStepsOrExtrapolatesThemFromShortOnes) {
  for (const bool whole : {true, false}) {
    Maker maker;
    PlanOptions options;
    if (!whole) options.probe_seconds = 1e-12;
    const Plan plan = make_plan([&](const auto& sets) { return maker(sets); }, options);
    EXPECT_EQ(plan.steps, 20);
    const Forecast& own = plan.forecasts.front();
    EXPECT_EQ(own.measured, whole);
    EXPECT_GE(own.probes, 2);
    EXPECT_GE(own.bytes, plan.resident_bytes + own.step.peak_bytes);
    EXPECT_EQ(*std::max_element(maker.taken.begin(), maker.taken.end()), 1000);
    const Forecast* graphs = find(plan, "memory = \"graphs\"");
    const Forecast* states = find(plan, "memory = \"states\"");
    const Forecast* checkpoints = find(plan, "memory = \"checkpoints\"");
    ASSERT_TRUE(graphs && states && checkpoints);
    const auto expect = [&](const Forecast& one, const char* memory, double tolerance) {
      EXPECT_EQ(one.measured, whole) << memory;
      EXPECT_NEAR(static_cast<double>(one.step.peak_bytes), static_cast<double>(maker.bytes(memory, 1000)), tolerance) << memory;
      EXPECT_EQ(one.step.gradients, 3007) << memory;
    };
    expect(own, "graphs", 65536);
    expect(*graphs, "graphs", 65536);
    expect(*states, "states", 65536);
    expect(*checkpoints, "checkpoints", 4 * kUnit);
  }
}

TEST(Plan, TakesNoStepThatIsForeseenNotToFit) {
  Maker maker;
  maker.T = 10'000'000;  // 328 GB of graphs
  PlanOptions options;
  options.free_bytes = int64_t{1} << 30;
  const Plan plan = make_plan([&](const auto& sets) { return maker(sets); }, options);
  EXPECT_FALSE(plan.forecasts.front().measured);
  EXPECT_NEAR(static_cast<double>(plan.forecasts.front().step.peak_bytes) / static_cast<double>(maker.bytes("graphs", maker.T)),
              1.0, 1e-3);
}

TEST(Plan, ChoosesAWayThatFitsIntoTheLimit) {
  Maker maker;
  maker.units = 40;
  maker.T = 5000;
  const auto make = [&](const auto& sets) { return maker(sets); };
  PlanOptions options;
  options.memory = [] { return ProcessMemory{100 << 20, 120 << 20}; };
  // Room for states, not for graphs.
  options.limit = (100 << 20) + (maker.bytes("graphs", maker.T) + maker.bytes("states", maker.T)) / 2;
  const Plan limited = make_plan(make, options);
  ASSERT_TRUE(limited.choice.has_value());
  const Forecast& choice = limited.forecasts[*limited.choice];
  EXPECT_FALSE(limited.forecasts.front().fits);
  EXPECT_TRUE(choice.name == "memory = \"states\"" || choice.name == "memory = \"checkpoints\"") << choice.name;
  EXPECT_TRUE(choice.fits && choice.same_numbers);
  EXPECT_THAT(limited.advice, HasSubstr("same numbers"));

  EXPECT_EQ(choice.bytes, 120 << 20) << "loading the data took more than the steps will";

  options.limit = 110 << 20;  // less than loading the data took
  const Plan none = make_plan(make, options);
  EXPECT_FALSE(none.choice.has_value());
  EXPECT_THAT(none.advice, HasSubstr("Nothing foreseen fits"));
  EXPECT_NE(find(none, "the last 250 steps"), nullptr) << "fewer steps are tried before giving up";
  EXPECT_FALSE(find(none, "the last 250 steps")->same_numbers);
}

TEST(Plan, HasOneWayOnlyWhereNoTrajectoryIsKept) {
  Maker maker;
  maker.keeps = false;
  const Plan plan = make_plan([&](const auto& sets) { return maker(sets); });
  EXPECT_EQ(plan.forecasts.size(), 1u);
  EXPECT_NEAR(static_cast<double>(plan.forecasts.front().step.peak_bytes), 5.0 * kUnit, 2048);
}

TEST(Plan, CountsTheStepsThatDoMore) {
  // Every third step takes a nap.
  class Naps final : public Algorithm {
   public:
    std::string_view name() const override { return "naps"; }
    State init() const override { return Holds(1, 1).init(); }
    Record evaluate(State& state) const override {
      seen.push_back(state.integer("step"));
      return Holds(1, 1).evaluate(state);
    }
    Record step(State& state, int64_t) const override {
      const Record record = evaluate(state);
      state.set("step", state.integer("step") + 1);
      return record;
    }
    mutable std::vector<int64_t> seen;
  };
  const auto naps = std::make_shared<Naps>();
  const Plan plan = make_plan([&](const auto&) {
    PlanSubject subject;
    subject.owner = naps;
    subject.algorithm = naps.get();
    subject.steps = 20;
    subject.periods = {3, 4};
    return subject;
  });
  // Ordinary ones, those that 3 divides, those that 4 divides, and both: each kind was taken.
  const auto took = [&](auto kind) { return std::any_of(naps->seen.begin() + 1, naps->seen.end(), kind); };
  EXPECT_TRUE(took([](int64_t k) { return k % 3 != 0 && k % 4 != 0; }));
  EXPECT_TRUE(took([](int64_t k) { return k % 3 == 0 && k % 4 != 0; }));
  EXPECT_TRUE(took([](int64_t k) { return k % 3 != 0 && k % 4 == 0; }));
  EXPECT_TRUE(took([](int64_t k) { return k % 12 == 0; }));
  EXPECT_EQ(plan.forecasts.front().probes, static_cast<int64_t>(naps->seen.size()));
}

TEST(Plan, HandsOnTheErrorOfAConfigurationThatCannotBeMade) {
  const PlanMaker make = [](const std::vector<std::string>&) -> PlanSubject { throw Error("no data"); };
  EXPECT_THROW(make_plan(make), Error);
}

TEST(ProcessMemory, SeesWhatIsHeld) {
  constexpr size_t kBytes = 64 << 20;
  const ProcessMemory before = process_memory();
  void* held = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(held, MAP_FAILED);
  std::memset(held, 1, kBytes);
  const ProcessMemory after = process_memory();
  munmap(held, kBytes);
  EXPECT_GT(before.now, 0);
  EXPECT_GE(after.now - before.now, 60 << 20);
  EXPECT_GE(after.peak, after.now);
}

}  // namespace
}  // namespace bilevel::plan_test
