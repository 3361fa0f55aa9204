#include <ATen/ATen.h>

#include "bilevel/problem/dataset.h"
#include "tests/fuzz/fuzz.h"

using namespace bilevel;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return reads_or_refuses(data, size, [](std::string_view bytes) {
    const CsvTable table = parse_csv(bytes, "fuzz.csv");
    for (const bool regression : {false, true}) {
      const Encoding encoding = fit_encoding(table, table.columns.front(), "", regression);
      const Dataset once = encode(table, encoding, table.columns.front(), "", at::kDouble);
      const Dataset again =
          encode(table, Encoding::from_json(encoding.to_json(), "fuzz"), table.columns.front(), "", at::kDouble);
      if (!at::equal(once.features, again.features) || !once.features.isfinite().all().item<bool>() || !once.notes.empty()) {
        __builtin_trap();
      }
    }
  });
}
