#include "bilevel/algorithm/registry.h"

#include <fmt/format.h>

#include "bilevel/algorithm/bome.h"
#include "bilevel/algorithm/double_loop_config.h"
#include "bilevel/algorithm/hpm_config.h"
#include "bilevel/algorithm/ma_soba.h"
#include "bilevel/algorithm/saba.h"
#include "bilevel/algorithm/soba.h"
#include "bilevel/algorithm/srba.h"
#include "bilevel/core/error.h"

namespace bilevel {
namespace {

template <class Method>
AlgorithmRow single_loop(std::string name, std::string summary) {
  return {std::move(name), std::move(summary), [](Section root, uint64_t seed) -> AlgorithmMaker {
            auto options = Method::defaults();
            options.seed = seed;
            Section inner = root.section("inner"), hypergradient = root.section("hypergradient"), outer = root.section("outer");
            read(inner, outer, options);
            const bool replaced = root.section("run").was_set("algorithm");
            return [=](const Oracle& oracle, std::vector<std::string>& notes) mutable -> std::unique_ptr<Algorithm> {
              for (const auto& [section, table] :
                   {std::pair(&inner, "inner"), std::pair(&hypergradient, "hypergradient"), std::pair(&outer, "outer")}) {
                if (replaced) drop_keys_of_others(*section, table, "run.algorithm", nullptr, notes);
                section->finish();
              }
              return std::make_unique<Method>(oracle, options);
            };
          }};
}

}  // namespace

const std::vector<AlgorithmRow>& algorithms() {
  static const std::vector<AlgorithmRow> rows = {
      {"double-loop",
       "solve the inner problem, estimate the hypergradient, move x, project; any solver × estimator × outer optimiser",
       [](Section root, uint64_t seed) -> AlgorithmMaker { return read_double_loop(root, seed); }},
      single_loop<Soba>("soba", "y, q and x moved together along what one batch gives, steps shrinking (Dagréou et al. 2022)"),
      single_loop<Saba>("saba",
                        "soba with the variance taken out by a memory of the batches, constant steps (Dagréou et al. 2022)"),
      single_loop<MaSoba>("ma-soba", "soba with x moved along the mean of its directions (Chen, Xiao & Balasubramanian 2023)"),
      single_loop<Srba>("srba", "soba with directions that go on by differences between two points (Dagréou et al. 2023)"),
      single_loop<Bome>("bome",
                        "x and y moved by first derivatives alone, so that the gap of the inner loss falls (Ye et al. 2022)"),
      {"hpm", "a population of double loops: the worst copy the best and mutate as a teacher has learned (Tao et al. 2020)",
       read_hpm, false},
      {"pbt", "population-based training: no hypergradient; the worst copy the best and mutate at random (Jaderberg et al. 2017)",
       read_pbt, false},
      {"random-search", "as many trainings as members, each at a random x", read_random_search, false},
  };
  return rows;
}

const AlgorithmRow& algorithm_row(const std::string& name) {
  std::vector<std::string> known;
  for (const AlgorithmRow& row : algorithms()) {
    if (row.name == name) return row;
    known.push_back(row.name);
  }
  throw Error(fmt::format("\"{}\" is no algorithm.{}", name, suggestion(name, known)));
}

}  // namespace bilevel
