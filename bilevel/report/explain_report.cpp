#include "bilevel/report/explain_report.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "bilevel/core/file.h"
#include "bilevel/report/png.h"

namespace bilevel {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr size_t kMostParts = 30;

std::string decoded(const std::string& base64_text) {
  static const std::string letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string bytes;
  uint32_t buffer = 0;
  int bits = 0;
  for (const char c : base64_text) {
    const size_t value = letters.find(c);
    if (value == std::string::npos) break;
    buffer = buffer << 6 | static_cast<uint32_t>(value);
    bits += 6;
    if (bits >= 8) {
      bits -= 8;
      bytes += static_cast<char>(buffer >> bits & 0xff);
    }
  }
  return bytes;
}

Json json_of(const Explanation& e) {
  Json json = {{"name", e.name},
               {"index", e.index},
               {"outer_size", e.outer_size},
               {"step", e.step},
               {"x", e.x},
               {"start", e.start ? Json(*e.start) : Json()},
               {"value", e.value},
               {"direct", e.direct},
               {"implicit", e.implicit},
               {"parts", Json::array()},
               {"samples", Json::array()},
               {"inner_problems", e.inner_problems},
               {"stationarity", e.stationarity},
               {"relative_residual", e.residual},
               {"mismatch", e.mismatch},
               {"status", to_string(e.grade)},
               {"message", e.message}};
  for (const auto& part : e.parts) {
    json["parts"].push_back({{"name", part.name}, {"value", part.value}, {"weight_norm", part.weight_norm}});
  }
  for (const auto& sample : e.samples) {
    json["samples"].push_back({{"index", sample.index},
                               {"value", sample.value},
                               {"loss", sample.loss},
                               {"label", sample.label},
                               {"predicted", sample.predicted},
                               {"png", base64(sample.png)}});
  }
  return json;
}

double number_at(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number() ? found->get<double>() : NAN;
}

Explanation explanation_of(const Json& json) {
  Explanation e;
  e.name = json.value("name", "");
  e.index = json.value("index", int64_t{0});
  e.outer_size = json.value("outer_size", int64_t{0});
  e.step = json.value("step", int64_t{0});
  e.x = number_at(json, "x");
  if (const double start = number_at(json, "start"); std::isfinite(start)) e.start = start;
  e.value = number_at(json, "value");
  e.direct = number_at(json, "direct");
  e.implicit = number_at(json, "implicit");
  for (const Json& part : json.at("parts")) {
    e.parts.push_back({part.value("name", ""), number_at(part, "value"), number_at(part, "weight_norm")});
  }
  for (const Json& one : json.at("samples")) {
    Explanation::Sample sample;
    sample.index = one.value("index", int64_t{0});
    sample.value = number_at(one, "value");
    sample.loss = number_at(one, "loss");
    sample.label = one.value("label", "");
    sample.predicted = one.value("predicted", "");
    sample.png = decoded(one.value("png", ""));
    e.samples.push_back(std::move(sample));
  }
  for (const Json& one : json.at("inner_problems")) e.inner_problems.push_back(one.is_number() ? one.get<double>() : NAN);
  e.stationarity = number_at(json, "stationarity");
  e.residual = number_at(json, "relative_residual");
  e.mismatch = number_at(json, "mismatch");
  const std::string status = json.value("status", "OK");
  e.grade = status == to_string(Grade::kBad) ? Grade::kBad : status == to_string(Grade::kWarn) ? Grade::kWarn : Grade::kOk;
  e.message = json.value("message", "");
  return e;
}

std::string kept_file(const std::string& directory) { return (fs::path(directory) / "explanations.json").string(); }

std::string name_of_sample(const Explanation::Sample& sample) {
  std::string name = fmt::format("sample {}", sample.index);
  if (!sample.label.empty()) name += fmt::format(" ({})", sample.label);
  return name;
}

}  // namespace

Report::Section explanation_section(const Explanation& e) {
  Report::Section section{fmt::format("Why {} moves, at step {}", e.name, e.step), {}};
  const char* const way = e.value > 0 ? "down" : e.value < 0 ? "up" : "nowhere";
  std::string sentence = fmt::format(
      "dF/d{0} = {1}: to lower the outer loss, {0} (now {2}{3}) goes {4}. {5} of it is said by x in the outer loss itself "
      "(direct), {6} by the way the weights answer to x (implicit).",
      e.name, format_number(e.value, 5), format_number(e.x),
      e.start ? fmt::format(", at the start {}", format_number(*e.start)) : "", way, format_number(e.direct, 5),
      format_number(e.implicit, 5));
  section.blocks.push_back(Text{std::move(sentence)});
  section.blocks.push_back(Text{e.message, e.grade == Grade::kOk ? Text::Tone::kNote : Text::Tone::kWarning});

  BarChart parts{.title = "By part",
                 .label_name = "part",
                 .value_label = "share of dF/dx",
                 .labels = {"direct"},
                 .series = {{"share", {e.direct}}},
                 .horizontal = true,
                 .note = "The direct part, and the implicit one by the parts of the weights whose answer carries it."};
  double rest = 0;
  for (size_t i = 0; i < e.parts.size(); ++i) {
    if (i >= kMostParts) {
      rest += e.parts[i].value;
      continue;
    }
    parts.labels.push_back(e.parts[i].name);
    parts.series[0].values.push_back(e.parts[i].value);
  }
  if (e.parts.size() > kMostParts) {
    parts.labels.push_back(fmt::format("{} more", e.parts.size() - kMostParts));
    parts.series[0].values.push_back(rest);
  }
  section.blocks.push_back(std::move(parts));

  if (!e.inner_problems.empty()) {
    BarChart problems{.title = "By inner problem",
                      .label_name = "inner problem",
                      .value_label = "share of dF/dx",
                      .labels = {},
                      .series = {{"share", e.inner_problems}},
                      .horizontal = true};
    for (size_t s = 0; s < e.inner_problems.size(); ++s) problems.labels.push_back(std::to_string(s));
    section.blocks.push_back(std::move(problems));
  }
  if (e.samples.empty()) return section;

  BarChart samples{.title = "By outer sample",
                   .label_name = "sample",
                   .value_label = "share of dF/dx",
                   .labels = {},
                   .series = {{"share", {}}},
                   .horizontal = true,
                   .note = "The samples with the greatest shares. A positive share pulls down, a negative one up."};
  Gallery gallery{.title = "The samples that pull hardest", .pictures = {}};
  for (const auto& sample : e.samples) {
    samples.labels.push_back(name_of_sample(sample));
    samples.series[0].values.push_back(sample.value);
    if (sample.png.empty()) continue;
    gallery.pictures.push_back({sample.png,
                                name_of_sample(sample),
                                {{"share", format_number(sample.value, 3)},
                                 {"label", sample.label},
                                 {"predicted", sample.predicted},
                                 {"loss", format_number(sample.loss, 3)}}});
  }
  section.blocks.push_back(std::move(samples));
  if (!gallery.pictures.empty()) section.blocks.push_back(std::move(gallery));
  return section;
}

std::string to_json(const Explanation& explanation) {
  return json_of(explanation).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::vector<Explanation> kept_explanations(const std::string& directory) {
  const std::string path = kept_file(directory);
  std::vector<Explanation> kept;
  if (!fs::exists(path)) return kept;
  const Json list = Json::parse(read_file(path), nullptr, false);
  if (!list.is_array()) return kept;
  for (const Json& one : list) {
    try {
      kept.push_back(explanation_of(one));
    } catch (const Json::exception&) {
      continue;  // changed by hand
    }
  }
  return kept;
}

void keep_explanation(const std::string& directory, const Explanation& explanation) {
  Json list = Json::array();
  for (const Explanation& one : kept_explanations(directory)) {
    if (one.name != explanation.name || one.step != explanation.step) list.push_back(json_of(one));
  }
  list.push_back(json_of(explanation));
  write_file(kept_file(directory), list.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace bilevel
