#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/run/json.h"
#include "cli/commands.h"

namespace bilevel::cli {
namespace {

void print_text(const Hypergradient& h, const Layout& layout) {
  constexpr int64_t kShown = 10;
  const at::Tensor value = h.value.detach().to(at::kCPU, at::kDouble);
  fmt::print("{}: {}\n\n", to_string(h.grade), h.message);
  fmt::print("outer loss       {:.10g}\ninner loss       {:.10g}\n", h.outer_loss, h.inner_loss);
  fmt::print("‖hypergradient‖  {:.10g}   direct part {:.4g}\n", value.norm().item<double>(), h.direct.norm().item<double>());
  fmt::print("differentiates   {}\nstationarity     {:.3g}\n", h.certificate.differentiates, h.certificate.stationarity);
  if (h.certificate.relative_residual) fmt::print("linear residual  {:.3g} (relative)\n", *h.certificate.relative_residual);
  if (h.certificate.error_bound) fmt::print("error at most    {:.3g} (2-norm)\n", *h.certificate.error_bound);
  if (!h.certificate.bound_reason.empty()) fmt::print("                 {}\n", h.certificate.bound_reason);
  if (h.certificate.distance_to_F) fmt::print("distance to F    {:.3g} (estimate)\n", *h.certificate.distance_to_F);
  if (h.certificate.standard_error) fmt::print("standard error   {:.3g}\n", *h.certificate.standard_error);
  if (h.certificate.spot_check) fmt::print("spot check       {}\n", h.certificate.spot_check->message);
  fmt::print("cost             {} gradients, {} HVPs, {} cross products, {} forward passes, {:.2f} s\n", h.cost.gradients,
             h.cost.hvps, h.cost.cross_products, h.cost.forwards, h.cost.seconds);
  if (h.cost.second_thread_seconds > 0) {
    fmt::print("second thread    {:.2g} s, {:.0f} % of it hidden\n", h.cost.second_thread_seconds,
               100 * h.cost.hidden_seconds / h.cost.second_thread_seconds);
  }
  fmt::print("\n");
  // The largest first: they are what the outer step moves most.
  const at::Tensor order = value.abs().argsort(/*stable=*/true, /*dim=*/0, /*descending=*/true);
  for (int64_t i = 0; i < std::min(kShown, value.numel()); ++i) {
    const auto index = order[i].item<int64_t>();
    fmt::print("  {:<28} {:+.6e}\n", layout.element_name(index), value[index].item<double>());
  }
  if (value.numel() > kShown) fmt::print("  … {} more; --json prints all\n", value.numel() - kShown);
}

}  // namespace

void add_hypergrad(CLI::App& app, Action& action) {
  struct Arguments {
    ConfigArguments config;
    bool json = false, no_check = false, strict = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("hypergrad", "Compute one hypergradient, at the start point, with its certificate.");
  arguments->config.add_to(*command);
  command->add_flag("--json", arguments->json, "print one JSON object and nothing else");
  command->add_flag("--no-check", arguments->no_check,
                    "leave the error bound and the spot check out: they cost several times the estimate");
  command->add_flag("--strict", arguments->strict, "a status of BAD ends with exit status 1 (so it does anyway)");
  command->footer("Example:\n  bilevel hypergrad ridge.toml --set hypergradient.solver=dense --json");
  command->callback([arguments, &action] {
    action = [arguments] {
      const Experiment experiment(arguments->config.load());
      for (const std::string& note : experiment.task().notes) fmt::print(stderr, "{}\n", note);
      const Hypergradient h = experiment.double_loop("`bilevel hypergrad`")
                                  .hypergradient(experiment.algorithm().init(), nullptr,
                                                 {.bound = !arguments->no_check, .check = !arguments->no_check});
      if (arguments->json) {
        fmt::print("{}\n", to_json(h));
      } else {
        print_text(h, experiment.problem().outer_layout());
      }
      return h.grade == Grade::kBad ? 1 : 0;
    };
  });
}

}  // namespace bilevel::cli
