#include "bilevel/outer/registry.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/outer/trajectory_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

std::unique_ptr<OuterOptimizer> make(const std::string& name, const std::string& text) {
  Section section = Config::parse(text, "test.toml").root();
  auto made = make_outer_optimizer(name, section);
  section.finish();
  return made;
}

const std::vector<std::pair<std::string, std::string>> kRules = {
    {"sgd", "lr = 0.05"},
    {"momentum", "lr = 0.05\nnesterov = true"},
    {"momentum", "lr = 0.05\ndampening = 0.5"},
    {"bfgs", "max_step = 0.5"},
    {"bfgs", "history = 1"},
    {"sign", "lr = 0.7"},
    {"adam", "lr = 0.1\nsmoothing = 2"},
    {"adam", "lr = 0.1"},
    {"adam", "lr = 0.5\nbetas = [0.5, 0.6]\namsgrad = true"},
};

TEST(OuterOptimizers, GoOnFromASavedStateBitForBit) {
  for (const auto& [name, text] : kRules) {
    State state;
    const at::Tensor whole = run(*make(name, text), state, start(), 6);
    State first;
    const at::Tensor middle = run(*make(name, text), first, start(), 3);
    State second = first.clone();
    run(*make(name, text), first, middle, 2);  // must not reach the copy
    EXPECT_TRUE(at::equal(run(*make(name, text), second, middle, 3), whole)) << name;
    for (const auto& [entry, value] : second.values()) EXPECT_TRUE(entry.starts_with("outer.")) << entry;
    if (name != "sgd") {
      State forgotten;
      EXPECT_FALSE(at::equal(run(*make(name, text), forgotten, middle, 3), whole)) << name;
    }
  }
}

TEST(OuterOptimizers, MultiplyTheStepByOuterScale) {
  for (const auto& [name, text] : kRules) {
    State plain, scaled;
    scaled.set("outer_scale", 0.25);
    const at::Tensor x = start();
    const at::Tensor step = make(name, text)->step(plain, x, gradient_at(x)) - x;
    const at::Tensor quarter = make(name, text)->step(scaled, x, gradient_at(x)) - x;
    EXPECT_GT(step.abs().min().item<double>(), 1e-2);
    EXPECT_TRUE(at::allclose(quarter, 0.25 * step, 1e-12, 0)) << name;
  }
}

TEST(OuterOptimizers, LeaveXAndTheGradientAloneAndKeepTheDtype) {
  for (const auto& [name, text] : kRules) {
    State state;
    const auto rule = make(name, text);
    const at::Tensor x = start().to(at::kFloat), g = gradient_at(x);
    const at::Tensor x_before = x.clone(), g_before = g.clone();
    const at::Tensor moved = rule->step(state, rule->step(state, x, g), g);
    EXPECT_EQ(moved.scalar_type(), at::kFloat);
    EXPECT_TRUE(at::equal(x, x_before) && at::equal(g, g_before)) << name;
    EXPECT_FALSE(at::equal(moved, x)) << name;
    EXPECT_THROW(rule->step(state, x, g.narrow(0, 0, 2)), Error);
    EXPECT_THROW(rule->step(state, x, g.to(at::kDouble)), Error);
  }
}

TEST(OuterRegistry, MakesEachRowAndWritesItsDefaults) {
  EXPECT_LT(error_after_six(*make("momentum", "lr = 0.05"), {2.1989521838816652, -2.7338966546102381, -0.91150702935333383}),
            1e-12);
  const at::Tensor inside = start().softmax(0);  // of every set that a rule wants its x in
  for (const auto& row : outer_optimizers()) {
    const Config config = Config::parse("", "test.toml");
    Section section = config.root();
    EXPECT_EQ(make_outer_optimizer(row.name, section)->name(), row.name);
    const Config again = Config::parse(config.text(), "again.toml");
    Section complete = again.root();
    State one, two;
    EXPECT_TRUE(at::equal(run(*make_outer_optimizer(row.name, section), one, inside, 3),
                          run(*make_outer_optimizer(row.name, complete), two, inside, 3)));
    complete.finish();
    EXPECT_EQ(config.text(), again.text());
  }
}

TEST(OuterRegistry, RefusesWhatIsWrongAndSaysWhatWouldBeRight) {
  const auto message = [](const std::string& name, const std::string& text) {
    try {
      make(name, text);
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(message("adm", "").find("Did you mean \"adam\"?"), std::string::npos) << message("adm", "");
  EXPECT_NE(message("adam", "betas = [0.9]").find("betas = [0.9] must be two numbers in [0, 1)"), std::string::npos);
  EXPECT_NE(message("adam", "betas = [0.9, 1.0]").find("must be two numbers"), std::string::npos);
  EXPECT_NE(message("sgd", "lr = -1").find("lr = -1"), std::string::npos);
  EXPECT_NE(message("sgd", "nesterov = true").find("needs momentum > 0"), std::string::npos);
  EXPECT_NE(message("sgd", "beta = 1").find("unknown key"), std::string::npos);
}

}  // namespace
}  // namespace bilevel
