#include "studies/study.h"

#include <fmt/format.h>

#include <tuple>

#include "bilevel/core/clock.h"
#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"

namespace bilevel {
namespace {

std::string file_of(const Study& study) { return "studies/" + study.slug + "/study.toml"; }

std::pair<StudyText, std::vector<Claim>> read_text_and_claims(Section root) {
  StudyText text;
  const auto read = [&](const char* key, std::string& into) {
    root.read(key, into);
    if (into.empty()) root.fail(key, "missing: a study has a title, its paper, the method in a few sentences and one formula.");
  };
  read("title", text.title);
  read("paper", text.paper);
  read("method", text.method);
  read("formula", text.formula);
  std::vector<Claim> claims;
  Section tables = root.section("claims");
  for (const std::string& name : tables.keys()) claims.push_back(read_claim(tables.section(name), name));
  if (claims.empty()) root.fail("claims", "missing: a study makes claims, a table [claims.NAME] each.");
  return {std::move(text), std::move(claims)};
}

}  // namespace

StudyRun::StudyRun(Section settings, Section quick, Scale scale, const std::vector<Claim>& claims, Progress progress)
    : settings_(std::move(settings)), quick_(std::move(quick)), scale_(scale), claims_(claims), progress_(std::move(progress)) {}

template <class T>
T StudyRun::setting(const std::string& key) {
  if (!settings_.has(key)) settings_.fail(key, "missing: study.cpp asks for it.");
  T full{}, quick{};
  settings_.read(key, full);
  if (!quick_.has(key)) return full;
  quick_.read(key, quick);
  return scale_ == Scale::kQuick ? quick : full;
}
template bool StudyRun::setting(const std::string& key);
template int64_t StudyRun::setting(const std::string& key);
template double StudyRun::setting(const std::string& key);
template std::string StudyRun::setting(const std::string& key);
template std::vector<int64_t> StudyRun::setting(const std::string& key);
template std::vector<double> StudyRun::setting(const std::string& key);
template std::vector<std::string> StudyRun::setting(const std::string& key);

bool StudyRun::asks_for(const std::string& name) const {
  for (const Claim& claim : claims_) {
    if (claim.name == name) return scale_ == Scale::kFull || !claim.full_only;
  }
  std::vector<std::string> known;
  for (const Claim& claim : claims_) known.push_back(claim.name);
  throw Error(fmt::format("StudyRun: study.toml makes no claim \"{}\".{}", name, suggestion(name, known)));
}

void StudyRun::measure(const std::string& claim, double value) {
  if (asks_for(claim)) measured_[claim].values.push_back(value);
}

Grade StudyResult::grade() const {
  Grade worst = Grade::kOk;
  for (const Judgement& judgement : judgements) {
    if (judgement.unexpected()) return Grade::kBad;
    if (judgement.verdict < Verdict::kConfirmed) worst = Grade::kWarn;
  }
  return worst;
}

std::pair<StudyText, std::vector<Claim>> read_study(const Study& study) {
  return read_text_and_claims(Config::parse(study.toml, file_of(study)).root());
}

StudyResult reproduce(const Study& study, Scale scale, const StudyRun::Progress& progress) {
  Section root = Config::parse(study.toml, file_of(study)).root();
  StudyResult result;
  result.slug = study.slug;
  result.scale = scale;
  std::vector<Claim> claims;
  std::tie(result.text, claims) = read_text_and_claims(root);
  Section settings = root.section("settings"), quick = root.section("quick");
  root.finish();

  StudyRun run(settings, quick, scale, claims, progress);
  {
    const ThreadsGuard one(1);  // other numbers of threads give other bits
    const Clock::time_point began = Clock::now();
    study.run(run);
    result.seconds = seconds_since(began);
  }
  settings.finish();
  quick.finish();
  for (const Claim& claim : claims) {
    Measured measured = run.measured_[claim.name];
    require(!measured.values.empty() || !run.asks_for(claim.name),
            fmt::format("reproduce: studies/{}/study.cpp did not measure its claim \"{}\".", study.slug, claim.name));
    result.judgements.push_back(judge(claim, std::move(measured)));
  }
  result.picture = std::move(run.picture_);
  result.shown = std::move(run.shown_);
  return result;
}

}  // namespace bilevel
