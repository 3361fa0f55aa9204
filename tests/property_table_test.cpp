// Every estimator × rule × oracle × dtype on every problem, in one table: a new estimator or rule is one new row below, and until
// it has one a test fails.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "bilevel/hypergrad/evograd.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/registry.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/finite_difference.h"
#include "bilevel/problem/likelihood.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

using namespace testing;

constexpr int64_t kSteps = 7;

std::string label_of(const std::string& name, std::string keys) {
  std::replace(keys.begin(), keys.end(), '\n', ' ');
  return keys.empty() ? name : name + " " + keys;
}

// ---- Rules: the engine's by name and keys, and the same written plainly ----

struct RuleCase {
  std::string name, keys;
  PlainRule plain;
  std::string label() const { return label_of(name, keys); }
  // No condition says where it stops: that depends on the way there.
  bool stops_anywhere() const { return plain.decoupled && plain.amsgrad; }
};

const std::vector<RuleCase>& rule_rows() {
  using Kind = PlainRule::Kind;
  static const std::vector<RuleCase> rows = {
      {"sgd", "", {.lr = 0.05}},
      {"sgd", "momentum = 0.8\nnesterov = true", {.lr = 0.05, .momentum = 0.8, .nesterov = true}},
      {"sgd", "weight_decay = 0.1", {.lr = 0.05, .weight_decay = 0.1}},
      {"adam", "", {.kind = Kind::kAdam, .lr = 0.05}},
      {"adamw", "", {.kind = Kind::kAdam, .lr = 0.05, .weight_decay = 0.01, .decoupled = true}},
      {"adamw", "amsgrad = true", {.kind = Kind::kAdam, .lr = 0.05, .weight_decay = 0.01, .decoupled = true, .amsgrad = true}},
      {"adam",
       "amsgrad = true\nbetas = [0.5, 0.6]",
       {.kind = Kind::kAdam, .lr = 0.05, .beta1 = 0.5, .beta2 = 0.6, .amsgrad = true}},
      {"rmsprop",
       "centered = true\nmomentum = 0.5\nalpha = 0.9\nweight_decay = 0.1",
       {.kind = Kind::kRmsprop, .lr = 0.01, .momentum = 0.5, .weight_decay = 0.1, .centered = true, .decay = 0.9}},
      {"adagrad", "initial_accumulator_value = 0.1", {.kind = Kind::kAdagrad, .lr = 0.1, .eps = 1e-10, .accumulator = 0.1}},
      {"adadelta", "eps = 1e-2", {.kind = Kind::kAdadelta, .lr = 0.3, .eps = 1e-2, .decay = 0.9}},
      {"adamax", "weight_decay = 0.1", {.kind = Kind::kAdamax, .lr = 0.05, .weight_decay = 0.1}},
      {"sgd", "clip_norm = 0.5", {.lr = 0.05, .clip_norm = 0.5}},
  };
  return rows;
}

// ---- Problems, in any dtype; the data are the same up to rounding ----

struct ProblemCase {
  std::string name;
  bool convex;
  std::function<std::unique_ptr<Problem>(at::ScalarType)> make;
};

const std::vector<ProblemCase>& problem_rows() {
  static const std::vector<ProblemCase> rows = {
      {"quadratic", true, [](at::ScalarType t) { return std::make_unique<QuadraticProblem>(QuadraticOptions{.dtype = t}); }},
      {"ridge", true, [](at::ScalarType t) { return std::make_unique<RidgeProblem>(RidgeOptions{.dtype = t}); }},
      {"logistic weights", true,
       [](at::ScalarType t) { return std::make_unique<LogisticWeightsProblem>(LogisticWeightsOptions{.dtype = t}); }},
      {"mlp", false, [](at::ScalarType t) { return std::make_unique<MlpProblem>(MlpOptions{.dtype = t}); }},
  };
  return rows;
}

// ---- Estimators: what each defines, without the engine ----

struct Place {  // the end of kSteps steps of a rule, in double
  const Problem& problem;
  const at::Tensor& x;
  const PlainRule& rule;
  at::Tensor y, previous, b, H, direct;
};

at::Tensor minus_cross(const Place& p, const at::Tensor& at_y, const at::Tensor& q) {
  return p.direct - cross(p.problem, p.x, at_y).t().mv(q);
}

// ∂x f − Gᵀ (H + w)⁻¹ ∂y f at the y that was reached, w the weight decay as the rule's condition has it
at::Tensor implicit_formula(const Place& p) { return minus_cross(p, p.y, at::linalg_solve(p.H, p.b)); }

// The same with the curvature of ‖y − y₀‖²/(2γ), γ = ½, where y₀ is a constant, and without the rule's decay.
at::Tensor moreau_formula(const Place& p) {
  return minus_cross(p, p.y, at::linalg_solve(hessian(p.problem, p.x, p.y) + 2 * at::eye(p.b.size(0), p.b.options()), p.b));
}

// η Σ_{i≤4} (I − ηH)ⁱ b: four products
at::Tensor neumann_formula(const Place& p) {
  at::Tensor term = p.b, sum = p.b;
  for (int i = 0; i < 4; ++i) {
    term = term - p.rule.lr * p.H.mv(term);
    sum = sum + term;
  }
  return minus_cross(p, p.y, p.rule.lr * sum);
}

at::Tensor darts_formula(const Place& p) {
  const auto grad_x = [&](const at::Tensor& y) {
    const at::AutoGradMode grad_mode(true);
    const at::Tensor x = p.x.detach().clone().requires_grad_(true);
    return torch::autograd::grad({p.problem.inner_loss(x, y, Batch{})}, {x})[0];
  };
  const double epsilon = 0.01 / p.b.norm().item<double>();
  return p.direct - p.rule.lr * (grad_x(p.previous + epsilon * p.b) - grad_x(p.previous - epsilon * p.b)) / (2 * epsilon);
}

// The formula of the paper with the exact derivative of the last update: q = −(∂y_T/∂g)ᵀ ∂y f.
at::Tensor sama_formula(const Place& p) {
  at::Tensor y = p.problem.initial_inner(p.x, 0).detach(), q;
  const auto inner_gradient = [&](const at::Tensor& at_y, bool by_x) {
    const at::AutoGradMode grad_mode(true);
    const at::Tensor xv = p.x.detach().clone().requires_grad_(true), yv = at_y.detach().clone().requires_grad_(true);
    return torch::autograd::grad({p.problem.inner_loss(xv, yv, Batch{})}, {by_x ? xv : yv})[0];
  };
  PlainState state = plain_start(p.rule, y);
  const at::Tensor lr = at::scalar_tensor(p.rule.lr, y.options()), mu = at::scalar_tensor(p.rule.momentum, y.options());
  for (int64_t t = 0; t < kSteps; ++t) {
    const at::AutoGradMode grad_mode(true);
    const at::Tensor g = inner_gradient(y, false).requires_grad_(true);
    const at::Tensor next = plain_step(p.rule, t, y, g, lr, mu, state);
    q = -torch::autograd::grad({next}, {g}, {p.b}, /*retain_graph=*/true)[0];
    y = next.detach();
    state = {state.m.detach(), state.v.detach(), state.u.detach()};
  }
  const double epsilon = 1.0 / q.norm().item<double>();
  return p.direct - (inner_gradient(p.y + epsilon * q, true) - inner_gradient(p.y - epsilon * q, true)) / (2 * epsilon);
}

// Three directions that the engine draws, and differences of the loss after all steps along them.
at::Tensor zeroth_order_formula(const Place& p) {
  at::Tensor sum = at::zeros_like(p.x);
  for (int64_t i = 0; i < 3; ++i) {
    const at::Tensor u = Stream(0, "zeroth-order").at(i).normal({p.x.size(0)});
    const auto F_T = [&](double s) {
      return p.problem.outer_loss(p.x + s * u, unrolled_end(p.problem, p.x + s * u, p.rule, kSteps), {});
    };
    sum = sum + (F_T(0.05) - F_T(-0.05)) / 0.1 * u / 3;
  }
  return sum;
}

// Three steps on g ± f/20 from y, and the derivative by x of both penalised losses at their ends.
at::Tensor penalty_formula(const Place& p) {
  const auto derivative = [&](double sigma) {
    const at::AutoGradMode grad_mode(true);
    const at::Tensor x = p.x.detach().clone().requires_grad_(true);
    at::Tensor z = p.y.detach();
    const auto loss = [&](const at::Tensor& at) {
      return p.problem.inner_loss(x, at, Batch{}) + sigma * p.problem.outer_loss(x, at, Batch{});
    };
    for (int k = 0; k < 3; ++k) {
      z = z.detach().clone().requires_grad_(true);
      z = (z - p.rule.lr * torch::autograd::grad({loss(z)}, {z})[0]).detach();
    }
    return torch::autograd::grad({loss(z)}, {x})[0];
  };
  return (derivative(0.05) - derivative(-0.05)) / 0.1;
}

// With the Gauss–Newton matrix, as the Hessian of the loss of outputs that are linear in y, and a damping.
at::Tensor fisher_formula(const Place& p) {
  const int64_t dy = p.y.size(0);
  const at::AutoGradMode grad_mode(true);
  const at::Tensor y = p.y.detach().clone().requires_grad_(true);
  const at::Tensor z = p.problem.inner_outputs(y, Batch{});
  std::vector<at::Tensor> J, rows;
  for (int64_t i = 0; i < z.size(0); ++i) J.push_back(torch::autograd::grad({z[i]}, {y}, {}, /*retain_graph=*/true)[0]);
  const at::Tensor moved = p.y.detach().clone().requires_grad_(true);
  const at::Tensor loss = p.problem.inner_loss_of_outputs(p.x, moved, z.detach() + at::stack(J).mv(moved - p.y), Batch{});
  const at::Tensor gradient = torch::autograd::grad({loss}, {moved}, {}, true, /*create_graph=*/true)[0];
  for (int64_t i = 0; i < dy; ++i) rows.push_back(torch::autograd::grad({gradient[i]}, {moved}, {}, /*retain_graph=*/true)[0]);
  const at::Tensor of_rule = p.H - hessian(p.problem, p.x, p.y);  // its weight decay
  return minus_cross(p, p.y, at::linalg_solve(at::stack(rows) + of_rule + 0.05 * at::eye(dy, p.y.options()), p.b));
}

// The merge as the paper writes it, by autograd, with the noise that the engine draws.
at::Tensor evograd_formula(const Place& p) {
  const at::Tensor copies = p.y + 0.1 * EvoGrad({.copies = 3}).noise(Stream(0, "evograd").at(0), p.y.size(0));
  const at::AutoGradMode grad_mode(true);
  const at::Tensor x = p.x.detach().clone().requires_grad_(true);
  std::vector<at::Tensor> losses;
  for (const at::Tensor& one : copies.unbind(0)) losses.push_back(p.problem.inner_loss(x, one, Batch{}));
  const at::Tensor merged = at::softmax(-at::stack(losses) / 0.5, 0).matmul(copies);
  return torch::autograd::grad({p.problem.outer_loss(x, merged, Batch{})}, {x})[0];
}

// The rule of tolerance: the error of the implicit part, relative to that part, by oracle and dtype. What rounding the sum with a
// larger direct term costs is allowed on top of it.
struct Tolerance {
  double autodiff = 1e-11;   // double: rounding alone
  double difference = 1e-7;  // double: products are good to about 1e-9, and seven steps enlarge that
  double single = 1e-3;      // float: rounding of 6e-8 in the data and in each of some hundred sums
};
// A solve with H enlarges the error of its products by the condition number.
constexpr Tolerance kSolved{.difference = 1e-6};

struct EstimatorCase {
  std::string name, keys;
  std::string quantity;  // rows of one quantity agree with each other
  std::function<at::Tensor(const Place&)> reference;
  Tolerance tolerance = {};
  bool needs_stationary_rule = false;  // decoupled decay is refused
  bool convex_only = false;
  bool needs_short_step = false;   // below 2/L, as the inner step size is not with every rule
  bool linear_model_only = false;  // needs outputs, and is what it defines where they are linear in all of y
  bool needs_likelihood = false;   // of the inner loss
  bool values_alone = false;       // differences of F over σ: in float they drown where clipping leaves little implicit part
  std::string label() const { return label_of(name, keys); }
  bool serves(const Problem& problem) const {
    const bool linear = problem.output_layer() && output_layer_positions(problem).size(0) == problem.inner_layout().size();
    return (!linear_model_only || linear) && (!needs_likelihood || problem.has_inner_likelihood());
  }
};

void PrintTo(const EstimatorCase& row, std::ostream* os) { *os << row.label(); }

const std::vector<EstimatorCase>& estimator_rows() {
  const auto last = [](int64_t k) {
    return [k](const Place& p) { return unrolled_gradient(p.problem, p.x, p.rule, kSteps, kSteps - k); };
  };
  static const std::vector<EstimatorCase> rows = {
      {.name = "unrolled", .keys = "", .quantity = "F_T", .reference = last(kSteps)},
      {.name = "unrolled", .keys = "memory = \"states\"", .quantity = "F_T", .reference = last(kSteps)},
      {.name = "unrolled", .keys = "memory = \"checkpoints\"", .quantity = "F_T", .reference = last(kSteps)},
      {.name = "unrolled", .keys = "memory = \"checkpoints\"\nbudget = \"1 GB\"", .quantity = "F_T", .reference = last(kSteps)},
      {.name = "forward", .keys = "", .quantity = "F_T", .reference = last(kSteps)},
      {.name = "unrolled", .keys = "steps = 3", .quantity = "last three", .reference = last(3)},
      {.name = "implicit",
       .keys = "solver = \"dense\"",
       .quantity = "F",
       .reference = implicit_formula,
       .tolerance = kSolved,
       .needs_stationary_rule = true},
      {.name = "implicit",
       .keys = "solver = \"cg\"\niterations = 60\ntolerance = 1e-13",
       .quantity = "F",
       .reference = implicit_formula,
       .tolerance = kSolved,
       .needs_stationary_rule = true,
       .convex_only = true},
      {.name = "implicit",
       .keys = "solver = \"neumann\"\niterations = 4",
       .quantity = "neumann",
       .reference = neumann_formula,
       .needs_stationary_rule = true,
       .needs_short_step = true},
      {.name = "implicit",
       .keys = "solver = \"minres\"\niterations = 300\ntolerance = 1e-13",
       .quantity = "F",
       .reference = implicit_formula,
       .tolerance = kSolved,
       .needs_stationary_rule = true},
      {.name = "implicit",
       .keys = "solver = \"gmres\"\niterations = 100\ntolerance = 1e-13",
       .quantity = "F",
       .reference = implicit_formula,
       .tolerance = kSolved,
       .needs_stationary_rule = true},
      {.name = "implicit",
       .keys = "solver = \"normal-cg\"\niterations = 300\ntolerance = 1e-13",
       .quantity = "F",
       .reference = implicit_formula,
       .tolerance = kSolved,
       .needs_stationary_rule = true,
       .convex_only = true},
      {.name = "implicit",
       .keys = "solver = \"bicgstab\"\niterations = 200\ntolerance = 1e-13",
       .quantity = "F",
       .reference = implicit_formula,
       .tolerance = kSolved,
       .needs_stationary_rule = true,
       .convex_only = true},
      {.name = "implicit",
       .keys = "solver = \"cg\"\niterations = 60\ntolerance = 1e-13\nprecondition = \"diagonal\"",
       .quantity = "F",
       .reference = implicit_formula,
       .tolerance = kSolved,
       .needs_stationary_rule = true,
       .convex_only = true},
      {.name = "implicit",
       .keys = "solver = \"cg\"\niterations = 60\ntolerance = 1e-13\nprecondition = \"nystrom\"\nrank = 3",
       .quantity = "F",
       .reference = implicit_formula,
       .tolerance = kSolved,
       .needs_stationary_rule = true,
       .convex_only = true},
      // Their directions are enough for the whole matrix.
      {.name = "implicit",
       .keys = "solver = \"nystrom\"\nrank = 40\nridge = 1e-14",
       .quantity = "F",
       .reference = implicit_formula,
       .tolerance = kSolved,
       .needs_stationary_rule = true,
       .convex_only = true},
      // From zero their fifth iterate is the series with four products.
      {.name = "implicit",
       .keys = "solver = \"richardson\"\niterations = 5\ntolerance = 0",
       .quantity = "neumann",
       .reference = neumann_formula,
       .needs_stationary_rule = true,
       .needs_short_step = true},
      {.name = "implicit",
       .keys = "solver = \"sgd\"\niterations = 5\ntail = 0",
       .quantity = "neumann",
       .reference = neumann_formula,
       .needs_stationary_rule = true,
       .needs_short_step = true},
      {.name = "one-step", .keys = "", .quantity = "one-step", .reference = last(1)},
      {.name = "t1-t2",
       .keys = "",
       .quantity = "t1-t2",
       .reference = [](const Place& p) { return minus_cross(p, p.previous, p.rule.lr * p.b); }},
      {.name = "identity",
       .keys = "",
       .quantity = "identity",
       .reference = [](const Place& p) { return minus_cross(p, p.y, p.rule.lr * p.b); }},
      // First derivatives only, so that the oracle of differences gives the same; near 1e-16/0.01 of rounding.
      {.name = "darts", .keys = "", .quantity = "darts", .reference = darts_formula, .tolerance = {.difference = 1e-11}},
      {.name = "sama", .keys = "", .quantity = "sama", .reference = sama_formula, .tolerance = {.difference = 1e-11}},
      {.name = "evograd",
       .keys = "copies = 3\nsigma = 0.1\ntemperature = 0.5",
       .quantity = "evograd",
       .reference = evograd_formula,
       .tolerance = {.difference = 1e-11}},
      {.name = "moreau",
       .keys = "gamma = 0.5\nsolver = \"dense\"",
       .quantity = "moreau",
       .reference = moreau_formula,
       .tolerance = kSolved},
      {.name = "penalty",
       .keys = "lambda = 20.0\nsteps = 3",
       .quantity = "penalty",
       .reference = penalty_formula,
       .tolerance = {.difference = 1e-11}},
      {.name = "functional",
       .keys = "damping = 0",
       .quantity = "F",
       .reference = implicit_formula,
       .tolerance = kSolved,
       .needs_stationary_rule = true,
       .linear_model_only = true},
      {.name = "fisher",
       .keys = "labels = \"enumerated\"\nscores = 0\nsteps = 0\ndamping = 0.05",
       .quantity = "fisher",
       .reference = fisher_formula,
       .tolerance = kSolved,
       .needs_stationary_rule = true,
       .needs_likelihood = true},
      {.name = "zeroth-order",
       .keys = "samples = 3\nsigma = 0.05",
       .quantity = "zeroth-order",
       .reference = zeroth_order_formula,
       .tolerance = {.difference = 1e-11},
       .values_alone = true},
  };
  return rows;
}

// ---- Cells ----

struct Cell {
  bool difference;
  at::ScalarType dtype;
  std::string label() const { return fmt::format("{} {}", difference ? "difference" : "autodiff", at::toString(dtype)); }
  // Differences of float gradients keep three digits, and are not offered; every problem here is smooth.
  bool offered() const { return !difference || dtype == at::kDouble; }
  double rounding() const {
    return 50 * (dtype == at::kFloat ? static_cast<double>(std::numeric_limits<float>::epsilon())
                                     : std::numeric_limits<double>::epsilon());
  }
  double tolerance(const Tolerance& t) const { return dtype == at::kFloat ? t.single : difference ? t.difference : t.autodiff; }
};

const std::vector<Cell>& cells() {
  static const std::vector<Cell> all = {{false, at::kDouble}, {false, at::kFloat}, {true, at::kDouble}, {true, at::kFloat}};
  return all;
}

std::unique_ptr<Estimator> estimator_of(const EstimatorCase& row) {
  Section section = Config::parse(row.keys, "table.toml").root();
  auto estimator = make_estimator(row.name, section);
  section.finish();
  return estimator;
}

RuleSolver solver_of(const RuleCase& row) {
  Section section = Config::parse(row.keys, "table.toml").root();
  auto rule = make_rule(row.name, section);
  section.finish();
  return {std::move(rule), {.lr = row.plain.lr, .steps = kSteps}};
}

Hypergradient estimate_in(const Cell& cell, const Estimator& estimator, const Problem& problem, const RuleSolver& solver,
                          const at::Tensor& x) {
  const AutodiffOracle autodiff(problem);
  const FiniteDifferenceOracle difference(autodiff);
  const Oracle& oracle = cell.difference ? static_cast<const Oracle&>(difference) : autodiff;
  const InnerStart start{.y = problem.initial_inner(x, 0).detach()};
  InnerSolution solution = solver.solve(oracle, x, 0, start, estimator.trajectory());
  EstimatorInput input{oracle, solver, x, solution, Batch{}, Batch{}, {}};
  input.start = start;
  return estimator.estimate(input);
}

at::Tensor inner_grad_y(const Problem& problem, const at::Tensor& x, const at::Tensor& y) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor yv = y.detach().clone().requires_grad_(true);
  return torch::autograd::grad({problem.inner_loss(x, yv, Batch{})}, {yv})[0];
}

Place place_of(const Problem& problem, const at::Tensor& x, const PlainRule& rule) {
  Place p{problem, x, rule, unrolled_end(problem, x, rule, kSteps), unrolled_end(problem, x, rule, kSteps - 1), {}, {}, {}};
  p.b = outer_grad_y(problem, x, p.y);
  p.H = hessian(problem, x, p.y);
  if (!rule.decoupled) {
    p.H = p.H + rule.weight_decay * at::eye(p.y.size(0), p.y.options());
  } else {
    // AdamW rests where g + w (|g| + ε) y = 0; its derivative by y, divided by that by g, is H + w (|g| + ε)/(1 + w y sign g).
    const at::Tensor g = inner_grad_y(problem, x, p.y);
    p.H = p.H + at::diag(rule.weight_decay * (g.abs() + rule.eps) / (1 + rule.weight_decay * p.y * g.sign()));
  }
  p.direct = outer_grad_x(problem, x, p.y);
  return p;
}

// ---- The properties ----

class PropertyTable : public ::testing::TestWithParam<EstimatorCase> {};

TEST_P(PropertyTable, IsWhatItDefinesAndTheSameBitsTwiceInEveryCell) {
  const EstimatorCase& row = GetParam();
  const auto estimator = estimator_of(row);
  for (const ProblemCase& problem_row : problem_rows()) {
    if (row.convex_only && !problem_row.convex) continue;
    const auto exact = problem_row.make(at::kDouble);
    if (!row.serves(*exact)) continue;
    for (const RuleCase& rule : rule_rows()) {
      const RuleSolver solver = solver_of(rule);
      if (row.needs_stationary_rule && rule.stops_anywhere()) continue;  // refused, see below
      // In float x is rounded first, so that both see the same x.
      const auto single = problem_row.make(at::kFloat);
      const at::Tensor x = single->initial_outer().to(at::kDouble);
      const Place place = place_of(*exact, x, rule.plain);
      if (row.needs_short_step && rule.plain.lr * at::linalg_eigvalsh(place.H).abs().max().item<double>() >= 2) continue;
      const at::Tensor expected = row.reference(place);
      EXPECT_TRUE(estimator->objections(*exact, solver).empty()) << problem_row.name << ", " << rule.label();
      for (const Cell& cell : cells()) {
        if (!cell.offered() || (row.values_alone && cell.dtype == at::kFloat)) continue;
        SCOPED_TRACE(fmt::format("{} | {} | {} | {}", row.label(), rule.label(), problem_row.name, cell.label()));
        const Problem& problem = cell.dtype == at::kFloat ? *single : *exact;
        const Hypergradient h = estimate_in(cell, *estimator, problem, solver, x.to(cell.dtype));
        const double implicit = (expected - place.direct).norm().item<double>();
        const double allowed = cell.tolerance(row.tolerance) * implicit + cell.rounding() * expected.norm().item<double>();
        const auto error = [](const at::Tensor& value, const at::Tensor& reference) {
          return (value.to(at::kDouble) - reference).norm().item<double>();
        };
        EXPECT_EQ(h.value.scalar_type(), cell.dtype);
        EXPECT_NE(h.grade, Grade::kBad) << h.message;
        EXPECT_FALSE(h.message.empty());
        EXPECT_FALSE(h.certificate.differentiates.empty());
        EXPECT_LT(error(h.value, expected), allowed);
        EXPECT_LE(error(h.direct, place.direct), cell.rounding() * place.direct.norm().item<double>());
        EXPECT_GT(error(h.direct, expected), 10 * allowed) << "the direct term would pass";
        EXPECT_TRUE(at::equal(h.value, estimate_in(cell, *estimator, problem, solver, x.to(cell.dtype)).value));
      }
    }
  }
}

// f depends on neither x nor y, and autograd has nothing to say about it.
class ConstantOuterLoss final : public TestProblem {
 public:
  explicit ConstantOuterLoss(std::unique_ptr<Problem> base) : base_(std::move(base)) {
    outer_layout_ = base_->outer_layout();
    inner_layout_ = base_->inner_layout();
    x0_ = base_->initial_outer();
    y0_ = base_->initial_inner(x0_, 0);
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return base_->inner_loss(x, y, batch);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor&, const Batch&) const override {
    return at::full({}, 3.0, x.options().requires_grad(false));
  }
  bool has_outputs() const override { return base_->has_outputs(); }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch& b) const override { return base_->inner_outputs(y, b); }
  at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& z, const Batch& b) const override {
    return base_->inner_loss_of_outputs(x, y, z, b);
  }
  bool has_outer_outputs() const override { return base_->has_outer_outputs(); }
  at::Tensor outer_outputs(const at::Tensor& y, const Batch& b) const override { return base_->outer_outputs(y, b); }
  at::Tensor outer_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor&, const Batch& b) const override {
    return outer_loss(x, y, b);
  }
  std::optional<OutputLayer> output_layer() const override { return base_->output_layer(); }
  at::Tensor inner_features(const at::Tensor& y, const Batch& b) const override { return base_->inner_features(y, b); }
  at::Tensor outer_features(const at::Tensor& y, const Batch& b) const override { return base_->outer_features(y, b); }
  int64_t inner_samples() const override { return base_->inner_samples(); }
  bool has_inner_likelihood() const override { return base_->has_inner_likelihood(); }
  Likelihood inner_likelihood(const at::Tensor& x, const Batch& batch) const override {
    return base_->inner_likelihood(x, batch);
  }

 private:
  std::unique_ptr<Problem> base_;
};

TEST_P(PropertyTable, IsExactlyZeroWhereTheOuterLossDependsOnNothing) {
  const EstimatorCase& row = GetParam();
  const auto estimator = estimator_of(row);
  for (const ProblemCase& problem_row : problem_rows()) {
    if (!row.serves(*problem_row.make(at::kDouble))) continue;
    for (const RuleCase& rule : rule_rows()) {
      if (row.needs_stationary_rule && rule.stops_anywhere()) continue;
      for (const Cell& cell : cells()) {
        SCOPED_TRACE(fmt::format("{} | {} | {} | {}", row.label(), rule.label(), problem_row.name, cell.label()));
        const ConstantOuterLoss problem(problem_row.make(cell.dtype));
        const Hypergradient h = estimate_in(cell, *estimator, problem, solver_of(rule), problem.initial_outer());
        EXPECT_EQ(h.value.abs().max().item<double>(), 0.0);
        EXPECT_EQ(h.direct.abs().max().item<double>(), 0.0);
        EXPECT_EQ(h.outer_loss, 3.0);
        EXPECT_NE(h.grade, Grade::kBad) << h.message;
      }
    }
  }
}

TEST_P(PropertyTable, GradesNaNBadAndThrowsNothing) {
  const EstimatorCase& row = GetParam();
  const auto estimator = estimator_of(row);
  for (const ProblemCase& problem_row : problem_rows()) {
    if (!row.serves(*problem_row.make(at::kDouble))) continue;
    for (const RuleCase& rule : rule_rows()) {
      for (const Cell& cell : cells()) {
        SCOPED_TRACE(fmt::format("{} | {} | {} | {}", row.label(), rule.label(), problem_row.name, cell.label()));
        const auto problem = problem_row.make(cell.dtype);
        if (!row.serves(*problem)) continue;
        at::Tensor x = problem->initial_outer();
        x[0] = std::numeric_limits<double>::quiet_NaN();
        Hypergradient h;
        EXPECT_NO_THROW(h = estimate_in(cell, *estimator, *problem, solver_of(rule), x));
        EXPECT_EQ(h.grade, Grade::kBad) << h.message;
        EXPECT_FALSE(h.message.empty());
      }
    }
  }
}

TEST_P(PropertyTable, RefusesARuleThatStopsElsewhereWhereItNeedsTheOptimum) {
  const EstimatorCase& row = GetParam();
  const auto problem = problem_rows()[row.linear_model_only || row.needs_likelihood ? 1 : 0].make(at::kDouble);
  for (const RuleCase& rule : rule_rows()) {
    EXPECT_EQ(estimator_of(row)->objections(*problem, solver_of(rule)).empty(),
              !(row.needs_stationary_rule && rule.stops_anywhere()))
        << rule.label();
  }
}

INSTANTIATE_TEST_SUITE_P(Estimators, PropertyTable, ::testing::ValuesIn(estimator_rows()), [](const auto& test) {
  std::string name = test.param.label();
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) != 0 ? c : '_';
  return name;
});

// ---- The table is complete, and its rows differ ----

TEST(PropertyTableRows, HaveEveryEstimatorAndEveryRuleOfTheRegistries) {
  std::set<std::string> estimator_names, rule_names;
  for (const EstimatorCase& row : estimator_rows()) estimator_names.insert(row.name);
  for (const RuleCase& row : rule_rows()) rule_names.insert(row.name);
  for (const EstimatorRow& row : estimators()) EXPECT_TRUE(estimator_names.contains(row.name)) << "no row for " << row.name;
  for (const RuleRow& row : rules()) EXPECT_TRUE(rule_names.contains(row.name)) << "no row for " << row.name;
  EXPECT_EQ(estimator_names.size(), estimators().size());
  EXPECT_EQ(rule_names.size(), rules().size());
}

TEST(PropertyTableRows, AreToldFromEachOtherByTheirTolerances) {
  for (const ProblemCase& problem_row : problem_rows()) {
    if (problem_row.name == "quadratic" || problem_row.name == "ridge") continue;  // with constant derivatives some are the same
    const auto problem = problem_row.make(at::kDouble);
    const at::Tensor x = problem->initial_outer();
    for (const RuleCase& rule : rule_rows()) {
      // The last step of plain gradient descent is t1-t2's by definition.
      if (rule.plain.kind == PlainRule::Kind::kSgd && !rule.plain.nesterov) continue;
      const Place place = place_of(*problem, x, rule.plain);
      std::vector<at::Tensor> expected;
      for (const EstimatorCase& row : estimator_rows()) expected.push_back(row.reference(place) - place.direct);
      for (size_t i = 0; i < expected.size(); ++i) {
        const EstimatorCase& row = estimator_rows()[i];
        EXPECT_GT(expected[i].norm().item<double>(), 0.0) << row.label();
        for (size_t j = 0; j < expected.size(); ++j) {
          const EstimatorCase& other = estimator_rows()[j];
          if (other.quantity == row.quantity) continue;
          EXPECT_GT(relative_error(expected[j], expected[i]), 10 * row.tolerance.autodiff)
              << row.label() << " and " << other.label() << " | " << rule.label() << " | " << problem_row.name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace bilevel
