#include "bilevel/report/assets.h"

// The assembler copies the files into the read-only data: no generated source, and nothing to escape.
#define BILEVEL_EMBED(name, path)                                                                            \
  asm(".pushsection .rodata\n.global bilevel_" #name "_begin\n.global bilevel_" #name "_end\nbilevel_" #name \
      "_begin:\n.incbin \"" path "\"\nbilevel_" #name "_end:\n.byte 0\n.popsection\n");                      \
  extern "C" {                                                                                               \
  extern const char bilevel_##name##_begin[];                                                                \
  extern const char bilevel_##name##_end[];                                                                  \
  }

BILEVEL_EMBED(chart_js, BILEVEL_CHART_JS)
BILEVEL_EMBED(page_css, BILEVEL_PAGE_CSS)
BILEVEL_EMBED(page_js, BILEVEL_PAGE_JS)

namespace bilevel {
namespace {

std::string_view between(const char* begin, const char* end) { return {begin, static_cast<size_t>(end - begin)}; }

}  // namespace

std::string_view chart_js() { return between(bilevel_chart_js_begin, bilevel_chart_js_end); }
std::string_view page_css() { return between(bilevel_page_css_begin, bilevel_page_css_end); }
std::string_view page_js() { return between(bilevel_page_js_begin, bilevel_page_js_end); }

}  // namespace bilevel
