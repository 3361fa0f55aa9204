#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace bilevel {

/// A table of texts with a line of names.
struct CsvTable {
  std::string name;                            // of the file, for messages
  std::vector<std::string> columns;            // distinct and not empty
  std::vector<std::vector<std::string>> rows;  // each as long as `columns`
  std::vector<int64_t> lines;                  // where each row begins in its file, counted from 1; empty for a made-up table
  std::vector<std::string> files;              // of each row, where they come from several

  bool has(const std::string& column) const;
  size_t index(const std::string& column) const;  // throws Error with the nearest name
  std::string place(size_t row) const;            // "file:line" where known, else "row 3 of file", rows counted from 0
};

/// Reads comma-separated values (RFC 4180) in UTF-8, with or without a byte order mark, lines ended by LF or CRLF. Blank lines do
/// not count, nor do spaces around a field without quotes. Throws Error with file and line for a row that is longer or shorter
/// than the line of names, a quote that does not end, a column without a name or with the name of another, bytes that are not
/// UTF-8, and a file without rows.
CsvTable read_csv(const std::string& path);
CsvTable parse_csv(std::string_view bytes, const std::string& name);

std::string csv_text(const CsvTable& table);
/// Writes beside `path` and renames.
void write_csv(const CsvTable& table, const std::string& path);

}  // namespace bilevel
