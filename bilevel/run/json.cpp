#include "bilevel/run/json.h"

#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

namespace bilevel {

using Json = nlohmann::ordered_json;

namespace {

Json optional(const std::optional<double>& value) { return value ? Json(*value) : Json(); }
std::string text_of(const Json& json, int indent = -1) { return json.dump(indent, ' ', false, Json::error_handler_t::replace); }

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
          {"bias", certificate.bias.empty() ? Json() : Json(certificate.bias)},
          {"stationarity", certificate.stationarity},
          {"relative_residual", optional(certificate.relative_residual)},
          {"error_bound", optional(certificate.error_bound)},
          {"bound_reason", certificate.bound_reason},
          {"curvature", optional(certificate.curvature)},
          {"standard_error", optional(certificate.standard_error)},
          {"adjoint_cosine", optional(certificate.adjoint_cosine)},
          {"distance_to_F", optional(certificate.distance_to_F)},
          {"spot_check", certificate.spot_check ? json_of(*certificate.spot_check) : Json()}};
}

Json json_of(const Cost& cost) {
  return {{"forwards", cost.forwards},
          {"gradients", cost.gradients},
          {"hvps", cost.hvps},
          {"cross_products", cost.cross_products},
          {"samples", cost.samples}};
}

Json json_of_machine(const Cost& cost) {
  Json machine = {{"seconds", cost.seconds}, {"peak_bytes", cost.peak_bytes}};
  if (cost.second_thread_seconds > 0) {
    machine["second_thread_seconds"] = cost.second_thread_seconds;
    machine["hidden_seconds"] = cost.hidden_seconds;
  }
  return machine;
}

Json json_of(const Layout& layout) {
  Json parts = Json::array();
  for (const Part& part : layout.parts()) {
    parts.push_back({{"name", part.name}, {"shape", part.shape}, {"offset", part.offset}, {"size", part.size}});
  }
  return {{"size", layout.size()}, {"parts", parts}};
}

}  // namespace

std::string to_json(const Record& record, const std::vector<RollBack>& since_last) {
  Json line = {{"step", record.step},
               {"outer_loss", record.outer_loss},
               {"inner_loss", record.inner_loss},
               {"hypergradient_norm", record.hypergradient_norm},
               {"stationarity", record.stationarity},
               {"metrics", record.metrics},
               {"status", to_string(record.grade)},
               {"message", record.message},
               {"cost", json_of(record.cost)}};
  if (record.certificate) line["certificate"] = json_of(*record.certificate);
  for (const RollBack& back : since_last) {
    line["roll_backs"].push_back({{"from", back.from},
                                  {"to", back.to},
                                  {"reason", back.reason},
                                  {"outer_scale", back.outer_scale},
                                  {"damping", back.damping}});
  }
  line["machine"] = json_of_machine(record.cost);
  return text_of(line);
}

std::string to_json(const RunResult& result, std::string_view algorithm) {
  const Json summary = {{"outcome", to_string(result.outcome)},
                        {"status", to_string(result.worst)},
                        {"message", result.message},
                        {"algorithm", algorithm},
                        {"steps", result.steps},
                        {"outer_loss", result.last.outer_loss},
                        {"inner_loss", result.last.inner_loss},
                        {"hypergradient_norm", result.last.hypergradient_norm},
                        {"stationarity", result.last.stationarity},
                        {"metrics", result.last.metrics},
                        {"roll_backs", result.rollbacks},
                        {"cost", json_of(result.cost)},
                        {"machine", json_of_machine(result.cost)}};
  return text_of(summary, 2);
}

std::string to_json(const Layout& x, const Layout& y, const std::string& identity) {
  Json json = {{"x", json_of(x)}, {"y", json_of(y)}};
  if (!identity.empty()) json["identity"] = identity;
  return text_of(json, 2);
}

std::string to_json(const Hypergradient& h, bool with_values) {
  const at::Tensor value = h.value.detach().to(at::kCPU, at::kDouble).contiguous();
  Json json;
  json["inner_loss"] = h.inner_loss;
  json["outer_loss"] = h.outer_loss;
  if (with_values)
    json["hypergradient"] = std::vector<double>(value.data_ptr<double>(), value.data_ptr<double>() + value.numel());
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
