// What the studies of `bilevel reweight` need beside the command itself. Each subcommand prints one JSON object.
//
//   labels   the demonstration's labels, truth and class probabilities as .npy, for another program to judge
//   train    the test accuracy of softmax regression with given weights of the demonstration's samples
//   starts   what the posterior stage makes of learned weights, of agreement weights and of equal ones
//   ranking  the AUC of each ranking of --by sample under one kind of label noise
#include <cstdio>
#include <exception>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "bench/softmax_rows.h"
#include "bilevel/core/stream.h"
#include "bilevel/problem/label_noise.h"
#include "bilevel/problem/npy.h"
#include "tasks/label_posterior.h"
#include "tasks/planted_errors.h"
#include "tasks/reweight_job.h"

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

struct Arguments {
  std::string simulate = "mixed", noise = "uniform", folder, weights;
  uint64_t seed = 0;
  int64_t trusted = 200;
};

/// The job that the same words make on the command line.
ReweightJob demonstration(const Arguments& a, const std::string& more = "") {
  return ReweightJob(Config::parse(fmt::format("[problem]\ntask = \"reweight\"\n[data]\nbuiltin = \"fashion-mnist\"\nsimulate = "
                                               "\"{}\"\n{}[run]\nseed = {}\nthreads = 1\n",
                                               a.simulate, more, a.seed),
                                   "(bench)"));
}

Json to_json(const SoftmaxRows::Row& row) {
  return {{"accuracy", row.accuracy},
          {"held_back_accuracy", row.held_back_accuracy},
          {"ridge", row.ridge},
          {"stationarity", row.stationarity}};
}

Json labels(const Arguments& a) {
  const ReweightJob job = demonstration(a);
  const ReweightData data = job.data(a.seed);
  SoftmaxRows rows(data, a.seed);
  const SoftmaxRows::Row all = rows.train(rows.ones());
  write_npy(data.noisy.labels, a.folder + "/labels.npy");
  write_npy(data.noisy.sources, a.folder + "/sources.npy");
  write_npy(data.truth, a.folder + "/truth.npy");
  write_npy(rows.out_of_fold(rows.ones(), all.ridge, 5).t().contiguous(), a.folder + "/out_of_fold.npy");
  const SoftmaxRows::Row trusted = rows.train(at::zeros_like(rows.ones()));
  write_npy(rows.probabilities(trusted.y).t().contiguous(), a.folder + "/trusted.npy");
  return {{"all", to_json(all)}, {"trusted", to_json(trusted)}};
}

Json train(const Arguments& a) {
  const ReweightJob job = demonstration(a);
  const ReweightData data = job.data(a.seed);
  SoftmaxRows rows(data, a.seed);
  return to_json(rows.train(read_npy(a.weights).to(data.noisy.features.scalar_type())));
}

Json starts(const Arguments& a) {
  const ReweightJob job = demonstration(a);
  const ReweightData data = job.data(a.seed);
  const ReweightResult result = reweight(data, job.options());
  Json json = {{"simulate", a.simulate}, {"seed", a.seed}};
  for (const ReweightRow& row : result.rows) json["rows"][row.slug] = *row.accuracy;

  SoftmaxRows rows(data, a.seed);
  const at::Tensor right =
      (rows.probabilities(result.row("trusted").y).argmax(0) == data.noisy.labels).to(rows.ones().scalar_type());
  const std::pair<const char*, at::Tensor> from[] = {{"learned", result.x.sigmoid().index_select(0, data.noisy.sources)},
                                                     {"agreement", mean_of_source(right, data.noisy)},
                                                     {"equal", rows.ones()}};
  for (const auto& [name, start] : from) {
    // Stage 2 of tasks/reweight.cpp.
    const double ridge = rows.train(start).ridge;
    at::Tensor weights = start;
    LabelPosterior posterior;
    for (int64_t round = 0; round < job.options().posterior_rounds; ++round) {
      posterior = label_posterior(rows.out_of_fold(weights, ridge, 3), data.noisy.labels, data.noisy.sources,
                                  static_cast<int64_t>(data.noisy.source_names.size()));
      weights = posterior.correct * posterior.correct.gt(0.5).to(weights.scalar_type());
    }
    json["posterior_from"][name] = to_json(rows.train(posterior.correct));
    json["posterior_from"][name]["auc"] = area_under_curve(1 - posterior.correct, data.truth != data.noisy.labels);
  }
  return json;
}

/// Moves about 30 % of the labels to the second choice of a model of the true labels, the more readily the harder the image.
at::Tensor mislabel_hard_images(const Dataset& clean, uint64_t seed) {
  TrainerOptions options;
  options.outputs = clean.classes();
  const Trainer trainer(options, {clean.features, clean.labels});
  const at::Tensor y = trainer.fit(at::ones({clean.size()}, clean.features.options()), 1e-2, {}, 1e-2).y;
  const at::Tensor z = trainer.logits(y, clean.features).to(at::kDouble);
  const at::Tensor others = z.scatter(0, clean.labels.unsqueeze(0), -1e9);
  const at::Tensor margin = z.gather(0, clean.labels.unsqueeze(0)).squeeze(0) - std::get<0>(others.max(0));
  const at::Tensor ease = (-margin / 2).exp().clamp(0, 1);
  const at::Tensor moved = Stream(seed, "mislabelled hard images").at(0).uniform({clean.size()}).lt(ease * (0.3 / ease.mean()));
  return at::where(moved, others.argmax(0), clean.labels);
}

Json ranking(const Arguments& a) {
  const ReweightJob job = demonstration(a, fmt::format("samples = 4000\ntrusted_samples = {}\n", a.trusted));
  ReweightData data = job.data(a.seed);
  if (a.noise != "source") {
    Dataset& noisy = data.noisy;
    noisy.labels = data.truth;
    noisy.sources = at::Tensor();
    noisy.source_names = {};
    const auto by_one = [&](double rate, NoiseKind kind) {
      return simulate_labels(data.truth, {{"one", rate, kind}}, fashion_mnist_look_alikes(), a.seed).labels;
    };
    noisy.labels = a.noise == "uniform" ? by_one(0.36, NoiseKind::kRandom)
                   : a.noise == "swap"  ? by_one(0.35, NoiseKind::kLookAlike)
                                        : mislabel_hard_images(noisy, a.seed);
  }
  ReweightOptions options = job.options();
  options.by = "sample";
  const ReweightResult result = reweight(data, options);
  Json json = {{"noise", a.noise}, {"trusted", a.trusted}, {"seed", a.seed}};
  json["wrong"] = (data.truth != data.noisy.labels).to(at::kDouble).mean().item<double>();
  json["auc"] = result.auc;
  json["seconds"] = result.cost.seconds;
  return json;
}

}  // namespace
}  // namespace bilevel

int main(int argc, char** argv) {
  bilevel::Arguments a;
  CLI::App app("Studies of bilevel reweight.");
  app.require_subcommand(1);
  const auto add = [&](const char* name, bilevel::Json (*study)(const bilevel::Arguments&)) {
    CLI::App* sub = app.add_subcommand(name);
    sub->add_option("--seed", a.seed);
    sub->callback([&a, study] { fmt::print("{}\n", study(a).dump()); });
    return sub;
  };
  CLI::App* labels = add("labels", bilevel::labels);
  CLI::App* train = add("train", bilevel::train);
  CLI::App* starts = add("starts", bilevel::starts);
  for (CLI::App* sub : {labels, train, starts})
    sub->add_option("--simulate", a.simulate)->check(CLI::IsMember({"mixed", "swapping"}));
  labels->add_option("--out", a.folder)->required();
  train->add_option("--weights", a.weights)->required();
  CLI::App* ranking = add("ranking", bilevel::ranking);
  ranking->add_option("--noise", a.noise)->check(CLI::IsMember({"uniform", "swap", "source", "feature"}));
  ranking->add_option("--trusted", a.trusted);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
