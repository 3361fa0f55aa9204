#include "bilevel/algorithm/double_loop_config.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "bilevel/algorithm/hpm.h"
#include "bilevel/core/error.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/registry.h"
#include "bilevel/outer/registry.h"
#include "bilevel/outer/sgd.h"
#include "bilevel/problem/npy.h"

namespace bilevel {
namespace {

template <class Rows>
std::vector<std::string> names_of(const Rows& rows) {
  std::vector<std::string> names;
  for (const auto& row : rows) names.push_back(row.name);
  return names;
}

at::Tensor read_batches(Section& section, int64_t samples) {
  std::string path;
  section.read_path("batches", path);
  if (path.empty()) return {};
  at::Tensor batches = read_npy(path);
  if (batches.dim() != 2 || batches.numel() == 0 || c10::isFloatingType(batches.scalar_type())) {
    section.fail("batches", fmt::format("{} has shape [{}] and dtype {}; whole numbers [T, B] would be right.", path,
                                        fmt::join(batches.sizes(), ", "), c10::toString(batches.scalar_type())));
  }
  batches = batches.to(at::kLong);
  const auto lowest = batches.min().item<int64_t>(), highest = batches.max().item<int64_t>();
  if (lowest < 0 || highest >= samples) {
    section.fail("batches",
                 fmt::format("{} names the samples {} to {}, and there are 0 to {}.", path, lowest, highest, samples - 1));
  }
  return batches;
}

BatchPlan batches_of(const Section& section, const std::string& key, int64_t size, int64_t samples, const char* which,
                     const Stream& stream) {
  if (size < 0 || size > samples) {
    section.fail(key, fmt::format("{} does not fit the {} {} samples; 0 means all of them.", size, samples, which));
  }
  return BatchPlan::of_size(samples, size, stream);
}

BatchPlan read_outer_batches(Section& outer, int64_t samples, uint64_t seed) {
  int64_t size = 0;
  outer.read("batch", size);
  const at::Tensor fixed = read_batches(outer, samples);
  if (fixed.defined()) return BatchPlan::fixed(fixed, samples);
  return batches_of(outer, "batch", size, samples, "outer", Stream(seed, "outer batches"));
}

std::vector<std::string> inner_keys(const Problem& problem) {
  std::vector<std::string> found;
  const auto take = [&](const std::string& key, const std::string& name) {
    Section section = Config::parse(fmt::format("{} = \"{}\"", key, name), "keys").root();
    try {
      make_inner_solver(section, problem, problem.initial_outer(), 0, {});
    } catch (const Error&) {  // one that does not serve this problem has said its keys nevertheless
    }
    for (const std::string& read : section.keys()) found.push_back(read);
  };
  for (const auto& row : rules()) take("rule", row.name);
  for (const auto& row : inner_solvers()) take("solver", row.name);
  return found;
}

std::vector<std::string> outer_keys() {
  std::vector<std::string> found;
  for (const auto& row : outer_optimizers()) {
    Section section = Config::parse("", "keys").root();
    row.make(section);
    for (const std::string& read : section.keys()) found.push_back(read);
  }
  return found;
}

}  // namespace

void drop_keys_of_others(Section& section, const std::string& table, const std::string& chosen_by,
                         const std::function<std::vector<std::string>()>& keys, std::vector<std::string>& notes) {
  std::vector<std::string> candidates = section.unread();
  std::erase_if(candidates, [&](const std::string& key) { return section.was_set(key); });
  if (candidates.empty()) return;  // what the others know takes making them all
  const std::vector<std::string> known = keys ? keys() : candidates;
  for (const std::string& key : candidates) {
    if (std::find(known.begin(), known.end(), key) == known.end()) continue;
    section.erase(key);
    notes.push_back(fmt::format("{}.{} is ignored: what --set {} has put in does not know it.", table, key, chosen_by));
  }
}

namespace {

/// How x moves: along what, and by which rule.
struct Movement {
  std::shared_ptr<const Estimator> estimator;
  std::shared_ptr<const OuterOptimizer> optimizer;
};

Movement read_movement(Section& hypergradient, Section& outer) {
  std::string outer_rule = "adam";
  outer.read_choice("rule", outer_rule, names_of(outer_optimizers()));
  std::string estimator_name = "implicit";
  hypergradient.read_choice("estimator", estimator_name, names_of(estimators()));
  return {make_estimator(estimator_name, hypergradient), make_outer_optimizer(outer_rule, outer)};
}

DoubleLoopMaker read_loop(Section root, uint64_t seed, bool moves) {
  Section outer = root.section("outer"), hypergradient = root.section("hypergradient");
  const Movement movement =
      moves ? read_movement(hypergradient, outer) : Movement{no_hypergradient(), std::make_shared<OuterSgd>(OuterSgdOptions{})};
  Section inner = root.section("inner");
  DoubleLoopOptions options;
  read(inner, options);
  options.seed = seed;
  options.warm_q = options.start == Start::kWarm;
  int64_t hvp_batch = 0, cross_batch = 0;
  if (moves) {
    hypergradient.read("warm_start", options.warm_q);
    hypergradient.read("hvp_batch", hvp_batch);
    hypergradient.read("cross_batch", cross_batch);
    hypergradient.read("variance_samples", options.variance_samples);
    options.bound_every = 20;
    hypergradient.read("bound_every", options.bound_every);
    hypergradient.read("check_every", options.check_every);
  }
  hypergradient.check(options.violations());
  std::vector<std::string> dropped;
  for (const char* key : {"estimator", "solver"}) {
    if (!hypergradient.was_set(key)) continue;
    drop_keys_of_others(hypergradient, "hypergradient", std::string("hypergradient.") + key, estimator_keys, dropped);
  }
  if (root.section("run").was_set("algorithm")) {
    const auto population = [] { return std::vector<std::string>{"population"}; };
    drop_keys_of_others(outer, "outer", "run.algorithm", population, dropped);
    if (!moves) {
      drop_keys_of_others(hypergradient, "hypergradient", "run.algorithm", nullptr, dropped);
      drop_keys_of_others(outer, "outer", "run.algorithm", outer_keys, dropped);
    }
  }
  hypergradient.finish();

  // The rest depends on the problem.
  return [=](const Oracle& oracle, std::vector<std::string>& notes) mutable {
    const Problem& problem = oracle.problem();
    DoubleLoopOptions loop = options;
    notes.insert(notes.end(), dropped.begin(), dropped.end());
    loop.hvp_batches =
        batches_of(hypergradient, "hvp_batch", hvp_batch, problem.inner_samples(), "inner", Stream(seed, "hvp batches"));
    loop.cross_batches =
        batches_of(hypergradient, "cross_batch", cross_batch, problem.inner_samples(), "inner", Stream(seed, "cross batches"));
    loop.outer_batches = read_outer_batches(outer, problem.outer_samples(), seed);
    if (outer.was_set("rule")) drop_keys_of_others(outer, "outer", "outer.rule", outer_keys, notes);
    outer.finish();
    const at::Tensor batches = read_batches(inner, problem.inner_samples());
    std::shared_ptr<const InnerSolver> solver = make_inner_solver(inner, problem, problem.initial_outer(), seed, batches);
    for (const char* key : {"rule", "solver"}) {
      if (!inner.was_set(key)) continue;
      drop_keys_of_others(
          inner, "inner", std::string("inner.") + key, [&] { return inner_keys(problem); }, notes);
    }
    inner.finish();
    return std::make_unique<DoubleLoop>(oracle, std::move(solver), movement.estimator, movement.optimizer, std::move(loop));
  };
}

}  // namespace

DoubleLoopMaker read_double_loop(Section root, uint64_t seed) { return read_loop(root, seed, true); }

DoubleLoopMaker read_training(Section root, uint64_t seed) { return read_loop(root, seed, false); }

}  // namespace bilevel
