#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bilevel/core/layout.h"
#include "bilevel/core/status.h"
#include "bilevel/inner/inner_solver.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

struct ExplainOptions {
  double tolerance = 1e-12;    // of the two linear solves, relative: their residual is all that the parts' sum can miss
  int64_t iterations = 2000;   // most products of each, where the system is too large for its matrix
  int64_t dense_up_to = 1000;  // dy whose matrix is formed: exact, in dy products
  int64_t most_samples = 20;   // outer samples that are listed one by one
  double damping = 0.0;        // as the run's own estimator used it
  std::vector<std::string> violations() const;
};

/// One element of dF/dx at one point, taken apart:
///
///   dF/dxᵢ = ∂xᵢ f − cᵀ q,   c = ∂xᵢ r,   (∂y r)ᵀ q = ∂y f
///
/// By parts of y (layers): the part l gives −Σ_{j in l} c_j q_j. By outer samples, where f is the mean of n sample losses f_k:
/// with (∂y r) u = c, the sample k gives (∂xᵢ f_k − uᵀ ∂y f_k)/n. Both are exact splits of the same number.
struct Explanation {
  struct Part {
    std::string name;
    double value = 0;
    double weight_norm = 0;  // ‖y_l‖
  };
  struct Sample {
    int64_t index = 0;
    double value = 0;  // the sample's share of dF/dxᵢ
    double loss = 0;
    // What tasks add for people to look at; empty where there is nothing.
    std::string label, predicted, png;
  };

  std::string name;  // "l2[3]"
  int64_t index = 0, outer_size = 0;
  int64_t step = 0;  // x after so many updates
  double x = 0;
  std::optional<double> start;                 // of x, where the run began; filled in by whoever knows the run
  double value = 0, direct = 0, implicit = 0;  // value = direct + implicit
  std::vector<Part> parts;                     // sum to implicit; the greatest first
  at::Tensor shares;                           // [n], sum to value; undefined where the problem offers no sample losses
  std::vector<Sample> samples;                 // the greatest shares, by size
  std::vector<double> inner_problems;          // shares of several inner problems, sum to value; empty for one
  double stationarity = 0;                     // ‖r‖ at y: the split holds at r = 0
  double residual = 0;                         // the worse of the two linear solves', relative
  double mismatch = 0;                         // |−cᵀq + uᵀ∂y f|: what the residuals leave open
  Grade grade = Grade::kOk;
  std::string message;  // one sentence
};

/// Takes dF/dx_index apart at (x, y), y [dy] or [k, dy] for k inner problems. r is what `solver` drives to zero, on the active
/// set where y is constrained, as for the implicit estimator. Throws Error for an element that moves the inner problem only
/// through the way to its solution, and for a solver of which nothing says where it stops.
Explanation explain(const Oracle& oracle, const InnerSolver& solver, const at::Tensor& x, const at::Tensor& y, int64_t index,
                    const ExplainOptions& options = {});

/// The place of "part", "part[3]" or "part[2,5]" in the flat vector. Throws Error that says what there is.
int64_t element_index(const Layout& layout, const std::string& name);

}  // namespace bilevel
