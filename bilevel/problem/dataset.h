#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

#include "bilevel/core/config.h"
#include "bilevel/problem/csv.h"

namespace bilevel {

/// Samples to learn from.
struct Dataset {
  at::Tensor features;  // [n, d], float32 or float64, finite
  at::Tensor
      labels;  // classes from 0, int64 [n]; for a regression numbers [n] of the features' dtype; undefined if not asked for
  at::Tensor sources;  // int64 [n], 0 … sources − 1; undefined where none were given
  std::vector<std::string> class_names, source_names;
  std::vector<std::string> feature_names;  // [d] of a table; empty for arrays
  int64_t height = 0, width = 0;           // of the image that each row is; 0 where it is none
  std::vector<std::string> notes;          // what the user should know about how the file was read

  int64_t size() const { return features.size(0); }
  int64_t dimension() const { return features.size(1); }
  int64_t classes() const { return static_cast<int64_t>(class_names.size()); }
  bool images() const { return height > 0; }

  /// The samples of the numbers `rows` (int64 [m]), in that order.
  Dataset select(const at::Tensor& rows) const;
};

/// How the columns of a table became numbers, and what the numbers of classes mean. It is fitted on the training data, stored
/// with the model and applied to all other rows.
///
/// A column of numbers is standardised, (value − mean) / std with the training data's population mean and std; of a constant
/// column std is 1. A column of texts becomes one feature per category, 1 where the row has it. A category that the training data
/// lack is 0 in all of them, and noted in the data set. Columns that the training table did not have are ignored.
struct Encoding {
  struct Column {
    std::string name;
    double mean = 0, std = 1;             // of a column of numbers
    std::vector<std::string> categories;  // of a column of texts, sorted; empty for numbers
  };
  bool table = false;           // fitted on a table; otherwise arrays, which are taken as they are
  std::vector<Column> columns;  // of a table, without label and source
  int64_t dimension = 0, height = 0, width = 0;
  bool regression = false;
  std::vector<std::string> class_names, source_names;
  std::string label_column, source_column;  // of the training table: no features in any other table

  int64_t classes() const { return static_cast<int64_t>(class_names.size()); }
  std::string to_json() const;
  /// Throws Error, naming `name`, where the text is not what to_json writes.
  static Encoding from_json(std::string_view text, const std::string& name);
};

/// Where data come from. One of `x` and `builtin`.
struct DataSpec {
  std::string x;        // .csv; .npy or IDX, rows first; or a folder of .csv files, each from the source that its name says
  std::string y;        // labels of arrays: .npy or IDX
  std::string label;    // label column of a .csv
  std::string source;   // source column of a .csv; of arrays a .npy file of source numbers
  std::string builtin;  // "digits" | "fashion-mnist"
  std::string split = "train";  // or "test", of fashion-mnist
  int64_t first = 0;            // leaves out the rows before this one,
  int64_t count = 0;            // and takes so many; 0: all the rest

  // The two that follow are the problem's, not read from [data].
  at::ScalarType dtype = at::kFloat;
  bool regression = false;  // labels are numbers to predict, not classes

  std::vector<std::string> violations() const;
  std::string name() const { return builtin.empty() ? x : builtin; }
};
/// Reads all of a section and finishes it.
void read(Section& section, DataSpec& spec);

/// Loads, checks and encodes. Without `encoding` one is fitted, and written to `fitted` where that is given; with it the data
/// must fit it. Bytes of images (IDX of uint8, .npy of uint8 with three dimensions or more) become numbers in [0, 1], digits'
/// pixels are divided by 16. Without y and label there are no labels.
///
/// Throws Error, naming file, row (counted from 0, or by the line of a .csv) and column, for whatever cannot be learned from:
/// missing, NaN or infinite values, labels that are no classes or are out of range, lengths that differ, a source without
/// samples, no samples at all.
Dataset load_dataset(const DataSpec& spec, const Encoding* encoding = nullptr, Encoding* fitted = nullptr);

/// The rows of a .csv (or a folder of them) that `spec` names, as texts.
CsvTable load_table(const DataSpec& spec);
bool is_table(const DataSpec& spec);

/// The two steps of load_dataset for tables. An empty label or source column: none.
Encoding fit_encoding(const CsvTable& table, const std::string& label, const std::string& source, bool regression);
Dataset encode(const CsvTable& table, const Encoding& encoding, const std::string& label, const std::string& source,
               at::ScalarType dtype);

/// The column of sources that load_table appends where x is a folder.
inline constexpr const char* kFolderSource = "(file)";

/// Folder of the Fashion-MNIST files: $BILEVEL_DATA, Debian's package, or the build's; "" where they are not to be had.
std::string find_fashion_mnist();

}  // namespace bilevel
