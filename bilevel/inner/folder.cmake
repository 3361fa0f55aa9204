set_source_files_properties("${folder}/torch_optim_test.cpp" PROPERTIES COMPILE_DEFINITIONS "BILEVEL_SOURCE_DIR=\"${PROJECT_SOURCE_DIR}\"")
