#include "tasks/model_file.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "bilevel/core/error.h"
#include "bilevel/core/safetensors.h"
#include "bilevel/problem/loss.h"
#include "tasks/supervised.h"

namespace bilevel {

namespace {

constexpr const char* kFormat = "bilevel-model-1";

nlohmann::json to_json(const TrainedModel& m) {
  return {{"kind", m.model.kind},
          {"bias", m.model.bias},
          {"hidden", m.model.hidden},
          {"channels", m.model.channels},
          {"kernel", m.model.kernel},
          {"stride", m.model.stride},
          {"activation", m.model.activation},
          {"loss", m.loss},
          {"outputs", m.outputs},
          {"sample_shape", m.sample_shape}};
}

void from_json(const nlohmann::json& json, TrainedModel& m) {
  json.at("kind").get_to(m.model.kind);
  json.at("bias").get_to(m.model.bias);
  json.at("hidden").get_to(m.model.hidden);
  json.at("channels").get_to(m.model.channels);
  json.at("kernel").get_to(m.model.kernel);
  json.at("stride").get_to(m.model.stride);
  json.at("activation").get_to(m.model.activation);
  json.at("loss").get_to(m.loss);
  json.at("outputs").get_to(m.outputs);
  json.at("sample_shape").get_to(m.sample_shape);
}

}  // namespace

Prediction TrainedModel::predict(const at::Tensor& features) const {
  const at::NoGradGuard no_grad;
  const Loss kind(loss);
  int64_t size = 1;
  for (const int64_t extent : sample_shape) size *= extent;
  require(
      features.defined() && features.dim() >= 1 && features.numel() == features.size(0) * size,
      fmt::format("TrainedModel::predict: expected [n, {}] features, got shape [{}].", size, fmt::join(features.sizes(), ", ")));
  std::vector<int64_t> shape = sample_shape;
  shape.insert(shape.begin(), features.size(0));
  const at::Tensor X = features.to(weights.device(), weights.scalar_type()).reshape(shape);
  const at::Tensor z = make_model(model, sample_shape, outputs)->outputs(weights, X);
  if (!kind.classifies()) return {{}, {}, kind.probabilities(z).contiguous()};
  return {kind.labels(z), kind.probabilities(z).contiguous(), {}};
}

TrainedModel trained_model(const SupervisedProblem& problem, const at::Tensor& y, const Encoding& encoding) {
  const SupervisedOptions& options = problem.options();
  return {options.model, options.loss, problem.sample_shape(), options.outputs, y.detach(), encoding};
}

void save_model(const TrainedModel& m, const std::string& path) {
  const auto model = make_model(m.model, m.sample_shape, m.outputs);
  SafeTensors content;
  content.metadata = {{"format", kFormat}, {"model", to_json(m).dump()}, {"encoding", m.encoding.to_json()}};
  const std::vector<at::Tensor> parts = model->layout().split(m.weights.detach().cpu());
  for (size_t i = 0; i < parts.size(); ++i) content.tensors[model->layout().parts()[i].name] = parts[i].contiguous();
  write_safetensors(content, path);
}

TrainedModel load_model(const std::string& path) {
  const SafeTensors content = read_safetensors(path);
  const auto entry = [&](const char* key) -> const std::string& {
    const auto found = content.metadata.find(key);
    require(found != content.metadata.end(), fmt::format("{}: not a model of bilevel: its metadata have no \"{}\".", path, key));
    return found->second;
  };
  require(entry("format") == kFormat,
          fmt::format("{}: its format is \"{}\", and this program reads \"{}\".", path, entry("format"), kFormat));
  TrainedModel m;
  try {
    from_json(nlohmann::json::parse(entry("model")), m);
    Loss{m.loss};
  } catch (const nlohmann::json::exception& error) {
    throw Error(fmt::format("{}: the description of the model is damaged ({}).", path, error.what()));
  } catch (const Error& error) {
    throw Error(fmt::format("{}: {}", path, error.what()));
  }
  m.encoding = Encoding::from_json(entry("encoding"), path);

  std::unique_ptr<Model> model;
  try {
    model = make_model(m.model, m.sample_shape, m.outputs);
  } catch (const Error& error) {
    throw Error(fmt::format("{}: {}", path, error.what()));
  }
  std::vector<at::Tensor> parts;
  for (const Part& part : model->layout().parts()) {
    const auto found = content.tensors.find(part.name);
    require(found != content.tensors.end(), fmt::format("{}: the weights \"{}\" are missing.", path, part.name));
    const at::Tensor& tensor = found->second;
    require(tensor.is_floating_point() && tensor.sizes() == at::IntArrayRef(part.shape),
            fmt::format("{}: \"{}\" should hold floating numbers of shape [{}], got {} of shape [{}].", path, part.name,
                        fmt::join(part.shape, ", "), at::toString(tensor.scalar_type()), fmt::join(tensor.sizes(), ", ")));
    require(parts.empty() || tensor.scalar_type() == parts[0].scalar_type(),
            fmt::format("{}: the weights are not all of one type.", path));
    parts.push_back(tensor);
  }
  require(content.tensors.size() == parts.size(), fmt::format("{}: it holds tensors that the model does not have.", path));
  m.weights = model->layout().join(parts);
  return m;
}

}  // namespace bilevel
