#include "bilevel/hypergrad/one_step.h"

namespace bilevel {

Hypergradient OneStep::estimate(const EstimatorInput& in) const {
  Hypergradient h = last_step_.estimate(in);
  h.certificate.differentiates = "F_T, last step";
  if (h.grade == Grade::kOk) h.message = "The derivative of the last inner step; how far it is from that of F is not known.";
  return h;
}

}  // namespace bilevel
