#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

namespace bilevel::python {

/// The parts of a flat vector, as one node of the graph in each direction.
///
/// Written in torch's own operations each part is a view of a view, so that every pass through the graph of a loss dispatches twice as many
/// operations as there are parts: for small problems that is a tenth of the time.
class Parts {
 public:
  explicit Parts(std::vector<std::vector<int64_t>> shapes);
  /// Views of `flat`, which has as many elements as all shapes together; differentiable as often as one likes.
  std::vector<at::Tensor> split(const at::Tensor& flat) const;
  /// The vector of such parts, differentiable likewise.
  at::Tensor join(const std::vector<at::Tensor>& parts) const;

 private:
  struct Shapes;
  struct Split;
  struct Join;
  std::shared_ptr<const Shapes> shapes_;
};

}  // namespace bilevel::python
