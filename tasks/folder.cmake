target_link_libraries(bilevel_tasks PRIVATE $<BUILD_INTERFACE:deps::json>)
set(BILEVEL_DIABETES "${folder}/data/diabetes_data_raw.csv.gz")
set(BILEVEL_DIABETES_TARGET "${folder}/data/diabetes_target.csv.gz")
set_source_files_properties("${folder}/diabetes.cpp" PROPERTIES
  COMPILE_DEFINITIONS "BILEVEL_DIABETES=\"${BILEVEL_DIABETES}\";BILEVEL_DIABETES_TARGET=\"${BILEVEL_DIABETES_TARGET}\"")
bilevel_embeds("${folder}/diabetes.cpp" "${BILEVEL_DIABETES}" "${BILEVEL_DIABETES_TARGET}")
# The longest sources of all: three at a time, so that a change of one takes less than half a minute.
set_target_properties(bilevel_tasks PROPERTIES UNITY_BUILD_BATCH_SIZE 3)
