#include "studies/claim.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/standard_error.h"
#include "bilevel/report/report.h"

namespace bilevel {
namespace {

void read_text(Section& section, const std::string& key, std::string& text) {
  section.read(key, text);
  if (text.empty())
    section.fail(key, "missing: each claim says what it claims, where, by what number, and why the bar is where it is.");
}

void read_bar(Section& section, const std::string& key, double& bound) {
  if (!section.has(key)) return;
  section.read(key, bound);
  if (!std::isfinite(bound)) section.fail(key, "a bar is a finite number.");
}

}  // namespace

std::string_view to_string(Verdict verdict) {
  switch (verdict) {
    case Verdict::kConfirmed: return "confirmed";
    case Verdict::kPartly: return "partly";
    case Verdict::kNotSeen: return "not seen here";
    case Verdict::kNotRun: return "not run";
  }
  return "";
}

std::string Bar::text() const {
  if (!std::isfinite(at_least)) return "at most " + format_number(at_most);
  if (!std::isfinite(at_most)) return "at least " + format_number(at_least);
  return format_number(at_least) + " to " + format_number(at_most);
}

Claim read_claim(Section section, const std::string& name) {
  Claim claim;
  claim.name = name;
  read_text(section, "says", claim.says);
  read_text(section, "source", claim.source);
  read_text(section, "paper", claim.paper);
  read_text(section, "why", claim.why);
  read_bar(section, "at_least", claim.bar.at_least);
  read_bar(section, "at_most", claim.bar.at_most);
  if (!section.has("at_least") && !section.has("at_most"))
    section.fail("at_least", "missing: a claim has a bar, at_least, at_most or both.");
  if (claim.bar.at_least > claim.bar.at_most) section.fail("at_least", "it is above at_most: nothing could pass.");
  section.read("full_only", claim.full_only);
  if (section.has("known")) {
    std::string known;
    section.read_choice("known", known, {std::string(to_string(Verdict::kPartly)), std::string(to_string(Verdict::kNotSeen))});
    claim.known = known == to_string(Verdict::kPartly) ? Verdict::kPartly : Verdict::kNotSeen;
    read_text(section, "reason", claim.reason);
  }
  section.finish();
  return claim;
}

double Measured::mean() const {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

double Measured::standard_error() const { return bilevel::standard_error(values, mean()); }

Judgement judge(const Claim& claim, Measured measured) {
  Judgement judgement{.claim = claim, .measured = std::move(measured)};
  const Measured& m = judgement.measured;
  if (m.values.empty()) {
    judgement.reason = "Only --full measures it.";
    return judgement;
  }
  const double mean = m.mean(), room = 2 * m.standard_error();
  if (!std::all_of(m.values.begin(), m.values.end(), [](double value) { return std::isfinite(value); })) {
    judgement.verdict = Verdict::kNotSeen;
    judgement.reason = "A measured value is not finite.";
  } else if (!claim.bar.holds(mean)) {
    judgement.verdict = Verdict::kNotSeen;
    judgement.reason = fmt::format("{} is not {}.", format_number(mean), claim.bar.text());
  } else if (!claim.bar.holds(mean - room) || !claim.bar.holds(mean + room)) {
    judgement.verdict = Verdict::kPartly;
    judgement.reason = fmt::format("The mean is {}, but not by two standard errors.", claim.bar.text());
  } else {
    judgement.verdict = Verdict::kConfirmed;
  }
  if (judgement.verdict != Verdict::kConfirmed && !claim.reason.empty()) judgement.reason += " " + claim.reason;
  return judgement;
}

}  // namespace bilevel
