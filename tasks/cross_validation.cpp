#include "tasks/cross_validation.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/standard_error.h"
#include "bilevel/core/stream.h"
#include "bilevel/problem/linear_form.h"
#include "tasks/gram.h"

namespace bilevel {

StrengthGroups strength_groups(const Model& model, const std::string& per, const at::Tensor& columns,
                               const std::vector<std::string>& names) {
  StrengthGroups out;
  const auto& layers = model.layers();
  const bool by_column = per == "group" || per == "feature";
  require(per == "one" || per == "class" || per == "layer" || by_column,
          fmt::format("strength_groups: per = \"{}\" should be one, class, layer, feature or group.", per));
  require(per != "class" || layers.size() == 1,
          fmt::format("A strength per class needs a linear model, and this one has {} layers. Use per layer.", layers.size()));
  const int64_t inputs = model.layout().parts()[static_cast<size_t>(layers.front().weight)].shape[1];
  if (by_column) {
    require(columns.defined() && columns.dim() == 1 && columns.size(0) == inputs,
            fmt::format("strength_groups: the groups of {} columns are wanted, got {}.", inputs,
                        columns.defined() ? columns.size(0) : 0));
    require(columns.min().item<int64_t>() >= 0 && columns.max().item<int64_t>() < static_cast<int64_t>(names.size()),
            "strength_groups: a column has a group without a name.");
  }
  if (per == "one") out.names = {"all"};
  if (by_column) out.names = names;
  if (per == "class") out.names = names;
  std::vector<at::Tensor> index(model.layout().parts().size());
  for (size_t l = 0; l < layers.size(); ++l) {
    const Part& weight = model.layout().parts()[static_cast<size_t>(layers[l].weight)];
    const int64_t rows = weight.shape[0], in = weight.shape[1];
    at::Tensor of = at::zeros({rows, in}, at::kLong);
    if (per == "class") of = at::arange(rows).unsqueeze(1).expand({rows, in});
    if (by_column && l == 0) of = columns.unsqueeze(0).expand({rows, in});
    if (per == "layer" || (by_column && l > 0)) {
      of.fill_(out.count());
      out.names.push_back(layers[l].name);
    }
    index[static_cast<size_t>(layers[l].weight)] = of.reshape({-1});
    if (layers[l].bias >= 0) index[static_cast<size_t>(layers[l].bias)] = at::full({rows}, -1, at::kLong);
  }
  if (per == "class") {
    require(static_cast<int64_t>(names.size()) == model.output_size(),
            fmt::format("strength_groups: {} names for {} classes.", names.size(), model.output_size()));
  }
  out.index = at::cat(index);
  return out;
}

at::Tensor random_folds(const at::Tensor& labels, bool stratify, int64_t folds, uint64_t seed) {
  const int64_t n = labels.size(0);
  at::Tensor order = Stream(seed, "folds").at(0).permutation(n);
  if (stratify) order = order.index_select(0, std::get<1>(labels.index_select(0, order).sort(/*stable=*/true, 0, false)));
  return at::empty({n}, at::kLong).index_copy_(0, order, at::arange(n).remainder(folds));
}

CrossValidation::~CrossValidation() = default;

CrossValidation::CrossValidation(CrossValidationOptions options, const Samples& data, const at::Tensor& fold_of,
                                 std::shared_ptr<const Gram> gram)
    : options_(std::move(options)), loss_(options_.loss), gram_(std::move(gram)) {
  const at::NoGradGuard no_grad;
  n_ = data.features.size(0);
  require(data.labels.size(0) == n_ && fold_of.dim() == 1 && fold_of.size(0) == n_,
          fmt::format("CrossValidation: {} samples, {} labels, folds of {}.", n_, data.labels.size(0), fold_of.size(0)));
  require(options_.model.kind != "cnn", "CrossValidation: the model must be linear or mlp.");
  model_ = make_model(options_.model, data.features.sizes().slice(1).vec(), options_.outputs);
  const int64_t dy = model_->layout().size();
  require(options_.groups.index.size(0) == dy,
          fmt::format("CrossValidation: the strengths are those of {} weights, and the model has {}.",
                      options_.groups.index.size(0), dy));

  const auto [sorted, order] = fold_of.sort(/*stable=*/true, 0, false);
  folds_ = std::max<int64_t>(1, sorted[-1].item<int64_t>() + 1);
  const bool in_order = order.equal(at::arange(n_));
  features_ = data.features.to(options_.dtype);
  if (!in_order) features_ = features_.index_select(0, order);
  const at::Tensor labels = in_order ? data.labels : data.labels.index_select(0, order);
  targets_ = loss_.targets(labels, options_.outputs, options_.dtype, "CrossValidation");
  train_weights_ = at::ones({folds_, n_}, options_.dtype);
  held_weights_ = at::zeros({folds_, n_}, options_.dtype);
  for (int64_t k = 0; k < folds_; ++k) {
    const int64_t first = (sorted < k).sum().item<int64_t>(), count = (sorted == k).sum().item<int64_t>();
    held_out_.emplace_back(first, count);
    const bool all = sorted[0].item<int64_t>() < 0;
    require(all || (count > 0 && count < n_), fmt::format("CrossValidation: fold {} holds out {} of {} samples.", k, count, n_));
    held_weights_[k].narrow(0, first, count).fill_(1);
    train_weights_[k].fill_(static_cast<double>(n_) / static_cast<double>(n_ - count)).narrow(0, first, count).fill_(0);
  }

  strength_index_ =
      options_.groups.index.where(options_.groups.index >= 0, at::full_like(options_.groups.index, options_.groups.count()));
  outer_layout_.add("l2", {options_.groups.count()});
  if (options_.step_size) outer_layout_.add("step_size", {1});
  for (int64_t k = 0; k < folds_; ++k) {
    for (const Part& part : model_->layout().parts()) inner_layout_.add(fmt::format("fold{}.{}", k, part.name), part.shape);
  }
  if (options_.model.kind != "linear") return;
  LinearForm form;
  form.features = features_;
  form.targets = targets_;
  form.link = LinearForm::link_of(loss_);
  form.outputs = options_.outputs;
  form.bias = options_.model.bias;
  form.models = folds_;
  const auto weights = [this](const at::Tensor& all) {
    return [this, all](const at::Tensor&, const Batch& batch) {
      const at::Tensor w = batch.full() ? all : all.index_select(1, batch.samples);
      return folds_ == 1 ? w[0] : w;
    };
  };
  outer_form_ = std::make_unique<LinearForm>(form);
  outer_form_->sample_weights = weights(held_weights_);
  if (options_.width > 0) outer_form_->prior = [this](const at::Tensor& x) { return prior(x); };
  inner_form_ = std::make_unique<LinearForm>(std::move(form));
  inner_form_->sample_weights = weights(train_weights_);
  inner_form_->ridge = [this](const at::Tensor& x) { return strengths(x).repeat({folds_}); };
}

at::Tensor CrossValidation::strengths(const at::Tensor& x) const {
  const at::Tensor lambda = x.narrow(0, 0, options_.groups.count()).exp();
  return at::cat({lambda, at::zeros({1}, lambda.options().requires_grad(false))}).index_select(0, strength_index_);
}

at::Tensor CrossValidation::prior(const at::Tensor& x) const {
  if (!(options_.width > 0)) return {};
  const at::Tensor strengths = x.narrow(0, 0, options_.groups.count());
  return (strengths - strengths.mean()).square().sum() / (2 * options_.width * options_.width * static_cast<double>(n_));
}

at::Tensor CrossValidation::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const auto rows = [&](const at::Tensor& all, int64_t dim) { return batch.full() ? all : all.index_select(dim, batch.samples); };
  const at::Tensor features = rows(features_, 0), targets = rows(targets_, 1), weights = rows(train_weights_, 1);
  const at::Tensor models = y.view({folds_, -1});
  at::Tensor g = (strengths(x) * models.square()).sum() / 2;
  const std::vector<at::Tensor> each = models.unbind(0);
  for (int64_t k = 0; k < folds_; ++k) {
    const at::Tensor losses = loss_.losses(model_->outputs(each[k], features), targets);
    g = g + losses.dot(weights[k]) / static_cast<double>(features.size(0));
  }
  return g;
}

at::Tensor CrossValidation::held_out_logits(const at::Tensor& y, int64_t k) const {
  return model_->outputs(y, features_.narrow(0, held_out_[k].first, held_out_[k].second));
}

at::Tensor CrossValidation::outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  require(batch.full(), "CrossValidation::outer_loss: it takes all samples, for each fold holds out its own.");
  const std::vector<at::Tensor> each = y.view({folds_, -1}).unbind(0);
  at::Tensor f = at::zeros({}, y.options().requires_grad(false));
  for (int64_t k = 0; k < folds_; ++k) {
    const at::Tensor targets = targets_.narrow(1, held_out_[k].first, held_out_[k].second);
    f = f + loss_.losses(held_out_logits(each[k], k), targets).sum();
  }
  f = f / static_cast<double>(n_);
  const at::Tensor p = prior(x);
  return p.defined() ? f + p : f;
}

at::Tensor CrossValidation::initial_outer() const {
  at::Tensor x = at::full({outer_layout_.size()}, std::log(options_.start), options_.dtype);
  if (options_.step_size) x[-1] = std::log(options_.step_start);
  return x;
}

at::Tensor CrossValidation::initial_inner(const at::Tensor&, int64_t) const {
  const Stream stream(options_.seed, "initial inner weights");
  return model_->initial(options_.model.kind == "linear" ? "zeros" : "random", stream.at(0), options_.dtype).repeat({folds_});
}

// Each model's own; the samples that its fold leaves out hardly change the Gram matrix.
Problem::Preconditioner CrossValidation::inner_preconditioner(const at::Tensor& x) const {
  if (options_.model.kind != "linear") return {};
  const at::NoGradGuard no_grad;
  if (preconditioner_ && x.equal(preconditioned_at_)) return preconditioner_;
  if (!gram_) gram_ = std::make_shared<Gram>(features_, options_.model.bias);
  // One strength per column serves all classes alike, so with a strength per class their mean stands for them.
  const int64_t d = features_.size(1), C = options_.outputs;
  const at::Tensor ridge = strengths(x).narrow(0, 0, C * d).view({C, d}).mean(0);
  const auto one = gram_->inverse(C, even_odds_curvature(loss_, C), ridge);
  preconditioned_at_ = x.clone();
  preconditioner_ = [one, K = folds_](const at::Tensor& v) {
    std::vector<at::Tensor> parts;
    for (const at::Tensor& of_fold : v.view({K, -1}).unbind(0)) parts.push_back(one(of_fold));
    return at::cat(parts);
  };
  return preconditioner_;
}

Problem::RuleHyperparameters CrossValidation::rule_hyperparameters(const at::Tensor& x, int64_t) const {
  if (!options_.step_size) return {};
  return {{"lr", x[-1].exp()}};
}

std::vector<Constraint> CrossValidation::outer_constraints() const {
  std::vector<Constraint> out = {Constraint::box(std::log(options_.lowest), std::log(options_.highest))};
  if (options_.step_size)
    out.push_back(Constraint::box(std::log(options_.step_start * 1e-4), std::log(options_.step_start * 1e4)));
  return out;
}

CrossValidation::Validation CrossValidation::validate(const at::Tensor& y) const {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> each = y.view({folds_, -1}).unbind(0);
  Validation out;
  std::vector<double> losses, scores;
  for (int64_t k = 0; k < folds_; ++k) {
    const auto [first, count] = held_out_[k];
    const at::Tensor z = held_out_logits(each[k], k), targets = targets_.narrow(1, first, count);
    losses.push_back(loss_.losses(z, targets).mean().item<double>());
    scores.push_back(loss_.score(z, targets));
    const double share = static_cast<double>(count) / static_cast<double>(n_);
    out.loss += share * losses.back();
    out.score += share * scores.back();
  }
  out.loss_error = standard_error(losses, out.loss);
  out.score_error = standard_error(scores, out.score);
  return out;
}

std::map<std::string, double> CrossValidation::metrics(const at::Tensor&, const at::Tensor& y) const {
  const Validation v = validate(y);
  return {{"cv_loss", v.loss}, {"cv_" + loss_.score_name(), v.score}};
}

}  // namespace bilevel
