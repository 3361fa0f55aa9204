#include "bilevel/problem/fingerprint.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <zlib.h>

namespace bilevel {

std::string fingerprint(const std::vector<at::Tensor>& tensors) {
  uLong sum = crc32_z(0, nullptr, 0);
  for (const at::Tensor& tensor : tensors) {
    const std::string head = tensor.defined()
                                 ? fmt::format("{} [{}]\n", c10::toString(tensor.scalar_type()), fmt::join(tensor.sizes(), ", "))
                                 : "none\n";
    sum = crc32_z(sum, reinterpret_cast<const Bytef*>(head.data()), head.size());
    if (!tensor.defined() || tensor.numel() == 0) continue;
    const at::Tensor plain = tensor.detach().to(at::kCPU).contiguous();
    sum = crc32_z(sum, static_cast<const Bytef*>(plain.const_data_ptr()), plain.nbytes());
  }
  return fmt::format("{:08x}", sum);
}

}  // namespace bilevel
