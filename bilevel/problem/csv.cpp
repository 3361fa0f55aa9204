#include "bilevel/problem/csv.h"

#include <algorithm>
#include <set>

#include <csv.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"

namespace bilevel {
namespace {

/// What libcsv calls back. Nothing may be thrown through its C code.
struct Collector {
  std::vector<std::vector<std::string>> rows;
  std::vector<int64_t> lines;
  std::vector<std::string> row;
  int64_t row_line = 1;
  bool row_ended = true;

  static void field(void* text, size_t size, void* self) {
    static_cast<Collector*>(self)->row.emplace_back(static_cast<const char*>(text), size);
  }
  static void end_of_row(int, void* self) {
    auto* collector = static_cast<Collector*>(self);
    collector->row_ended = true;
    if (collector->row.empty()) return;  // a blank line, or the LF of CRLF
    collector->rows.push_back(std::move(collector->row));
    collector->lines.push_back(collector->row_line);
    collector->row.clear();
  }
};

class Parser {
 public:
  // Every line end is reported, so that the lines can be counted; and what comes after a closing quote is an error.
  Parser() {
    require(csv_init(&parser_, CSV_STRICT | CSV_STRICT_FINI | CSV_REPALL_NL) == 0, "parse_csv: libcsv could not start.");
  }
  ~Parser() { csv_free(&parser_); }
  Parser(const Parser&) = delete;
  Parser& operator=(const Parser&) = delete;
  bool feed(std::string_view text, Collector& to) {
    return csv_parse(&parser_, text.data(), text.size(), Collector::field, Collector::end_of_row, &to) == text.size();
  }
  bool finish(Collector& to) { return csv_fini(&parser_, Collector::field, Collector::end_of_row, &to) == 0; }

 private:
  csv_parser parser_{};
};

// The well-formed sequences of the Unicode Standard, table 3-7.
bool is_utf8(std::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto tail = [&](size_t i) { return (byte(i) & 0xc0u) == 0x80u; };
  for (size_t i = 0; i < text.size();) {
    const unsigned a = byte(i), b = byte(i + 1);
    if (a < 0x80) {
      i += 1;
    } else if (a >= 0xc2 && a <= 0xdf && tail(i + 1)) {
      i += 2;
    } else if (a >= 0xe0 && a <= 0xef && tail(i + 1) && tail(i + 2) && (a != 0xe0 || b >= 0xa0) && (a != 0xed || b <= 0x9f)) {
      i += 3;
    } else if (a >= 0xf0 && a <= 0xf4 && tail(i + 1) && tail(i + 2) && tail(i + 3) && (a != 0xf0 || b >= 0x90) &&
               (a != 0xf4 || b <= 0x8f)) {
      i += 4;
    } else {
      return false;
    }
  }
  return true;
}

void check_columns(const std::vector<std::string>& columns, const std::string& place) {
  std::set<std::string> seen;
  for (size_t i = 0; i < columns.size(); ++i) {
    if (columns[i].empty()) {
      throw Error(fmt::format("{}: column {} has no name. Name it, or leave it out (pandas: index=False).", place, i + 1));
    }
    if (!seen.insert(columns[i]).second) throw Error(fmt::format("{}: two columns have the name \"{}\".", place, columns[i]));
  }
}

std::string quoted(const std::string& field, bool alone) {
  const bool spaced =
      !field.empty() && (field.front() == ' ' || field.back() == ' ' || field.front() == '\t' || field.back() == '\t');
  if (!spaced && !(alone && field.empty()) && field.find_first_of(",\"\r\n") == std::string::npos) return field;
  std::string text = "\"";
  for (const char c : field) text += c == '"' ? std::string("\"\"") : std::string(1, c);
  return text + "\"";
}

void append_row(std::string& text, const std::vector<std::string>& row) {
  for (size_t i = 0; i < row.size(); ++i) text += (i > 0 ? "," : "") + quoted(row[i], row.size() == 1);
  text += "\n";
}

}  // namespace

bool CsvTable::has(const std::string& column) const { return std::find(columns.begin(), columns.end(), column) != columns.end(); }

size_t CsvTable::index(const std::string& column) const {
  const auto found = std::find(columns.begin(), columns.end(), column);
  if (found == columns.end()) throw Error(fmt::format("{} has no column \"{}\".{}", name, column, suggestion(column, columns)));
  return static_cast<size_t>(found - columns.begin());
}

std::string CsvTable::place(size_t row) const {
  if (row >= lines.size()) return fmt::format("row {} of {}", row, name);
  return fmt::format("{}:{}", row < files.size() ? files[row] : name, lines[row]);
}

CsvTable parse_csv(std::string_view bytes, const std::string& name) {
  if (bytes.starts_with("\xef\xbb\xbf")) bytes.remove_prefix(3);
  Collector found;
  Parser parser;
  for (int64_t line = 1; !bytes.empty(); ++line) {
    const std::string_view text =
        bytes.substr(0, bytes.find('\n') == std::string_view::npos ? bytes.size() : bytes.find('\n') + 1);
    bytes.remove_prefix(text.size());
    if (!is_utf8(text)) throw Error(fmt::format("{}:{}: the text is not UTF-8; save the file as \"CSV UTF-8\".", name, line));
    if (found.row_ended) found.row_line = line;
    found.row_ended = false;
    if (!parser.feed(text, found)) {
      throw Error(fmt::format("{}:{}: a quote stands inside a field; a field with quotes is written \"so \"\"quoted\"\" here\".",
                              name, line));
    }
  }
  if (!parser.finish(found))
    throw Error(fmt::format("{}:{}: the quoted field that begins in this row does not end.", name, found.row_line));

  if (found.rows.empty()) throw Error(fmt::format("{} is empty; its first line should name the columns.", name));
  CsvTable table{name, std::move(found.rows.front()), {}, {}, {}};
  check_columns(table.columns, fmt::format("{}:{}", name, found.lines.front()));
  for (size_t i = 1; i < found.rows.size(); ++i) {
    if (found.rows[i].size() != table.columns.size()) {
      throw Error(fmt::format("{}:{}: the row has {} fields, and the line of names has {}.", name, found.lines[i],
                              found.rows[i].size(), table.columns.size()));
    }
    table.rows.push_back(std::move(found.rows[i]));
    table.lines.push_back(found.lines[i]);
  }
  if (table.rows.empty()) throw Error(fmt::format("{} has a line of names, but no rows.", name));
  return table;
}

CsvTable read_csv(const std::string& path) { return parse_csv(read_file(path), path); }

std::string csv_text(const CsvTable& table) {
  std::string text;
  append_row(text, table.columns);
  for (const auto& row : table.rows) append_row(text, row);
  return text;
}

void write_csv(const CsvTable& table, const std::string& path) { write_file(path, csv_text(table)); }

}  // namespace bilevel
