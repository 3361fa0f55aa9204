#include "bilevel/core/guards.h"

#include <mutex>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>

namespace bilevel {
namespace {

at::Generator default_generator() { return at::globalContext().defaultGenerator(at::kCPU); }

}  // namespace

SeedGuard::SeedGuard(uint64_t seed) {
  at::Generator generator = default_generator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  former_ = generator.get_state();
  generator.set_current_seed(seed);
}

SeedGuard::~SeedGuard() {
  at::Generator generator = default_generator();
  const std::lock_guard<std::mutex> lock(generator.mutex());
  generator.set_state(former_);
}

ThreadsGuard::ThreadsGuard(int threads) : former_(at::get_num_threads()) {
  if (threads > 0) at::set_num_threads(threads);
}
ThreadsGuard::~ThreadsGuard() { at::set_num_threads(former_); }

}  // namespace bilevel
