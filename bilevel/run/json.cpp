#include "bilevel/run/json.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace bilevel {

using Json = nlohmann::ordered_json;

namespace {

Json optional(const std::optional<double>& value) { return value ? Json(*value) : Json(); }
std::string text_of(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json json_of(const SpotCheck& check) {
  Json json = {{"status", to_string(check.grade)},
               {"conclusive", check.conclusive},
               {"disagreement", check.disagreement},
               {"message", check.message},
               {"slopes", Json::array()}};
  for (const SpotCheck::Slope& slope : check.slopes) {
    json["slopes"].push_back({{"direction", slope.direction},
                              {"predicted", slope.predicted},
                              {"measured", slope.measured},
                              {"uncertainty", slope.uncertainty},
                              {"step", slope.step}});
  }
  return json;
}

Json json_of(const Certificate& certificate) {
  return {{"differentiates", certificate.differentiates},
          {"stationarity", certificate.stationarity},
          {"relative_residual", optional(certificate.relative_residual)},
          {"error_bound", optional(certificate.error_bound)},
          {"bound_reason", certificate.bound_reason},
          {"curvature", optional(certificate.curvature)},
          {"standard_error", optional(certificate.standard_error)},
          {"distance_to_F", optional(certificate.distance_to_F)},
          {"spot_check", certificate.spot_check ? json_of(*certificate.spot_check) : Json()}};
}

Json json_of(const Cost& cost) {
  return {
      {"forwards", cost.forwards}, {"gradients", cost.gradients}, {"hvps", cost.hvps}, {"cross_products", cost.cross_products}};
}

Json json_of_machine(const Cost& cost) { return {{"seconds", cost.seconds}, {"peak_bytes", cost.peak_bytes}}; }

}  // namespace

std::string to_json(const Certificate& certificate) { return text_of(json_of(certificate)); }

std::string to_json(const Cost& cost) { return text_of(json_of(cost)); }

std::string machine_json(const Cost& cost) { return text_of(json_of_machine(cost)); }

std::string to_json(const Hypergradient& h, bool with_values) {
  const at::Tensor value = h.value.detach().to(at::kCPU, at::kDouble).contiguous();
  Json json;
  json["inner_loss"] = h.inner_loss;
  json["outer_loss"] = h.outer_loss;
  if (with_values) json["hypergradient"] = std::vector<double>(value.data_ptr<double>(), value.data_ptr<double>() + value.numel());
  json["norm"] = value.norm().item<double>();
  json["direct_norm"] = h.direct.to(at::kDouble).norm().item<double>();
  json["status"] = to_string(h.grade);
  json["message"] = h.message;
  json["certificate"] = json_of(h.certificate);
  json["cost"] = json_of(h.cost);
  json["cost"].update(json_of_machine(h.cost));
  return text_of(json);
}

}  // namespace bilevel
