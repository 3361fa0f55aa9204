#include "bilevel/run/json.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace bilevel {

using Json = nlohmann::ordered_json;

namespace {
Json optional(const std::optional<double>& value) { return value ? Json(*value) : Json(); }
}  // namespace

Json to_json(const Certificate& certificate) {
  return {{"differentiates", certificate.differentiates},
          {"stationarity", certificate.stationarity},
          {"relative_residual", optional(certificate.relative_residual)},
          {"error_bound", optional(certificate.error_bound)},
          {"bound_reason", certificate.bound_reason},
          {"standard_error", optional(certificate.standard_error)},
          {"distance_to_F", optional(certificate.distance_to_F)}};
}

Json to_json(const Cost& cost) {
  return {
      {"forwards", cost.forwards}, {"gradients", cost.gradients}, {"hvps", cost.hvps}, {"cross_products", cost.cross_products}};
}

Json machine_json(const Cost& cost) { return {{"seconds", cost.seconds}, {"peak_bytes", cost.peak_bytes}}; }

Json to_json(const Hypergradient& h) {
  const at::Tensor value = h.value.detach().to(at::kCPU, at::kDouble).contiguous();
  Json json;
  json["inner_loss"] = h.inner_loss;
  json["outer_loss"] = h.outer_loss;
  json["hypergradient"] = std::vector<double>(value.data_ptr<double>(), value.data_ptr<double>() + value.numel());
  json["norm"] = value.norm().item<double>();
  json["direct_norm"] = h.direct.to(at::kDouble).norm().item<double>();
  json["status"] = to_string(h.grade);
  json["message"] = h.message;
  json["certificate"] = to_json(h.certificate);
  json["cost"] = to_json(h.cost);
  json["cost"].update(machine_json(h.cost));
  return json;
}

}  // namespace bilevel
