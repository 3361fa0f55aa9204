#include "tasks/trainer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <stdexcept>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"

namespace bilevel::trainer_test {
namespace {

constexpr int64_t kN = 200, kD = 4, kC = 3;

Draw draw(int64_t t) { return Stream(3, "trainer test").at(t); }

double number(const at::Tensor& tensor) { return tensor.item<double>(); }

double distance(const at::Tensor& a, const at::Tensor& b) { return number((a - b).norm() / b.norm()); }

Samples samples() {
  const at::Tensor labels = draw(1).integers(kC, {kN});
  return {draw(0).normal({kN, kD}) + 0.8 * at::one_hot(labels, kD), labels};
}

TrainerOptions options(const std::string& kind = "linear") {
  TrainerOptions options;
  options.model.kind = kind;
  options.model.hidden = {8};
  options.outputs = kC;
  return options;
}

/// Σ_i w_i loss_i / Σ_i w_i + ½ ridge ‖W‖² and its gradient, by PyTorch's own functions.
at::Tensor gradient(const at::Tensor& y, const at::Tensor& w, double ridge) {
  const Samples s = samples();
  const at::Tensor leaf = y.detach().clone().requires_grad_();
  const at::Tensor W = leaf.narrow(0, 0, kC * kD).view({kC, kD}), b = leaf.narrow(0, kC * kD, kC);
  const at::Tensor losses = at::cross_entropy_loss(at::linear(s.features, W, b), s.labels, {}, at::Reduction::None);
  const at::Tensor g = (w * losses).sum() / w.sum() + 0.5 * ridge * W.square().sum();
  return torch::autograd::grad({g}, {leaf})[0];
}

TEST(Trainer, SolvesALinearModelToItsTolerance) {
  const at::Tensor w = draw(2).uniform({kN}) + 0.1;
  const Trainer trainer(options(), samples());
  for (const double tolerance : {1e-2, 1e-4, 1e-9}) {
    const Trainer::Fit fit = trainer.fit(w, 0.01, {}, tolerance);
    EXPECT_LE(fit.stationarity, tolerance);
    EXPECT_NEAR(number(gradient(fit.y, w, 0.01).norm()), fit.stationarity, 1e-3 * tolerance + 1e-12);
  }
  EXPECT_GT(number(gradient(at::zeros({kC * (kD + 1)}, at::kDouble), w, 0.01).norm()), 0.05);
}

TEST(Trainer, DoesNotDependOnTheScaleOfTheWeightsNorOnTheStart) {
  const at::Tensor w = draw(2).uniform({kN}) + 0.1;
  const Trainer trainer(options(), samples());
  const auto fit = [&](const at::Tensor& weights, double ridge, const at::Tensor& start) {
    const at::Tensor y = trainer.fit(weights, ridge, start, 1e-10).y, b = y.narrow(0, kC * kD, kC);
    return at::cat({y.narrow(0, 0, kC * kD), b - b.mean()});  // all biases may rise alike: the softmax does not feel it
  };
  const at::Tensor y = fit(w, 0.01, {});
  EXPECT_LT(distance(fit(7 * w, 0.01, {}), y), 1e-7);
  EXPECT_LT(distance(fit(w, 0.01, draw(3).normal(y.sizes())), y), 1e-7);
  EXPECT_GT(distance(fit(at::ones_like(w), 0.01, {}), y), 1e-3);
  EXPECT_GT(distance(fit(w, 0.02, {}), y), 1e-3);
}

// A tenth, a half and almost all of the rows: what is gathered, and which Gram matrix serves, differs between them.
TEST(Trainer, ARowOfWeightZeroIsARowLeftOut) {
  const Samples all = samples();
  const Trainer trainer(options(), all);
  for (const int64_t kept : {195, 100, 30}) {
    const at::Tensor rows = std::get<0>(draw(4).permutation(kN).narrow(0, 0, kept).sort());
    const at::Tensor w = at::zeros({kN}, at::kDouble).index_fill(0, rows, 1.0);
    const Trainer alone(options(), {all.features.index_select(0, rows), all.labels.index_select(0, rows)});
    const at::Tensor expected = alone.fit(at::ones({kept}, at::kDouble), 0.01, {}, 1e-10).y;
    EXPECT_LT(distance(trainer.fit(w, 0.01, {}, 1e-10).y, expected), 1e-7) << kept;
    EXPECT_GT(distance(trainer.fit(at::ones_like(w), 0.01, {}, 1e-10).y, expected), 1e-3) << kept;
  }
}

TEST(Trainer, AnIntegerWeightIsARowRepeated) {
  const Samples all = samples();
  const at::Tensor times = draw(5).integers(3, {kN}) + 1;
  const at::Tensor rows = at::repeat_interleave(at::arange(kN), times);
  const Trainer repeated(options(), {all.features.index_select(0, rows), all.labels.index_select(0, rows)});
  const at::Tensor expected = repeated.fit(at::ones({rows.size(0)}, at::kDouble), 0.01, {}, 1e-10).y;
  EXPECT_LT(distance(Trainer(options(), all).fit(times.to(at::kDouble), 0.01, {}, 1e-10).y, expected), 1e-7);
}

// A row that took part would bring its NaN along, whatever its weight.
TEST(Trainer, ANetworkNeverSeesARowOfWeightZero) {
  for (const int64_t left_out : {5, 120}) {
    Samples all = samples();
    all.features.narrow(0, kN - left_out, left_out).fill_(std::numeric_limits<double>::quiet_NaN());
    TrainerOptions network = options("mlp");
    network.updates = 30;
    const at::Tensor w = at::cat({at::ones({kN - left_out}, at::kDouble), at::zeros({left_out}, at::kDouble)});
    const at::Tensor y = Trainer(network, all).fit(w, 1e-4, {}, 0).y;
    EXPECT_TRUE(y.isfinite().all().item<bool>()) << left_out;
  }
}

// The last rows are the trusted ones: where they alone know the answer, the network must have learned from them.
TEST(Trainer, ANetworkSeesEveryRowThatIsKept) {
  Samples all = samples();
  all.features = at::one_hot(at::arange(kN).remainder(kD), kD).to(at::kDouble);
  all.labels = at::where(at::arange(kN) < kN - 12, at::zeros({kN}, at::kLong), at::full({kN}, 2, at::kLong));
  all.features.narrow(0, kN - 12, 12).copy_(at::tensor({0.0, 0.0, 0.0, -3.0}, at::kDouble));
  at::Tensor w = at::ones({kN}, at::kDouble);
  w.narrow(0, 0, 12).fill_(0.0);
  TrainerOptions network = options("mlp");
  network.updates = 400;
  network.lr = 1e-2;
  const Trainer trainer(network, all);
  const at::Tensor z = trainer.logits(trainer.fit(w, 0.0, {}, 0).y, all.features.narrow(0, kN - 12, 12));
  EXPECT_TRUE(z.argmax(0).eq(2).all().item<bool>());
}

TEST(Trainer, ANetworkTakesAsManyUpdatesHoweverFewRowsAreKept) {
  int64_t updates = 0;
  TrainerOptions network = options("mlp");
  network.batch = 20;
  network.epochs = 3;
  network.updates = 25;
  network.poll = [&] { ++updates; };
  const Trainer trainer(network, samples());
  std::vector<int64_t> gradients, counted;
  for (const int64_t kept : {kN, int64_t{70}, int64_t{12}}) {
    updates = 0;
    const int64_t before = trainer.cost().gradients;
    trainer.fit((at::arange(kN) < kept).to(at::kDouble), 1e-4, {}, 0);
    gradients.push_back(trainer.cost().gradients - before);
    counted.push_back(updates);
  }
  EXPECT_GE(counted[0], 30);  // 3 epochs of 10 batches
  EXPECT_EQ(counted[1], counted[0]);
  EXPECT_EQ(counted[2], counted[0]);
  EXPECT_EQ(gradients[1], gradients[0]);
  EXPECT_EQ(gradients[2], gradients[0]);
}

TEST(Trainer, APollCanEndTheFitOfANetwork) {
  TrainerOptions network = options("mlp");
  network.poll = [] { throw std::runtime_error("enough"); };
  EXPECT_THROW(Trainer(network, samples()).fit(at::ones({kN}, at::kDouble), 1e-4, {}, 0), std::runtime_error);
}

TEST(Trainer, GivesTheSameBitsAgain) {
  for (const char* kind : {"linear", "mlp"}) {
    const at::Tensor w = draw(2).uniform({kN});
    EXPECT_TRUE(Trainer(options(kind), samples())
                    .fit(w, 0.01, {}, 1e-6)
                    .y.equal(Trainer(options(kind), samples()).fit(w, 0.01, {}, 1e-6).y));
  }
}

TEST(Trainer, RefusesWeightsThatDoNotFit) {
  const Trainer trainer(options(), samples());
  EXPECT_THROW(trainer.fit(at::zeros({kN}, at::kDouble), 0.01, {}, 1e-6), Error);
  EXPECT_THROW(trainer.fit(at::ones({kN - 1}, at::kDouble), 0.01, {}, 1e-6), Error);
}

}  // namespace
}  // namespace bilevel::trainer_test
