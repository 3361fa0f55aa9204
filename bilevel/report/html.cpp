#include "bilevel/report/html.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <variant>

#include "bilevel/report/assets.h"
#include "bilevel/report/png.h"

namespace bilevel {
namespace {

using nlohmann::json;

json finite_or_null(const std::vector<double>& values, bool positive = false) {
  json list = json::array();
  for (const double v : values) list.push_back(std::isfinite(v) && (!positive || v > 0) ? json(v) : json());
  return list;
}

/// JSON that may stand inside a script element: with every `<` written as an escape no text can end the element.
std::string script_json(const json& value) {
  std::string text;
  for (const char c : value.dump(-1, ' ', false, json::error_handler_t::replace)) {
    if (c == '<') {
      text += "\\u003c";
    } else {
      text += c;
    }
  }
  return text;
}

/// Writes the blocks and gathers the charts' data for the page's script.
class HtmlWriter {
 public:
  std::string take() { return std::move(out_); }
  const json& charts() const { return charts_; }

  template <class... Args>
  void write(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(out_), format, std::forward<Args>(args)...);
  }

  void operator()(const Text& block) {
    const char* const tones[] = {"plain", "note", "warning"};
    write("<div class=\"text {} wide\"{}>", tones[static_cast<size_t>(block.tone)],
          block.tone == Text::Tone::kWarning ? " role=\"note\"" : "");
    paragraphs(block.text);
    write("</div>\n");
  }

  void operator()(const Figures& block) {
    write("<div class=\"figures wide\">\n");
    for (const auto& figure : block.figures) {
      write(
          "<div class=\"card figure\"><div class=\"label\">{}</div><div class=\"value\">{}</div><div "
          "class=\"remark\">{}</div></div>\n",
          escape_html(figure.label), escape_html(figure.value), escape_html(figure.note));
    }
    write("</div>\n");
  }

  void operator()(const KeyValues& block) {
    write("<div class=\"card\">{}<table class=\"pairs\"><tbody>\n", heading(block.title));
    for (const auto& [key, value] : block.rows) {
      write("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escape_html(key), escape_html(value));
    }
    write("</tbody></table></div>\n");
  }

  void operator()(const Table& block) {
    write("<div class=\"card{}\">{}", block.columns.size() > 4 ? " wide" : "", heading(block.title));
    table(block);
    note(block.note);
    write("</div>\n");
  }

  void operator()(const LineChart& block) {
    json series = json::array();
    for (const auto& s : block.series) {
      json labels = json::array();
      for (const auto& label : s.labels) labels.push_back(clean_text(label));
      series.push_back({{"name", clean_text(s.name)},
                        {"x", finite_or_null(s.x, block.log_x)},
                        {"y", finite_or_null(s.y, block.log_y)},
                        {"labels", std::move(labels)}});
    }
    charts_.push_back({{"kind", "line"},
                       {"xLabel", clean_text(block.x_label)},
                       {"yLabel", clean_text(block.y_label)},
                       {"logX", block.log_x},
                       {"logY", block.log_y},
                       {"scatter", block.scatter},
                       {"series", std::move(series)}});
    chart(block.title, block.scatter ? "Scatter chart" : "Line chart", block.scatter ? " wide" : "", block.scatter ? 460 : 0,
          block.note, table_of(block));
  }

  void operator()(const BarChart& block) {
    json labels = json::array(), series = json::array();
    for (const auto& label : block.labels) labels.push_back(clean_text(label));
    for (const auto& s : block.series) {
      series.push_back({{"name", clean_text(s.name)},
                        {"values", finite_or_null(s.values)},
                        {"spread", s.spread.empty() ? json() : finite_or_null(s.spread)},
                        {"markers", s.markers}});
    }
    charts_.push_back({{"kind", "bar"},
                       {"horizontal", block.horizontal},
                       {"valueLabel", clean_text(block.value_label)},
                       {"labelName", clean_text(block.label_name)},
                       {"labels", std::move(labels)},
                       {"series", std::move(series)}});
    const size_t groups = block.labels.size();
    const int height = block.horizontal ? static_cast<int>(std::min<size_t>(80 + 24 * groups, 6000)) : 0;
    chart(block.title, "Bar chart", groups > 12 ? " wide" : "", height, block.note, table_of(block));
  }

  void operator()(const Gallery& block) {
    write("<div class=\"card wide\">{}<div class=\"gallery\">\n", heading(block.title));
    for (const auto& picture : block.pictures) {
      write("<figure><img src=\"data:image/png;base64,{}\" alt=\"{}\"><figcaption>", base64(picture.png),
            escape_html(picture.description));
      for (const auto& [key, value] : picture.captions) {
        write("<div><span>{}</span> <b>{}</b></div>", escape_html(key), escape_html(value));
      }
      write("</figcaption></figure>\n");
    }
    write("</div>");
    note(block.note);
    write("</div>\n");
  }

  void operator()(const Preformatted& block) {
    write("<div class=\"card wide\">{}<pre tabindex=\"0\" role=\"region\" aria-label=\"{}\">{}</pre></div>\n",
          heading(block.title), escape_html(block.title.empty() ? "text" : block.title), escape_html(block.text));
  }

 private:
  static std::string heading(const std::string& title) {
    return title.empty() ? "" : fmt::format("<h3>{}</h3>\n", escape_html(title));
  }

  void note(const std::string& text) {
    if (!text.empty()) write("<p class=\"below\">{}</p>\n", escape_html(text));
  }

  void paragraphs(const std::string& text) {
    for (size_t begin = 0; begin <= text.size();) {
      const size_t end = std::min(text.find("\n\n", begin), text.size());
      write("<p>{}</p>\n", escape_html(std::string_view(text).substr(begin, end - begin)));
      begin = end + 2;
    }
  }

  void table(const Table& block) {
    write("<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{}\"><table>\n<thead><tr>",
          escape_html(block.title.empty() ? "table" : block.title));
    for (const auto& column : block.columns) {
      write("<th scope=\"col\"{}>{}</th>", column.numeric ? " class=\"number\"" : "", escape_html(column.header));
    }
    write("</tr></thead>\n<tbody>\n");
    for (const auto& row : block.rows) {
      write("<tr{}>", row.highlight ? " class=\"highlight\"" : "");
      for (size_t i = 0; i < row.cells.size(); ++i) {
        const Cell& cell = row.cells[i];
        const bool numeric = i < block.columns.size() && block.columns[i].numeric;
        write("<td{}>{}", numeric ? " class=\"number\"" : "", escape_html(cell.text));
        if (!cell.error.empty()) write("<span class=\"error\"> ± {}</span>", escape_html(cell.error));
        write("</td>");
      }
      write("</tr>\n");
    }
    write("</tbody></table></div>\n");
  }

  void chart(const std::string& title, const char* kind, const char* width, int height, const std::string& below,
             const Table& data) {
    write("<div class=\"card chart{}\">{}", width, heading(title));
    write(
        "<div class=\"plot\"{}><canvas role=\"img\" aria-label=\"{}: {}. The numbers are in the table below "
        "it.\"></canvas></div>\n",
        height > 0 ? fmt::format(" style=\"height:{}px\"", height) : "", kind, escape_html(title));
    note(below);
    write("<details><summary>Numbers</summary>\n");
    table(data);
    note(data.note);
    write("</details></div>\n");
  }

  std::string out_;
  json charts_ = json::array();
};

void write_banner(HtmlWriter& writer, const Report::Verdict& verdict) {
  if (verdict.sentence.empty()) return;
  const char* const classes[] = {"ok", "warn", "bad"};
  writer.write("<div class=\"banner {}\" role=\"status\"><b>{}</b><span>{}</span></div>\n",
               classes[static_cast<size_t>(verdict.grade)], to_string(verdict.grade), escape_html(verdict.sentence));
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string escaped;
  for (const char c : clean_text(text)) {
    switch (c) {
      case '&': escaped += "&amp;"; break;
      case '<': escaped += "&lt;"; break;
      case '>': escaped += "&gt;"; break;
      case '"': escaped += "&quot;"; break;
      case '\'': escaped += "&#39;"; break;
      default: escaped += c;
    }
  }
  return escaped;
}

std::string render_html(const Report& report) {
  HtmlWriter writer;
  writer.write(
      "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src "
      "'unsafe-inline'; "
      "img-src data:; base-uri 'none'; form-action 'none'\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta name=\"color-scheme\" content=\"light dark\">\n"
      "<title>{}</title>\n<link rel=\"icon\" href=\"data:,\">\n<style>\n{}</style>\n</head>\n<body>\n"
      "<a class=\"skip\" href=\"#content\">Skip to the content</a>\n<header>\n<h1>{}</h1>\n",
      escape_html(report.title), page_css(), escape_html(report.title));
  if (!report.subtitle.empty()) writer.write("<p class=\"subtitle\">{}</p>\n", escape_html(report.subtitle));
  write_banner(writer, report.verdict);
  if (report.sections.size() > 2) {
    writer.write("<nav aria-label=\"Sections\">");
    for (size_t i = 0; i < report.sections.size(); ++i) {
      writer.write("<a href=\"#s{}\">{}</a>", i, escape_html(report.sections[i].title));
    }
    writer.write("</nav>\n");
  }
  writer.write(
      "<noscript><p class=\"below\">The charts need JavaScript; their numbers are in the tables below them.</p>"
      "<style>.plot{{display:none}}</style></noscript>\n</header>\n<main id=\"content\">\n");
  for (size_t i = 0; i < report.sections.size(); ++i) {
    writer.write("<section id=\"s{}\">\n<h2>{}</h2>\n<div class=\"grid\">\n", i, escape_html(report.sections[i].title));
    for (const Block& block : report.sections[i].blocks) std::visit(writer, block);
    writer.write("</div>\n</section>\n");
  }
  writer.write(
      "</main>\n<footer>Written by bilevel. Everything on this page is inside this one file; nothing is loaded.</footer>\n");
  if (!writer.charts().empty()) {
    writer.write("<script type=\"application/json\" id=\"charts\">{}</script>\n<script>\n{}\n</script>\n<script>\n{}</script>\n",
                 script_json(writer.charts()), chart_js(), page_js());
  }
  writer.write("</body>\n</html>\n");
  return writer.take();
}

}  // namespace bilevel
