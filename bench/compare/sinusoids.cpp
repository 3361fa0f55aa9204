#include "bench/compare/sinusoids.h"

#include <ATen/ATen.h>

#include "bilevel/core/error.h"
#include "bilevel/problem/npy.h"

namespace bilevel {
namespace {

const std::vector<std::pair<std::string, std::vector<int64_t>>> kParts = {{"W1", {1, 40}}, {"b1", {1, 40}}, {"W2", {40, 40}},
                                                                          {"b2", {1, 40}}, {"W3", {40, 1}}, {"b3", {1, 1}}};

Layout layout_of(int64_t copies) {
  Layout layout;
  for (auto [name, shape] : kParts) {
    if (copies > 0) shape.insert(shape.begin(), copies);
    layout.add(name, shape);
  }
  return layout;
}

}  // namespace

Sinusoids::Sinusoids(const at::Tensor& points, const at::Tensor& values, at::Tensor weights)
    : tasks_(points.size(0)),
      weights_(std::move(weights)),
      inner_points_(points.narrow(1, 0, 10).unsqueeze(2).contiguous()),
      inner_values_(values.narrow(1, 0, 10).unsqueeze(2).contiguous()),
      outer_points_(points.narrow(1, 10, 10).unsqueeze(2).contiguous()),
      outer_values_(values.narrow(1, 10, 10).unsqueeze(2).contiguous()),
      outer_layout_(layout_of(0)),
      inner_layout_(layout_of(tasks_)) {}

at::Tensor Sinusoids::squares(const at::Tensor& y, const at::Tensor& points, const at::Tensor& values) const {
  const std::vector<at::Tensor> p = inner_layout_.split(y);
  const at::Tensor h1 = (points * p[0] + p[1]).relu();
  const at::Tensor h2 = at::baddbmm(p[3], h1, p[2]).relu();
  return (at::baddbmm(p[5], h2, p[4]) - values).square().sum() / static_cast<double>(points.size(1));
}

at::Tensor Sinusoids::inner_loss(const at::Tensor& /*x*/, const at::Tensor& y, const Batch& /*batch*/) const {
  return squares(y, inner_points_, inner_values_);
}

at::Tensor Sinusoids::outer_loss(const at::Tensor& /*x*/, const at::Tensor& y, const Batch& /*batch*/) const {
  return squares(y, outer_points_, outer_values_) / static_cast<double>(tasks_);
}

at::Tensor Sinusoids::initial_inner(const at::Tensor& x, int64_t /*slice*/) const {
  std::vector<at::Tensor> copies;
  for (const at::Tensor& part : outer_layout_.split(x))
    copies.push_back(part.reshape({1, -1}).expand({tasks_, -1}).reshape({-1}));
  return at::cat(copies);
}

Task make_sinusoids_or_task(const Config& config, c10::Device device) {
  Section section = config.root().section("problem");
  std::string name = "supervised", folder;
  section.read("task", name);
  if (name != "sinusoids") return make_task(config, device);
  section.read_path("folder", folder);
  section.finish();
  Task task;
  task.name = name;
  task.problem =
      std::make_unique<Sinusoids>(read_npy(folder + "/x.npy"), read_npy(folder + "/y.npy"), read_npy(folder + "/w.npy"));
  return task;
}

}  // namespace bilevel
