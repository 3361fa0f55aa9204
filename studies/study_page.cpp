#include "studies/study_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/report/html.h"

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

std::string scale_name(Scale scale) { return scale == Scale::kFull ? "--full" : "--quick"; }

Cell measured_cell(const Measured& measured) {
  if (measured.values.empty()) return "—";
  return measured.values.size() > 1 ? Cell::measured(measured.mean(), measured.standard_error()) : Cell(measured.mean());
}

std::string text_of(const Cell& cell) { return cell.error.empty() ? cell.text : cell.text + " ± " + cell.error; }

Table claims_table(const StudyResult& result) {
  Table table{.title = "Claim beside measured",
              .columns = {{"claim", false},
                          {"where", false},
                          {"paper", false},
                          {"ours", true},
                          {"seeds", true},
                          {"bar", false},
                          {"verdict", false}},
              .rows = {},
              .note =
                  "Ours: mean ± standard error over the seeds. Confirmed: the mean ± two standard errors lies within the bar; "
                  "partly: the "
                  "mean alone does."};
  for (const Judgement& judgement : result.judgements) {
    const Claim& claim = judgement.claim;
    table.rows.push_back({{claim.says, claim.source, claim.paper, measured_cell(judgement.measured),
                           Cell(std::to_string(judgement.measured.values.size())), claim.bar.text(),
                           Cell(std::string(to_string(judgement.verdict)))}});
  }
  return table;
}

// What is said below the table: why each bar is where it is, and why a claim is not confirmed.
Table reasons_table(const StudyResult& result) {
  Table table{.title = "Why these bars", .columns = {{"claim", false}, {"why that bar", false}, {"remark", false}}, .rows = {}};
  for (const Judgement& judgement : result.judgements) {
    table.rows.push_back({{Cell(judgement.claim.name), Cell(judgement.claim.why), Cell(judgement.reason)}});
  }
  return table;
}

std::string cost_sentence(const StudyResult& result) {
  return fmt::format("`bilevel reproduce {} {}` took {} on one core.", result.slug, scale_name(result.scale),
                     format_seconds(result.seconds));
}

std::string escape_markdown(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|' || c == '<' || c == '*' || c == '_' || c == '[' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

std::string markdown(const Table& table) {
  std::string out = "|", rule = "|";
  for (const Table::Column& column : table.columns) {
    out += fmt::format(" {} |", escape_markdown(column.header));
    rule += column.numeric ? "---:|" : "---|";
  }
  out += "\n" + rule + "\n";
  for (const Table::Row& row : table.rows) {
    out += "|";
    for (const Cell& cell : row.cells) out += fmt::format(" {} |", escape_markdown(text_of(cell)));
    out += "\n";
  }
  if (!table.note.empty()) out += "\n" + table.note + "\n";
  return out;
}

constexpr size_t kRowsOfAPicture = 20;

// Charts as their numbers; what a text cannot show is left to the page.
std::string markdown(const Block& block) {
  const auto under = [](const std::string& title, const std::string& text) {
    return title.empty() ? text + "\n" : fmt::format("### {}\n\n{}\n", title, text);
  };
  if (const auto* chart = std::get_if<LineChart>(&block)) return under(chart->title, markdown(table_of(*chart, kRowsOfAPicture)));
  if (const auto* chart = std::get_if<BarChart>(&block)) return under(chart->title, markdown(table_of(*chart)));
  if (const auto* table = std::get_if<Table>(&block)) return under(table->title, markdown(*table));
  if (const auto* text = std::get_if<Text>(&block)) return text->text + "\n\n";
  return "";
}

Json to_json(const Judgement& judgement) {
  const Claim& claim = judgement.claim;
  const Measured& m = judgement.measured;
  const auto bound = [](double value) { return std::isfinite(value) ? Json(value) : Json(); };
  Json json = {{"claim", claim.name},
               {"says", claim.says},
               {"source", claim.source},
               {"paper", claim.paper},
               {"verdict", to_string(judgement.verdict)},
               {"reason", judgement.reason},
               {"unexpected", judgement.unexpected()},
               {"at_least", bound(claim.bar.at_least)},
               {"at_most", bound(claim.bar.at_most)},
               {"values", m.values}};
  json["mean"] = m.values.empty() ? Json() : Json(m.mean());
  json["standard_error"] = m.values.size() < 2 ? Json() : Json(m.standard_error());
  return json;
}

}  // namespace

std::string study_readme(const StudyResult& result) {
  std::string out = fmt::format("# {}\n\n{}\n\n{}\n\n```\n{}\n```\n\n", result.text.title, result.text.paper, result.text.method,
                                result.text.formula);
  out += "## Claim beside measured\n\n" + markdown(claims_table(result)) + "\n";
  out += "## Why these bars\n\n" + markdown(reasons_table(result)) + "\n";
  out += "## What was seen\n\n";
  out += markdown(result.picture);
  for (const Block& block : result.shown) out += markdown(block);
  out += fmt::format(
      "## Cost\n\n{} This page is written by that command; `--out DIR` leaves it and a page with the picture in DIR.\n",
      cost_sentence(result));
  return out;
}

Report study_index(const std::vector<StudyResult>& results) {
  Report report;
  report.title = results.size() == 1 ? results[0].text.title : "Studies";
  size_t confirmed = 0, judged = 0;
  Grade worst = Grade::kOk;
  for (const StudyResult& result : results) {
    worst = std::max(worst, result.grade());
    for (const Judgement& judgement : result.judgements) {
      judged += judgement.verdict != Verdict::kNotRun;
      confirmed += judgement.verdict == Verdict::kConfirmed;
    }
    Report::Section section{result.text.title, {}};
    section.blocks.push_back(Text{result.text.paper + "\n\n" + result.text.method, Text::Tone::kPlain});
    section.blocks.push_back(Preformatted{"", result.text.formula});
    section.blocks.push_back(claims_table(result));
    section.blocks.push_back(result.picture);
    for (const Block& block : result.shown) section.blocks.push_back(block);
    section.blocks.push_back(reasons_table(result));
    section.blocks.push_back(Text{cost_sentence(result), Text::Tone::kNote});
    report.sections.push_back(std::move(section));
  }
  report.subtitle = fmt::format("{} of {} claims confirmed", confirmed, judged);
  report.verdict = {worst, worst == Grade::kBad ? "A claim came out worse than its study says is known." : ""};
  return report;
}

std::string study_json(const std::vector<StudyResult>& results) {
  Json json;
  json["studies"] = Json::array();
  for (const StudyResult& result : results) {
    Json one = {{"slug", result.slug},
                {"title", result.text.title},
                {"paper", result.text.paper},
                {"scale", result.scale == Scale::kFull ? "full" : "quick"},
                {"status", to_string(result.grade())},
                {"claims", Json::array()},
                {"machine", {{"seconds", result.seconds}}}};
    for (const Judgement& judgement : result.judgements) one["claims"].push_back(to_json(judgement));
    json["studies"].push_back(std::move(one));
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string claim_line(const StudyResult& result, const Judgement& judgement) {
  std::string line = fmt::format("{}  {:<13}  {}: {} (bar: {})", result.slug, to_string(judgement.verdict), judgement.claim.name,
                                 text_of(measured_cell(judgement.measured)), judgement.claim.bar.text());
  return judgement.reason.empty() ? line : line + "  " + judgement.reason;
}

void write_study_pages(const std::string& directory, const std::vector<StudyResult>& results) {
  for (const StudyResult& result : results) {
    const std::filesystem::path folder = std::filesystem::path(directory) / result.slug;
    std::error_code failure;
    std::filesystem::create_directories(folder, failure);
    require(!failure, fmt::format("reproduce: {} cannot be made: {}.", folder.string(), failure.message()));
    write_file(folder / "README.md", study_readme(result));
  }
  write_file(directory + "/index.html", render_html(study_index(results)));
  write_file(directory + "/verdicts.json", study_json(results) + "\n");
}

}  // namespace bilevel
