#include "bilevel/oracle/saved_programs.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <functional>
#include <sstream>

#include "bilevel/core/error.h"
#include "bilevel/core/safetensors.h"

namespace bilevel {
namespace {

namespace fs = std::filesystem;

std::string file_of(const std::string& problem) {
  const size_t hash = std::hash<std::string>()(fmt::format("{}\n{}", compiled_for(), problem));
  return (fs::path(compiled_cache()) / fmt::format("problem-{:016x}.safetensors", hash)).string();
}

std::string key_of(Derivative derivative, const Batch& batch) {
  return fmt::format("{} {}", to_string(derivative), batch.full() ? std::string("all") : std::to_string(batch.samples.size(0)));
}

std::vector<int64_t> numbers(std::istream& in) {
  std::vector<int64_t> found;
  for (int64_t n; in >> n;) found.push_back(n);
  return found;
}

class SavedPrograms final : public Programs {
 public:
  explicit SavedPrograms(SafeTensors content) : content_(std::move(content)) {}

  std::optional<CompiledProgram> find(Derivative derivative, const at::Tensor& /*x*/, const at::Tensor& /*y*/,
                                      const Batch& batch) const override {
    const auto row = content_.metadata.find(key_of(derivative, batch));
    if (row == content_.metadata.end()) return std::nullopt;
    std::istringstream in(row->second);
    std::string package;
    in >> package;
    CompiledProgram compiled{Program::load((fs::path(compiled_cache()) / package).string()), {}};
    for (const int64_t i : numbers(in)) compiled.constants.push_back(constant(std::to_string(i)));
    return compiled;
  }

 private:
  // As it was when the program was compiled, its strides included.
  at::Tensor constant(const std::string& name) const {
    at::Tensor& made = constants_[name];
    if (!made.defined()) {
      const at::Tensor& stored = content_.tensors.at(name);
      std::istringstream strides(content_.metadata.at("strides " + name));
      made = at::empty_strided(stored.sizes(), numbers(strides), stored.options()).copy_(stored);
    }
    return made;
  }

  const SafeTensors content_;
  mutable std::map<std::string, at::Tensor> constants_;
};

}  // namespace

std::optional<CompiledProgram> RecordedPrograms::find(Derivative derivative, const at::Tensor& x, const at::Tensor& y,
                                                      const Batch& batch) const {
  auto found = programs_->find(derivative, x, y, batch);
  if (found) found_.insert_or_assign(key_of(derivative, batch), *found);
  return found;
}

int64_t RecordedPrograms::save(const std::string& problem) const {
  SafeTensors content;
  std::map<const void*, int64_t> stored;  // many programs have their constants in common
  for (const auto& [key, compiled] : found_) {
    std::string row = fs::path(compiled.program->name()).filename().string();
    for (const at::Tensor& constant : compiled.constants) {
      require(constant.is_non_overlapping_and_dense(),
              "RecordedPrograms::save: a tensor that the losses captured is part of another; a copy of it would do.");
      const auto [at, is_new] = stored.emplace(constant.unsafeGetTensorImpl(), static_cast<int64_t>(stored.size()));
      if (is_new) {
        content.tensors[std::to_string(at->second)] = constant.contiguous();
        content.metadata[fmt::format("strides {}", at->second)] = fmt::format("{}", fmt::join(constant.strides(), " "));
      }
      row += fmt::format(" {}", at->second);
    }
    content.metadata[key] = row;
  }
  write_safetensors(content, file_of(problem));
  return static_cast<int64_t>(found_.size());
}

std::shared_ptr<const Programs> saved_programs(const std::string& problem) {
  const std::string file = file_of(problem);
  return fs::exists(file) ? std::make_shared<SavedPrograms>(read_safetensors(file)) : nullptr;
}

}  // namespace bilevel
