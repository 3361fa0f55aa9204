#pragma once
#include <c10/core/Device.h>

#include <memory>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/problem/dataset.h"
#include "bilevel/problem/problem.h"

namespace bilevel {

class Programs;

/// A row of `bilevel list tasks`.
struct TaskRow {
  std::string name, summary;
};
const std::vector<TaskRow>& tasks();

struct Task {
  std::string name;
  std::unique_ptr<Problem> problem;
  std::string identity;                      // what a resumed run must find again, in one line; empty: nothing to compare
  Encoding encoding;                         // of the inner data, for a model that is to meet new rows
  std::shared_ptr<const Programs> programs;  // for the compiled oracle, where the front has some
  std::vector<std::string> notes;            // what the user should know about how the data were read
};

/// The task that [problem] and [data] describe. Reads and finishes these two sections, and takes `init` of [inner] and `seed` of
/// [run], which others may read again. Throws Error for whatever is wrong with the configuration or the data.
Task make_task(const Config& config, c10::Device device = c10::Device(c10::kCPU));

/// A complete, commented configuration that runs as it is. Throws Error for an unknown name.
std::string task_template(const std::string& name);

}  // namespace bilevel
