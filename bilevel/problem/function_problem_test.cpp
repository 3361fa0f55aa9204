#include "bilevel/problem/function_problem.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

FunctionProblemOptions sums() {
  return {.inner_loss = [](const at::Tensor& x, const at::Tensor& y) { return x.sum() + 2 * y.sum(); },
          .outer_loss = [](const at::Tensor& x, const at::Tensor& y) { return (x.sum() * y.sum()).reshape({1}); },
          .x0 = at::tensor({1.0, 2.0}, at::kDouble),
          .y0 = at::tensor({3.0, 4.0, 5.0}, at::kDouble)};
}

TEST(FunctionProblem, CallsTheTwoFunctionsAndReturnsScalars) {
  const FunctionProblem problem(sums());
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  EXPECT_EQ(problem.inner_loss(x, y, {}).item<double>(), 27.0);
  EXPECT_EQ(problem.outer_loss(x, y, {}).item<double>(), 36.0);
  EXPECT_EQ(problem.outer_loss(x, y, {}).dim(), 0);
  EXPECT_EQ(problem.outer_layout().part("x").size, 2);
  EXPECT_EQ(problem.inner_layout().part("y").size, 3);
}

TEST(FunctionProblem, KeepsItsOwnCopyOfTheStartingPoints) {
  FunctionProblemOptions options = sums();
  const at::Tensor given = options.x0;
  const FunctionProblem problem(std::move(options));
  given.fill_(7);
  EXPECT_EQ(problem.initial_outer()[0].item<double>(), 1.0);
}

TEST(FunctionProblem, TakesPartsOfXWithTheirConstraints) {
  FunctionProblemOptions options = sums();
  options.outer_layout.add("a", {}).add("b", {1});
  options.outer_constraints = {Constraint::positive(), Constraint{}};
  const FunctionProblem problem(options);
  EXPECT_EQ(problem.outer_layout().element_name(1), "b[0]");
  EXPECT_EQ(problem.outer_constraints().size(), 2U);
  options.outer_constraints.pop_back();
  EXPECT_THAT([&] { FunctionProblem{options}; }, ThrowsMessage<Error>(HasSubstr("1 constraints for 2 parts")));
}

TEST(FunctionProblem, TakesAnOptimalityMapInPlaceOfAnInnerLossAndConstraintsOnY) {
  FunctionProblemOptions options = sums();
  options.optimality_map = [](const at::Tensor& x, const at::Tensor& y) { return y * x.sum() - 6; };
  EXPECT_THAT([&] { FunctionProblem{options}; }, ThrowsMessage<Error>(HasSubstr("both given")));
  options.inner_loss = nullptr;
  options.inner_constraints = [](const at::Tensor& x) { return InnerConstraints{.lower = x[0]}; };
  const FunctionProblem problem(options), plain(sums());
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  EXPECT_TRUE(problem.has_optimality_map());
  EXPECT_FALSE(problem.optimality_map_is_symmetric());
  EXPECT_TRUE(at::equal(problem.optimality_map(x, y, {}), at::tensor({3.0, 6.0, 9.0}, at::kDouble)));
  EXPECT_THROW(problem.inner_loss(x, y, {}), Error);
  EXPECT_TRUE(problem.has_inner_constraints());
  EXPECT_EQ(problem.inner_constraints(x).lower.item<double>(), 1.0);
  EXPECT_FALSE(plain.has_optimality_map());
  EXPECT_FALSE(plain.has_inner_constraints());
  EXPECT_THROW(plain.optimality_map(x, y, {}), Error);
}

TEST(FunctionProblem, RefusesWhatDoesNotFit) {
  FunctionProblemOptions no_loss = sums(), sizes = sums(), dtypes = sums(), no_start = sums(), vector_loss = sums();
  no_loss.outer_loss = nullptr;
  EXPECT_THAT([&] { FunctionProblem{no_loss}; }, ThrowsMessage<Error>(HasSubstr("outer_loss is missing")));
  sizes.inner_layout.add("w", {2, 2});
  EXPECT_THAT([&] { FunctionProblem{sizes}; }, ThrowsMessage<Error>(HasSubstr("y should be a vector of 4 elements")));
  dtypes.y0 = dtypes.y0.to(at::kFloat);
  EXPECT_THAT([&] { FunctionProblem{dtypes}; }, ThrowsMessage<Error>(HasSubstr("one dtype")));
  no_start.y0 = at::Tensor();
  EXPECT_THAT([&] { FunctionProblem{no_start}; }, ThrowsMessage<Error>(HasSubstr("y0 is missing")));
  vector_loss.inner_loss = [](const at::Tensor&, const at::Tensor& y) { return y; };
  const FunctionProblem problem(vector_loss);
  EXPECT_THAT([&] { problem.inner_loss(problem.initial_outer(), problem.initial_inner({}, 0), {}); },
              ThrowsMessage<Error>(HasSubstr("inner_loss should return a scalar, got shape [3]")));
}

}  // namespace
}  // namespace bilevel
