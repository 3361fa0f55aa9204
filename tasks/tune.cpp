#include "tasks/tune.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/core/error.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/linear/cg.h"
#include "bilevel/oracle/choice.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/bfgs.h"
#include "tasks/gram.h"

namespace bilevel {
namespace {

constexpr double kWeakest = 1e-7, kStrongest = 10;  // of the λ that grid and random search try, in mean squares of a feature
constexpr double kFewStrengths = 0.01;              // of the samples: so few strengths need no prior
constexpr double kManyStrengths = 0.1;              // of the samples: more than this draws a warning
constexpr double kNoise = 1e-4;                     // of F, that its solves leave open
constexpr double kRough = 10;                       // times the tolerances, where F is
constexpr double kSteep = 0.1;                      // so steep, relative to itself: the step is bounded there anyway

/// Where a search begins and ends.
struct Point {
  at::Tensor x, y;
};

/// A cross-validation with all that solves and differentiates it.
struct Setup {
  std::unique_ptr<CrossValidation> problem;
  std::unique_ptr<Oracle> uncounted;
  std::unique_ptr<CountedOracle> oracle;
  std::shared_ptr<InnerSolver> solver;
  int64_t calls() const { return oracle->cost().oracle_calls(); }
};

class Tuner {
 public:
  Tuner(const TuneData& data, const TuneOptions& options, const TuneWatch& watch)
      : data_(data), options_(options), watch_(watch), loss_(options.loss), samples_{data.train.features, data.train.labels} {
    outputs_ = loss_.kind() == Loss::Kind::kSoftmax ? std::max<int64_t>(data.train.classes(), 2) : 1;
    require(loss_.kind() != Loss::Kind::kLogistic || data.train.classes() == 2,
            fmt::format("tune: the logistic loss is for two classes, and the data have {}. Use --loss softmax.",
                        data.train.classes()));
    n_ = data.train.size();
    require(n_ >= 4 * options.folds,
            fmt::format("tune: {} samples are too few for {} folds; 4 for each are the least.", n_, options.folds));
    const auto model = make_model(options.model, {data.train.dimension()}, outputs_);
    one_ = strength_groups(*model, "one", {}, {});
    groups_ = strength_groups(*model, options.per, columns(), names());
    if (!options.trained()) gram_ = std::make_shared<Gram>(data.train.features, options.model.bias);
    scale_ = gram_ ? gram_->mean_square() : data.train.features.square().mean().item<double>();
    require(scale_ > 0, "tune: every feature is zero.");
  }

  TuneResult run() {
    const auto began = std::chrono::steady_clock::now();
    if (static_cast<double>(groups_.count()) > kManyStrengths * static_cast<double>(n_)) {
      result_.warning = fmt::format(
          "{} strengths are chosen on {} validation samples, more than one for each ten: cross-validation overfits so many. Look "
          "at "
          "the test loss.",
          groups_.count(), n_);
    }
    const at::Tensor folds = folds_of(options_.folds);
    int64_t guard_calls = 0;
    choose_width(guard_calls);

    stage(several() ? "one common strength" : "searching");
    std::vector<TuneRow> searched;
    Setup common = setup(one_, 0, samples_, folds, gram_);
    Point at = search(common, first_point(*common.problem), options_.steps, &result_.records);
    searched.push_back(row_of("common", "one common strength", common, at));
    result_.names = one_.names;
    if (several() && !result_.common_kept) {
      stage(fmt::format("{} strengths", groups_.count()));
      Setup each = setup(groups_, result_.width.value_or(0), samples_, folds, gram_);
      at = search(each, {spread(at.x), at.y}, options_.steps, &result_.records);
      searched.push_back(row_of("learned", fmt::format("a strength per {}", options_.per), each, at));
      searched.back().evaluations += searched.front().evaluations;  // it begins where the common one ends
      searched.back().oracle_calls += searched.front().oracle_calls;
      searched.back().seconds += searched.front().seconds;
      result_.names = groups_.names;
    }
    std::swap(searched.front(), searched.back());
    searched.front().slug = "learned";
    if (searched.size() == 1) searched.front().title = several() ? "hypergradient (one common strength)" : "hypergradient";
    searched.front().oracle_calls += guard_calls;
    result_.x = at.x;
    result_.rows = std::move(searched);
    if (options_.compare) compare(folds);
    for (TuneRow& row : result_.rows) finish(row);
    result_.cost = cost_;
    result_.cost.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    result_.cost.peak_bytes = meter_.peak_bytes();
    return std::move(result_);
  }

 private:
  bool several() const { return groups_.count() > 1; }

  void poll() const {
    if (watch_.interrupt && watch_.interrupt->load()) throw Interrupted();
  }
  void stage(const std::string& name) const {
    poll();
    if (watch_.stage) watch_.stage(name);
  }

  at::Tensor columns() const { return options_.per == "feature" ? at::arange(data_.train.dimension()) : data_.column_groups; }
  std::vector<std::string> names() const {
    if (options_.per == "class") {
      return outputs_ == data_.train.classes() ? data_.train.class_names
                                               : std::vector<std::string>(static_cast<size_t>(outputs_), "all");
    }
    if (options_.per != "feature") return data_.group_names;
    if (!data_.train.feature_names.empty()) return data_.train.feature_names;
    std::vector<std::string> out;
    for (int64_t j = 0; j < data_.train.dimension(); ++j) out.push_back(std::to_string(j));
    return out;
  }

  at::Tensor folds_of(int64_t folds) const {
    return data_.folds.defined() ? data_.folds : random_folds(samples_.labels, loss_.classifies(), folds, options_.seed);
  }

  Setup setup(const StrengthGroups& groups, double width, const Samples& samples, const at::Tensor& folds,
              std::shared_ptr<const Gram> gram) const {
    CrossValidationOptions cv;
    cv.model = options_.model;
    cv.loss = options_.loss;
    cv.outputs = outputs_;
    cv.dtype = samples.features.scalar_type();
    cv.groups = groups;
    cv.start = options_.start * scale_;
    cv.lowest = 1e-9 * scale_;
    cv.highest = 1e4 * scale_;
    cv.width = width;
    cv.step_size = options_.step_size;
    cv.step_start = linear() ? 1 / (even_odds_curvature(loss_, outputs_) * scale_ * static_cast<double>(data_.train.dimension()))
                             : options_.lr;
    cv.seed = options_.seed;
    Setup s;
    s.problem = std::make_unique<CrossValidation>(std::move(cv), samples, folds, std::move(gram));
    s.uncounted = make_oracle(*s.problem);
    s.oracle = std::make_unique<CountedOracle>(*s.uncounted, [this] { poll(); });
    s.solver = solver(*s.problem);
    return s;
  }

  bool linear() const { return options_.model.kind == "linear"; }

  std::shared_ptr<InnerSolver> solver(const CrossValidation& problem, double looser = 1) const {
    if (!options_.trained()) {
      LbfgsOptions lbfgs;
      lbfgs.tolerance = looser * options_.inner_tolerance * std::sqrt(static_cast<double>(problem.folds()));
      lbfgs.max_iterations = 500;
      return std::make_shared<Lbfgs>(lbfgs);
    }
    RuleSolverOptions rule;
    rule.steps = options_.updates;
    rule.lr = options_.lr;
    if (linear()) {
      SgdRuleOptions sgd;
      sgd.momentum = 0.9;
      return std::make_shared<RuleSolver>(std::make_unique<SgdRule>(sgd), rule);
    }
    rule.schedule.kind = ScheduleOptions::Kind::kLinear;
    rule.schedule.start_factor = 1;
    rule.schedule.end_factor = 1.0 / static_cast<double>(rule.steps);
    rule.schedule.total_iters = rule.steps;
    // The same batches for every x, so that F is one function.
    const int64_t n = problem.inner_samples(), size = std::min(options_.batch, n);
    const BatchPlan shuffled = BatchPlan::shuffled(n, size, Stream(options_.seed, "batches"));
    std::vector<at::Tensor> rows;
    for (int64_t t = 0; t < rule.steps; ++t) rows.push_back(shuffled.samples(t));
    return std::make_shared<RuleSolver>(std::make_unique<AdamRule>(AdamRuleOptions{}), rule,
                                        BatchPlan::fixed(at::stack(rows), n));
  }

  Point first_point(const CrossValidation& problem) const {
    const at::Tensor x = problem.initial_outer();
    return {x, problem.initial_inner(x, 0)};
  }

  /// x of one common strength as x of all of them.
  at::Tensor spread(const at::Tensor& x) const {
    return at::cat({x.narrow(0, 0, 1).expand({groups_.count()}), x.narrow(0, 1, x.size(0) - 1)});
  }

  std::shared_ptr<Estimator> estimator(double looser = 1) const {
    if (options_.trained()) {
      UnrolledOptions unrolled;
      unrolled.memory = Memory::kCheckpoints;
      return std::make_shared<Unrolled>(unrolled);
    }
    CgOptions cg;
    cg.iterations = 100;
    cg.tolerance = looser * 1e-2;  // of a direction for x, near a minimum of F
    ImplicitOptions implicit;
    implicit.precondition = true;
    implicit.residual_warning = looser * 1e-2;
    return std::make_shared<Implicit>(std::make_unique<Cg>(cg), implicit);
  }

  DoubleLoop algorithm(const Setup& s, double looser) const {
    OuterBfgsOptions bfgs;
    const double width = s.problem->options().width;
    bfgs.max_step = width > 0 ? std::min(options_.max_step, width) : options_.max_step;
    DoubleLoopOptions loop;
    loop.start = options_.trained() ? Start::kCold : Start::kWarm;
    return {*s.oracle, solver(*s.problem, looser), estimator(looser), std::make_shared<OuterBfgs>(bfgs), loop};
  }

  /// Goes downhill from `at`. Where F rises, x goes back and on with half the step.
  Point search(const Setup& s, Point at, int64_t steps, std::vector<Record>* records) {
    bool steep = !at.y.any().item<bool>();  // nothing has been solved yet
    const DoubleLoop rough = algorithm(s, kRough), fine = algorithm(s, 1);
    State state = fine.init();
    state.set("x", at.x);
    state.set("y", at.y);
    State last_good;  // before the step away from `at`
    double best = std::numeric_limits<double>::infinity(), scale = 1;
    int64_t level = 0;  // steps in turn that have hardly lowered F
    for (int64_t k = 0; k <= steps; ++k) {
      poll();
      const State before = state.clone();
      Record record = (steep ? rough : fine).step(state, 1);
      ++evaluations_;
      if (records) {
        record.step = static_cast<int64_t>(records->size());
        records->push_back(record);
        if (watch_.record) watch_.record(record);
      }
      const double F = record.outer_loss, slope = record.hypergradient_norm;
      if (!(F < best + kNoise * std::abs(best))) {
        if (!std::isfinite(best)) throw std::runtime_error(fmt::format("The first solve failed. {}", record.message));
        if (scale < 0.02) break;
        scale /= 2;
        state = last_good.clone();
        state.set("outer_scale", scale);
        continue;
      }
      steep = slope > kSteep * F;
      level = best - F < kNoise * F ? level + 1 : 0;
      best = std::min(best, F);
      at = {before.tensor("x"), state.tensor("y")};
      last_good = before;
      last_good.set("y", at.y);
      if (state.has("q")) last_good.set("q", state.tensor("q"));
      if (slope < options_.tolerance * F || level == 2) break;
    }
    return at;
  }

  TuneRow row_of(const std::string& slug, const std::string& title, const Setup& s, const Point& at) {
    TuneRow row;
    row.slug = slug;
    row.title = title;
    row.validation = s.problem->validate(at.y);
    take_x(row, at.x);
    row.y = s.problem->mean_model(at.y);
    row.oracle_calls = s.calls();
    row.evaluations = std::exchange(evaluations_, 0);
    row.seconds = seconds_since_last();
    cost_ += s.oracle->cost();
    return row;
  }

  void take_x(TuneRow& row, const at::Tensor& x) const {
    const at::Tensor values = x.to(at::kDouble).exp();
    const int64_t J = x.size(0) - (options_.step_size ? 1 : 0);
    row.strengths.assign(values.const_data_ptr<double>(), values.const_data_ptr<double>() + J);
    if (options_.step_size) row.step_size = values[-1].item<double>();
  }

  at::Tensor x_of(const TuneRow& row) const {
    std::vector<double> values = row.strengths;
    if (row.step_size) values.push_back(*row.step_size);
    return at::tensor(values, at::kDouble).log().to(samples_.features.scalar_type());
  }

  double seconds_since_last() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(last_, now)).count();
  }

  struct Fit {
    at::Tensor y;
    double stationarity = 0;
    std::unique_ptr<CrossValidation> problem;
  };
  /// Of all `samples`, with the strengths of x, from `start`.
  Fit fit(const StrengthGroups& groups, const at::Tensor& x, const at::Tensor& start, const Samples& samples,
          const std::shared_ptr<const Gram>& gram) {
    Setup s = setup(groups, 0, samples, at::full({samples.labels.size(0)}, -1, at::kLong), gram);
    const at::Tensor y0 = options_.trained() ? s.problem->initial_inner(x, 0) : start;
    const InnerSolution solution = s.solver->solve(*s.oracle, x, 0, {y0, {}, 0, 0}, {});
    cost_ += s.oracle->cost();
    return {solution.y, solution.stationarity, std::move(s.problem)};
  }

  /// [n], of a model on samples that it has not seen.
  at::Tensor losses(const Model& model, const at::Tensor& y, const Samples& samples) const {
    const at::NoGradGuard no_grad;
    const at::Tensor targets = loss_.targets(samples.labels, outputs_, samples.features.scalar_type(), "tune");
    return loss_.losses(model.outputs(y, samples.features), targets).to(at::kDouble);
  }

  /// The refit and its test figures.
  void finish(TuneRow& row) {
    if (&row == &result_.rows.front()) stage("fitting to all samples");
    const bool common = row.strengths.size() == 1;
    const Fit refit = fit(common ? one_ : groups_, x_of(row), row.y, samples_, gram_);
    row.y = refit.y;
    row.stationarity = refit.stationarity;
    if (!data_.test.features.defined()) return;
    const at::NoGradGuard no_grad;
    const Samples test{data_.test.features, data_.test.labels};
    row.test_loss = losses(refit.problem->model(), row.y, test).mean().item<double>();
    row.test_score = loss_.score(refit.problem->model().outputs(row.y, test.features),
                                 loss_.targets(test.labels, outputs_, test.features.scalar_type(), "tune"));
  }

  /// Sets result_.width or result_.common_kept.
  void choose_width(int64_t& calls) {
    if (!several() || options_.prior == "none") return;
    if (options_.prior != "auto") {
      result_.width = std::stod(options_.prior);
      return;
    }
    if (static_cast<double>(groups_.count()) <= kFewStrengths * static_cast<double>(n_)) return;
    stage("an outer fold chooses how far apart the strengths may be");
    // Folds that are given may keep together what belongs together, so one of them is the outer one.
    const int64_t last = data_.folds.defined() ? options_.folds - 1 : options_.folds;
    require(last >= 2,
            fmt::format("tune: {} given folds are too few to hold an outer one out; give 3, or set prior.", options_.folds));
    const at::Tensor folds = folds_of(last + 1);
    const auto rows = [&](const at::Tensor& chosen) {
      const at::Tensor index = chosen.nonzero().squeeze(1);
      return Samples{samples_.features.index_select(0, index), samples_.labels.index_select(0, index)};
    };
    const Samples rest = rows(folds != last), outer = rows(folds == last);
    const at::Tensor rest_folds = folds.masked_select(folds != last);
    const auto gram = gram_ ? std::make_shared<Gram>(rest.features, options_.model.bias) : nullptr;

    std::vector<at::Tensor> judged;
    Setup common = setup(one_, 0, rest, rest_folds, gram);
    Point at = search(common, first_point(*common.problem), options_.steps, nullptr);
    const auto judge = [&](double width, const Setup& s, const StrengthGroups& groups) {
      const Fit refit = fit(groups, at.x, s.problem->mean_model(at.y), rest, gram);
      judged.push_back(losses(refit.problem->model(), refit.y, outer));
      result_.widths.push_back({width, judged.back().mean().item<double>(), 0});
      calls += s.calls();
      cost_ += s.oracle->cost();
    };
    judge(0, common, one_);
    at.x = spread(at.x);
    for (const double width : {0.1, 0.3, 1.0, 3.0}) {
      Setup s = setup(groups_, width, rest, rest_folds, gram);
      at = search(s, at, options_.steps, nullptr);
      judge(width, s, groups_);
    }
    evaluations_ = 0;
    last_ = std::chrono::steady_clock::now();
    std::vector<WidthTrial>& trials = result_.widths;
    const auto less = [](const WidthTrial& a, const WidthTrial& b) { return a.loss < b.loss; };
    const auto best = static_cast<size_t>(std::min_element(trials.begin(), trials.end(), less) - trials.begin());
    size_t chosen = best;
    for (size_t i = trials.size(); i-- > 0;) {
      const at::Tensor difference = judged[i] - judged[best];
      trials[i].difference_error = difference.std().item<double>() / std::sqrt(static_cast<double>(difference.size(0)));
      if (i < best && trials[i].loss - trials[best].loss <= trials[i].difference_error) chosen = i;
    }
    if (trials[chosen].width == 0) {
      result_.common_kept = true;
    } else {
      result_.width = trials[chosen].width;
    }
  }

  /// Grid search and random search with as many oracle calls as the hypergradient took.
  void compare(const at::Tensor& folds) {
    const int64_t budget = result_.rows.front().oracle_calls;
    const double low = std::log(kWeakest * scale_), high = std::log(kStrongest * scale_);
    // 1/2, 1/4, 3/4, 1/8, …: a grid that is even whenever it ends at a power of two, and never far from it.
    const auto position = [](int64_t i) {
      double value = 0, step = 0.5;
      for (int64_t j = i + 1; j > 0; j /= 2, step /= 2) value += static_cast<double>(j % 2) * step;
      return value;
    };
    const auto steps_of = [&](double u) { return std::log(step_start()) + (2 * u - 1) * std::log(100.0); };
    result_.rows.push_back(
        try_out("grid", several() ? "grid search, one common strength" : "grid search", one_, folds, budget, [&](int64_t i) {
          // With a step size a grid of two dimensions: each of 4 step sizes with each strength.
          const int64_t row = options_.step_size ? i / 4 : i;
          at::Tensor x = at::full({1}, low + position(row) * (high - low));
          if (options_.step_size) x = at::cat({x, at::full({1}, steps_of(static_cast<double>(i % 4) / 3))});
          return x;
        }));
    result_.rows.push_back(try_out("random", "random search", groups_, folds, budget, [&](int64_t i) {
      at::Tensor u = Stream(options_.seed, "random search").at(i).uniform({groups_.count() + (options_.step_size ? 1 : 0)});
      const at::Tensor x = low + u.narrow(0, 0, groups_.count()) * (high - low);
      return options_.step_size ? at::cat({x, at::full({1}, steps_of(u[-1].item<double>()), at::kDouble)}) : x;
    }));
  }

  double step_start() const {
    return linear() ? 1 / (even_odds_curvature(loss_, outputs_) * scale_ * static_cast<double>(data_.train.dimension()))
                    : options_.lr;
  }

  template <class F>
  TuneRow try_out(const std::string& slug, const std::string& title, const StrengthGroups& groups, const at::Tensor& folds,
                  int64_t budget, F candidate) {
    stage(title);
    seconds_since_last();
    Setup s = setup(groups, 0, samples_, folds, gram_);
    std::vector<Point> tried;
    Point best;
    double lowest = std::numeric_limits<double>::infinity();
    for (int64_t i = 0; tried.empty() || s.calls() < budget; ++i) {
      const at::Tensor x = candidate(i).to(samples_.features.scalar_type());
      at::Tensor y0 = s.problem->initial_inner(x, 0);
      double nearest = std::numeric_limits<double>::infinity();
      for (const Point& p : tried) {
        const double distance = (p.x - x).norm().template item<double>();
        if (options_.trained() || distance >= nearest) continue;
        nearest = distance;
        y0 = p.y;
      }
      const InnerSolution solution = s.solver->solve(*s.oracle, x, 0, {y0, {}, 0, 0}, {});
      const double loss = s.oracle->outer_value(x, solution.y, {}).template item<double>();
      tried.push_back({x, solution.y});
      if (tried.size() > 20) tried.erase(tried.begin());
      ++evaluations_;
      if (loss < lowest) {
        lowest = loss;
        best = {x, solution.y};
      }
      if (watch_.fraction) watch_.fraction(std::min(1.0, static_cast<double>(s.calls()) / static_cast<double>(budget)));
    }
    require(std::isfinite(lowest), fmt::format("tune: {} has met no finite loss.", title));
    return row_of(slug, title, s, best);
  }

  const MemoryMeter meter_;
  const TuneData& data_;
  const TuneOptions& options_;
  const TuneWatch& watch_;
  Loss loss_;
  Samples samples_;
  int64_t n_ = 0, outputs_ = 1;
  StrengthGroups one_, groups_;
  std::shared_ptr<const Gram> gram_;
  double scale_ = 1;  // mean square of a feature: the unit of λ

  TuneResult result_;
  Cost cost_;
  int64_t evaluations_ = 0;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace

std::vector<std::string> TuneOptions::violations() const {
  std::vector<std::string> found = model.violations();
  const auto demand = [&](bool holds, std::string violation) {
    if (!holds) found.push_back(std::move(violation));
  };
  demand(model.kind != "cnn", "model = \"cnn\" is not offered here; linear and mlp are");
  demand(per != "class" || model.kind == "linear",
         fmt::format("per = \"class\" needs model = \"linear\", not \"{}\"", model.kind));
  demand(per != "class" || loss == "softmax", fmt::format("per = \"class\" needs loss = \"softmax\", not \"{}\"", loss));
  demand(folds >= 2, fmt::format("folds = {} must be at least 2", folds));
  char* end = nullptr;
  const double width = std::strtod(prior.c_str(), &end);
  demand(prior == "auto" || prior == "none" || (!prior.empty() && *end == '\0' && width > 0 && std::isfinite(width)),
         fmt::format("prior = \"{}\" must be \"auto\", \"none\" or a positive width of log λ, such as \"0.5\"", prior));
  demand(start > 0 && std::isfinite(start), fmt::format("start = {} must be positive", start));
  demand(steps >= 1, fmt::format("steps = {} must be at least 1", steps));
  demand(max_step > 0 && std::isfinite(max_step), fmt::format("max_step = {} must be positive", max_step));
  demand(tolerance > 0, fmt::format("tolerance = {} must be positive", tolerance));
  demand(inner_tolerance > 0, fmt::format("inner_tolerance = {} must be positive", inner_tolerance));
  demand(updates >= 1, fmt::format("updates = {} must be at least 1", updates));
  demand(batch >= 1, fmt::format("batch = {} must be at least 1", batch));
  demand(lr > 0 && std::isfinite(lr), fmt::format("lr = {} must be positive", lr));
  return found;
}

void read(Section& root, TuneOptions& options) {
  Section problem = root.section("problem");
  std::string task = "tune";
  problem.read("task", task);
  read(problem, options.model);
  problem.read_choice("loss", options.loss, Loss::names());
  problem.finish();
  Section tune = root.section("tune");
  if (options.model.kind != "linear") options.steps = 12;  // a step costs several trainings
  tune.read_choice("per", options.per, {"one", "class", "group", "feature", "layer"});
  tune.read("folds", options.folds);
  tune.read("step_size", options.step_size);
  tune.read("prior", options.prior);
  tune.read("start", options.start);
  tune.read("steps", options.steps);
  tune.read("max_step", options.max_step);
  tune.read("tolerance", options.tolerance);
  tune.read("inner_tolerance", options.inner_tolerance);
  tune.read("updates", options.updates);
  tune.read("batch", options.batch);
  tune.read("lr", options.lr);
  tune.read("compare", options.compare);
  tune.check(options.violations());
  tune.finish();
}

const TuneRow& TuneResult::row(const std::string& slug) const {
  for (const TuneRow& row : rows) {
    if (row.slug == slug) return row;
  }
  throw Error(fmt::format("TuneResult::row: there is no row \"{}\".", slug));
}

TuneResult tune(const TuneData& data, const TuneOptions& options, const TuneWatch& watch) {
  const std::vector<std::string> violations = options.violations();
  require(violations.empty(), fmt::format("tune: {}.", fmt::join(violations, "; ")));
  return Tuner(data, options, watch).run();
}

}  // namespace bilevel
