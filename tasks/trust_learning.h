#pragma once
#include <memory>
#include <vector>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/adam.h"
#include "bilevel/run/doctor.h"
#include "tasks/reweight.h"
#include "tasks/supervised.h"

namespace bilevel {

inline constexpr double kNetworkRidge = 1e-4;  // of a network's weights where no grid is searched

/// The features of `data` in the shape that the model takes; images are as large as those of `like`.
at::Tensor model_features(const Dataset& data, const Dataset& like, const ReweightOptions& options);

/// What trust is learned from, features in that shape.
struct TrustData {
  Samples noisy, trusted;
  at::Tensor sources;  // int64 [n], of the noisy samples; all 0 where no source is known
  int64_t source_count = 1;
  int64_t classes = 0;
  std::shared_ptr<const Gram> gram;  // of a linear model; none: made when it is asked for
};
TrustData trust_data(const ReweightData& data, const ReweightOptions& options);
TrustData in_double(TrustData data);

/// Index vectors (int64) that part the trusted samples, stratified by class, so that the groups are alike.
std::vector<at::Tensor> trusted_groups(const at::Tensor& labels, const ReweightOptions& options);

/// Updates of x, at most.
int64_t trust_steps(const ReweightOptions& options);
/// The rule that moves x.
OuterAdamOptions trust_outer_options(const ReweightOptions& options);

/// The bilevel problem inside `reweight`, and what solves it:
///
///   min_x f(y*(x)),   y*(x) = argmin_y (1/n) Σ_i σ(x_s(i)) loss_i(y) + ½ ridge ‖y‖²
///
/// f is the mean loss on the trusted samples; by sample, s(i) = i. A linear model is solved by L-BFGS and implicit CG,
/// preconditioned by its Gram matrix. A network gets an epoch of Adam an outer step, and CG with Gauss–Newton's curvature on some
/// of the rows.
class TrustLearning {
 public:
  TrustLearning(const TrustData& data, const ReweightOptions& options);
  TrustLearning(const TrustLearning&) = delete;
  TrustLearning& operator=(const TrustLearning&) = delete;

  const CountedOracle& oracle() const { return oracle_; }
  const DoubleLoop& algorithm() const { return *algorithm_; }
  /// x = 0 and the model's own start; a network has been trained for a few epochs, for before them its hypergradient means
  /// nothing.
  State start() const;
  /// The estimator as [hypergradient] would have it.
  EstimatorSettings estimator() const;
  /// [G, dx], group by group of the trusted samples, by each estimate so far.
  const std::vector<at::Tensor>& found() const { return found_; }

 private:
  bool convex() const { return options_.model.kind == "linear"; }
  std::shared_ptr<const InnerSolver> network_solver(int64_t epochs) const;
  std::unique_ptr<Implicit> implicit() const;

  ReweightOptions options_;
  SupervisedProblem problem_;
  std::unique_ptr<Oracle> uncounted_;
  CountedOracle oracle_;
  std::vector<at::Tensor> found_;
  std::unique_ptr<DoubleLoop> algorithm_;
};

}  // namespace bilevel
