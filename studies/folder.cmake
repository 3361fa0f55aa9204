# A study's own sources are in a folder of their own; each is compiled by itself, so that two studies may use one name.
file(GLOB study_sources CONFIGURE_DEPENDS "${folder}/*/study.cpp")
file(GLOB study_texts CONFIGURE_DEPENDS "${folder}/*/study.toml")
target_sources(bilevel_studies PRIVATE ${study_sources})
set_source_files_properties(${study_sources} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
set_source_files_properties("${folder}/registry.cpp" PROPERTIES COMPILE_DEFINITIONS "BILEVEL_STUDIES=\"${folder}\"")
bilevel_embeds("${folder}/registry.cpp" ${study_texts})
target_link_libraries(bilevel_studies PRIVATE $<BUILD_INTERFACE:deps::json>)
