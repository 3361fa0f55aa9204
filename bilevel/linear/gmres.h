#pragma once
#include "bilevel/core/config.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

struct GmresOptions {
  int64_t iterations = 50;   // products, over all cycles
  int64_t restart = 50;      // products of a cycle: so many vectors are held. Shorter ones may stagnate on an ill-conditioned A
  double tolerance = 1e-10;  // on ‖b − A q‖ / ‖b‖; never finer than the rounding of the dtype
  double damping = 0.0;      // solves (A + damping·I) q = b
  std::vector<std::string> violations() const;
};
void read(Section& section, GmresOptions& options);

/// Restarted generalised minimal residuals, for any regular A (Saad & Schultz 1986).
///
/// In a cycle of k products q is the point of the smallest residual in q0 + span{r0, A r0, …}, so the residual never rises. The
/// basis is orthogonalised twice. An A that is singular ends the solve with Status::kSingular and the best iterate; a cycle that
/// gains nothing ends it with a message.
class Gmres final : public LinearSolver {
 public:
  explicit Gmres(GmresOptions options);
  std::string_view name() const override { return "gmres"; }
  LinearResult solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const override;

 private:
  GmresOptions options_;
};

}  // namespace bilevel
