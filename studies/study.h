#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/report/report.h"
#include "studies/claim.h"

namespace bilevel {

/// What a study.toml says of a study, apart from its settings and claims.
struct StudyText {
  std::string title;    // the system and what it is
  std::string paper;    // authors, title, venue, year
  std::string method;   // what it does, in about five sentences
  std::string formula;  // one, as plain text
};

enum class Scale { kQuick, kFull };  // at most 15 seconds; some minutes of one core

/// What study.cpp is given: the settings of its study.toml, and where what it measures goes.
class StudyRun {
 public:
  using Progress = std::function<void(const std::string& doing, double fraction)>;
  StudyRun(Section settings, Section quick, Scale scale, const std::vector<Claim>& claims, Progress progress);

  Scale scale() const { return scale_; }
  /// A key of [settings]; of [quick] where that has it and the study is to be quick. T: bool, int64_t, double, std::string, or a
  /// vector of numbers or texts. Throws Error where it is missing or of another type.
  template <class T>
  T setting(const std::string& key);
  std::vector<int64_t> seeds() { return setting<std::vector<int64_t>>("seeds"); }

  /// True where the claim is to be measured at this scale. Throws Error for a claim that study.toml does not make.
  bool asks_for(const std::string& claim) const;
  /// What is judged: one value, or one for each seed, appended to what was measured before.
  void measure(const std::string& claim, double value);
  /// The study's one picture.
  void picture(Block chart) { picture_ = std::move(chart); }
  /// More to look at: shown below the claims.
  void show(Block block) { shown_.push_back(std::move(block)); }
  void progress(const std::string& doing, double fraction) const {
    if (progress_) progress_(doing, fraction);
  }

 private:
  friend struct StudyResult reproduce(const struct Study&, Scale, const Progress&);
  Section settings_, quick_;
  Scale scale_;
  const std::vector<Claim>& claims_;
  Progress progress_;
  std::map<std::string, Measured> measured_;
  Block picture_;
  std::vector<Block> shown_;
};

/// A row of the registry: studies/<slug>/.
struct Study {
  std::string slug;
  std::string_view toml;       // the text of study.toml
  void (*run)(StudyRun& run);  // study.cpp
};

/// A study, run and judged.
struct StudyResult {
  std::string slug;
  StudyText text;
  Scale scale = Scale::kQuick;
  std::vector<Judgement> judgements;  // in the order of the claims
  Block picture;
  std::vector<Block> shown;
  double seconds = 0;

  /// BAD: a claim came out worse than study.toml says is known; WARN: one is known to fail, and did.
  Grade grade() const;
};

/// Title and claims, without running anything. Throws Error for whatever is wrong with study.toml.
std::pair<StudyText, std::vector<Claim>> read_study(const Study& study);

/// Runs a study on one thread and judges its claims. Throws Error for whatever is wrong with study.toml, and for a study that
/// does not measure a claim that it makes.
StudyResult reproduce(const Study& study, Scale scale, const StudyRun::Progress& progress = {});

}  // namespace bilevel
