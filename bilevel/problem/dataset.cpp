#include "bilevel/problem/dataset.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <optional>
#include <set>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/problem/digits.h"
#include "bilevel/problem/gzip.h"
#include "bilevel/problem/idx.h"
#include "bilevel/problem/npy.h"

namespace bilevel {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kManyClasses = 1000;   // fewer are believed without as many samples
constexpr size_t kManyCategories = 100;  // more, in most rows another: a name or an identifier, nothing to learn from

bool is_csv(const std::string& path) { return path.ends_with(".csv") || path.ends_with(".csv.gz"); }

// ---- texts and numbers

std::optional<double> number_in(std::string_view text) {
  if (text.starts_with('+')) text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (end != text.data() + text.size() || text.empty()) return std::nullopt;
  if (error == std::errc::result_out_of_range) return HUGE_VAL;
  return error == std::errc() ? std::optional(value) : std::nullopt;
}

/// What tables write for a value that is not there.
bool is_missing(const std::string& text) {
  static const std::set<std::string> kMarkers = {"", "NA", "N/A", "n/a", "NULL", "null", "None", "NaN", "nan", "?"};
  return kMarkers.contains(text);
}

std::optional<int64_t> whole_number_in(std::string_view text) {
  const auto value = number_in(text);
  if (!value || std::floor(*value) != *value || std::abs(*value) > 9007199254740992.0) return std::nullopt;
  return static_cast<int64_t>(*value);
}

/// The distinct texts of a column as names, sorted. Where all are whole numbers, by their value, and "1.0" is the name "1".
struct Names {
  bool whole = true;
  std::vector<std::string> names;

  static Names of(const CsvTable& table, size_t column) {
    Names result;
    std::set<std::string> texts;
    std::set<int64_t> numbers;
    for (size_t i = 0; i < table.rows.size(); ++i) {
      const std::string& text = table.rows[i][column];
      if (text.empty()) throw Error(fmt::format("{}: column \"{}\" is empty.", table.place(i), table.columns[column]));
      texts.insert(text);
      const auto number = whole_number_in(text);
      if (number) numbers.insert(*number);
      result.whole = result.whole && number.has_value();
    }
    if (result.whole) {
      for (const int64_t number : numbers) result.names.push_back(std::to_string(number));
    } else {
      result.names.assign(texts.begin(), texts.end());
    }
    return result;
  }
};

at::Tensor numbers_of_names(const CsvTable& table, const std::string& column, const std::vector<std::string>& names,
                            std::string_view what) {
  std::map<std::string, int64_t> number;
  for (const auto& name : names) number.emplace(name, static_cast<int64_t>(number.size()));
  const size_t j = table.index(column);
  std::vector<int64_t> values;
  for (size_t i = 0; i < table.rows.size(); ++i) {
    const std::string& text = table.rows[i][j];
    if (text.empty()) throw Error(fmt::format("{}: column \"{}\" is empty.", table.place(i), column));
    auto found = number.find(text);
    if (found == number.end()) {
      if (const auto whole = whole_number_in(text)) found = number.find(std::to_string(*whole));
    }
    if (found == number.end()) {
      throw Error(fmt::format(
          "{}: the {} \"{}\" of column \"{}\" is not among those of the training data ({}).{}", table.place(i), what, text,
          column, fmt::join(names.begin(), names.begin() + static_cast<int64_t>(std::min<size_t>(names.size(), 20)), ", "),
          nearest(text, names).empty() ? "" : suggestion(text, names)));
    }
    values.push_back(found->second);
  }
  return at::tensor(values, at::TensorOptions(at::kLong));
}

double number_at(const CsvTable& table, size_t row, size_t column) {
  const std::string& text = table.rows[row][column];
  const auto place = [&] { return fmt::format("{}: column \"{}\"", table.place(row), table.columns[column]); };
  const auto value = number_in(text);
  if (value && !std::isfinite(*value)) throw Error(fmt::format("{} is {}, which is no finite number.", place(), text));
  if (value) return *value;
  if (is_missing(text)) {
    throw Error(fmt::format("{} is {}: a missing value. Fill it in, or leave the row out.", place(),
                            text.empty() ? "empty" : fmt::format("\"{}\"", text)));
  }
  throw Error(fmt::format("{} should be a number, as in the other rows, and is \"{}\".", place(), text));
}

// ---- tables

bool is_numeric(const CsvTable& table, size_t column) {
  // A marker of a missing value does not make a column of numbers one of texts: it is reported instead.
  bool some = false;
  for (const auto& row : table.rows) {
    if (number_in(row[column])) {
      some = true;
    } else if (!is_missing(row[column])) {
      return false;
    }
  }
  return some;
}

Encoding::Column fit_column(const CsvTable& table, size_t j) {
  Encoding::Column column{table.columns[j], 0, 1, {}};
  const auto n = static_cast<double>(table.rows.size());
  if (is_numeric(table, j)) {
    std::vector<double> values;
    for (size_t i = 0; i < table.rows.size(); ++i) values.push_back(number_at(table, i, j));
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    column.mean = *low;
    if (*low == *high) return column;
    double sum = 0, squares = 0;  // about the first value, and scaled by the range: neither overflows nor cancels
    const double range = *high / 2 - *low / 2;
    for (const double value : values) sum += (value / 2 - *low / 2) / range;
    const double mean = sum / n;
    for (const double value : values) squares += std::pow((value / 2 - *low / 2) / range - mean, 2);
    column.mean = *low + mean * range * 2;
    column.std = std::sqrt(squares / n) * range * 2;
    if (!std::isfinite(column.mean) || !std::isfinite(column.std) || column.std <= 0) {
      throw Error(fmt::format("{}: the numbers of column \"{}\", {} to {}, cannot be standardised.", table.name, column.name,
                              *low, *high));
    }
    return column;
  }
  std::set<std::string> categories;
  for (size_t i = 0; i < table.rows.size(); ++i) {
    if (table.rows[i][j].empty()) {
      throw Error(fmt::format("{}: column \"{}\" is empty: a missing value. Fill it in, or leave the row out.", table.place(i),
                              column.name));
    }
    categories.insert(table.rows[i][j]);
  }
  if (categories.size() > kManyCategories && categories.size() > table.rows.size() / 2) {
    throw Error(
        fmt::format("{}: column \"{}\" has {} different texts in {} rows, as names and identifiers do; nothing can be learned "
                    "from them. Leave the column out.",
                    table.name, column.name, categories.size(), table.rows.size()));
  }
  column.categories.assign(categories.begin(), categories.end());
  return column;
}

CsvTable read_csv_file(const std::string& path) {
  return path.ends_with(".gz") ? parse_csv(gunzip(read_file(path), path), path) : read_csv(path);
}

CsvTable read_folder(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (is_csv(entry.path().string())) paths.push_back(entry.path().string());
  }
  require(!paths.empty(), fmt::format("{} has no .csv files; it should have one for each source.", folder));
  std::sort(paths.begin(), paths.end());
  CsvTable all;
  for (const std::string& path : paths) {
    CsvTable part = read_csv_file(path);
    if (all.columns.empty()) all.columns = part.columns;
    std::vector<size_t> order;
    for (const std::string& column : all.columns) order.push_back(part.index(column));
    if (part.columns.size() != all.columns.size()) {
      const auto extra = std::find_if(part.columns.begin(), part.columns.end(), [&](const auto& c) { return !all.has(c); });
      throw Error(fmt::format("{} has a column \"{}\", and {} has none.", path, *extra, paths.front()));
    }
    const std::string file = fs::path(path).filename().string();
    for (size_t i = 0; i < part.rows.size(); ++i) {
      std::vector<std::string> row;
      for (const size_t j : order) row.push_back(std::move(part.rows[i][j]));
      row.push_back(file.substr(0, file.rfind(".csv")));
      all.rows.push_back(std::move(row));
      all.lines.push_back(part.lines[i]);
      all.files.push_back(path);
    }
  }
  require(!all.has(kFolderSource), fmt::format("{}: no column may be named \"{}\".", folder, kFolderSource));
  all.columns.push_back(kFolderSource);
  all.name = folder;
  return all;
}

/// Rows first … first + count of n; throws where there are none.
std::pair<int64_t, int64_t> range_of(const DataSpec& spec, int64_t n) {
  require(n > 0, fmt::format("{} has no samples.", spec.name()));
  require(spec.first < n, fmt::format("{}: first = {} leaves none of its {} samples.", spec.name(), spec.first, n));
  require(spec.count <= n - spec.first,
          fmt::format("{}: first = {} and count = {} ask for more than its {} samples.", spec.name(), spec.first, spec.count, n));
  return {spec.first, spec.count > 0 ? spec.count : n - spec.first};
}

// ---- arrays

struct Array {
  at::Tensor values;
  bool idx = false;
};

Array read_array(const std::string& path) {
  const std::string bytes = read_file(path);
  if (path.ends_with(".npy") || bytes.starts_with("\x93NUMPY")) return {parse_npy(bytes, path), false};
  if (path.ends_with(".npz") || bytes.starts_with("PK\x03\x04")) {
    throw Error(fmt::format("{} holds several arrays; save each by np.save as a .npy file.", path));
  }
  if (is_gzip(bytes) || bytes.starts_with(std::string_view("\0\0", 2)) || path.find("ubyte") != std::string::npos ||
      path.ends_with(".idx") || path.ends_with(".gz")) {
    return {parse_idx(bytes, path), true};
  }
  throw Error(fmt::format("{} is neither .npy, .csv nor IDX.", path));
}

/// "train_x.npy: row 3" for a row of what is left after `first`.
std::string row_place(const std::string& path, const DataSpec& spec, int64_t row) {
  return fmt::format("{}: row {}", path, row + spec.first);
}

/// The position of the first true of a flat mask.
int64_t first_true(const at::Tensor& mask) { return mask.reshape({-1}).nonzero()[0].item<int64_t>(); }

void require_finite(const at::Tensor& values, const std::string& path, const DataSpec& spec) {
  const at::Tensor bad = values.isfinite().logical_not();
  if (!bad.any().item<bool>()) return;
  const int64_t at = first_true(bad);
  const int64_t columns = values.dim() > 1 ? values.size(1) : 1;
  const double value = values.reshape({-1})[at].item<double>();
  throw Error(fmt::format("{}{} is {}.", row_place(path, spec, at / columns),
                          values.dim() > 1 ? fmt::format(", column {}", at % columns) : "",
                          std::isnan(value)   ? "NaN"
                          : std::isinf(value) ? "infinite"
                                              : fmt::format("{}", value)));
}

at::Tensor require_whole(const at::Tensor& values, const std::string& path, const DataSpec& spec, std::string_view what) {
  if (!at::isFloatingType(values.scalar_type())) return values.to(at::kLong);
  require_finite(values, path, spec);
  const at::Tensor wide = values.to(at::kDouble);
  const at::Tensor bad = wide.round().ne(wide).logical_or(wide.abs().gt(9007199254740992.0));
  if (bad.any().item<bool>()) {
    const int64_t row = first_true(bad);
    throw Error(fmt::format("{} is {}; {} should be whole numbers.", row_place(path, spec, row), wide[row].item<double>(), what));
  }
  return wide.to(at::kLong);
}

at::Tensor read_column(const std::string& path, int64_t samples, const DataSpec& spec, std::string_view what) {
  at::Tensor values = read_array(path).values;
  if (values.dim() == 2 && values.size(1) == 1) values = values.squeeze(1);
  require(values.dim() == 1, fmt::format("{}: the {} should be one number for each sample, and the shape is [{}].", path, what,
                                         fmt::join(values.sizes(), ", ")));
  require(values.size(0) == samples,
          fmt::format("{} has {} {}, and {} has {} samples.", path, values.size(0), what, spec.x, samples));
  const auto [first, count] = range_of(spec, samples);
  return values.narrow(0, first, count);
}

void check_classes(const at::Tensor& labels, const std::string& path, const DataSpec& spec, const Encoding* encoding,
                   std::vector<std::string>& class_names) {
  const int64_t low = labels.min().item<int64_t>(), high = labels.max().item<int64_t>();
  if (encoding) {
    const auto classes = static_cast<int64_t>(encoding->class_names.size());
    class_names = encoding->class_names;
    if (low >= 0 && high < classes) return;
    const int64_t row = first_true(labels.lt(0).logical_or(labels.ge(classes)));
    throw Error(fmt::format("{}: the label {} is out of range; the training data have the classes 0 to {}.",
                            row_place(path, spec, row), labels[row].item<int64_t>(), classes - 1));
  }
  if (low < 0) {
    throw Error(fmt::format("{}: the label {} is out of range; classes are numbered from 0.",
                            row_place(path, spec, first_true(labels.lt(0))), low));
  }
  if (high >= std::max(labels.size(0), kManyClasses)) {
    throw Error(fmt::format("{}: the label {} is out of range for {} samples; classes are numbered 0, 1, 2, ….",
                            row_place(path, spec, first_true(labels.eq(high))), high, labels.size(0)));
  }
  for (int64_t k = 0; k <= high; ++k) class_names.push_back(std::to_string(k));
}

void check_sources(const at::Tensor& sources, const std::string& path, const DataSpec& spec,
                   std::vector<std::string>& source_names) {
  const int64_t low = sources.min().item<int64_t>(), high = sources.max().item<int64_t>();
  if (low < 0) {
    throw Error(fmt::format("{}: the source {} is out of range; sources are numbered from 0.",
                            row_place(path, spec, first_true(sources.lt(0))), low));
  }
  std::vector<bool> seen(static_cast<size_t>(std::min(high + 1, sources.size(0) + 1)));
  const auto* source = sources.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < sources.size(0); ++i) {
    if (source[i] < static_cast<int64_t>(seen.size())) seen[static_cast<size_t>(source[i])] = true;
  }
  const auto missing = std::find(seen.begin(), seen.end(), false);
  if (missing != seen.end()) {
    throw Error(fmt::format("{}: source {} has no samples; sources are numbered 0 to {} without gaps.", path,
                            missing - seen.begin(), high));
  }
  for (int64_t k = 0; k <= high; ++k) source_names.push_back(std::to_string(k));
}

at::Tensor as_features(Array array, const DataSpec& spec, double scale) {
  const auto [first, count] = range_of(spec, array.values.size(0));
  at::Tensor features = array.values.narrow(0, first, count).reshape({count, -1}).to(spec.dtype);
  if (scale != 1.0) features = features.div(scale);
  return features.contiguous();
}

void set_image_shape(Dataset& data, const at::Tensor& values) {
  if (values.dim() != 3) return;
  data.height = values.size(1);
  data.width = values.size(2);
}

Dataset load_arrays(const DataSpec& spec, const Encoding* encoding) {
  Dataset data;
  const Array x = read_array(spec.x);
  require(x.values.dim() >= 1, fmt::format("{} is a single number; samples are its rows.", spec.x));
  require(x.values.numel() > 0, fmt::format("{} has no samples: its shape is [{}].", spec.x, fmt::join(x.values.sizes(), ", ")));
  const int64_t samples = x.values.size(0);
  const bool pixels = x.values.scalar_type() == at::kByte && (x.idx || x.values.dim() >= 3);
  data.features = as_features(x, spec, pixels ? 255.0 : 1.0);
  require_finite(data.features, spec.x, spec);
  set_image_shape(data, x.values);
  if (!spec.y.empty()) {
    const at::Tensor y = read_column(spec.y, samples, spec, "labels");
    if (spec.regression) {
      data.labels = y.to(spec.dtype).contiguous();
      require_finite(data.labels, spec.y, spec);
    } else {
      data.labels = require_whole(y, spec.y, spec, "labels").contiguous();
      check_classes(data.labels, spec.y, spec, encoding, data.class_names);
    }
  }
  if (!spec.source.empty()) {
    data.sources = require_whole(read_column(spec.source, samples, spec, "sources"), spec.source, spec, "sources").contiguous();
    check_sources(data.sources, spec.source, spec, data.source_names);
  }
  return data;
}

Dataset load_builtin(const DataSpec& spec) {
  Dataset data;
  at::Tensor pixels, labels;
  if (spec.builtin == "digits") {
    pixels = digits().pixels;
    labels = digits().labels;
    data.class_names = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
  } else {
    const std::string folder = find_fashion_mnist();
    require(!folder.empty(),
            "fashion-mnist was not found: install Debian's package dataset-fashion-mnist, or point the environment variable "
            "BILEVEL_DATA to the folder of its four -ubyte.gz files.");
    const std::string stem = folder + (spec.split == "test" ? "/t10k" : "/train");
    pixels = read_idx(stem + "-images-idx3-ubyte.gz");
    labels = read_idx(stem + "-labels-idx1-ubyte.gz").to(at::kLong);
    require(pixels.dim() == 3 && labels.dim() == 1 && labels.size(0) == pixels.size(0) && labels.lt(10).all().item<bool>(),
            fmt::format("{}: the files are not those of Fashion-MNIST.", folder));
    data.class_names = {"T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"};
  }
  data.features = as_features({pixels, false}, spec, spec.builtin == "digits" ? 16.0 : 255.0);
  set_image_shape(data, pixels);
  const auto [first, count] = range_of(spec, labels.size(0));
  data.labels = labels.narrow(0, first, count).clone();
  if (spec.regression) data.labels = data.labels.to(spec.dtype);
  return data;
}

void check_fits(const Dataset& data, const DataSpec& spec, const Encoding& encoding) {
  require(!encoding.table, fmt::format("{}: the training data were a table (.csv), and these are not.", spec.name()));
  require(encoding.dimension == data.dimension(), fmt::format("{} has {} features a row, and the training data have {}.",
                                                              spec.name(), data.dimension(), encoding.dimension));
  require(spec.builtin.empty() || spec.regression || encoding.classes() >= data.classes(),
          fmt::format("{} has {} classes, and the training data have {}.", spec.name(), data.classes(), encoding.classes()));
}

}  // namespace

Dataset Dataset::select(const at::Tensor& rows) const {
  Dataset part = *this;
  for (at::Tensor* tensor : {&part.features, &part.labels, &part.sources}) {
    if (tensor->defined()) *tensor = tensor->index_select(0, rows);
  }
  return part;
}

std::vector<std::string> DataSpec::violations() const {
  std::vector<std::string> list;
  const bool csv = is_table(*this);
  if (x.empty() == builtin.empty()) list.push_back("give either x, a file, or builtin, \"digits\" or \"fashion-mnist\"");
  if (!builtin.empty() && builtin != "digits" && builtin != "fashion-mnist") {
    list.push_back(fmt::format("builtin = \"{}\" is neither \"digits\" nor \"fashion-mnist\"", builtin));
  }
  if (split != "train" && split != "test") list.push_back(fmt::format("split = \"{}\" is neither \"train\" nor \"test\"", split));
  if (csv && !y.empty()) list.push_back("y is for arrays; the labels of a .csv are a column: label = \"COLUMN\"");
  if (!csv && !label.empty()) list.push_back("label is a column of a .csv; the labels of arrays are a file: y = \"FILE\"");
  if (!builtin.empty() && !(y.empty() && source.empty()))
    list.push_back("builtin data have labels and no sources: leave y and source out");
  if (csv && !label.empty() && label == source) list.push_back(fmt::format("label and source are the same column \"{}\"", label));
  if (first < 0) list.push_back(fmt::format("first = {} is negative", first));
  if (count < 0) list.push_back(fmt::format("count = {} is negative", count));
  if (dtype != at::kFloat && dtype != at::kDouble)
    list.push_back(fmt::format("dtype {} is neither float32 nor float64", c10::toString(dtype)));
  return list;
}

void read(Section& section, DataSpec& spec) {
  if (section.has("builtin")) {
    section.read_choice("builtin", spec.builtin, {"digits", "fashion-mnist"});
    if (spec.builtin == "fashion-mnist") section.read_choice("split", spec.split, {"train", "test"});
  } else {
    if (!section.has("x")) section.fail("x", "missing: the file of the samples (.npy, .csv or IDX), or builtin = \"digits\".");
    section.read_path("x", spec.x);
    if (is_table(spec)) {
      if (!section.has("label")) section.fail("label", "missing: the name of the label column.");
      section.read("label", spec.label);
      section.read("source", spec.source);
    } else {
      if (!section.has("y")) section.fail("y", "missing: the file of the labels (.npy or IDX).");
      section.read_path("y", spec.y);
      section.read_path("source", spec.source);
    }
  }
  section.read("first", spec.first);
  section.read("count", spec.count);
  section.check(spec.violations());
  section.finish();
}

bool is_table(const DataSpec& spec) {
  std::error_code none;
  return is_csv(spec.x) || (!spec.x.empty() && fs::is_directory(spec.x, none));
}

CsvTable load_table(const DataSpec& spec) {
  require(is_table(spec), fmt::format("{} is no table; a table is a .csv file, or a folder of them.", spec.name()));
  CsvTable table = fs::is_directory(spec.x) ? read_folder(spec.x) : read_csv_file(spec.x);
  const auto [first, count] = range_of(spec, static_cast<int64_t>(table.rows.size()));
  const auto cut = [first = first, count = count](auto& list) {
    if (list.empty()) return;
    list.erase(list.begin() + first + count, list.end());
    list.erase(list.begin(), list.begin() + first);
  };
  cut(table.rows);
  cut(table.lines);
  cut(table.files);
  return table;
}

Encoding fit_encoding(const CsvTable& table, const std::string& label, const std::string& source, bool regression) {
  require(!table.rows.empty(), fmt::format("{} has no samples.", table.name));
  Encoding encoding;
  encoding.table = true;
  encoding.regression = regression;
  encoding.label_column = label;
  encoding.source_column = source;
  if (!label.empty() && !regression) {
    encoding.class_names = Names::of(table, table.index(label)).names;
    if (encoding.class_names.size() > static_cast<size_t>(kManyClasses)) {
      throw Error(fmt::format("{}: the label column \"{}\" has {} different values, more than {} classes.", table.name, label,
                              encoding.class_names.size(), kManyClasses));
    }
  }
  if (!source.empty()) encoding.source_names = Names::of(table, table.index(source)).names;
  for (size_t j = 0; j < table.columns.size(); ++j) {
    if (table.columns[j] == label || table.columns[j] == source || table.columns[j] == kFolderSource) continue;
    encoding.columns.push_back(fit_column(table, j));
    encoding.dimension += std::max<int64_t>(1, static_cast<int64_t>(encoding.columns.back().categories.size()));
  }
  require(!encoding.columns.empty(), fmt::format("{} has no column besides label and source to learn from.", table.name));
  return encoding;
}

Dataset encode(const CsvTable& table, const Encoding& encoding, const std::string& label, const std::string& source,
               at::ScalarType dtype) {
  require(encoding.table, fmt::format("{}: the training data were arrays, and this is a table.", table.name));
  require(!table.rows.empty(), fmt::format("{} has no samples.", table.name));
  const auto n = static_cast<int64_t>(table.rows.size());
  Dataset data;
  at::Tensor features = at::zeros({n, encoding.dimension}, at::kDouble);
  auto* out = features.mutable_data_ptr<double>();
  int64_t at = 0;
  for (const Encoding::Column& column : encoding.columns) {
    const size_t j = table.index(column.name);
    int64_t unseen = 0;
    std::string example;
    for (size_t i = 0; i < table.rows.size(); ++i) {
      double* row = out + static_cast<int64_t>(i) * encoding.dimension + at;
      const std::string& text = table.rows[i][j];
      if (column.categories.empty()) {
        *row = (number_at(table, i, j) - column.mean) / column.std;
        if (!std::isfinite(*row) || (dtype == at::kFloat && !std::isfinite(static_cast<float>(*row)))) {
          throw Error(
              fmt::format("{}: column \"{}\" is {}, too far from the training data's.", table.place(i), column.name, text));
        }
        continue;
      }
      if (text.empty()) {
        throw Error(fmt::format("{}: column \"{}\" is empty: a missing value. Fill it in, or leave the row out.", table.place(i),
                                column.name));
      }
      const auto found = std::lower_bound(column.categories.begin(), column.categories.end(), text);
      if (found != column.categories.end() && *found == text) {
        row[found - column.categories.begin()] = 1.0;
      } else if (unseen++ == 0) {
        example = text;
      }
    }
    if (unseen > 0) {
      data.notes.push_back(
          fmt::format("{}: column \"{}\" has a category that the training data lack in {} of {} rows (\"{}\"{}); they "
                      "count as having none of the known ones.",
                      table.name, column.name, unseen, n, example, unseen > 1 ? ", …" : ""));
    }
    if (column.categories.empty()) {
      data.feature_names.push_back(column.name);
      at += 1;
    } else {
      for (const auto& category : column.categories) data.feature_names.push_back(fmt::format("{}={}", column.name, category));
      at += static_cast<int64_t>(column.categories.size());
    }
  }
  data.features = features.to(dtype);
  data.class_names = encoding.class_names;
  if (!label.empty() && encoding.regression) {
    std::vector<double> values;
    const size_t j = table.index(label);
    for (size_t i = 0; i < table.rows.size(); ++i) values.push_back(number_at(table, i, j));
    data.labels = at::tensor(values, at::TensorOptions(at::kDouble)).to(dtype);
  } else if (!label.empty()) {
    data.labels = numbers_of_names(table, label, encoding.class_names, "label");
  }
  if (!source.empty()) {
    // Sources belong to one set of data; only the label and the features must mean the same in all.
    data.source_names = source == encoding.source_column ? encoding.source_names : Names::of(table, table.index(source)).names;
    data.sources = numbers_of_names(table, source, data.source_names, "source");
  }
  return data;
}

Dataset load_dataset(const DataSpec& spec, const Encoding* encoding, Encoding* fitted) {
  const auto wrong = spec.violations();
  require(wrong.empty(), fmt::format("load_dataset({}): {}.", spec.name(), fmt::join(wrong, "; ")));
  if (is_table(spec)) {
    const CsvTable table = load_table(spec);
    const std::string source = table.has(kFolderSource) && spec.source.empty() ? kFolderSource : spec.source;
    const Encoding used = encoding ? *encoding : fit_encoding(table, spec.label, source, spec.regression);
    if (fitted) *fitted = used;
    return encode(table, used, spec.label, source, spec.dtype);
  }
  Dataset data = spec.builtin.empty() ? load_arrays(spec, encoding) : load_builtin(spec);
  if (encoding) check_fits(data, spec, *encoding);
  if (fitted && encoding) *fitted = *encoding;
  if (fitted && !encoding) {
    *fitted = {};
    fitted->dimension = data.dimension();
    fitted->height = data.height;
    fitted->width = data.width;
    fitted->regression = spec.regression;
    fitted->class_names = data.class_names;
    fitted->source_names = data.source_names;
  }
  return data;
}

std::string find_fashion_mnist() {
  std::vector<std::string> folders;
  if (const char* given = std::getenv("BILEVEL_DATA")) folders = {std::string(given) + "/fashion-mnist", given};
  folders.push_back("/usr/share/datasets/fashion-mnist");
  folders.push_back(BILEVEL_DEPS "/share/datasets/fashion-mnist");
  for (const std::string& folder : folders) {
    std::error_code none;
    if (fs::exists(folder + "/train-images-idx3-ubyte.gz", none)) return folder;
  }
  return "";
}

// ---- the encoding as text

std::string Encoding::to_json() const {
  nlohmann::json list = nlohmann::json::array();
  for (const Column& column : columns) {
    list.push_back({{"name", column.name}, {"mean", column.mean}, {"std", column.std}, {"categories", column.categories}});
  }
  return nlohmann::json{{"table", table},
                        {"columns", list},
                        {"dimension", dimension},
                        {"height", height},
                        {"width", width},
                        {"regression", regression},
                        {"class_names", class_names},
                        {"source_names", source_names},
                        {"label_column", label_column},
                        {"source_column", source_column}}
      .dump();
}

Encoding Encoding::from_json(std::string_view text, const std::string& name) {
  try {
    const auto json = nlohmann::json::parse(text);
    Encoding encoding;
    json.at("table").get_to(encoding.table);
    int64_t dimension = 0;
    for (const auto& entry : json.at("columns")) {
      encoding.columns.push_back({entry.at("name"), entry.at("mean"), entry.at("std"), entry.at("categories")});
      const Column& column = encoding.columns.back();
      dimension += std::max<int64_t>(1, static_cast<int64_t>(column.categories.size()));
      require(std::isfinite(column.mean) && column.std > 0 && std::is_sorted(column.categories.begin(), column.categories.end()),
              fmt::format("{}: the encoding of column \"{}\" is damaged.", name, column.name));
    }
    json.at("dimension").get_to(encoding.dimension);
    json.at("height").get_to(encoding.height);
    json.at("width").get_to(encoding.width);
    json.at("regression").get_to(encoding.regression);
    json.at("class_names").get_to(encoding.class_names);
    json.at("source_names").get_to(encoding.source_names);
    json.at("label_column").get_to(encoding.label_column);
    json.at("source_column").get_to(encoding.source_column);
    require(encoding.dimension >= 0 && (!encoding.table || encoding.dimension == dimension),
            fmt::format("{}: the encoding's dimension {} does not fit its columns.", name, encoding.dimension));
    return encoding;
  } catch (const nlohmann::json::exception& error) {
    throw Error(fmt::format("{}: the encoding of the data is damaged ({}).", name, error.what()));
  }
}

}  // namespace bilevel
