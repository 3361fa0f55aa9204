#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "bilevel/core/error.h"
#include "bilevel/run/progress.h"
#include "cli/commands.h"
#include "studies/registry.h"
#include "studies/study_page.h"

namespace bilevel::cli {
namespace {

StudyResult run_study(const Study& study, Scale scale) {
  StageProgress progress(progress_on(stderr));
  return reproduce(study, scale,
                   [&](const std::string& doing, double fraction) { progress.update(study.slug + ": " + doing, fraction); });
}

}  // namespace

void add_reproduce(CLI::App& app, Action& action) {
  struct Arguments {
    std::string slug;
    std::string out = "reproduction";
    bool all = false, quick = false, full = false, json = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("reproduce", "Run a study of a published system: its claims beside what is measured here.");
  command->add_option("study", arguments->slug, "a study of `bilevel list studies`")->type_name("STUDY");
  CLI::Option* all = command->add_flag("--all", arguments->all, "all of them, one after the other");
  command->get_option("study")->excludes(all);
  CLI::Option* quick =
      command->add_flag("--quick", arguments->quick, "at most 15 seconds a study; so it is unless --full is given");
  command->add_flag("--full", arguments->full, "the figures of the study's page; some minutes a study")->excludes(quick);
  command->add_option("--out", arguments->out, "where the pages go; reproduction unless given")->type_name("DIR");
  command->add_flag("--json", arguments->json, "print one JSON object and nothing else");
  command->footer("Example:\n  bilevel reproduce fds --quick");
  command->callback([arguments, &action] {
    action = [arguments] {
      require(arguments->all || !arguments->slug.empty(), "reproduce: name a study of `bilevel list studies`, or give --all.");
      const std::vector<Study> chosen = arguments->all ? studies() : std::vector<Study>{study_of(arguments->slug)};
      std::vector<StudyResult> results;
      for (const Study& study : chosen) {
        results.push_back(run_study(study, arguments->full ? Scale::kFull : Scale::kQuick));
        if (arguments->json) continue;
        for (const Judgement& judgement : results.back().judgements) fmt::print("{}\n", claim_line(results.back(), judgement));
        std::fflush(stdout);
      }
      write_study_pages(arguments->out, results);
      if (arguments->json) {
        fmt::print("{}\n", study_json(results));
      } else {
        fmt::print("The pages: {}/index.html\n", arguments->out);
      }
      return std::ranges::any_of(results, [](const StudyResult& result) { return result.grade() == Grade::kBad; }) ? 1 : 0;
    };
  });
}

}  // namespace bilevel::cli
