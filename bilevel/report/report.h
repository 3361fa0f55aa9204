#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "bilevel/core/status.h"

namespace bilevel {

/// A number as people read it, with `digits` significant digits; "—" where it is not finite.
std::string format_number(double value, int digits = 4);
std::string format_fixed(double value, int decimals);
std::string format_count(int64_t value);     // "12 000", digits grouped by a narrow no-break space
std::string format_bytes(double bytes);      // "3.4 MiB"
std::string format_seconds(double seconds);  // "12.3 s", "4 min 05 s"

/// A paragraph. A blank line in `text` starts the next one.
struct Text {
  std::string text;
  enum class Tone { kPlain, kNote, kWarning } tone = Tone::kPlain;
};

/// The few numbers that matter most, shown large.
struct Figures {
  struct Figure {
    std::string label, value, note;
  };
  std::vector<Figure> figures;
};

struct KeyValues {
  std::string title;
  std::vector<std::pair<std::string, std::string>> rows;
};

/// One cell of a table: a text or a number, and where there is one its standard error, shown as "text ± error".
struct Cell {
  Cell() = default;
  Cell(std::string content) : text(std::move(content)) {}
  Cell(const char* content) : text(content) {}
  Cell(double value) : text(format_number(value)) {}
  static Cell mean(double value, double standard_error, int decimals);
  static Cell measured(double value, double spread);  // as many decimals as the spread deserves: 0.8123 ± 0.0051

  std::string text, error;
};

struct Table {
  struct Column {
    std::string header;
    bool numeric = false;  // set to the right, in digits of equal width
  };
  struct Row {
    std::vector<Cell> cells;
    bool highlight = false;
  };
  std::string title;
  std::vector<Column> columns;
  std::vector<Row> rows;
  std::string note = {};  // below the table
};

/// Curves over a common axis. Points that are not finite (or not positive where that axis is logarithmic) are gaps.
struct LineChart {
  struct Series {
    std::string name;
    std::vector<double> x, y;
    std::vector<std::string> labels = {};  // of the points, shown where one is pointed at; empty, or one for each
  };
  std::string title, x_label, y_label;
  bool log_y = false;
  std::vector<Series> series;
  std::string note = {};
  bool log_x = false;
  bool scatter = false;  // points, joined by thin lines within a series; a terminal shows none of it, for tables say more
};

/// One group of bars per label. `spread` draws a whisker of ± spread; a series of markers stands beside the bars, for example a
/// known truth.
struct BarChart {
  struct Series {
    std::string name;
    std::vector<double> values;
    std::vector<double> spread = {};  // empty, or one per value
    bool markers = false;
  };
  std::string title, label_name, value_label;
  std::vector<std::string> labels;
  std::vector<Series> series;
  bool horizontal = false;
  std::string note = {};
};

/// The numbers of a chart, at most about `rows` of them.
Table table_of(const LineChart& chart, size_t rows = 200);
Table table_of(const BarChart& chart);

/// Small pictures with captions, for example the most doubted images of one source.
struct Gallery {
  struct Picture {
    std::string png;  // bytes, from encode_png
    std::string description;
    std::vector<std::pair<std::string, std::string>> captions;  // "given label" → "shirt"
  };
  std::string title;
  std::vector<Picture> pictures;
  std::string note = {};
};

struct Preformatted {
  std::string title, text;
};

using Block = std::variant<Text, Figures, KeyValues, Table, LineChart, BarChart, Gallery, Preformatted>;

/// What people look at: a document of titles, tables, charts and pictures that knows nothing of how it is shown. All texts are
/// plain text in UTF-8; whoever shows them escapes them.
struct Report {
  struct Section {
    std::string title;
    std::vector<Block> blocks;
  };
  struct Verdict {
    Grade grade = Grade::kOk;
    std::string sentence;  // empty: no banner
  };
  std::string title, subtitle;
  Verdict verdict = {};
  std::vector<Section> sections = {};
};

/// `text` as valid UTF-8 without control characters other than newline and tab.
std::string clean_text(std::string_view text);

}  // namespace bilevel
