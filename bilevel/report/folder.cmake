find_file(BILEVEL_CHART_JS chart.min.js
  HINTS "${BILEVEL_DEPS}/share/javascript/chart.js" "/usr/share/javascript/chart.js" NO_DEFAULT_PATH)
if(NOT BILEVEL_CHART_JS)
  message(FATAL_ERROR "The file chart.min.js (Debian package libjs-chart.js) was not found; `make setup` gets it.")
endif()

set_source_files_properties("${folder}/assets.cpp" PROPERTIES SKIP_PRECOMPILE_HEADERS ON COMPILE_DEFINITIONS
  "BILEVEL_CHART_JS=\"${BILEVEL_CHART_JS}\";BILEVEL_PAGE_CSS=\"${folder}/page.css\";BILEVEL_PAGE_JS=\"${folder}/page.js\"")
bilevel_embeds("${folder}/assets.cpp" "${BILEVEL_CHART_JS}" "${folder}/page.css" "${folder}/page.js")
target_link_libraries(bilevel_report PRIVATE $<BUILD_INTERFACE:deps::json> $<BUILD_INTERFACE:deps::zlib>)
