#pragma once
#include <c10/util/intrusive_ptr.h>

#include <vector>

#include "bilevel/core/layout.h"

namespace bilevel::python {

/// Layout::split and Layout::join, each as one node of the graph, as often as one differentiates.
///
/// In torch's own operations each part is a view of a view, and every pass through the graph of a loss dispatches twice as many
/// of them as there are parts. Not for torch.func: its transformations take no node of C++.
class Parts {
 public:
  explicit Parts(Layout layout);
  ~Parts();
  std::vector<at::Tensor> split(const at::Tensor& flat) const;
  at::Tensor join(const std::vector<at::Tensor>& parts) const;

 private:
  struct Strided;
  struct Split;
  struct Join;
  using Held = c10::intrusive_ptr<Strided>;  // by the graph too
  Held parts_;
};

}  // namespace bilevel::python
