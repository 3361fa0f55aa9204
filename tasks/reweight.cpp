#include "tasks/reweight.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bilevel/core/error.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/outer/adam.h"
#include "bilevel/run/driver.h"
#include "tasks/grouped_implicit.h"
#include "tasks/label_posterior.h"
#include "tasks/planted_errors.h"
#include "tasks/trainer.h"
#include "tasks/trust_learning.h"

namespace bilevel {
namespace {

// All rows of the table are trained to kFinal; what only chooses between them, and what only weighs samples, to kRough.
constexpr double kFinal = 1e-3;
constexpr double kRough = 3e-3;

/// 1 … n, the mean of their ranks for equal values.
at::Tensor ranks(const at::Tensor& values) {
  const at::Tensor v = values.to(at::kDouble);
  const auto [sorted, order] = v.sort();
  const auto [unique, inverse, counts] = at::unique_consecutive(sorted, /*return_inverse=*/true, /*return_counts=*/true);
  const at::Tensor last = counts.cumsum(0).to(at::kDouble);
  const at::Tensor mean = last - (counts.to(at::kDouble) - 1) / 2;
  return at::empty_like(v).index_copy_(0, order, mean.index_select(0, inverse));
}

at::Tensor of_labels(const at::Tensor& probabilities, const at::Tensor& labels) {
  return probabilities.gather(0, labels.unsqueeze(0)).squeeze(0);
}

/// A way to weigh the noisy samples, with all the trusted ones and without those of each fold.
struct Candidate {
  at::Tensor weights;               // [n]
  std::vector<at::Tensor> of_fold;  // one each; empty: `weights` for all
};

struct Score {
  double loss = 0, accuracy = 0;
  at::Tensor y;  // a rough fit with all the trusted samples, where there is one
};

class Job {
 public:
  Job(const ReweightData& data, const ReweightOptions& options, const ReweightWatch& watch)
      : data_(data),
        options_(options),
        watch_(watch),
        trust_(trust_data(data, options)),
        n_(data.noisy.size()),
        m_(data.trusted.size()),
        classes_(trust_.classes),
        sources_(trust_.sources),
        source_count_(trust_.source_count),
        trainer_(trainer_options(),
                 {at::cat({trust_.noisy.features, trust_.trusted.features}), at::cat({data.noisy.labels, data.trusted.labels})}) {
    // One copy of the features is enough.
    trust_.noisy.features = trainer_.data().features.narrow(0, 0, n_);
    trust_.trusted.features = trainer_.data().features.narrow(0, n_, m_);
    trust_.gram = trainer_.gram();
    part_the_trusted();
    ridges_ = options.ridges;
    if (ridges_.empty()) ridges_ = convex() ? std::vector<double>{1e-3, 3e-3, 1e-2, 3e-2} : std::vector<double>{1e-4, 1e-3};
  }

  ReweightResult run() {
    const auto began = std::chrono::steady_clock::now();
    if (options_.by == "sample") {
      simple_rows();
      rank_samples();
    } else {
      simple_rows();
      learn_sources();
      judge_labels();
    }
    stage("training with what was learned");
    result_.rows.push_back(row("learned", "learned", {final_weights_, final_of_fold_}, start_));
    if (data_.truth.defined()) {
      const at::Tensor right = (data_.truth == data_.noisy.labels).to(trainer_.data().features.scalar_type());
      result_.rows.push_back(row("oracle", "oracle: wrong labels known", {right, {}}, start_));
    }
    finish();
    result_.cost.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    result_.cost.peak_bytes = std::max(peak_bytes_, meter_.peak_bytes());
    return std::move(result_);
  }

  std::vector<LabelRequest> requests(int64_t count);

 private:
  bool convex() const { return trainer_.convex(); }
  double learning_ridge() const { return convex() ? options_.ridge : kNetworkRidge; }
  double ridge_of_all() const { return convex() ? 1e-2 : kNetworkRidge; }  // of fits to all labels alike: they want a strong one
  std::string source_name(int64_t s) const { return data_.noisy.source_names.empty() ? "all" : data_.noisy.source_names[s]; }

  TrainerOptions trainer_options() const {
    TrainerOptions trainer;
    trainer.model = options_.model;
    trainer.outputs = classes_;
    trainer.seed = options_.seed;
    trainer.poll = [this] { poll(); };
    return trainer;
  }

  void poll() const {
    if (watch_.interrupt && watch_.interrupt->load()) throw Interrupted();
  }

  void stage(const std::string& name) const {
    poll();
    if (watch_.stage) watch_.stage(name);
  }

  void part_the_trusted() {
    groups_ = trusted_groups(data_.trusted.labels, options_);
    const size_t folds = std::min(static_cast<size_t>(options_.folds), groups_.size());
    for (size_t k = 0; k < folds; ++k) {
      std::vector<at::Tensor> of_fold;
      for (size_t g = k; g < groups_.size(); g += folds) of_fold.push_back(groups_[g]);
      folds_.push_back(std::get<0>(at::cat(of_fold).sort()));
    }
    // A fit of a network costs as much as a whole row of a linear model: one held-back fold has to do for the choice of a ridge.
    fold_count_ = convex() ? static_cast<int64_t>(folds_.size()) : 1;
  }

  at::Tensor zeros() const { return at::zeros({n_}, trainer_.data().features.options()); }
  at::Tensor ones() const { return at::ones({n_}, trainer_.data().features.options()); }

  at::Tensor probabilities(const at::Tensor& y) const { return trainer_.logits(y, trust_.noisy.features).softmax(0); }

  /// Weights of all samples: the noisy ones as given, the trusted ones 1, those of fold k (where k ≥ 0) 0.
  at::Tensor with_trusted(const at::Tensor& noisy, int64_t k = -1) const {
    const at::Tensor trusted = at::ones({m_}, noisy.options());
    if (k >= 0) trusted.index_fill_(0, folds_[k], 0);
    return at::cat({noisy, trusted});
  }

  /// `fold_starts` are where the fits of the folds begin where these have weights of their own; they are left at their ends.
  Score score(const Candidate& candidate, double ridge, const at::Tensor& start, std::vector<at::Tensor>& fold_starts) {
    const at::NoGradGuard no_grad;
    Score score;
    if (convex()) score.y = trainer_.fit(with_trusted(candidate.weights), ridge, start, kRough).y;
    int64_t held_back = 0;
    for (int64_t k = 0; k < static_cast<int64_t>(fold_starts.size()); ++k) {
      poll();
      const at::Tensor& weights = candidate.of_fold.empty() ? candidate.weights : candidate.of_fold[k];
      const bool known = !candidate.of_fold.empty() && convex() && fold_starts[k].defined();
      // A rough fit that begins where the fold was known remembers it, if the fold is more than a small part of the data.
      const at::Tensor kept = with_trusted(weights, k);
      const bool small = static_cast<double>(folds_[k].size(0)) < 0.02 * kept.sum().item<double>();
      const at::Tensor y = trainer_.fit(kept, ridge, known ? fold_starts[k] : small ? score.y : at::Tensor{}, kRough).y;
      fold_starts[k] = y;
      const at::Tensor z = trainer_.logits(y, trust_.trusted.features.index_select(0, folds_[k]));
      const at::Tensor labels = data_.trusted.labels.index_select(0, folds_[k]);
      score.loss += (z.logsumexp(0) - of_labels(z, labels)).sum().item<double>();
      score.accuracy += (z.argmax(0) == labels).sum().item<double>();
      held_back += labels.size(0);
    }
    score.loss /= static_cast<double>(held_back);
    score.accuracy /= static_cast<double>(held_back);
    return score;
  }

  /// Descends along the grid of ridges, from `from` on while a neighbour is better, and fits the best to the end.
  ReweightRow row(const std::string& slug, const std::string& title, const Candidate& candidate, const at::Tensor& start,
                  size_t from = 1) {
    std::map<size_t, Score> scores;
    std::vector<at::Tensor> fold_starts(static_cast<size_t>(fold_count_));
    size_t best = std::min(from, ridges_.size() - 1);
    scores[best] = score(candidate, ridges_[best], start, fold_starts);
    for (;;) {
      const size_t here = best;
      for (const size_t next : {here + 1, here - 1}) {
        if (next >= ridges_.size()) continue;
        if (!scores.contains(next))
          scores[next] = score(candidate, ridges_[next], scores[here].y.defined() ? scores[here].y : start, fold_starts);
        if (scores[next].loss < scores[best].loss) best = next;
      }
      if (best == here) break;
    }
    const Trainer::Fit fit = trainer_.fit(with_trusted(candidate.weights), ridges_[best], scores[best].y, kFinal);
    ReweightRow out;
    out.slug = slug;
    out.title = title;
    out.held_back_accuracy = scores[best].accuracy;
    out.held_back_loss = scores[best].loss;
    out.ridge = ridges_[best];
    out.stationarity = fit.stationarity;
    out.y = fit.y;
    if (data_.test.features.defined()) {
      const at::Tensor guess = trainer_.logits(fit.y, model_features(data_.test, data_.noisy, options_)).argmax(0);
      out.accuracy = (guess == data_.test.labels).to(at::kDouble).mean().item<double>();
    }
    return out;
  }

  /// What people do without learning trust.
  void simple_rows() {
    stage("training on the trusted samples only");
    const at::Tensor& labels = data_.noisy.labels;
    ReweightRow trusted = row("trusted", "trusted only", {zeros(), {}}, {});
    const at::Tensor P = probabilities(trusted.y);
    std::vector<at::Tensor>& of_fold = trusted_of_fold_;
    for (int64_t k = 0; k < fold_count_; ++k) {
      of_fold.push_back(probabilities(trainer_.fit(with_trusted(zeros(), k), trusted.ridge, {}, kRough).y));
    }
    trusted_probability_ = of_labels(P, labels);

    stage("training on all data equally");
    ReweightRow all = row("all", "all data equally", {ones(), {}}, {});
    start_ = convex() ? all.y : at::Tensor{};

    stage("filtering by the trusted model's confidence");
    const auto filter = [&](double threshold) {
      const auto keep = [&](const at::Tensor& p) { return of_labels(p, labels).ge(threshold).to(p.scalar_type()); };
      Candidate candidate{keep(P), {}};
      for (const at::Tensor& p : of_fold) candidate.of_fold.push_back(keep(p));
      return candidate;
    };
    double threshold = 0.1, lowest = std::numeric_limits<double>::infinity();
    std::vector<at::Tensor> fold_starts(static_cast<size_t>(fold_count_));
    for (const double t : {0.1, 0.3, 0.5}) {
      const double loss = score(filter(t), ridges_[std::min<size_t>(1, ridges_.size() - 1)], start_, fold_starts).loss;
      if (loss < lowest) {
        lowest = loss;
        threshold = t;
      }
    }
    ReweightRow filtered = row("filtered", "filtered by the trusted model", filter(threshold), start_);
    filtered.threshold = threshold;

    stage("weighing sources by agreement with the trusted model");
    const auto agreement = [&](const at::Tensor& p) {
      const at::Tensor agrees = (p.argmax(0) == labels).to(p.scalar_type());
      return (per_source(agrees) / per_source(at::ones_like(agrees))).index_select(0, sources_).to(p.scalar_type());
    };
    Candidate candidate{agreement(P), {}};
    for (const at::Tensor& p : of_fold) candidate.of_fold.push_back(agreement(p));
    ReweightRow agreed = row("agreement", "sources weighted by agreement", candidate, start_);
    for (ReweightRow* one : {&all, &trusted, &filtered, &agreed}) result_.rows.push_back(std::move(*one));
  }

  /// Sums over each source's samples, in double.
  at::Tensor per_source(const at::Tensor& values) const {
    return at::zeros({source_count_}, at::kDouble).index_add(0, sources_, values.to(at::kDouble));
  }

  struct Learned {
    at::Tensor x;                     // [dx]
    std::vector<at::Tensor> history;  // [G, dx] for each update of x
    at::Tensor y;
  };

  /// Stage 1: the bilevel problem, by the double loop.
  Learned learn() {
    const TrustLearning learning(trust_, options_);
    DriverOptions driver;
    driver.steps = trust_steps(options_);
    Learned learned;
    Watch watch;
    watch.interrupt = watch_.interrupt;
    watch.record = [&](const Record& record, const std::vector<RollBack>&) {
      result_.records.push_back(record);
      if (learning.found().empty()) return Signal::kContinue;  // the first solve failed
      const at::Tensor& found = learning.found().back();
      learned.history.push_back(found);
      // A step meters itself, and hides what it holds from the meter around it.
      peak_bytes_ = std::max(peak_bytes_, meter_.current_bytes() + record.cost.peak_bytes);
      if (watch_.record) watch_.record(record);
      if (watch_.strict && record.grade == Grade::kBad) return Signal::kAbort;
      return record.step >= 2 && signal_share(found) < options_.signal ? Signal::kStop : Signal::kContinue;
    };
    const RunResult run = Driver(learning.algorithm(), driver).run(learning.start(), watch);
    if (run.outcome == Outcome::kInterrupted) throw Interrupted();
    if (run.outcome == Outcome::kAborted) {
      throw std::runtime_error(
          fmt::format("Stopped at step {} of learning trust, because --strict was given: {}", run.last.step, run.last.message));
    }
    if (run.outcome == Outcome::kDiverged)
      throw std::runtime_error(fmt::format("Learning whom to trust failed. {}", run.message));
    learned.x = run.state.tensor("x");
    learned.y = run.state.tensor("y");
    learned.history.resize(static_cast<size_t>(run.steps));  // the last record describes the end, and moves x no more
    cost_ += learning.oracle().cost();
    return learned;
  }

  /// Where x would have gone with other multiplicities [G] of the groups, along the hypergradients of the path that was taken.
  at::Tensor replay(const Learned& learned, const at::Tensor& multiplicity) const {
    at::Tensor share = at::empty({static_cast<int64_t>(groups_.size())}, learned.x.options());
    for (size_t g = 0; g < groups_.size(); ++g) share[static_cast<int64_t>(g)] = static_cast<double>(groups_[g].size(0));
    share = share * multiplicity.to(share.scalar_type());
    share = share / share.sum();
    const OuterAdam optimizer(trust_outer_options(options_));
    State state;
    at::Tensor x = at::zeros_like(learned.x);
    for (const at::Tensor& step : learned.history) x = optimizer.step(state, x, share.matmul(step));
    return x;
  }

  void learn_sources() {
    stage("learning how far to trust each source");
    const Learned learned = learn();
    result_.x = learned.x;
    if (convex()) start_ = learned.y;
    const auto G = static_cast<int64_t>(groups_.size());
    const auto weights_of = [&](const at::Tensor& x) { return x.sigmoid().index_select(0, sources_); };

    Candidate candidate{weights_of(learned.x), {}};
    for (size_t k = 0; k < folds_.size(); ++k) {
      const at::Tensor without =
          (at::arange(G).remainder(static_cast<int64_t>(folds_.size())) != static_cast<int64_t>(k)).to(at::kDouble);
      candidate.of_fold.push_back(weights_of(without.sum().item<double>() > 0 ? replay(learned, without) : learned.x));
    }
    stage("training with the learned weights of the sources");
    result_.rows.push_back(row("weights", "learned weights of the sources alone", candidate, start_));
    weights_ = candidate.weights;
    judged_ = candidate;

    std::vector<at::Tensor> resampled;
    for (int64_t b = 0; b < options_.resamples; ++b) {
      const at::Tensor drawn = Stream(options_.seed, "resamples of the trusted").at(b).integers(G, {G});
      resampled.push_back(replay(learned, drawn.bincount({}, G).to(at::kDouble)).sigmoid());
    }
    spread_ = resampled.size() > 1 ? at::stack(resampled).std(0) : at::zeros_like(learned.x);
  }

  /// [C, n]: class probabilities of each noisy sample by a model that has not seen it, trained with these weights.
  /// `without` ≥ 0: nor that fold of the trusted ones.
  at::Tensor out_of_fold(const at::Tensor& weights, double ridge, int64_t folds, int64_t without = -1) {
    const at::Tensor fold = Stream(options_.seed, "folds of the noisy").at(0).permutation(n_).remainder(folds);
    return out_of_fold(with_trusted(weights, without), at::cat({fold, at::full({m_}, -1, at::kLong)}), ridge).narrow(1, 0, n_);
  }

  /// [C, n + m]: the same of the noisy and the trusted samples; each fold leaves out some of both.
  at::Tensor out_of_fold_of_all(const at::Tensor& weights, double ridge, int64_t folds) {
    const at::Tensor fold = Stream(options_.seed, "folds of the noisy").at(0).permutation(n_).remainder(folds);
    const at::Tensor of_trusted = Stream(options_.seed, "folds of the trusted").at(0).permutation(m_).remainder(folds);
    return out_of_fold(with_trusted(weights), at::cat({fold, of_trusted}), ridge);
  }

  /// `weights` and `fold` [n + m]; samples of fold −1 are in the training data of every model, and their columns are not filled.
  at::Tensor out_of_fold(const at::Tensor& weights, const at::Tensor& fold, double ridge) {
    const at::NoGradGuard no_grad;
    const at::Tensor& features = trainer_.data().features;
    at::Tensor P = at::zeros({classes_, n_ + m_}, weights.options());
    at::Tensor y = start_;
    for (int64_t k = 0; k <= fold.max().item<int64_t>(); ++k) {
      poll();
      const at::Tensor held_back = fold == k;
      y = trainer_.fit(weights.masked_fill(held_back, 0), ridge, convex() ? y : at::Tensor{}, kRough).y;
      const at::Tensor rows = held_back.nonzero().squeeze(1);
      P.index_copy_(1, rows, trainer_.logits(y, features.index_select(0, rows)).softmax(0));
    }
    return P;
  }

  /// Stage 2: the posterior that each label is right.
  void judge_labels() {
    stage("judging each label");
    at::Tensor weights = weights_;
    LabelPosterior posterior;
    for (int64_t round = 0; round < options_.posterior_rounds; ++round) {
      const at::Tensor P = out_of_fold(weights, learning_ridge(), convex() ? 5 : 2);
      posterior = label_posterior(P, data_.noisy.labels, sources_, source_count_);
      // What is more likely wrong than right teaches the next round nothing; a network learns even faint weights by heart, but
      // needs the samples.
      weights = posterior.correct * posterior.correct.gt(convex() ? 0.5 : 0.05).to(weights.scalar_type());
    }
    take_posterior(posterior);
    result_.suspicion = 1 - posterior.correct;
  }

  void take_posterior(const LabelPosterior& posterior) {
    final_weights_ = weights_of(posterior);
    result_.suggested = posterior.classes.argmax(0);
    const at::Tensor samples = per_source(ones());
    error_rate_ = (samples - per_source(posterior.correct)) / samples;
  }

  /// A linear model takes the posterior itself; a network memorises whatever has any weight.
  at::Tensor weights_of(const LabelPosterior& posterior) const {
    return convex() ? posterior.correct : posterior.correct.gt(0.5).to(posterior.correct.scalar_type());
  }

  /// --by sample: three rankings, and what they say together.
  void rank_samples() {
    const at::Tensor& labels = data_.noisy.labels;
    const int64_t folds = convex() ? 5 : 2;
    stage("cross-validated confidence in each label");
    const at::Tensor S = out_of_fold_of_all(ones(), ridge_of_all(), folds);
    const at::Tensor self_confidence = of_labels(S.narrow(1, 0, n_), labels);
    stage("learning a weight for each sample");
    const Learned learned = learn();
    result_.x = learned.x;
    result_.rankings["trusted"] = 1 - trusted_probability_;
    result_.rankings["self-confidence"] = 1 - self_confidence;
    result_.rankings["learned"] = 1 - learned.x.sigmoid();

    stage("judging each label");
    at::Tensor mean_rank = at::zeros({n_}, at::kDouble);
    for (const auto& [name, ranking] : result_.rankings) mean_rank = mean_rank + ranks(ranking);
    at::Tensor weights = mean_rank.le(mean_rank.median()).to(self_confidence.scalar_type());  // begin with the better half
    LabelPosterior posterior;
    at::Tensor P;
    for (int64_t round = 0; round < 3; ++round) {
      const ReweightRow fit = row("", "", {weights, {}}, start_);
      P = out_of_fold_of_all(weights, fit.ridge, folds);
      posterior = label_posterior(P.narrow(1, 0, n_), labels, sources_, source_count_);
      weights = posterior.correct.gt(0.5).to(weights.scalar_type());
    }
    take_posterior(posterior);
    result_.suspicion = combined(self_confidence, of_labels(P.narrow(1, 0, n_), labels), posterior.correct,
                                 planted_errors(posterior.confusion, per_source(ones()) / static_cast<double>(n_),
                                                data_.trusted.labels, S.narrow(1, n_, m_), P.narrow(1, n_, m_)));
    result_.rankings["combined"] = result_.suspicion;
    spread_ = at::zeros({source_count_});

    // The same in short without each fold of the trusted samples: what the posterior has learned from them does not vouch for
    // them.
    for (int64_t k = 0; k < fold_count_; ++k) {
      const at::Tensor doubt = 1 - of_labels(trusted_of_fold_[k], labels);
      const at::Tensor half = doubt.le(doubt.median()).to(weights.scalar_type());
      final_of_fold_.push_back(
          weights_of(label_posterior(out_of_fold(half, ridge_of_all(), 2, k), labels, sources_, source_count_)));
    }
  }

  /// [n], in 0…1: the mean rank of three confidences in the given labels, the first with the weight λ, the others with ½ each.
  ///
  /// λ = min(1, (2.5 ρ)²), ρ the posterior's error 1 − AUC on planted errors over that of self-confidence. The 2.5 makes up for
  /// their being the posterior's own idea of errors, and the square keeps a self-confidence out that has learned the sources'
  /// mistakes.
  at::Tensor combined(const at::Tensor& self, const at::Tensor& probability, const at::Tensor& correct,
                      const PlantedErrors& auc) const {
    const double own = 1 - auc.self_confidence, other = 2.5 * (1 - auc.posterior);
    const double lambda = own > other ? other * other / (own * own) : 1.0;
    const at::Tensor sum = lambda * ranks(-self) + 0.5 * ranks(-probability) + 0.5 * ranks(-correct);
    return sum / ((1 + lambda) * static_cast<double>(n_));
  }

  /// How a row does on all folds of the trusted samples.
  Score held_back(const std::string& slug, const Candidate& candidate) {
    const ReweightRow& row = result_.row(slug);
    if (fold_count_ == static_cast<int64_t>(folds_.size())) return {row.held_back_loss, row.held_back_accuracy, {}};
    std::vector<at::Tensor> fold_starts(folds_.size());
    return score(candidate, row.ridge, {}, fold_starts);
  }

  void finish() {
    // By source, the learned row's labels were judged with all the trusted samples; the weights of the sources alone were not, in
    // each fold. By sample, both rows have been compared on the folds for which the labels were judged anew.
    const bool by_sample = options_.by == "sample";
    if (!convex() && !by_sample) stage("comparing with the trusted samples alone");
    const auto of_row = [&](const char* slug) {
      return Score{result_.row(slug).held_back_loss, result_.row(slug).held_back_accuracy, {}};
    };
    const Score trusted = by_sample ? of_row("trusted") : held_back("trusted", {zeros(), {}});
    const Score judged = by_sample ? of_row("learned") : held_back("weights", judged_);
    // The loss is no judge of a tie: models of doubtful labels are right as often with less confidence.
    const bool better = judged.accuracy > trusted.accuracy ||
                        (judged.accuracy == trusted.accuracy && result_.row("learned").held_back_accuracy > trusted.accuracy);
    result_.recommended = better ? "learned" : "trusted";
    if (!better) {
      result_.warning = fmt::format(
          "Learning from the doubtful labels does not beat the trusted samples alone: {:.1f} % against {:.1f} % right on trusted "
          "samples that were held back. The model of the trusted samples is the one to use, and the one that was saved.",
          100 * judged.accuracy, 100 * trusted.accuracy);
    }

    const at::Tensor all = with_trusted(final_weights_);
    result_.weights = final_weights_ / all.mean();
    result_.trusted_weight = 1 / all.mean().item<double>();
    const at::Tensor samples = per_source(ones());
    const at::Tensor mean_weight = per_source(result_.weights) / samples;
    at::Tensor true_error;
    if (data_.truth.defined()) {
      const at::Tensor wrong = data_.truth != data_.noisy.labels;
      true_error = per_source(wrong.to(at::kDouble)) / samples;
      if (wrong.any().item<bool>()) {
        result_.auc["suspicion"] = area_under_curve(result_.suspicion, wrong);
        for (const auto& [name, ranking] : result_.rankings) result_.auc[name] = area_under_curve(ranking, wrong);
      }
    }
    const at::Tensor trust = options_.by == "sample" ? per_source(result_.x.sigmoid()) / samples : result_.x.sigmoid();
    for (int64_t s = 0; s < source_count_; ++s) {
      SourceTrust source;
      source.name = source_name(s);
      source.samples = samples[s].item<int64_t>();
      source.weight = trust[s].item<double>();
      source.spread = spread_[s].item<double>();
      source.final_weight = mean_weight[s].item<double>();
      source.error_rate = error_rate_[s].item<double>();
      if (true_error.defined()) source.true_error_rate = true_error[s].item<double>();
      result_.sources.push_back(source);
    }
    if (true_error.defined() && source_count_ > 2) result_.rank_correlation = rank_correlation(trust, 1 - true_error);
    cost_ += trainer_.cost();
    result_.cost = cost_;
  }

  const MemoryMeter meter_;  // first, so that it meters what the other members hold
  const ReweightData& data_;
  const ReweightOptions& options_;
  const ReweightWatch& watch_;
  TrustData trust_;
  int64_t n_, m_, classes_;
  at::Tensor sources_;
  int64_t source_count_;
  Trainer trainer_;
  std::vector<at::Tensor> groups_, folds_;  // of the trusted samples
  int64_t fold_count_ = 1;                  // folds that are used
  std::vector<double> ridges_;

  ReweightResult result_;
  at::Tensor start_;                         // where linear fits begin
  at::Tensor trusted_probability_;           // [n], of the given label
  std::vector<at::Tensor> trusted_of_fold_;  // [C, n] each: class probabilities by the trusted samples without the fold
  at::Tensor weights_, final_weights_;       // [n]
  std::vector<at::Tensor> final_of_fold_;    // [n] each; empty: final_weights_ for all
  Candidate judged_;                         // what the trusted samples alone are compared with
  at::Tensor spread_, error_rate_;           // [S]
  Cost cost_;
  int64_t peak_bytes_ = 0;
};

std::vector<LabelRequest> Job::requests(int64_t count) {
  const at::Tensor doubt = 1 - of_labels(out_of_fold(ones(), ridge_of_all(), convex() ? 3 : 2), data_.noisy.labels);
  const at::Tensor shuffled = Stream(options_.seed, "rows to label").at(0).permutation(n_);
  std::vector<LabelRequest> requests;
  for (int64_t s = 0; s < source_count_; ++s) {
    const at::Tensor rows = (sources_ == s).nonzero().squeeze(1);
    const at::Tensor order = doubt.index_select(0, rows).argsort(0, /*descending=*/true);
    std::vector<bool> taken(static_cast<size_t>(n_), false);
    const auto add = [&](int64_t i, const char* reason) {
      taken[static_cast<size_t>(i)] = true;
      requests.push_back({i, source_name(s), reason, doubt[i].item<double>()});
    };
    const int64_t doubted = std::min((count + 1) / 2, rows.size(0));
    for (int64_t j = 0; j < doubted; ++j) add(rows[order[j].item<int64_t>()].item<int64_t>(), "doubted");
    int64_t wanted = std::min(count, rows.size(0)) - doubted;
    for (int64_t j = 0; j < n_ && wanted > 0; ++j) {
      const int64_t i = shuffled[j].item<int64_t>();
      if (sources_[i].item<int64_t>() != s || taken[static_cast<size_t>(i)]) continue;
      add(i, "random");
      --wanted;
    }
  }
  return requests;
}

}  // namespace

std::vector<std::string> ReweightOptions::violations() const {
  std::vector<std::string> found = model.violations();
  const auto demand = [&](bool holds, std::string violation) {
    if (!holds) found.push_back(std::move(violation));
  };
  demand(by == "source" || by == "sample", fmt::format("by = \"{}\" must be \"source\" or \"sample\"", by));
  demand(steps >= 1, fmt::format("steps = {} must be at least 1", steps));
  demand(lr > 0 && std::isfinite(lr), fmt::format("lr = {} must be positive", lr));
  demand(ridge > 0 && std::isfinite(ridge), fmt::format("ridge = {} must be positive", ridge));
  demand(iterations >= 1, fmt::format("iterations = {} must be at least 1", iterations));
  demand(damping >= 0, fmt::format("damping = {} must not be negative", damping));
  demand(groups >= 1, fmt::format("groups = {} must be at least 1", groups));
  demand(folds >= 2, fmt::format("folds = {} must be at least 2", folds));
  demand(resamples >= 0, fmt::format("resamples = {} must not be negative", resamples));
  demand(posterior_rounds >= 1, fmt::format("posterior_rounds = {} must be at least 1", posterior_rounds));
  for (const double r : ridges) demand(r > 0, fmt::format("ridges holds {}, and all must be positive", r));
  return found;
}

void read(Section& section, ReweightOptions& options) {
  section.read_choice("by", options.by, {"source", "sample"});
  section.read("steps", options.steps);
  section.read("lr", options.lr);
  section.read("ridge", options.ridge);
  section.read("iterations", options.iterations);
  section.read("damping", options.damping);
  section.read("groups", options.groups);
  section.read("signal", options.signal);
  section.read("resamples", options.resamples);
  section.read("folds", options.folds);
  section.read("posterior_rounds", options.posterior_rounds);
  section.read("ridges", options.ridges);
  section.check(options.violations());
}

const ReweightRow& ReweightResult::row(const std::string& slug) const {
  for (const ReweightRow& one : rows) {
    if (one.slug == slug) return one;
  }
  throw Error(fmt::format("ReweightResult::row: there is no row \"{}\".", slug));
}

ReweightResult reweight(const ReweightData& data, const ReweightOptions& options, const ReweightWatch& watch) {
  const auto violations = options.violations();
  require(violations.empty(), fmt::format("reweight: {}.", fmt::join(violations, "; ")));
  require(data.noisy.size() > 0, "reweight: there are no samples.");
  const int64_t trusted = data.trusted.features.defined() ? data.trusted.size() : 0;
  require(trusted >= kFewestTrusted,
          fmt::format("reweight: at least {} trusted samples are needed, got {}.", kFewestTrusted, trusted));
  require(data.trusted.dimension() == data.noisy.dimension(),
          fmt::format("reweight: the trusted samples have {} features, the others {}.", data.trusted.dimension(),
                      data.noisy.dimension()));
  const at::Tensor first = data.noisy.labels.select(0, 0);
  require(data.noisy.labels.ne(first).any().item<bool>() || data.trusted.labels.ne(first).any().item<bool>(),
          "reweight: all labels are of one class, so there is nothing to learn. Does the label column hold the labels?");
  require(options.by == "sample" || data.noisy.sources.defined(),
          "reweight: by = \"source\" needs the source of each sample. Name its column with --source, or use --by sample.");
  if (data.noisy.sources.defined()) {
    const auto& names = data.noisy.source_names;
    const at::Tensor counts = data.noisy.sources.bincount({}, static_cast<int64_t>(names.size()));
    for (size_t s = 0; s < names.size(); ++s) {
      require(counts[static_cast<int64_t>(s)].item<int64_t>() > 0,
              fmt::format("reweight: source \"{}\" has no samples.", names[s]));
    }
  }
  return Job(data, options, watch).run();
}

std::vector<LabelRequest> rows_to_label(const Dataset& noisy, const ReweightOptions& options, int64_t count) {
  ReweightData data;
  data.noisy = noisy;
  data.trusted = noisy.select(at::empty({0}, at::kLong));
  return Job(data, options, {}).requests(count);
}

double rank_correlation(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor u = ranks(a) - ranks(a).mean(), v = ranks(b) - ranks(b).mean();
  return (u.dot(v) / (u.norm() * v.norm())).item<double>();
}

}  // namespace bilevel
