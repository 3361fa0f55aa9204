#pragma once
#include <limits>

#include <ATen/core/Tensor.h>

namespace bilevel {

/// A closed convex set for one part of x.
struct Constraint {
  enum class Kind { kNone, kBox, kSimplex };
  Kind kind = Kind::kNone;
  double lower = -std::numeric_limits<double>::infinity();
  double upper = std::numeric_limits<double>::infinity();

  static Constraint box(double lower, double upper) { return {Kind::kBox, lower, upper}; }
  static Constraint positive() { return {Kind::kBox, 0.0, std::numeric_limits<double>::infinity()}; }
  static Constraint simplex() { return {Kind::kSimplex}; }

  /// The nearest point of the set, for a flat part.
  at::Tensor project(const at::Tensor& part) const;
};

}  // namespace bilevel
