#include "bilevel/report/terminal.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <variant>

namespace bilevel {
namespace {

constexpr size_t kBars = 30;  // more labels than that are for the page
constexpr size_t kText = 8;   // a column of text is not made narrower
constexpr size_t kName = 20;  // the first one, while others can be made narrower

/// Columns that `text` takes: its code points (wide East Asian characters are not told apart).
size_t columns_of(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

std::string cut(const std::string& text, size_t columns) {
  if (columns_of(text) <= columns) return text;
  size_t seen = 0, end = 0;
  for (; end < text.size(); ++end) {
    if ((static_cast<unsigned char>(text[end]) & 0xc0) != 0x80 && ++seen == std::max<size_t>(columns, 1)) break;
  }
  return text.substr(0, end) + "…";
}

std::string pad(const std::string& text, size_t columns, bool right = false) {
  const size_t have = columns_of(text);
  const std::string space(columns > have ? columns - have : 0, ' ');
  return right ? space + text : text + space;
}

std::string repeat(std::string_view text, size_t times) {
  std::string all;
  for (size_t i = 0; i < times; ++i) all += text;
  return all;
}

std::string one_line(std::string_view text) {
  std::string line = clean_text(text);
  std::replace_if(
      line.begin(), line.end(), [](char c) { return c == '\n' || c == '\t'; }, ' ');
  return line;
}

size_t longest_word(const std::string& text) {
  size_t longest = 0;
  for (size_t begin = 0, end = 0; begin < text.size(); begin = end + 1) {
    end = std::min(text.find(' ', begin), text.size());
    longest = std::max(longest, columns_of(std::string_view(text).substr(begin, end - begin)));
  }
  return longest;
}

/// `text` in lines of at most `columns`, broken at spaces; a longer word has a line of its own.
std::vector<std::string> broken(const std::string& text, size_t columns) {
  std::vector<std::string> lines(1);
  for (size_t begin = 0, end = 0; begin < text.size(); begin = end + 1) {
    end = std::min(text.find(' ', begin), text.size());
    const std::string word = text.substr(begin, end - begin);
    if (!lines.back().empty() && columns_of(lines.back()) + 1 + columns_of(word) > columns) lines.emplace_back();
    lines.back() += (lines.back().empty() ? "" : " ") + word;
  }
  return lines;
}

/// One line of blocks ▁…█ of at most `columns` points of y, low to high.
std::string sparkline(const std::vector<double>& y, bool log_y, size_t columns) {
  const char* const levels[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  std::vector<double> heights;
  const size_t count = std::min(columns, y.size());
  for (size_t i = 0; i < count; ++i) {
    const double v = y[count < 2 ? 0 : i * (y.size() - 1) / (count - 1)];
    heights.push_back(!std::isfinite(v) || (log_y && v <= 0) ? NAN : log_y ? std::log(v) : v);
  }
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const double h : heights) {
    if (std::isfinite(h)) low = std::min(low, h), high = std::max(high, h);
  }
  std::string line;
  for (const double h : heights) {
    line += !std::isfinite(h) ? " " : levels[high > low ? static_cast<size_t>(std::lround(7 * (h - low) / (high - low))) : 0];
  }
  return line;
}

class TerminalWriter {
 public:
  TerminalWriter(int width, bool color) : width_(static_cast<size_t>(std::max(width, 40))), color_(color) {}
  std::string take() { return std::move(out_); }

  void title(const Report& report) {
    out_ += style("1", one_line(report.title)) + "\n";
    if (!report.subtitle.empty()) paragraph(report.subtitle, "2");
    if (report.verdict.sentence.empty()) return;
    const char* const codes[] = {"1;32", "1;33", "1;31"};
    const std::string grade(to_string(report.verdict.grade));
    out_ += "\n" + style(codes[static_cast<size_t>(report.verdict.grade)], grade) + "  ";
    wrapped(one_line(report.verdict.sentence), grade.size() + 2, "");
  }

  void heading(const std::string& text) {
    out_ += "\n" + style("1;34", one_line(text)) + "\n" + style("34", repeat("─", width_)) + "\n";
  }

  void operator()(const Text& block) {
    const bool warning = block.tone == Text::Tone::kWarning;
    for (size_t begin = 0; begin <= block.text.size();) {
      const size_t end = std::min(block.text.find("\n\n", begin), block.text.size());
      paragraph(block.text.substr(begin, end - begin), warning ? "33" : "");
      begin = end + 2;
    }
  }

  void operator()(const Figures& block) {
    std::vector<std::pair<std::string, std::string>> rows;
    for (const auto& figure : block.figures) {
      rows.emplace_back(figure.label, figure.note.empty() ? figure.value : figure.value + "  (" + figure.note + ")");
    }
    pairs(rows);
  }

  void operator()(const KeyValues& block) {
    subtitle(block.title);
    pairs(block.rows);
  }

  void operator()(const Table& block) {
    subtitle(block.title);
    const std::vector<size_t> widths = fit(block);
    headers(widths, block);
    std::string line;
    for (const auto& row : block.rows) {
      line.clear();
      const size_t cells = std::min(row.cells.size(), widths.size());
      // A sentence in the last column goes on below itself, because a warning cut short is none.
      const std::string last = cells == 0 || block.columns[cells - 1].numeric ? "" : content(row.cells[cells - 1]);
      const bool wraps = cells > 0 && columns_of(last) > widths[cells - 1] && longest_word(last) <= widths[cells - 1];
      for (size_t i = 0; i < (wraps ? cells - 1 : cells); ++i) {
        line += pad(cut(content(row.cells[i]), widths[i]), widths[i], block.columns[i].numeric) + "  ";
      }
      out_ += (row.highlight ? "▶ " : "  ") + style(row.highlight ? "1" : "", wraps ? line : trimmed(line));
      if (wraps) {
        wrapped(last, 2 + columns_of(line), "");
      } else {
        out_ += "\n";
      }
    }
    if (!block.note.empty()) paragraph(block.note, "2");
  }

  void operator()(const LineChart& block) {
    if (block.scatter) return;
    const bool single = block.series.size() == 1;  // then the title names it, and such charts stand below each other as one table
    if (!single) subtitle(block.title);
    const size_t names = std::min<size_t>(26, width_ / 3), numbers = 10;
    const size_t used = 2 + names + 1 + numbers + 1 + 1 + numbers;
    const size_t points = width_ > used + 8 ? std::min<size_t>(width_ - used, 48) : 8;
    for (const auto& s : block.series) {
      if (s.y.empty()) continue;
      const std::string name = one_line(single && !block.title.empty() ? block.title : s.name);
      out_ += "  " + pad(cut(name, names), names) + " " + pad(format_number(s.y.front()), numbers, true) + " " +
              style("36", pad(sparkline(s.y, block.log_y, points), points)) + " " + format_number(s.y.back()) + "\n";
    }
  }

  void operator()(const BarChart& block) {
    if (block.series.empty()) return;
    Table table = table_of(block);
    size_t used = 2;
    const std::vector<size_t> widths = least_widths(table);
    for (size_t i = 0; i < widths.size(); ++i) used += 2 + (i == 0 ? std::min(widths[i], kName) : widths[i]);
    const size_t room = std::clamp<size_t>(width_ > used ? width_ - used : 0, kText, 21);  // a bar cut short would lie
    table.columns.push_back({"", false});
    double top = 0;
    bool negative = false;
    for (const double v : block.series.front().values) {
      if (!std::isfinite(v)) continue;
      top = std::max(top, std::abs(v));
      negative = negative || v < 0;
    }
    const size_t length = negative ? (room - 1) / 2 : room - 1;  // negative bars go to the left of an axis
    const size_t count = std::min(table.rows.size(), block.series.front().values.size());
    for (size_t i = 0; i < count; ++i) {
      const double value = block.series.front().values[i];
      const size_t blocks = top > 0 && std::isfinite(value)
                                ? static_cast<size_t>(std::lround(static_cast<double>(length) * std::abs(value) / top))
                                : 0;
      const std::string bar = repeat("█", blocks), space(negative ? length : 0, ' ');
      table.rows[i].cells.emplace_back(!negative ? bar : value < 0 ? space.substr(blocks) + bar + "│" : space + "│" + bar);
    }
    if (table.rows.size() > kBars) {
      table.note = fmt::format("… and {} more", table.rows.size() - kBars);
      table.rows.resize(kBars);
    }
    (*this)(table);
  }

  void operator()(const Gallery&) {}
  void operator()(const Preformatted&) {}

 private:
  std::string style(const char* code, const std::string& text) const {
    return color_ && *code != '\0' && !text.empty() ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : text;
  }

  static std::string trimmed(const std::string& line) {
    const size_t end = line.find_last_not_of(' ');
    return end == std::string::npos ? "" : line.substr(0, end + 1);
  }

  static std::string content(const Cell& cell) {
    return one_line(cell.error.empty() ? cell.text : cell.text + " ± " + cell.error);
  }

  void subtitle(const std::string& text) {
    if (!text.empty()) out_ += "\n" + style("1", one_line(text)) + "\n";
  }

  /// The columns' widths, from those of their contents. While the table does not fit, headers go on in the next line, then texts
  /// are cut, those of the first column last: they say what the row is. Numbers are never cut.
  std::vector<size_t> fit(const Table& block) const {
    const std::vector<size_t> least = least_widths(block);
    std::vector<size_t> widths;
    size_t total = 2;
    for (size_t i = 0; i < least.size(); ++i) {
      widths.push_back(std::max(least[i], columns_of(one_line(block.columns[i].header))));
      total += widths.back() + 2;
    }
    const auto narrow = [&](const auto& bound) {
      while (total > width_ + 2) {
        size_t widest = widths.size();
        for (size_t i = 0; i < widths.size(); ++i) {
          if (widths[i] > bound(i) && (widest == widths.size() || widths[i] > widths[widest])) widest = i;
        }
        if (widest == widths.size()) return;
        --widths[widest];
        --total;
      }
    };
    narrow([&](size_t i) { return least[i]; });
    narrow([&](size_t i) { return block.columns[i].numeric ? least[i] : i == 0 ? kName : kText; });
    narrow([&](size_t i) { return block.columns[i].numeric ? least[i] : kText; });
    return widths;
  }

  /// Of columns that show their contents whole, under headers of several lines.
  static std::vector<size_t> least_widths(const Table& block) {
    std::vector<size_t> least;
    for (const auto& column : block.columns) least.push_back(longest_word(one_line(column.header)));
    for (const auto& row : block.rows) {
      for (size_t i = 0; i < std::min(row.cells.size(), least.size()); ++i)
        least[i] = std::max(least[i], columns_of(content(row.cells[i])));
    }
    return least;
  }

  void headers(const std::vector<size_t>& widths, const Table& block) {
    std::vector<std::vector<std::string>> words;  // the lines of each column's header
    size_t lines = 1;
    for (size_t i = 0; i < widths.size(); ++i) {
      words.push_back(broken(one_line(block.columns[i].header), widths[i]));
      lines = std::max(lines, words[i].size());
    }
    for (size_t k = 0; k < lines; ++k) {
      std::string line;
      for (size_t i = 0; i < widths.size(); ++i) {
        const size_t above = lines - words[i].size();  // headers stand on their column
        line += pad(k < above ? "" : cut(words[i][k - above], widths[i]), widths[i], block.columns[i].numeric) + "  ";
      }
      out_ += "  " + style("2", trimmed(line)) + "\n";
    }
  }

  void pairs(const std::vector<std::pair<std::string, std::string>>& rows) {
    size_t keys = 0;
    for (const auto& [key, value] : rows) keys = std::max(keys, std::min<size_t>(columns_of(one_line(key)), 30));
    for (const auto& [key, value] : rows) {
      out_ += "  " + style("2", pad(cut(one_line(key), keys), keys)) + "  ";
      wrapped(one_line(value), keys + 4, "");
    }
  }

  void paragraph(const std::string& text, const char* code) { wrapped(one_line(text), 0, code); }

  /// Breaks at spaces; the first line has begun at column `indent`, where the others begin too.
  void wrapped(const std::string& text, size_t indent, const char* code) {
    std::string line;
    const auto flush = [&] {
      out_ += style(code, line) + "\n";
      line.clear();
    };
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = std::min(text.find(' ', begin), text.size());
      const std::string word = text.substr(begin, end - begin);
      if (!line.empty() && indent + columns_of(line) + 1 + columns_of(word) > width_) {
        flush();
        out_ += std::string(indent, ' ');
      }
      if (!word.empty()) line += (line.empty() ? "" : " ") + word;
      begin = end + 1;
    }
    flush();
  }

  std::string out_;
  size_t width_;
  bool color_;
};

/// Whether a terminal shows anything of the block.
bool shown(const Block& block) {
  const auto* chart = std::get_if<LineChart>(&block);
  return !std::holds_alternative<Gallery>(block) && !std::holds_alternative<Preformatted>(block) && !(chart && chart->scatter);
}

}  // namespace

std::string render_terminal(const Report& report, int width, bool color) {
  TerminalWriter writer(width, color);
  writer.title(report);
  for (const auto& section : report.sections) {
    if (std::none_of(section.blocks.begin(), section.blocks.end(), shown)) continue;
    writer.heading(section.title);
    for (const Block& block : section.blocks) std::visit(writer, block);
  }
  return writer.take();
}

}  // namespace bilevel
