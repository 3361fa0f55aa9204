#pragma once
#include <memory>
#include <string>

#include "bilevel/oracle/compiled.h"

namespace bilevel {

/// Programs that one process compiles for another: a file in the cache names the packages, and holds their constants.
///
/// `problem` tells problems apart: whatever their losses depend on must be in it. It is stored by its hash, with what programs
/// are bound to (`compiled_for`).
class RecordedPrograms final : public Programs {
 public:
  explicit RecordedPrograms(std::shared_ptr<const Programs> programs) : programs_(std::move(programs)) {}
  std::optional<CompiledProgram> find(Derivative derivative, const at::Tensor& x, const at::Tensor& y,
                                      const Batch& batch) const override;
  /// Writes all that were found so far, and returns how many.
  int64_t save(const std::string& problem) const;

 private:
  const std::shared_ptr<const Programs> programs_;
  mutable std::map<std::string, CompiledProgram> found_;  // "hvp 128"
};

/// What was saved for this problem on this machine with this release of LibTorch and number of threads; null: nothing. A batch of
/// another size than was recorded has no program.
std::shared_ptr<const Programs> saved_programs(const std::string& problem);

}  // namespace bilevel
