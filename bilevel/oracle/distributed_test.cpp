#include "bilevel/oracle/distributed.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/oracle/native.h"
#include "bilevel/oracle/output_space.h"
#include "bilevel/problem/linear_form.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::distributed_test {

/// Where the threads of a test meet: vectors are summed up once all have brought theirs, and all get the same bits.
class Table {
 public:
  explicit Table(int size) : size_(size) {}
  int size() const { return size_; }

  void sum(const at::Tensor& t, std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    brought_.resize(static_cast<size_t>(size_));
    const int64_t round = round_;
    brought_[static_cast<size_t>(arrived_)] = t;
    if (++arrived_ == size_) {
      at::Tensor total = brought_[0].clone();
      for (int i = 1; i < size_; ++i) total += brought_[static_cast<size_t>(i)];
      for (const at::Tensor& one : brought_) one.copy_(total);
      arrived_ = 0;
      ++round_;
      all_.notify_all();
    } else if (!all_.wait_for(lock, timeout, [&] { return round_ != round; })) {
      throw std::runtime_error("the others did not come");
    }
  }

 private:
  const int size_;
  std::mutex mutex_;
  std::condition_variable all_;
  std::vector<at::Tensor> brought_;
  int arrived_ = 0;
  int64_t round_ = 0;
};

class Done final : public c10d::Work {
 public:
  bool wait(std::chrono::milliseconds) override { return true; }
};

/// A process group of one's own, as a user may pass it: each thread is a process.
class ThreadGroup final : public c10d::ProcessGroup {
 public:
  ThreadGroup(std::shared_ptr<Table> table, int rank) : ProcessGroup(rank, table->size()), table_(std::move(table)) {}
  c10::intrusive_ptr<c10d::Work> allreduce(std::vector<at::Tensor>& tensors, const c10d::AllreduceOptions& options) override {
    table_->sum(tensors.front(), options.timeout);
    return c10::make_intrusive<Done>();
  }

 private:
  const std::shared_ptr<Table> table_;
};

/// `work` in `size` threads at once; what the first of them threw comes back.
void in_processes(int size, const std::function<void(const std::shared_ptr<Processes>&)>& work) {
  const auto table = std::make_shared<Table>(size);
  std::vector<std::exception_ptr> failures(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        const auto processes = std::make_shared<Processes>(c10::make_intrusive<ThreadGroup>(table, rank));
        processes->set_timeout(20);
        work(processes);
      } catch (...) {
        failures[static_cast<size_t>(rank)] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

/// The base, with its weights of samples marked as the samples' own.
template <class Base>
class Marked final : public Problem {
 public:
  explicit Marked(const Base& base) : base_(base) {}
  const Layout& outer_layout() const override { return base_.outer_layout(); }
  const Layout& inner_layout() const override { return base_.inner_layout(); }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return base_.inner_loss(x, y, b);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return base_.outer_loss(x, y, b);
  }
  at::Tensor initial_outer() const override { return base_.initial_outer(); }
  at::Tensor initial_inner(const at::Tensor& x, int64_t slice) const override { return base_.initial_inner(x, slice); }
  int64_t inner_samples() const override { return base_.inner_samples(); }
  int64_t outer_samples() const override { return base_.outer_samples(); }
  bool has_outputs() const override { return true; }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch& b) const override { return base_.inner_outputs(y, b); }
  at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& z, const Batch& b) const override {
    return base_.inner_loss_of_outputs(x, y, z, b);
  }
  bool has_outer_outputs() const override { return true; }
  at::Tensor outer_outputs(const at::Tensor& y, const Batch& b) const override { return base_.outer_outputs(y, b); }
  at::Tensor outer_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& z, const Batch& b) const override {
    return base_.outer_loss_of_outputs(x, y, z, b);
  }
  std::optional<OutputLayer> output_layer() const override { return base_.output_layer(); }
  at::Tensor inner_features(const at::Tensor& y, const Batch& b) const override { return base_.inner_features(y, b); }
  at::Tensor outer_features(const at::Tensor& y, const Batch& b) const override { return base_.outer_features(y, b); }
  std::vector<std::string> outer_parts_of_samples() const override { return {base_.outer_layout().parts().front().name}; }

 private:
  const Base& base_;
};

struct Point {
  at::Tensor x, y, v, u;
  explicit Point(const Problem& problem)
      : x(problem.initial_outer() + 0.1 * Stream(1, "x").at(0).normal({problem.outer_layout().size()})),
        y(problem.initial_inner(x, 0) + 0.3 * Stream(1, "y").at(0).normal({problem.inner_layout().size()})),
        v(Stream(1, "v").at(0).normal({3, y.size(0)})),
        u(Stream(1, "u").at(0).normal({2, x.size(0)})) {}
};

void expect_same(const at::Tensor& shared, const at::Tensor& whole, const char* what) {
  ASSERT_EQ(shared.sizes(), whole.sizes()) << what;
  EXPECT_LE((shared - whole).norm().item<double>(), 1e-12 * whole.norm().item<double>()) << what;
  EXPECT_GT(whole.norm().item<double>(), 0.0) << what;
}

void expect_same_everywhere(const Oracle& shared, const Oracle& whole, const Batch& inner, const Batch& outer) {
  const Point at(whole.problem());
  const auto a = shared.linearize_inner(at.x, at.y, inner), b = whole.linearize_inner(at.x, at.y, inner);
  expect_same(a->value(), b->value(), "value");
  expect_same(a->residual(), b->residual(), "residual");
  expect_same(a->grad_x(), b->grad_x(), "∂x g");
  expect_same(a->jvp_y(at.v), b->jvp_y(at.v), "H v");
  expect_same(a->jvp_y(at.v[0]), b->jvp_y(at.v[0]), "H v, one direction");
  expect_same(a->vjp(at.v).y, b->vjp(at.v).y, "(∂y r)ᵀ w");
  expect_same(a->vjp(at.v).x, b->vjp(at.v).x, "(∂x r)ᵀ w");
  expect_same(a->vjp(at.v[1]).x, b->vjp(at.v[1]).x, "(∂x r)ᵀ w, one direction");
  expect_same(a->jvp_x(at.u), b->jvp_x(at.u), "∂x r u");
  expect_same(a->gauss_newton(at.v), b->gauss_newton(at.v), "Gauss–Newton");
  const at::Tensor of_shares = shared.whole(a->vjp_share(at.v[0]).x + a->vjp_share(at.v[2]).x);
  expect_same(of_shares, b->vjp(at.v[0]).x + b->vjp(at.v[2]).x, "a sum of shares");
  EXPECT_TRUE(at::equal(shared.whole(of_shares), of_shares)) << "what is whole stays as it is";
  expect_same(shared.inner(at.x, at.y, inner).value, whole.inner(at.x, at.y, inner).value, "g");
  expect_same(shared.inner(at.x, at.y, inner).y, whole.inner(at.x, at.y, inner).y, "∂y g");
  expect_same(shared.outer(at.x, at.y, outer).value, whole.outer(at.x, at.y, outer).value, "f");
  expect_same(shared.outer(at.x, at.y, outer).y, whole.outer(at.x, at.y, outer).y, "∂y f");
  expect_same(shared.inner_grad_x(at.x, at.y, inner), whole.inner_grad_x(at.x, at.y, inner), "∂x g");
  expect_same(shared.inner_value(at.x, at.y, inner), whole.inner_value(at.x, at.y, inner), "g");
  expect_same(shared.outer_value(at.x, at.y, outer), whole.outer_value(at.x, at.y, outer), "f");
  const at::Tensor f_x = whole.outer(at.x, at.y, outer).x;
  EXPECT_TRUE(at::allclose(shared.outer(at.x, at.y, outer).x, f_x, 1e-12, 1e-14)) << "∂x f";

  const auto pass = shared.joint_pass();
  const at::Tensor r = at::empty_like(at.y), Hv = at::empty_like(at.y), cross = at::empty_like(at.x), f_y = at::empty_like(at.y),
                   f_x_too = at::empty_like(at.x);
  EXPECT_NEAR(pass->inner(at.x, at.y, at.v[0], inner, r, Hv, cross), b->value().item<double>(), 1e-12);
  expect_same(r, b->residual(), "r of a joint pass");
  expect_same(Hv, b->jvp_y(at.v[0]), "H v of a joint pass");
  expect_same(cross, b->vjp(at.v[0]).x, "(∂x r)ᵀ v of a joint pass");
  EXPECT_NEAR(pass->outer(at.x, at.y, outer, f_y, f_x_too), whole.outer_value(at.x, at.y, outer).item<double>(), 1e-12);
  expect_same(f_y, whole.outer(at.x, at.y, outer).y, "∂y f of a joint pass");
  EXPECT_TRUE(at::allclose(f_x_too, f_x, 1e-12, 1e-14)) << "∂x f of a joint pass";
}

void expect_same_output_space(const Oracle& shared, const Oracle& whole, const Batch& inner, const Batch& outer) {
  const Point at(whole.problem());
  const OutputSamples samples{.inner = inner, .outer = outer};
  const auto a = shared.output_space(at.x, at.y, samples), b = whole.output_space(at.x, at.y, samples);
  const at::Tensor w = at.v[0], v = w.index_select(0, output_layer_positions(whole.problem()));
  expect_same(a->adjoint_loss(w).value, b->adjoint_loss(w).value, "loss of an adjoint");
  expect_same(a->adjoint_loss(w).y, b->adjoint_loss(w).y, "its gradient");
  expect_same(a->cross(w), b->cross(w), "cross term of an adjoint");
  expect_same(a->head().matrix, b->head().matrix, "matrix of the head");
  expect_same(a->head().linear, b->head().linear, "linear term of the head");
  expect_same(a->head_cross(v), b->head_cross(v), "cross term of a head");
  expect_same(a->compare(w, v), b->compare(w, v), "sums of products");
}

TEST(DistributedOracle, GivesOneProcesssNumbersForAnyNumberOfProcessesAndAnyBatch) {
  const RidgeProblem ridge;
  const LogisticWeightsProblem logistic;
  const MlpProblem mlp;
  const Marked marked_logistic(logistic);
  const Marked marked_mlp(mlp);
  Batch some, few;  // with a sample that is there twice; and fewer than there are processes, all in the first half
  some.samples = at::tensor({3, 1, 4, 1, 5, 9, 2, 14, 11}, at::kLong);
  few.samples = at::tensor({2, 7}, at::kLong);
  for (const Problem* problem : {static_cast<const Problem*>(&ridge), static_cast<const Problem*>(&logistic),
                                 static_cast<const Problem*>(&marked_logistic), static_cast<const Problem*>(&marked_mlp)}) {
    const AutodiffOracle whole(*problem);
    for (const int size : {1, 2, 3, 4}) {
      in_processes(size, [&](const std::shared_ptr<Processes>& processes) {
        const DistributedOracle shared(whole, processes);
        expect_same_everywhere(shared, whole, {}, {});
        expect_same_everywhere(shared, whole, some, few);
        expect_same_everywhere(shared, whole, few, some);
        if (problem == &ridge) return;  // of which a network's adjoint owes nothing to x
        expect_same_output_space(shared, whole, {}, {});
        expect_same_output_space(shared, whole, some, few);
        expect_same_output_space(shared, whole, few, some);
      });
    }
  }
}

/// Weighted least squares as a linear form.
class FormProblem final : public TestProblem {
 public:
  FormProblem() {
    X_ = Stream(4, "X").at(0).normal({50, 3});
    form_.features = X_;
    form_.targets = Stream(4, "t").at(0).normal({1, 50});
    form_.link = LinearForm::Link::kSquared;
    form_.bias = false;
    form_.sample_weights = [](const at::Tensor& x, const Batch& b) { return b.full() ? x : x.index_select(0, b.samples); };
    outer_layout_.add("weights", {50});
    inner_layout_.add("w", {1, 3});
    x0_ = at::ones({50}, at::kDouble);
    y0_ = at::zeros({3}, at::kDouble);
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override { return mean(x, y, b); }
  at::Tensor outer_loss(const at::Tensor&, const at::Tensor& y, const Batch& b) const override { return mean({}, y, b); }
  int64_t inner_samples() const override { return 50; }
  int64_t outer_samples() const override { return 50; }
  std::vector<std::string> outer_parts_of_samples() const override { return {"weights"}; }
  const LinearForm* inner_linear_form() const override { return &form_; }

 private:
  at::Tensor mean(const at::Tensor& x, const at::Tensor& y, const Batch& b) const {
    at::Tensor l = (X_.mv(y) - form_.targets[0]).square() / 2;
    if (x.defined()) l = l * x;
    return b.full() ? l.mean() : l.index_select(0, b.samples).mean();
  }
  at::Tensor X_;
  LinearForm form_;
};

TEST(DistributedOracle, StandsOnTheNativeOracle) {
  const FormProblem problem;
  const AutodiffOracle whole(problem);
  const NativeOracle native(problem);
  in_processes(3, [&](const std::shared_ptr<Processes>& processes) {
    const DistributedOracle shared(native, processes);
    const Point at(problem);
    const auto a = shared.linearize_inner(at.x, at.y, {}), b = whole.linearize_inner(at.x, at.y, {});
    expect_same(a->residual(), b->residual(), "residual");
    expect_same(a->jvp_y(at.v), b->jvp_y(at.v), "H v");
    expect_same(a->vjp(at.v[0]).x, b->vjp(at.v[0]).x, "(∂x r)ᵀ v");
    expect_same(shared.outer(at.x, at.y, {}).y, whole.outer(at.x, at.y, {}).y, "∂y f");
    const at::Tensor r = at::empty_like(at.y), Hv = at::empty_like(at.y), cross = at::empty_like(at.x);
    shared.joint_pass()->inner(at.x, at.y, at.v[0], {}, r, Hv, cross);
    expect_same(Hv, b->jvp_y(at.v[0]), "H v of a joint pass");
    expect_same(cross, b->vjp(at.v[0]).x, "(∂x r)ᵀ v of a joint pass");
  });
}

TEST(DistributedOracle, LeavesTheEntriesOfSamplesWithTheProcessThatHasThem) {
  const LogisticWeightsProblem base({.inner_samples = 40});
  const Marked problem(base);
  const AutodiffOracle whole(problem);
  in_processes(4, [&](const std::shared_ptr<Processes>& processes) {
    const DistributedOracle shared(whole, processes);
    const Point at(problem);
    const at::Tensor share = shared.linearize_inner(at.x, at.y, {})->vjp_share(at.v[0]).x;
    const at::Tensor all = whole.linearize_inner(at.x, at.y, {})->vjp(at.v[0]).x;
    const int64_t first = 10 * processes->rank();
    expect_same(share.narrow(0, first, 10), all.narrow(0, first, 10), "the own entries");
    EXPECT_EQ(share.ne(0).sum().item<int64_t>(), 10) << "and no others";
  });
}

TEST(DistributedOracle, SendsBytesThatDoNotGrowWithTheNumberOfSamples) {
  const auto bytes_with = [](int64_t n) {
    const LogisticWeightsProblem base({.inner_samples = n});
    const Marked problem(base);
    const AutodiffOracle whole(problem);
    std::vector<int64_t> bytes;
    in_processes(2, [&](const std::shared_ptr<Processes>& processes) {
      const DistributedOracle shared(whole, processes);
      const Point at(problem);
      Batch batch;
      batch.samples = at::tensor({3, 17, 1, 20}, at::kLong);
      const auto lin = shared.linearize_inner(at.x, at.y, {}), of_batch = shared.linearize_inner(at.x, at.y, batch);
      std::vector<int64_t> here;
      const auto count = [&](const std::function<void()>& call) {
        const int64_t before = processes->bytes();
        call();
        here.push_back((processes->bytes() - before) / 8);
      };
      count([&] { lin->residual(); });
      count([&] { lin->jvp_y(at.v[0]); });
      count([&] { lin->jvp_x(at.u[0]); });
      count([&] { lin->vjp_share(at.v[0]); });
      count([&] { of_batch->vjp(at.v[0]); });
      count([&] { shared.inner(at.x, at.y, {}); });
      count([&] { lin->vjp(at.v[0]); });
      if (processes->first()) bytes = here;
    });
    return bytes;
  };
  // dy = 5 numbers: the value too, nothing but y, …, the four of the batch, and at last the entries of all samples.
  EXPECT_EQ(bytes_with(24), (std::vector<int64_t>{6, 5, 5, 5, 9, 6, 5 + 24}));
  EXPECT_EQ(bytes_with(2400), (std::vector<int64_t>{6, 5, 5, 5, 9, 6, 5 + 2400}));
}

TEST(DistributedOracle, LeavesSharesWithTheirProcessUnderACountToo) {
  const LogisticWeightsProblem base;
  const Marked problem(base);
  const AutodiffOracle whole(problem);
  in_processes(2, [&](const std::shared_ptr<Processes>& processes) {
    const DistributedOracle shared(whole, processes);
    const CountedOracle counted(shared);
    const Point at(problem);
    const auto lin = counted.linearize_inner(at.x, at.y, {});
    const int64_t before = processes->bytes();
    const at::Tensor share = lin->vjp_share(at.v[0]).x;
    EXPECT_EQ(processes->bytes() - before, 5 * 8);
    EXPECT_EQ(counted.cost().cross_products, 1);
    expect_same(counted.whole(share), whole.linearize_inner(at.x, at.y, {})->vjp(at.v[0]).x, "(∂x r)ᵀ w");
    EXPECT_EQ(counted.greatest(processes->rank() + 7), 8);
  });
}

TEST(DistributedOracle, RefusesWhatItCannotShare) {
  in_processes(1, [&](const std::shared_ptr<Processes>& processes) {
    const QuadraticProblem none;
    const AutodiffOracle oracle(none);
    EXPECT_THROW(DistributedOracle(oracle, processes), Error);
    const RidgeProblem ridge;  // x has an entry for each weight, and none for each sample
    const Marked wrong(ridge);
    const AutodiffOracle other(wrong);
    EXPECT_THROW(DistributedOracle(other, processes), Error);
  });
  const RidgeProblem ridge;
  const AutodiffOracle oracle(ridge);
  in_processes(2, [&](const std::shared_ptr<Processes>& processes) {
    const DistributedOracle shared(oracle, processes);
    const Point at(ridge);
    Batch outside;
    outside.samples = at::tensor({0, 30}, at::kLong);
    EXPECT_THROW(shared.inner(at.x, at.y, outside), Error) << "and not the samples that there are";
  });
}

TEST(Processes, TellEachOther) {
  in_processes(3, [&](const std::shared_ptr<Processes>& processes) {
    const auto rank = static_cast<double>(processes->rank());
    EXPECT_EQ(processes->of_all(rank * rank), (std::vector<double>{0, 1, 4}));
    EXPECT_EQ(processes->greatest(-rank), 0);
    EXPECT_EQ(processes->of_first(fmt::format("from {}", processes->rank())), "from 0");
    EXPECT_EQ(processes->of_first(""), "");
    const at::Tensor a = at::full({2}, rank), b = at::full({3, 2}, 1.0).t();
    processes->sum({a, b});
    EXPECT_TRUE(at::equal(a, at::full({2}, 3.0)));
    EXPECT_TRUE(at::equal(b, at::full({2, 3}, 3.0)));
    EXPECT_EQ(processes->all_or_none([&] { return processes->rank(); }), processes->rank());
    const auto fail_in_two = [&] {
      if (processes->rank() > 0) throw Error(fmt::format("in {}", processes->rank()));
      return true;
    };
    try {
      processes->all_or_none(fail_in_two);
      ADD_FAILURE() << "all were to fail";
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "in 1") << "the first that failed tells";
      EXPECT_EQ(processes->rank(), 1);
    } catch (const FailedElsewhere&) {
      EXPECT_NE(processes->rank(), 1);
    }
  });
}

TEST(Processes, NoticeThatOneIsLost) {
  in_processes(2, [&](const std::shared_ptr<Processes>& processes) {
    if (!processes->first()) return;
    processes->set_timeout(0.05);
    try {
      processes->greatest(1);
      ADD_FAILURE() << "nobody was there";
    } catch (const LostProcess& lost) {
      EXPECT_NE(std::string(lost.what()).find("Process 0 of 2 lost another one"), std::string::npos) << lost.what();
      EXPECT_NE(std::string(lost.what()).find("0.05 s"), std::string::npos) << lost.what();
    }
    EXPECT_THROW(processes->set_timeout(0), Error);
  });
}

}  // namespace bilevel::distributed_test
