#pragma once
#include <functional>
#include <optional>
#include <string>

#include "bilevel/core/config.h"
#include "bilevel/run/doctor.h"
#include "bilevel/run/explain.h"
#include "bilevel/run/plan.h"
#include "bilevel/run/progress.h"
#include "tasks/experiment.h"

namespace bilevel {

/// `diagnose` on what a configuration describes, after so many outer steps of it; of a job of several stages, on the bilevel
/// problem inside it. The reference is had from the same problem in double: dtype = "float64", where its task has one.
Diagnosis examine(Config config, int64_t after, const DoctorOptions& options, const TaskMaker& make = make_task);

/// Runs of a configuration with keys changed, for `make_plan`; of a job of several stages, runs of the bilevel problem inside it.
/// Every run is made anew, so that memory is what it would be.
PlanMaker plan_maker(Config config, const TaskMaker& make = make_task);

struct ExplainRequest {
  std::string directory, hyperparameter;  // "l2[3]"
  std::optional<int64_t> step;            // none: the last point of the run
  ProgressOptions progress;               // for what is done again to get to `step`
  ExplainOptions options;
};

/// Takes a component of the hypergradient of a run apart, in double, undamped, at its last point or at x after `step` updates.
/// Points that the run did not keep are reached by doing its steps again, from its checkpoint or its start; the numbers are the
/// run's own. Throws Error for a directory without a run, and for names and steps that it does not have.
Explanation explain_run(const ExplainRequest& request, const TaskMaker& make = make_task);

/// x, and the inner solution at it, after so many updates.
struct RunPoint {
  at::Tensor x, y;
  int64_t step = 0;
};
/// The same at a point that is known, of the run that `config` describes.
Explanation explain_point(Config config, const RunPoint& point, const std::string& hyperparameter, const ExplainOptions& options,
                          const TaskMaker& make = make_task);

}  // namespace bilevel
