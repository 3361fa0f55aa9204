#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace bilevel {

/// One named part of a flat vector.
struct Part {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset = 0;
  int64_t size = 0;
};

/// Names, shapes and offsets of the parts of a flat vector [size()].
class Layout {
 public:
  /// Appends a part. Throws Error on a repeated name or a negative extent.
  Layout& add(std::string name, std::vector<int64_t> shape);

  int64_t size() const { return size_; }
  const std::vector<Part>& parts() const { return parts_; }
  const Part& part(const std::string& name) const;  // throws Error where there is none
  bool has(const std::string& name) const;

  /// The parts of `flat` [size()] as views in their own shapes. One split, so that its backward is one concatenation.
  std::vector<at::Tensor> split(const at::Tensor& flat) const;

  /// The flat vector of `parts`, which must have the shapes of this layout.
  at::Tensor join(const std::vector<at::Tensor>& parts) const;

  /// "weight[3,17]" for the element of the flat vector at `index`.
  std::string element_name(int64_t index) const;

 private:
  std::vector<Part> parts_;
  std::vector<int64_t> sizes_;
  int64_t size_ = 0;
};

}  // namespace bilevel
