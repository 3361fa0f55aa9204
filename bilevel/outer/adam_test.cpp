#include "bilevel/outer/adam.h"

#include <gtest/gtest.h>

#include "bilevel/outer/trajectory_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

// The numbers were computed by torch 2.13.0 in float64: six times zero_grad, backward, step on the function of `gradient_at`,
// from `start`, with the optimiser in the comment.
TEST(OuterAdam, FollowsPyTorchsTrajectories) {
  const auto error = [](OuterAdamOptions options, std::vector<double> expected) {
    return error_after_six(OuterAdam(std::move(options)), std::move(expected));
  };
  // torch.optim.Adam([x], lr=0.1)
  EXPECT_LT(error({.lr = 0.1}, {0.8933654352900533, -1.8035528156048275, 1.4204355046678494}), 1e-12);
  // torch.optim.Adam([x], lr=0.1, betas=(0.7, 0.8), eps=1e-2)
  EXPECT_LT(error({.lr = 0.1, .betas = {0.7, 0.8}, .eps = 1e-2}, {0.89050066506470482, -1.8002104768700995, 1.4240567369608275}),
            1e-12);
  // torch.optim.Adam([x], lr=0.1, weight_decay=0.3)
  EXPECT_LT(error({.lr = 0.1, .weight_decay = 0.3}, {0.89156896011318454, -1.8035745787272732, 1.4189392615048431}), 1e-12);
  // torch.optim.Adam([x], lr=0.5, betas=(0.5, 0.6), amsgrad=True), and without amsgrad
  EXPECT_LT(
      error({.lr = 0.5, .betas = {0.5, 0.6}, .amsgrad = true}, {2.2479190823569208, -4.1704771699803524, 0.5500753552014741}),
      1e-12);
  EXPECT_LT(error({.lr = 0.5, .betas = {0.5, 0.6}}, {2.3903109489226937, -4.207482378683566, 0.16806308118243579}), 1e-12);
}

}  // namespace
}  // namespace bilevel
