#pragma once
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// What a compiled program computes, of
///
///     x, y, the samples [B] of the batch unless it is full, constants…  ↦  results.
///
/// Programs of products take a direction before these, and after them what the linearization has saved for them.
enum class Derivative {
  kGradient,       // g, r
  kLinearization,  // g, r, what is saved for products
  kHvp,            // w ↦ H w
  kVjp,            // w ↦ H w, (∂x r)ᵀ w
  kJvpX,           // u ↦ ∂x r u
  kOuter,          // f, ∂y f, ∂x f
};
std::string_view to_string(Derivative derivative);

/// A compiled function of tensors.
class Program {
 public:
  using Function = std::function<std::vector<at::Tensor>(std::vector<at::Tensor>)>;
  Program(std::string name, Function function) : name_(std::move(name)), function_(std::move(function)) {}
  /// From a package of AOTInductor; it takes no compiler. Throws Error where the file is none for this machine.
  static std::shared_ptr<const Program> load(const std::string& package);

  std::vector<at::Tensor> operator()(std::vector<at::Tensor> inputs) const { return function_(std::move(inputs)); }
  const std::string& name() const { return name_; }  // the package's file
  mutable bool compared = false;                     // with autodiff

 private:
  const std::string name_;
  const Function function_;
};

/// A program, and the tensors that it takes as constants.
struct CompiledProgram {
  std::shared_ptr<const Program> program;
  std::vector<at::Tensor> constants;
};

/// Where the compiled oracle has its programs from.
class Programs {
 public:
  virtual ~Programs() = default;
  /// The program for batches as large as this one; none: that is left to autodiff.
  virtual std::optional<CompiledProgram> find(Derivative derivative, const at::Tensor& x, const at::Tensor& y,
                                              const Batch& batch) const = 0;
};

/// Derivatives of losses by programs that were compiled ahead of time.
///
/// A program fuses what autodiff does operation by operation, so that small models are bound by their arithmetic and not by
/// dispatch. Shapes are fixed: each size of batch has its own programs. Where there is none, and for Gauss–Newton products, ∂x g
/// and plain values, it asks autodiff. A block of directions is done row by row. Each program is compared with autodiff once,
/// before it is first used: a program of other losses than the problem's is an Error. The problem must outlive the oracle. Serves
/// one thread.
class CompiledOracle final : public Oracle {
 public:
  /// Throws Error for problems that draw random numbers, give their optimality map, or have several inner problems.
  CompiledOracle(const Problem& problem, std::shared_ptr<const Programs> programs);
  ~CompiledOracle() override;

  std::unique_ptr<Linearization> linearize_inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  std::unique_ptr<OutputSpace> output_space(const at::Tensor& x, const at::Tensor& y,
                                            const OutputSamples& samples) const override;

  /// Gradients, linearizations and products that had no program.
  int64_t left_to_autodiff() const { return left_to_autodiff_; }

 private:
  class CompiledLinearization;
  const CompiledProgram* program(Derivative derivative, const at::Tensor& x, const at::Tensor& y, const Batch& batch) const;
  void compare(const CompiledProgram& program, Derivative derivative, const at::Tensor& x, const at::Tensor& y,
               const Batch& batch) const;

  const AutodiffOracle autodiff_;
  const std::shared_ptr<const Programs> programs_;
  mutable std::recursive_mutex mutex_;  // of what follows: members of a population ask at the same time; `compare` asks again
  mutable std::map<std::pair<Derivative, int64_t>, std::optional<CompiledProgram>> found_;  // by size of batch, −1 for all
  mutable int64_t left_to_autodiff_ = 0;
};

/// $BILEVEL_CACHE, or bilevel in the user's cache folder: where packages are kept.
std::string compiled_cache();

/// What a compiled program is bound to, besides its graph: the release of LibTorch, the processor's instructions, the threads.
std::string compiled_for();

}  // namespace bilevel
