#include "bilevel/problem/fingerprint.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace bilevel {
namespace {

const at::Tensor kNumbers = at::arange(6, at::kFloat).view({2, 3});
const at::Tensor kLabels = at::tensor({7, -1}, at::kLong);

// Python: zlib.crc32 over b"Float [2, 3]\n", struct.pack("<6f", *range(6)), b"none\n", b"Long [2]\n", struct.pack("<2q", 7, -1).
TEST(Fingerprint, IsTheChecksumThatPythonFinds) { EXPECT_EQ(fingerprint({kNumbers, {}, kLabels}), "9f83231f"); }

TEST(Fingerprint, DoesNotDependOnStrides) { EXPECT_EQ(fingerprint({kNumbers.t().contiguous().t()}), fingerprint({kNumbers})); }

TEST(Fingerprint, TellsElementsOrderShapesTypesAndPlacesApart) {
  const at::Tensor changed = kNumbers.clone();
  changed[1][2] = 5.0000005F;
  std::vector<std::string> all;
  for (const std::vector<at::Tensor>& tensors : {std::vector<at::Tensor>{kNumbers, kLabels},
                                                 {changed, kLabels},
                                                 {kNumbers.flip(0), kLabels},
                                                 {kNumbers.view({3, 2}), kLabels},
                                                 {kNumbers.to(at::kDouble), kLabels},
                                                 {kLabels, kNumbers},
                                                 {kNumbers},
                                                 {kNumbers, {}, kLabels},
                                                 {}}) {
    all.push_back(fingerprint(tensors));
  }
  std::sort(all.begin(), all.end());
  EXPECT_EQ(std::unique(all.begin(), all.end()), all.end());
}

}  // namespace
}  // namespace bilevel
