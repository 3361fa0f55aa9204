set(BILEVEL_DIGITS "${folder}/data/digits.csv.gz")
set_source_files_properties("${folder}/digits.cpp" PROPERTIES COMPILE_DEFINITIONS "BILEVEL_DIGITS=\"${BILEVEL_DIGITS}\"")
bilevel_embeds("${folder}/digits.cpp" "${BILEVEL_DIGITS}")
set_source_files_properties("${folder}/dataset.cpp" PROPERTIES COMPILE_DEFINITIONS "BILEVEL_DEPS=\"${BILEVEL_DEPS}\"")
target_link_libraries(bilevel_problem PRIVATE $<BUILD_INTERFACE:deps::csv> $<BUILD_INTERFACE:deps::json> $<BUILD_INTERFACE:deps::zlib>)
set_source_files_properties("${folder}/idx_test.cpp" "${folder}/npy_test.cpp" PROPERTIES
  COMPILE_DEFINITIONS "BILEVEL_SOURCE_DIR=\"${PROJECT_SOURCE_DIR}\"")
