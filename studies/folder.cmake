# A study's own sources are in a folder of their own; each is compiled by itself, so that two studies may use one name.
file(GLOB study_sources CONFIGURE_DEPENDS "${folder}/*/study.cpp")
file(GLOB study_texts CONFIGURE_DEPENDS "${folder}/*/study.toml")
target_sources(bilevel_studies PRIVATE ${study_sources})
set_source_files_properties(${study_sources} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
# The texts' checksum is for the compiler cache, which does not see what the assembler includes.
set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${study_texts})
set(checksums "")
foreach(text IN LISTS study_texts)
  file(MD5 "${text}" checksum)
  string(APPEND checksums ${checksum})
endforeach()
set_source_files_properties("${folder}/registry.cpp" PROPERTIES OBJECT_DEPENDS "${study_texts}"
  COMPILE_DEFINITIONS "BILEVEL_STUDIES=\"${folder}\";BILEVEL_STUDY_TEXTS=\"${checksums}\"")
target_link_libraries(bilevel_studies PRIVATE $<BUILD_INTERFACE:deps::json>)
