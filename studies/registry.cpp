#include "studies/registry.h"

#include <fmt/format.h>

#include "bilevel/core/error.h"

// The text of studies/<name>/study.toml goes into the object as it is, so that the command needs no folder of sources.
#define BILEVEL_STUDY(name)                                                                                         \
  asm(".pushsection .rodata\n.globl bilevel_study_" #name "\n.hidden bilevel_study_" #name "\nbilevel_study_" #name \
      ":\n.incbin \"" BILEVEL_STUDIES "/" #name "/study.toml\"\n.byte 0\n.popsection\n");                           \
  extern "C" __attribute__((visibility("hidden"))) const char bilevel_study_##name[];                               \
  namespace bilevel {                                                                                               \
  void study_##name(StudyRun& run);                                                                                 \
  }

BILEVEL_STUDY(baselines)
BILEVEL_STUDY(evograd)
BILEVEL_STUDY(fds)
BILEVEL_STUDY(funcid)
BILEVEL_STUDY(hpm)
BILEVEL_STUDY(nhgd)
BILEVEL_STUDY(resalign)
BILEVEL_STUDY(smoothfbo)

namespace bilevel {

const std::vector<Study>& studies() {
  static const std::vector<Study> rows = {
      {"baselines", bilevel_study_baselines, study_baselines},
      {"evograd", bilevel_study_evograd, study_evograd},
      {"fds", bilevel_study_fds, study_fds},
      {"funcid", bilevel_study_funcid, study_funcid},
      {"hpm", bilevel_study_hpm, study_hpm},
      {"nhgd", bilevel_study_nhgd, study_nhgd},
      {"resalign", bilevel_study_resalign, study_resalign},
      {"smoothfbo", bilevel_study_smoothfbo, study_smoothfbo},
  };
  return rows;
}

const Study& study_of(const std::string& slug) {
  std::vector<std::string> slugs;
  for (const Study& study : studies()) {
    if (study.slug == slug) return study;
    slugs.push_back(study.slug);
  }
  throw Error(fmt::format("reproduce: there is no study \"{}\".{}", slug, suggestion(slug, slugs)));
}

}  // namespace bilevel
