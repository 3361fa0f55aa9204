#pragma once
#include <atomic>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bilevel/algorithm/algorithm.h"
#include "bilevel/core/config.h"
#include "bilevel/problem/dataset.h"
#include "bilevel/problem/model.h"
#include "tasks/cross_validation.h"
#include "tasks/job.h"

namespace bilevel {

/// Regularisation strengths chosen by the hypergradient of a cross-validated loss.
struct TuneOptions {
  ModelOptions model;            // linear | mlp
  std::string loss = "softmax";  // "softmax" | "logistic" | "squared"
  std::string per = "one";       // what has a strength of its own: "one" | "class" | "group" | "feature" | "layer"
  int64_t folds = 5;
  bool step_size = false;      // learn the step size of the update rule too; a linear model is then trained, not solved
  std::string prior = "auto";  // on log λ around a common one: its width, "none", or "auto": chosen by an outer fold if need be
  double start = 0.1;          // λ at first, in mean squares of a feature: a strong one, for solves from there are short
  int64_t steps = 30;          // of x, at most
  double max_step = 2;         // of log λ: a factor of 7
  double tolerance = 2e-3;     // stop where ‖dF/dx‖ is less, relative to F: F is then within about 1e-5 of its minimum
  double inner_tolerance = 3e-4;  // a linear model: ‖∂y g‖ of each fold; it leaves at most its square over 2λ of g open
  int64_t updates = 300;          // of a network, or with step_size
  int64_t batch = 128;            // of a network; a linear model with step_size takes all samples
  double lr = 2e-3;               // of a network's Adam at first; it falls to zero along the training
  bool compare = true;            // grid search and random search at the same cost
  uint64_t seed = 0;

  std::vector<std::string> violations() const;
  /// Learned by solving (false) or by training for a number of updates (true).
  bool trained() const { return step_size || model.kind != "linear"; }
};
/// Reads [tune] and, for the model and the loss, [problem].
void read(Section& root, TuneOptions& options);

struct TuneData {
  Dataset train;
  Dataset test;                          // only reported; features undefined: none
  at::Tensor folds;                      // int64 [n], 0…K−1, with K = TuneOptions::folds; undefined: random ones
  at::Tensor column_groups;              // int64 [d], for per = "group"
  std::vector<std::string> group_names;  // of them
};

/// One way to choose the strengths.
struct TuneRow {
  std::string slug, title;
  std::vector<double> strengths;  // as many as there are, or one for all
  std::optional<double> step_size;
  CrossValidation::Validation validation;
  std::optional<double> test_loss, test_score;
  int64_t evaluations = 0;   // strengths that were tried
  int64_t oracle_calls = 0;  // gradients and products that this took, the refit apart
  double seconds = 0;
  double stationarity = 0;  // ‖∂y g‖ of the refit
  at::Tensor y;             // the refit, of all samples
};

/// What the outer fold said of one width of the prior; 0 is one common strength.
struct WidthTrial {
  double width = 0, loss = 0;
  double difference_error = 0;  // standard error of the difference to the best
};

struct TuneResult {
  std::vector<TuneRow> rows;       // learned, common (where there are several strengths), grid, random
  std::vector<std::string> names;  // of the strengths of the row `learned`
  std::vector<WidthTrial> widths;  // of the outer fold; empty: it was not asked
  std::optional<double> width;     // of the prior; none: no prior
  bool common_kept = false;        // several strengths were asked for, and one common is what the outer fold recommends
  std::string warning;             // one sentence; empty: none
  std::vector<Record> records;     // of the search for one common strength and then, numbered on, of the several
  at::Tensor x;                    // learned, flat
  Cost cost;
  const TuneRow& row(const std::string& slug) const;
};

struct TuneWatch {
  std::function<void(const std::string& stage)> stage;  // what is done next, in words
  std::function<void(const Record&)> record;            // while x moves
  std::function<void(double fraction)> fraction;        // of the searches that are compared with
  const std::atomic<bool>* interrupt = nullptr;
};

/// Chooses strengths, and fits the model with them to all samples:
///
///   1. One common strength minimises the loss of K-fold cross-validation; then, where there are several, each its own, from
///   there.
///      The K models of the folds are one inner problem (cross_validation.h), warm-started by L-BFGS; the hypergradient is
///      implicit, and x moves by BFGS. A network, and a model whose step size is learned, is trained for a number of updates from
///      the same start instead, and the hypergradient is that of the unrolled training.
///   2. Many strengths fit the folds' noise. A Gaussian prior on their logarithms around a common one holds them together; its
///   width is
///      the smallest that is within one standard error of the best on a fold that was held out from all of it.
///
/// Test labels are used for figures only. Throws Error for data that cannot serve, and Interrupted.
TuneResult tune(const TuneData& data, const TuneOptions& options, const TuneWatch& watch = {});

}  // namespace bilevel
