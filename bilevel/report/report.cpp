#include "bilevel/report/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>

namespace bilevel {

std::string format_number(double value, int digits) { return std::isfinite(value) ? fmt::format("{:.{}g}", value, digits) : "—"; }

std::string format_fixed(double value, int decimals) {
  return std::isfinite(value) ? fmt::format("{:.{}f}", value, decimals) : "—";
}

std::string format_count(int64_t value) {
  const std::string digits = std::to_string(std::llabs(value));
  std::string grouped = value < 0 ? "−" : "";
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) grouped += "\u202f";
    grouped += digits[i];
  }
  return grouped;
}

std::string format_bytes(double bytes) {
  if (!std::isfinite(bytes)) return "—";
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(units)) bytes /= 1024, ++unit;
  return fmt::format("{} {}", unit == 0 || bytes >= 100 ? fmt::format("{:.0f}", bytes) : fmt::format("{:.1f}", bytes),
                     units[unit]);
}

std::string format_seconds(double seconds) {
  if (!std::isfinite(seconds)) return "—";
  if (seconds < 1) return fmt::format("{:.0f} ms", 1e3 * seconds);
  if (seconds < 60) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 3600) return fmt::format("{} min {:02d} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02d} min", whole / 3600, whole / 60 % 60);
}

Cell Cell::mean(double value, double standard_error, int decimals) {
  Cell cell(format_fixed(value, decimals));
  if (std::isfinite(standard_error)) cell.error = format_fixed(standard_error, decimals);
  return cell;
}

Cell Cell::measured(double value, double spread) {
  if (!std::isfinite(value) || !std::isfinite(spread) || spread <= 0) return {value};
  const int decimals = 1 - static_cast<int>(std::floor(std::log10(spread)));  // two digits of the spread
  if (decimals < 0 || decimals > 6) {
    Cell cell(value);
    cell.error = format_number(spread, 2);
    return cell;
  }
  return mean(value, spread, decimals);
}

namespace {

/// Points have nothing in common but the axes: one row for each.
Table table_of_points(const LineChart& chart) {
  Table table{.title = chart.title, .columns = {{"point", false}, {chart.x_label, true}, {chart.y_label, true}}, .rows = {}};
  for (const auto& series : chart.series) {
    for (size_t i = 0; i < std::min(series.x.size(), series.y.size()); ++i) {
      table.rows.push_back({{Cell(i < series.labels.size() ? series.labels[i] : series.name), Cell(format_number(series.x[i], 6)),
                             Cell(format_number(series.y[i], 6))}});
    }
  }
  return table;
}

}  // namespace

Table table_of(const LineChart& chart, size_t rows) {
  if (chart.scatter) return table_of_points(chart);
  std::map<double, std::vector<double>> by_x;
  for (size_t s = 0; s < chart.series.size(); ++s) {
    const auto& [name, x, y, labels] = chart.series[s];
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!std::isfinite(x[i])) continue;
      by_x.try_emplace(x[i], chart.series.size(), NAN).first->second[s] = y[i];
    }
  }
  Table table{.title = chart.title, .columns = {{chart.x_label, true}}, .rows = {}};
  for (const auto& s : chart.series) table.columns.push_back({s.name, true});
  const size_t every = (by_x.size() + rows - 1) / rows;
  size_t i = 0;
  for (const auto& [x, values] : by_x) {
    const bool last = i + 1 == by_x.size();
    if (i++ % every != 0 && !last) continue;
    Table::Row row{{Cell(format_number(x, 8))}};
    for (const double v : values) row.cells.emplace_back(format_number(v, 6));
    table.rows.push_back(std::move(row));
  }
  if (every > 1) table.note = fmt::format("One row in {} of {}, and the last.", every, by_x.size());
  return table;
}

Table table_of(const BarChart& chart) {
  Table table{.title = chart.title, .columns = {{chart.label_name, false}}, .rows = {}};
  for (const auto& s : chart.series) table.columns.push_back({s.name, true});
  for (size_t i = 0; i < chart.labels.size(); ++i) {
    Table::Row row{{Cell(chart.labels[i])}};
    for (const auto& s : chart.series) {
      row.cells.push_back(Cell::measured(i < s.values.size() ? s.values[i] : NAN, i < s.spread.size() ? s.spread[i] : NAN));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

std::string clean_text(std::string_view text) {
  // The JSON library replaces what is no UTF-8 by U+FFFD.
  const std::string valid =
      nlohmann::json::parse(nlohmann::json(std::string(text)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace))
          .get<std::string>();
  std::string clean;
  for (const char c : valid) {
    const auto code = static_cast<unsigned char>(c);
    if ((code >= 0x20 && code != 0x7f) || c == '\n' || c == '\t') clean += c;
  }
  return clean;
}

}  // namespace bilevel
