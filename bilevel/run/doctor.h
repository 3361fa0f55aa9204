#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bilevel/core/cost.h"
#include "bilevel/hypergrad/estimator.h"
#include "bilevel/inner/inner_solver.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// Keys of [hypergradient] with their values in TOML, in order.
using EstimatorSettings = std::vector<std::pair<std::string, std::string>>;
std::string to_toml(const EstimatorSettings& settings);

/// Every way of estimating that is worth a trial: each estimator of the registry, `implicit` with each linear solver of its
/// registry, and each of them on a ladder of its effort (iterations; last steps and memory of `unrolled`). What an estimator
/// reads is found by asking it. Cheap ones first. `inner_steps` is T, 0 where there is no such number.
std::vector<EstimatorSettings> estimators_to_try(int64_t inner_steps, bool has_outputs);

/// The problem, where it is to be examined, and how it is solved.
struct DoctorSubject {
  const Oracle& oracle;
  const InnerSolver& solver;
  at::Tensor x;                     // [dx]
  at::Tensor y;                     // where the inner solve starts, [dy] or [k, dy]; undefined: at y₀(x)
  int64_t inner_steps = 0;          // of an update rule; 0: no such number
  uint64_t seed = 0;                // of losses that draw random numbers
  const Oracle* precise = nullptr;  // the same problem in double, for the reference; null where `oracle` is in double
  const InnerSolver* precise_solver = nullptr;
  EstimatorSettings configured = {};  // what the user has; empty: nothing to compare with
  bool configurable = true;           // by [hypergradient]; false: the job around the problem has an estimator of its own
};

struct DoctorOptions {
  double seconds = 45;           // for all of it; what does not fit is cut off or left out, and listed so
  double reference_share = 0.4;  // of the seconds, at most, for the reference
  double trial_seconds = 10;     // one trial, at most
  int64_t dense_up_to = 1000;    // dy whose Hessian the reference forms: exact, and its eigenvalues are known
  int64_t bytes = 0;             // that one trial may hold; 0: half of the machine's free memory
  std::function<void(const std::string& doing, double fraction)> progress = {};
  std::vector<std::string> violations() const;
};

/// One estimator, tried.
struct Trial {
  enum class Outcome {
    kDone,
    kNotApplicable,  // by the estimator's own objections
    kCutOff,         // its time or memory was up
    kLeftOut,        // nothing was left of the budget, or a cheaper one of its kind was cut off
  };
  EstimatorSettings settings;
  std::string name;    // "implicit cg 20"
  std::string family;  // "implicit cg"
  Outcome outcome = Outcome::kLeftOut;
  std::string remark;  // one sentence: the objection, what cut it off, or the estimator's message
  bool configured = false;
  bool out_of_memory = false;  // where it was cut off: by its memory, and not by its time
  // Where it is done:
  std::string differentiates;
  Grade grade = Grade::kOk;
  double cosine = 0, norm_ratio = 0, error = 0;  // against the reference; error = ‖value − reference‖/‖reference‖
  std::optional<double> error_there;             // against the exact implicit hypergradient at the y that was reached
  double seconds = 0;                            // of an outer step: the inner solve, with what it must keep, and the estimate
  double estimate_seconds = 0;                   // beyond the bare inner solve
  Cost cost;                                     // oracle calls of inner solve and estimate; peak_bytes of both
};
std::string_view to_string(Trial::Outcome outcome);

struct Diagnosis {
  struct Reference {
    std::string how;             // one sentence; empty: there is none
    std::string differentiates;  // "F" or "F_T"
    double norm = 0, direct_norm = 0;
    double stationarity = 0;  // ‖r‖ at its y
    std::optional<double> relative_residual;
    bool trusted = false;                  // solved to where its own error does not matter below
    std::optional<double> stopping_error;  // what stopping where the user's inner solve stops costs an exact estimator, relative
    std::optional<double> smallest, largest;  // curvature; eigenvalues of the Hessian where it was formed
    bool eigenvalues = false;
  };
  int64_t outer_size = 0, inner_size = 0;
  double inner_seconds = 0;                           // of the bare inner solve
  double initial_stationarity = 0, stationarity = 0;  // of it
  int64_t inner_steps = 0;
  Reference reference;
  std::vector<Trial> trials;
  std::vector<std::string> traps;                  // sentences
  std::optional<size_t> within_1, within_5, best;  // trials: the cheapest within 1 % and 5 %, and the nearest
  bool configurable = true;                        // as of the subject
  std::string advice;                              // sentences
  double seconds = 0;
};

/// Tries every applicable estimator at one point, against the best reference that can be had there:
///
///   - the inner problem solved on, in double, and the implicit system by its matrix (small dy) or by converged CG, or where that
///     means nothing (x moves the update rule or the starting point; an indefinite Hessian)
///   - the whole inner solve unrolled, in double.
///
/// Trials share one inner solve, except those that need its trajectory. Nothing is changed. Misuse is an Error; whatever fails
/// numerically or in time is in the result.
Diagnosis diagnose(const DoctorSubject& subject, const DoctorOptions& options = {});

}  // namespace bilevel
