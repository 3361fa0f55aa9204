#include "bilevel/outer/sgd.h"

#include <gtest/gtest.h>

#include "bilevel/outer/trajectory_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

// The numbers were computed by torch 2.13.0 in float64: six times zero_grad, backward, step on the function of `gradient_at`,
// from `start`, with the optimiser in the comment.
TEST(OuterSgd, FollowsPyTorchsTrajectories) {
  const auto error = [](OuterSgdOptions options, std::vector<double> expected) {
    return error_after_six(OuterSgd(options), std::move(expected));
  };
  // torch.optim.SGD([x], lr=0.05)
  EXPECT_LT(error({.lr = 0.05}, {1.0305771860292399, -1.6867278400672081, 1.0183168353763348}), 1e-12);
  // torch.optim.SGD([x], lr=0.05, weight_decay=0.3)
  EXPECT_LT(error({.lr = 0.05, .weight_decay = 0.3}, {0.97567415625642084, -1.5593225912418949, 0.95069435319055162}), 1e-12);
  // torch.optim.SGD([x], lr=0.05, momentum=0.9)
  EXPECT_LT(error({.lr = 0.05, .momentum = 0.9}, {2.1989521838816652, -2.7338966546102381, -0.91150702935333383}), 1e-12);
  // torch.optim.SGD([x], lr=0.05, momentum=0.9, dampening=0.4)
  EXPECT_LT(
      error({.lr = 0.05, .momentum = 0.9, .dampening = 0.4}, {1.8404392033864965, -2.2011943107752892, -0.54293676081536146}),
      1e-12);
  // torch.optim.SGD([x], lr=0.05, momentum=0.9, nesterov=True)
  EXPECT_LT(
      error({.lr = 0.05, .momentum = 0.9, .nesterov = true}, {2.1948566631125237, -3.2610194560255907, -0.61718171917170972}),
      1e-12);
  // torch.optim.SGD([x], lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.3)
  EXPECT_LT(error({.lr = 0.05, .momentum = 0.9, .weight_decay = 0.3, .nesterov = true},
                  {1.9289090223854666, -2.7500282906099884, -0.78560140967032199}),
            1e-12);
}

}  // namespace
}  // namespace bilevel
