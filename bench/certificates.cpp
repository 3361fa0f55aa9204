// A thousand random problems, a third of them damaged on purpose: does the certificate tell?
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "bench/certificate_study.h"

using bilevel::CertificateCase;
using Json = nlohmann::ordered_json;

int main(int argc, char** argv) {
  int64_t first = 0, count = 1000;
  std::string out, family = "implicit";
  bool messages = false;
  CLI::App app("The study of docs/certificates.md.");
  app.add_option("--first", first, "first seed");
  app.add_option("--count", count, "problems");
  app.add_option("--family", family, "which hypergradients")->check(CLI::IsMember({"implicit", "unrolled", "constrained"}));
  app.add_option("--out", out, "JSON with every case");
  app.add_flag("--messages", messages, "with what the certificates said");
  CLI11_PARSE(app, argc, argv);
  at::set_num_threads(1);

  std::vector<CertificateCase> cases;
  Json rows = Json::array();
  for (int64_t seed = first; seed < first + count; ++seed) {
    const CertificateCase one = bilevel::certificate_case(seed, family);
    cases.push_back(one);
    rows.push_back({{"seed", one.seed},
                    {"problem", one.problem},
                    {"dtype", one.dtype},
                    {"estimator", one.estimator},
                    {"route", one.route},
                    {"damage", one.damage},
                    {"condition", one.condition},
                    {"norm", one.norm},
                    {"error", one.error},
                    {"named_error", one.named_error},
                    {"bound", one.bound ? Json(*one.bound) : Json()},
                    {"grade", bilevel::to_string(one.grade)},
                    {"bound_grade", bilevel::to_string(one.bound_grade)},
                    {"check", one.check}});
    if (messages) rows.back()["message"] = one.message;
  }
  const bilevel::CertificateSummary sum = summarise(cases);
  const auto share = [](int64_t part, int64_t all) {
    return all == 0 ? 0.0 : 100.0 * static_cast<double>(part) / static_cast<double>(all);
  };
  fmt::print("{} problems\n", sum.cases);
  fmt::print("bound holds                     {} of {} ({:.1f} %)\n", sum.bounds_held, sum.bounds,
             share(sum.bounds_held, sum.bounds));
  fmt::print("median bound/error              {:.2f}\n", sum.median_tightness);
  fmt::print("no bound, convex undamaged      {} of {} ({:.1f} %)\n", sum.no_bound, sum.convex, share(sum.no_bound, sum.convex));
  fmt::print("damage caught                   {} of {} ({:.1f} %)\n", sum.caught, sum.damaged, share(sum.caught, sum.damaged));
  fmt::print("  or not certified, with WARN   {}\n", sum.damaged_uncertain);
  fmt::print("  or OK, and right to 10 %      {}\n", sum.damaged_right);
  fmt::print("alarms on undamaged problems    {} of {} ({:.1f} %)\n", sum.alarms, sum.undamaged,
             share(sum.alarms, sum.undamaged));
  fmt::print("  where the value is right      {} ({:.1f} %)\n", sum.false_alarms, share(sum.false_alarms, sum.undamaged));
  fmt::print("not certified, with WARN        {} ({:.1f} %)\n", sum.undamaged_uncertain,
             share(sum.undamaged_uncertain, sum.undamaged));
  fmt::print("off by > 10 % and called OK     {}\n", sum.missed_errors);
  if (!out.empty()) {
    Json json;
    json["command"] = fmt::format("certificates --family {} --first {} --count {}", family, first, count);
    json["summary"] = {{"cases", sum.cases},
                       {"bounds", sum.bounds},
                       {"bounds_held", sum.bounds_held},
                       {"median_bound_over_error", sum.median_tightness},
                       {"convex_undamaged", sum.convex},
                       {"no_bound", sum.no_bound},
                       {"damaged", sum.damaged},
                       {"caught", sum.caught},
                       {"damaged_uncertain", sum.damaged_uncertain},
                       {"damaged_right", sum.damaged_right},
                       {"undamaged", sum.undamaged},
                       {"alarms", sum.alarms},
                       {"false_alarms", sum.false_alarms},
                       {"undamaged_uncertain", sum.undamaged_uncertain},
                       {"missed_errors", sum.missed_errors}};
    json["cases"] = rows;
    // One case a line.
    std::ofstream file(out);
    file << fmt::format("{{\n \"command\": {},\n \"summary\": {},\n \"cases\": [\n", json["command"].dump(),
                        json["summary"].dump());
    for (size_t i = 0; i < rows.size(); ++i) {
      file << "  " << rows[i].dump(-1, ' ', false, Json::error_handler_t::replace) << (i + 1 < rows.size() ? ",\n" : "\n");
    }
    file << " ]\n}\n";
  }
  return 0;
}
