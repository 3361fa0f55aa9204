#pragma once
#include <atomic>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bilevel/algorithm/algorithm.h"
#include "bilevel/core/config.h"
#include "bilevel/problem/dataset.h"
#include "bilevel/problem/model.h"
#include "tasks/job.h"

namespace bilevel {

/// Which samples' labels to believe, learned from a few trusted ones.
struct ReweightOptions {
  ModelOptions model = small();  // linear: softmax regression
  std::string by = "source";     // what has a weight of its own while trust is learned: "source" | "sample"
  int64_t steps = 10;            // of x; the ranking of the sources is best after about ten, later steps only sharpen it
  double lr = 0.3;               // of x, by Adam with one second moment for all of x
  double ridge = 3e-3;           // ½ ridge ‖w‖² while trust is learned
  int64_t iterations = 8;        // products of CG in one hypergradient
  double damping = 1e-2;         // networks: added to the Gauss–Newton matrix, which is singular
  int64_t groups = 10;           // of the trusted set: they tell signal from noise, and give folds and resamples
  double signal = 0.5;           // stop where less than this share of the hypergradient is signal
  int64_t resamples = 50;        // of the trusted set, for the spread of the weights
  int64_t folds = 5;             // of the trusted set, for the choice of ridge and thresholds
  int64_t posterior_rounds = 2;  // of the posterior that each given label is right
  std::vector<double> ridges;    // the grid for every row; empty: by the model
  uint64_t seed = 0;

  std::vector<std::string> violations() const;

 private:
  /// A cnn is trained some thirty times: one that takes seconds will do.
  static ModelOptions small() {
    ModelOptions model;
    model.channels = {8, 16};
    model.stride = 2;
    model.activation = "relu";
    return model;
  }
};
/// Reads [reweight] and, for the model, [problem].
void read(Section& section, ReweightOptions& options);

struct ReweightData {
  Dataset noisy;     // labels in doubt, with their sources
  Dataset trusted;   // labels that the user vouches for
  Dataset test;      // only reported; features undefined: none
  at::Tensor truth;  // int64 [n], of the noisy samples, where they were simulated; used for figures only
  at::Tensor rows;   // int64 [n]: which rows of what the user gave the noisy samples are; undefined: 0 … n − 1
};

/// Fewer trusted samples than this tell nothing.
inline constexpr int64_t kFewestTrusted = 10;

/// One way to use the data.
struct ReweightRow {
  std::string slug, title;
  std::optional<double> accuracy;  // on the test set
  double held_back_accuracy = 0;   // on the folds of the trusted set
  double held_back_loss = 0;
  double ridge = 0;
  std::optional<double> threshold;
  double stationarity = 0;  // of the final fit
  at::Tensor y;             // the model
};

struct SourceTrust {
  std::string name;
  int64_t samples = 0;
  double weight = 0;        // σ(x), the learned trust
  double spread = 0;        // its standard deviation over resamples of the trusted set
  double final_weight = 0;  // mean weight of its samples in the final fit
  double error_rate = 0;    // estimated
  std::optional<double> true_error_rate;
};

struct ReweightResult {
  std::vector<ReweightRow> rows;
  std::vector<SourceTrust> sources;
  at::Tensor x;               // learned
  at::Tensor weights;         // [n], of the noisy samples in the final fit, mean 1 over all samples
  double trusted_weight = 1;  // of each trusted sample in the same fit
  at::Tensor suspicion;  // [n], in 0…1: the probability that the given label is wrong; by sample a rank, 1 the most doubted
  at::Tensor suggested;  // int64 [n]
  std::map<std::string, at::Tensor> rankings;  // [n] each, larger: more suspicious; what `suspicion` was made from, by sample
  std::optional<double> rank_correlation;      // of trust with the true accuracy of the sources (Spearman)
  std::map<std::string, double> auc;           // of each ranking, where the truth is known
  std::string recommended;                     // slug of the row whose model is saved
  std::string warning;  // one sentence where learned does not beat trusted-only on held-back trusted samples
  std::vector<Record> records;
  Cost cost;
  const ReweightRow& row(const std::string& slug) const;
};

/// What a front may want to follow.
struct ReweightWatch {
  std::function<void(const std::string& stage)> stage;  // what is done next, in words
  std::function<void(const Record&)> record;            // while trust is learned
  const std::atomic<bool>* interrupt = nullptr;
  bool strict = false;  // the job ends with the first hypergradient that is BAD
};

/// Learns trust, and trains with it:
///
///   1. x, one logit for each source (or sample), minimises the loss on the trusted samples of a model trained on the noisy ones
///      with weights σ(x): min_x f(y*(x)), y*(x) = argmin_y (1/n) Σ_i σ(x_s(i)) loss_i(y) + ½ ridge ‖y‖².
///   2. From a model trained with these weights out of fold, and a confusion matrix for each source, follows the posterior that
///      each given label is right (label_posterior.h), which weighs the samples of the final fit; trusted samples have weight 1.
///
/// Every row of the table is trained to the same stationarity, has the trusted samples in its training data, and its ridge and
/// threshold chosen by cross-validation on them over the same grid. Truth and test labels are used for figures only. Throws Error
/// for data that cannot serve, Interrupted, and std::runtime_error where learning trust diverges or `strict` ends it.
ReweightResult reweight(const ReweightData& data, const ReweightOptions& options, const ReweightWatch& watch = {});

/// Spearman's rank correlation of two vectors.
double rank_correlation(const at::Tensor& a, const at::Tensor& b);

/// Where no trusted samples are there: which to label first. `count` for each source, half of them the most doubted by a model
/// that has not seen them, half at random, for doubted ones alone are no fair sample to validate on.
struct LabelRequest {
  int64_t row = 0;
  std::string source, reason;  // "doubted" | "random"
  double doubt = 0;            // 1 − the probability of the given label
};
std::vector<LabelRequest> rows_to_label(const Dataset& noisy, const ReweightOptions& options, int64_t count);

}  // namespace bilevel
