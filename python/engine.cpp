// bilevel._engine: the engine as the Python package sees it, flat vectors in and out. The package gives it its shape.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "bilevel/algorithm/registry.h"
#include "bilevel/core/bytes.h"
#include "bilevel/core/error.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/registry.h"
#include "bilevel/linear/registry.h"
#include "bilevel/oracle/saved_programs.h"
#include "bilevel/problem/fingerprint.h"
#include "bilevel/report/doctor_report.h"
#include "bilevel/report/explain_report.h"
#include "bilevel/report/plan_report.h"
#include "bilevel/report/terminal.h"
#include "bilevel/run/json.h"
#include "cli/commands.h"
#include "python/layers.h"
#include "python/parts.h"
#include "python/problem.h"
#include "python/programs.h"
#include "tasks/examine.h"
#include "tasks/experiment.h"
#include "tasks/job.h"

namespace py = pybind11;

namespace bilevel::python {
namespace {

/// A configuration from `key.path=value` lines.
Config config_of(const std::vector<std::string>& assignments) {
  Config config = Config::parse("", "the options");
  for (const std::string& assignment : assignments) config.set(assignment);
  return config;
}

/// A Python object that is copied and dropped without the GIL.
std::shared_ptr<const py::object> shared(const py::object& object) {
  return {new py::object(object), [](const py::object* held) {
            const py::gil_scoped_acquire gil;
            delete held;
          }};
}

/// An experiment on Python losses.
///
/// The problem takes the place of [problem] and [data]; dtype = "float64" asks for the same problem in double.
TaskMaker maker(const py::object& spec) {
  return [held = shared(spec)](const Config& config, c10::Device) {
    const py::gil_scoped_acquire gil;
    Section section = config.root().section("problem");
    const auto own = held->attr("dtype").cast<std::string>();
    std::string task = "python", dtype = own;
    section.read("task", task);
    section.read_choice("dtype", dtype, {"float32", "float64"});
    section.finish();
    Task made;
    made.name = "python";
    made.identity = held->attr("identity").cast<std::string>();
    const py::object problem = dtype == own ? *held : held->attr("in_double")();
    made.problem = std::make_unique<PythonProblem>(problem);
    made.programs = compiling_programs(problem);
    return made;
  };
}

/// Compiles what one step of the configuration's algorithm asks for, for other processes to find; how many programs.
int64_t compile_config(const std::string& path, const std::vector<std::string>& assignments) {
  const py::gil_scoped_release no_gil;
  Config config = Config::load(path);
  for (const std::string& assignment : assignments) config.set(assignment);
  config.set("run.oracle=\"compiled\"");
  const std::string job = job_of(config);
  require(job.empty(), fmt::format("compile: \"{}\" is a job of several problems, which have no compiled programs.", job));
  std::shared_ptr<const RecordedPrograms> recorded;
  const TaskMaker make = [&](const Config& of_task, c10::Device device) {
    Task task = make_task(of_task, device);
    const py::gil_scoped_acquire gil;
    const py::object losses = py::cast(ProblemLosses{task.problem.get()});
    task.programs = recorded = std::make_shared<RecordedPrograms>(compiling_programs(losses));
    return task;
  };
  const Experiment experiment(std::move(config), make);
  State state = experiment.algorithm().init();
  experiment.algorithm().step(state, 1);
  return recorded->save(experiment.problem_key());
}

std::function<void(const std::string&, double)> progress_of(const py::object& tell) {
  return [held = shared(tell)](const std::string& doing, double fraction) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    (*held)(doing, fraction);
  };
}

/// What `bilevel doctor`, `plan` and `explain` print: as JSON, and as text for people.
using Told = std::pair<std::string, std::string>;
constexpr int kTextWidth = 100;

Told doctor(const py::object& spec, const std::vector<std::string>& assignments, double seconds, const py::object& progress) {
  const TaskMaker make = maker(spec);
  DoctorOptions options;
  options.seconds = seconds;
  options.progress = progress_of(progress);
  const py::gil_scoped_release no_gil;
  const Diagnosis diagnosis = examine(config_of(assignments), 0, options, make);
  Report report = doctor_report(diagnosis, "Python losses");
  std::erase_if(report.sections, [](const Report::Section& section) { return section.title == "Messages"; });
  return {doctor_json(diagnosis), render_terminal(report, kTextWidth)};
}

/// `memory` as in `bilevel plan --memory`; empty: no limit.
Told plan(const py::object& spec, const std::vector<std::string>& assignments, const std::string& memory,
          const py::object& progress) {
  const TaskMaker make = maker(spec);
  PlanOptions options;
  if (!memory.empty()) options.limit = parse_bytes(memory);
  options.progress = progress_of(progress);
  const py::gil_scoped_release no_gil;
  const Plan plan = make_plan(plan_maker(config_of(assignments), make), options);
  return {plan_json(plan, 0), render_terminal(plan_report(plan, "Python losses"), kTextWidth)};
}

Told told(const Explanation& explanation) {
  Report report;
  report.sections.push_back(explanation_section(explanation));
  return {to_json(explanation), render_terminal(report, kTextWidth)};
}

/// `spec` is None for a run of the command.
Told explain_directory(const std::string& directory, const py::object& spec, const std::string& hyperparameter,
                       const std::optional<int64_t>& step, int64_t top) {
  const TaskMaker make = spec.is_none() ? TaskMaker(make_task) : maker(spec);
  const py::gil_scoped_release no_gil;
  return told(explain_run({directory, hyperparameter, step, {}, {.most_samples = top}}, make));
}

Told explain_at(const py::object& spec, const std::vector<std::string>& assignments, const RunPoint& point,
                const std::string& hyperparameter, int64_t top) {
  const TaskMaker make = maker(spec);
  Config config = config_of(assignments);
  config.set("problem.dtype=\"float64\"");
  const py::gil_scoped_release no_gil;
  return told(explain_point(std::move(config), point, hyperparameter, {.most_samples = top}, make));
}

struct PythonExperiment {
  Experiment experiment;
};

std::unique_ptr<PythonExperiment> make_experiment(const py::object& spec, const std::vector<std::string>& assignments) {
  const TaskMaker make = maker(spec);
  const py::gil_scoped_release no_gil;  // a budget is metered on a step
  return std::unique_ptr<PythonExperiment>(new PythonExperiment{Experiment(config_of(assignments), make)});
}

py::dict to_dict(const Cost& cost) {
  py::dict d;
  d["forwards"] = cost.forwards;
  d["gradients"] = cost.gradients;
  d["hvps"] = cost.hvps;
  d["cross_products"] = cost.cross_products;
  d["samples"] = cost.samples;
  d["seconds"] = cost.seconds;
  d["peak_bytes"] = cost.peak_bytes;
  if (cost.second_thread_seconds > 0) {
    d["second_thread_seconds"] = cost.second_thread_seconds;
    d["hidden_seconds"] = cost.hidden_seconds;
  }
  return d;
}

py::dict to_dict(const RunResult& result) {
  py::dict d;
  const auto tensor = [&](const char* name) -> py::object {
    return result.state.has(name) ? py::cast(result.state.tensor(name)) : py::none();
  };
  d["x"] = tensor("x");
  d["y"] = tensor("y");
  d["outcome"] = std::string(to_string(result.outcome));
  d["status"] = std::string(to_string(result.worst));
  d["message"] = result.message;
  d["steps"] = result.steps;
  d["rollbacks"] = result.rollbacks;
  d["cost"] = to_dict(result.cost);
  return d;
}

/// `record` is called with each record, as a line of log.jsonl, and returns "continue", "stop" or "abort"; `started`, once the
/// directory is there.
RunFront front_of(const py::object& record, const py::object& started = py::none()) {
  RunFront front;
  if (!started.is_none()) {
    front.notice = [started](const std::string&) {
      const py::gil_scoped_acquire gil;
      started();
    };
  }
  front.record = [record](const Record& r) {
    const py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    const auto answer = record(to_json(r, {})).cast<std::string>();
    return answer == "stop" ? Signal::kStop : answer == "abort" ? Signal::kAbort : Signal::kContinue;
  };
  return front;
}

/// `state` is that of the inner rule, [dy] for each slot; empty: fresh.
State start_of(const Algorithm& algorithm, const std::vector<at::Tensor>& state, int64_t state_steps) {
  State start = algorithm.init();
  if (state.empty()) return start;
  for (size_t j = 0; j < state.size(); ++j) start.set(fmt::format("inner.state.{}", j), state[j]);
  start.set("inner.state_steps", at::full({1}, state_steps, at::kLong));
  return start;
}

py::dict hypergradient(const PythonExperiment& experiment, const std::vector<at::Tensor>& state, int64_t state_steps, bool bound,
                       bool check) {
  Hypergradient h;
  State after;
  {
    const py::gil_scoped_release no_gil;
    const DoubleLoop& algorithm = experiment.experiment.double_loop("hypergradient");
    h = algorithm.hypergradient(start_of(algorithm, state, state_steps), &after, {.bound = bound, .check = check});
  }
  py::dict d;
  d["json"] = to_json(h, /*with_values=*/false);
  d["value"] = h.value;
  d["direct"] = h.direct;
  d["y"] = after.tensor("y");
  d["q"] = h.q.defined() ? py::cast(h.q) : py::none();
  return d;
}

/// In a directory the run begins with a fresh rule, as its configuration says; without one, with the state that was given.
RunResult minimize(const PythonExperiment& experiment, const std::string& out, const RunFront& front,
                   const std::vector<at::Tensor>& state, int64_t state_steps) {
  if (!out.empty()) {
    require(state.empty(),
            "minimize: a run in a directory begins with a fresh rule; the optimiser given has taken steps already.");
    return run_experiment(experiment.experiment, out, front);
  }
  Watch watch;
  watch.record = [&](const Record& r, const std::vector<RollBack>&) { return front.record(r); };
  const Algorithm& algorithm = experiment.experiment.algorithm();
  return Driver(algorithm, experiment.experiment.driver_options()).run(start_of(algorithm, state, state_steps), watch);
}

/// The command line, in one of the processes of torch.distributed's group of this name; the exit status.
int command(const std::vector<std::string>& arguments, const std::string& group) {
  const py::gil_scoped_release no_gil;
  std::vector<const char*> argv;
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  return cli::command(static_cast<int>(argv.size()), argv.data(), Processes::named(group));
}

template <class Rows>
std::vector<std::string> names_of(const Rows& rows) {
  std::vector<std::string> names;
  for (const auto& row : rows) names.push_back(row.name);
  return names;
}

}  // namespace
}  // namespace bilevel::python

PYBIND11_MODULE(_engine, m) {
  using namespace bilevel;
  using namespace bilevel::python;
  m.attr("version") = BILEVEL_VERSION;
  py::register_exception<Error>(m, "Error", PyExc_ValueError);

  py::class_<PythonExperiment>(m, "Experiment")
      .def(py::init(&make_experiment))
      .def("hypergradient", &hypergradient)
      .def("config", [](const PythonExperiment& e) { return e.experiment.text(); })
      .def("minimize", [](const PythonExperiment& e, const std::string& out, const py::object& record, const py::object& started,
                          const std::vector<at::Tensor>& state, int64_t state_steps) {
        const RunFront front = front_of(record, started);
        RunResult result;
        {
          const py::gil_scoped_release no_gil;
          result = minimize(e, out, front, state, state_steps);
        }
        return to_dict(result);
      });
  py::class_<Parts>(m, "Parts")
      .def(py::init([](const py::object& parts) { return std::make_unique<Parts>(layout_of(parts)); }))
      .def("split", &Parts::split)
      .def("join", &Parts::join);
  m.def("fingerprint", &fingerprint);
  m.def("compiled_for", &compiled_for);
  m.def("compiled_cache", &compiled_cache);
  m.def("compile_config", &compile_config);
  py::class_<LoadedProgram>(m, "LoadedProgram").def(py::init<const std::string&>()).def(py::init<const py::function&>());
  py::class_<ProblemLosses>(m, "ProblemLosses")
      .def("inner_loss", &ProblemLosses::inner_loss)
      .def("outer_loss", &ProblemLosses::outer_loss);
  m.def("resume", [](const std::string& directory, const py::object& spec, const py::object& record) {
    const TaskMaker make = maker(spec);
    const RunFront front = front_of(record);
    RunResult result;
    {
      const py::gil_scoped_release no_gil;
      result = resume_experiment(directory, front, make);
    }
    return to_dict(result);
  });
  m.def("command", &command);
  m.def("doctor", &doctor);
  m.def("plan", &plan);
  m.def("explain_directory", &explain_directory);
  m.def("explain_at", [](const py::object& spec, const std::vector<std::string>& assignments, const at::Tensor& x,
                         const at::Tensor& y, int64_t step, const std::string& hyperparameter, int64_t top) {
    return explain_at(spec, assignments, {x, y, step}, hyperparameter, top);
  });
  py::class_<Unroll>(m, "Unroll")
      .def(py::init([](const py::object& spec, const std::vector<std::string>& options) {
        return std::make_unique<Unroll>(spec, config_of(options));
      }))
      .def("forward", &Unroll::forward)
      .def("backward", &Unroll::backward);
  const auto product = [](const ImplicitDerivative::Product& p) {
    return py::make_tuple(p.value, std::string(to_string(p.linear.status)), p.linear.message, p.linear.relative_residual);
  };
  py::class_<ImplicitDerivative>(m, "ImplicitDerivative")
      .def(py::init([](const py::object& spec, const std::vector<std::string>& options, const std::string& solver) {
        return std::make_unique<ImplicitDerivative>(spec, config_of(options), solver);
      }))
      .def("vjp", [product](const ImplicitDerivative& d, const at::Tensor& x, const at::Tensor& y,
                            const at::Tensor& y_bar) { return product(d.vjp(x, y, y_bar)); })
      .def("jvp", [product](const ImplicitDerivative& d, const at::Tensor& x, const at::Tensor& y, const at::Tensor& x_dot) {
        return product(d.jvp(x, y, x_dot));
      });
  m.def("rule_hyperparameters", [](const std::string& name) {
    Config none = Config::parse("", "the options");
    Section section = none.root();
    return make_rule(name, section)->hyperparameters();
  });
  m.def("estimators", [] { return names_of(estimators()); });
  m.def("linear_solvers", [] { return names_of(linear_solvers()); });
  m.def("rules", [] { return names_of(rules()); });
  m.def("algorithms", [] { return names_of(algorithms()); });
}
