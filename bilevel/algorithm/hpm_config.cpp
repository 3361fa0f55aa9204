#include "bilevel/algorithm/hpm_config.h"

#include <utility>

#include "bilevel/algorithm/double_loop_config.h"
#include "bilevel/algorithm/hpm.h"

namespace bilevel {
namespace {

/// Members of one kind; what the first has left aside, the others leave aside too.
AlgorithmMaker of_members(const DoubleLoopMaker& member, const HpmOptions& options, const char* name) {
  return [=](const Oracle& oracle, std::vector<std::string>& notes) -> std::unique_ptr<Algorithm> {
    std::vector<std::string> told;
    bool first = true;
    const auto make = [&](const Oracle& own) { return member(own, std::exchange(first, false) ? notes : told); };
    return std::make_unique<Hpm>(oracle, make, options, name);
  };
}

Section population_of(Section root) { return root.section("outer").section("population"); }

}  // namespace

AlgorithmMaker read_hpm(Section root, uint64_t seed) {
  HpmOptions options;
  options.seed = seed;
  Section population = population_of(root);
  read(population, options);
  population.finish();
  return of_members(read_double_loop(root, seed), options, "hpm");
}

AlgorithmMaker read_pbt(Section root, uint64_t seed) {
  HpmOptions options{.mutation = Mutation::kRandom, .seed = seed};
  Section population = population_of(root);
  population.read("members", options.members);
  population.read("exploit_every", options.exploit_every);
  population.read("truncation", options.truncation);
  population.check(options.violations());
  population.finish();
  return of_members(read_training(root, seed), options, "pbt");
}

AlgorithmMaker read_random_search(Section root, uint64_t seed) {
  HpmOptions options{.exploit_every = 0, .mutation = Mutation::kRandom, .seed = seed};
  Section population = population_of(root);
  population.read("members", options.members);
  population.check(options.violations());
  population.finish();
  return of_members(read_training(root, seed), options, "random-search");
}

}  // namespace bilevel
