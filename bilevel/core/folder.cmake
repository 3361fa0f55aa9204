target_link_libraries(bilevel_core PRIVATE $<BUILD_INTERFACE:deps::json> $<BUILD_INTERFACE:deps::toml>)
# Where it is included by another source, the compiler takes it for a header and objects to what is unnamed in it.
set_source_files_properties("${folder}/memory_meter.cpp" PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
