#include "bilevel/algorithm/hpm.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <numeric>
#include <thread>

#include "bilevel/core/clock.h"
#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/outer/adam.h"

namespace bilevel {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// A factor cannot move what is at 0, where clipping may have put it.
constexpr double kLeast = 0.01;
const char* const kMutatedFrom = "mutated_from";

class NoHypergradient final : public Estimator {
 public:
  std::string_view name() const override { return "none"; }
  std::vector<std::string> objections(const Problem&, const InnerSolver&) const override { return {}; }
  Hypergradient estimate(const EstimatorInput& in) const override {
    const at::NoGradGuard no_grad;
    const at::Tensor f = in.oracle.outer_value(in.x, in.solution.y, in.outer_batch);
    Hypergradient h = direct_term(in, {.value = f, .y = {}, .x = at::zeros_like(in.x)}, "nothing");
    check_finite(h, in.solution);
    return h;
  }
};

State taken_out(const State& state, const std::string& prefix) {
  State part;
  const auto& values = state.values();
  for (auto entry = values.lower_bound(prefix); entry != values.end() && entry->first.starts_with(prefix); ++entry) {
    part.set(entry->first.substr(prefix.size()), entry->second);
  }
  return part;
}

void put_in(State& state, const std::string& prefix, const State& part) {
  const State former = taken_out(state, prefix);
  for (const auto& [name, value] : former.values()) state.erase(prefix + name);
  for (const auto& [name, value] : part.values()) state.set(prefix + name, value);
}

std::string of_member(size_t i) { return fmt::format("member.{}.", i); }

/// work(0), …, work(count − 1), each by one thread of LibTorch's. Where several throw, the exception of the least i comes out.
void in_threads(size_t count, int threads, const std::function<void(size_t)>& work) {
  const ThreadsGuard one(1);
  std::vector<std::exception_ptr> thrown(count);
  std::atomic<size_t> next = 0;
  const auto take = [&] {
    for (size_t i = next++; i < count; i = next++) {
      try {
        work(i);
      } catch (...) {
        thrown[i] = std::current_exception();
      }
    }
  };
  std::vector<std::thread> others;
  for (int k = 1; k < threads; ++k) {
    others.emplace_back([&take] {
      at::set_num_threads(1);  // of this thread; a guard's end would give back what belongs to the process
      take();
    });
  }
  take();
  for (std::thread& other : others) other.join();
  for (const std::exception_ptr& each : thrown) {
    if (each) std::rethrow_exception(each);
  }
}

struct Teacher {
  at::Tensor V, W, attention, tanh;
  Teacher(const at::Tensor& phi, const at::Tensor& u) {
    const at::Tensor both = phi.view({2, u.numel(), -1});
    V = both[0];
    W = both[1];
    attention = at::softmax(V.t().mv(u), 0);
    tanh = W.mv(attention).tanh();
  }
};

}  // namespace

std::vector<std::string> HpmOptions::violations() const {
  std::vector<std::string> found;
  if (members < 1) found.push_back(fmt::format("members = {} should be at least 1", members));
  if (exploit_every < 0) found.push_back(fmt::format("exploit_every = {} is negative; 0 means never", exploit_every));
  if (!(truncation > 0 && truncation <= 0.5)) {
    found.push_back(fmt::format("truncation = {} should be more than 0 and at most 0.5", truncation));
  }
  if (slots < 1) found.push_back(fmt::format("slots = {} should be at least 1", slots));
  if (!(teacher_lr > 0 && std::isfinite(teacher_lr))) {
    found.push_back(fmt::format("teacher_lr = {} must be finite and positive", teacher_lr));
  }
  return found;
}

void read(Section& section, HpmOptions& options) {
  section.read("members", options.members);
  section.read("exploit_every", options.exploit_every);
  section.read("truncation", options.truncation);
  section.read_choice("mutation", options.mutation, {"teacher", "random"});
  section.read("slots", options.slots);
  section.read("teacher_lr", options.teacher_lr);
  section.check(options.violations());
}

std::vector<std::pair<int64_t, int64_t>> truncation_selection(const std::vector<double>& losses, double share, Draw draw) {
  const auto all = static_cast<int64_t>(losses.size());
  const auto rank = [&](int64_t i) {
    const double loss = losses[static_cast<size_t>(i)];
    return std::isfinite(loss) ? loss : kInfinity;
  };
  std::vector<int64_t> order(losses.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) { return rank(i) < rank(j); });
  const auto wanted = static_cast<int64_t>(std::floor(share * static_cast<double>(all) + 1e-9));
  const int64_t count = std::min(std::max<int64_t>(wanted, 1), all / 2);
  const at::Tensor pairs = draw.permutation(count);
  std::vector<std::pair<int64_t, int64_t>> copies;
  for (int64_t j = 0; j < count; ++j) {
    copies.emplace_back(order[static_cast<size_t>(all - 1 - j)], order[static_cast<size_t>(pairs[j].item<int64_t>())]);
  }
  return copies;
}

at::Tensor teacher_factors(const at::Tensor& phi, const at::Tensor& u) { return 1 + Teacher(phi, u).tanh; }

at::Tensor teacher_gradient(const at::Tensor& phi, const at::Tensor& u, const at::Tensor& alpha_bar) {
  const Teacher teacher(phi, u);
  const at::Tensor &a = teacher.attention, c_bar = alpha_bar * (1 - teacher.tanh.square());
  const at::Tensor a_bar = teacher.W.t().mv(c_bar), s_bar = a * (a_bar - a.dot(a_bar));
  return at::cat({at::outer(u, s_bar).flatten(), at::outer(c_bar, a).flatten()});
}

std::shared_ptr<const Estimator> no_hypergradient() { return std::make_shared<NoHypergradient>(); }

/// The State of a population in its parts.
struct Hpm::Population {
  std::vector<State> members;
  State teacher;

  Population(const State& state, size_t count) : teacher(taken_out(state, "teacher.")) {
    for (size_t i = 0; i < count; ++i) {
      members.push_back(taken_out(state, of_member(i)));
      for (const char* shared : {"outer_scale", "damping"}) {
        if (state.has(shared)) members.back().set(shared, state.number(shared));
      }
    }
  }
  void write(State& state, size_t best) const {
    for (size_t i = 0; i < members.size(); ++i) put_in(state, of_member(i), members[i]);
    put_in(state, "teacher.", teacher);
    state.set("x", members[best].tensor("x"));
    state.set("y", members[best].tensor("y"));
  }
};

/// What all members have found.
struct Hpm::Round {
  std::vector<double> losses;  // of f; infinite where a member has failed
  std::vector<at::Tensor> hypergradients;
  size_t best = 0;
  Record record;  // of the best; its cost is that of all
};

Hpm::Hpm(const Oracle& oracle, const MemberMaker& make, HpmOptions options, std::string name)
    : oracle_(oracle), options_(options), name_(std::move(name)) {
  const std::vector<std::string> violations = options_.violations();
  require(violations.empty(), fmt::format("{}: {}.", name_, fmt::join(violations, "; ")));
  const Problem& problem = oracle.problem();
  const at::Tensor x = problem.initial_outer().detach();
  const std::vector<Constraint> constraints = problem.outer_constraints();
  std::vector<at::Tensor> lower, width;
  for (size_t i = 0; i < problem.outer_layout().parts().size(); ++i) {
    const Part& part = problem.outer_layout().parts()[i];
    const Constraint box = i < constraints.size() ? constraints[i] : Constraint{};
    require(box.kind == Constraint::Kind::kBox && std::isfinite(box.lower) && std::isfinite(box.upper) && box.lower < box.upper,
            fmt::format("{} draws and mutates x in a box, and \"{}\" has none with two finite sides; give it a min and a max.",
                        name_, part.name));
    lower.push_back(at::full({part.size}, box.lower, x.options()));
    width.push_back(at::full({part.size}, box.upper - box.lower, x.options()));
  }
  lower_ = at::cat(lower);
  width_ = at::cat(width);
  for (int64_t i = 0; i < options_.members; ++i) {
    oracles_.push_back(std::make_unique<CountedOracle>(oracle));
    loops_.push_back(make(*oracles_.back()));
  }
}

State Hpm::init() const {
  const at::NoGradGuard no_grad;
  State state;
  Population population(state, loops_.size());
  for (size_t i = 0; i < loops_.size(); ++i) {
    State& member = population.members[i] = loops_[i]->init();
    if (i == 0) continue;
    const at::Tensor u = Stream(options_.seed, "population").at(static_cast<int64_t>(i)).uniform({lower_.numel()});
    member.set("x", lower_ + width_ * u.to(lower_.options()));
  }
  if (learns()) {
    // V of a size that tells members apart; W small, so that the first mutations are.
    const at::Tensor V_and_W = Stream(options_.seed, "teacher").at(0).normal({2, lower_.numel(), options_.slots});
    population.teacher.set("phi", (V_and_W * at::tensor({1.0, 0.1}, at::kDouble).view({2, 1, 1})).flatten());
  }
  state.set("step", int64_t{0});
  population.write(state, 0);
  return state;
}

Hpm::Round Hpm::visit(Population& population, const Visit& one) const {
  const Clock::time_point began = Clock::now();
  const size_t count = loops_.size();
  const int threads = oracle_.problem().draws_random_numbers() ? 1 : std::min(at::get_num_threads(), static_cast<int>(count));
  std::vector<Record> records(count);
  std::vector<Hypergradient> found(count);
  in_threads(count, threads, [&](size_t i) { records[i] = one(*loops_[i], population.members[i], found[i]); });

  Round round;
  Cost cost;
  for (size_t i = 0; i < count; ++i) {
    const Record& record = records[i];
    round.losses.push_back(failed(record.status) || !std::isfinite(record.outer_loss) ? kInfinity : record.outer_loss);
    round.hypergradients.push_back(found[i].value);
    if (round.losses[i] < round.losses[round.best]) round.best = i;
    cost += record.cost;
  }
  round.record = std::move(records[round.best]);
  round.record.metrics["best_member"] = static_cast<double>(round.best);
  std::vector<double> sorted = round.losses;
  std::sort(sorted.begin(), sorted.end());
  round.record.metrics["median_outer_loss"] = (sorted[(count - 1) / 2] + sorted[count / 2]) / 2;
  round.record.cost = cost;
  round.record.cost.peak_bytes *= threads;  // at most: each thread has its own
  round.record.cost.seconds = seconds_since(began);
  if (dynamic_cast<const NoHypergradient*>(&member().estimator())) round.record.certificate.reset();
  return round;
}

void Hpm::learn(Population& population, const Round& round) const {
  const at::NoGradGuard no_grad;
  at::Tensor sum;
  double count = 0;
  for (size_t i = 0; i < loops_.size(); ++i) {
    State& member = population.members[i];
    if (!member.has(kMutatedFrom)) continue;
    const at::Tensor phi = population.teacher.tensor("phi"), u = member.tensor(kMutatedFrom);
    member.erase(kMutatedFrom);
    if (!std::isfinite(round.losses[i])) continue;
    const at::Tensor by_u = (round.hypergradients[i] * width_).to(phi.options());
    const at::Tensor not_cut = (teacher_factors(phi, u) * u).lt(1);
    const at::Tensor gradient = teacher_gradient(phi, u, by_u * u * not_cut);
    sum = sum.defined() ? sum + gradient : gradient;
    ++count;
  }
  if (!sum.defined()) return;
  const OuterAdam adam({.lr = options_.teacher_lr});
  population.teacher.set("phi", adam.step(population.teacher, population.teacher.tensor("phi"), sum / count));
}

void Hpm::exploit(Population& population, const Round& round, int64_t step) const {
  const at::NoGradGuard no_grad;
  const auto copies = truncation_selection(round.losses, options_.truncation, Stream(options_.seed, "selection").at(step));
  const at::Tensor coins =
      Stream(options_.seed, "mutation").at(step).uniform({static_cast<int64_t>(copies.size()), lower_.numel()});
  const at::Tensor random = 0.8 + 0.4 * coins.ge(0.5).to(at::kDouble);
  for (size_t j = 0; j < copies.size(); ++j) {
    const auto [child, parent] = copies[j];  // no parent is a child
    if (!std::isfinite(round.losses[static_cast<size_t>(parent)])) continue;
    State copy = population.members[static_cast<size_t>(parent)].clone();
    const at::Tensor u = ((copy.tensor("x") - lower_) / width_).to(at::kCPU, at::kDouble).clamp(kLeast, 1.0);
    const at::Tensor alpha = learns() ? teacher_factors(population.teacher.tensor("phi"), u) : random[static_cast<int64_t>(j)];
    copy.set("x", lower_ + width_ * (alpha * u).clamp_max(1.0).to(lower_.options()));
    if (learns()) copy.set(kMutatedFrom, u);
    population.members[static_cast<size_t>(child)] = std::move(copy);
  }
}

Record Hpm::step(State& state, int64_t n) const {
  require(n >= 1, fmt::format("{}::step: n = {}; at least one step can be done.", name_, n));
  Population population(state, loops_.size());
  Record record;
  Cost cost;
  size_t best = 0;
  for (int64_t i = 0; i < n; ++i) {
    Round round = visit(population, [&](const DoubleLoop& loop, State& member, Hypergradient& taken) {
      return loop.step(member, taken, /*metrics=*/i == 0);
    });
    best = round.best;
    cost += round.record.cost;
    learn(population, round);
    const int64_t done = state.integer("step") + 1;
    if (options_.exploit_every > 0 && done % options_.exploit_every == 0) exploit(population, round, done);
    state.set("step", done);
    if (i == 0) {
      record = std::move(round.record);
    } else if (failed(round.record.status) && !failed(record.status)) {
      record.status = round.record.status;
      record.grade = round.record.grade;
      record.message = round.record.message;
    }
  }
  record.cost = cost;
  population.write(state, best);
  return record;
}

Record Hpm::evaluate(State& state) const {
  Population population(state, loops_.size());
  Round round = visit(population, [](const DoubleLoop& loop, State& member, Hypergradient&) { return loop.evaluate(member); });
  population.write(state, round.best);
  return std::move(round.record);
}

}  // namespace bilevel
