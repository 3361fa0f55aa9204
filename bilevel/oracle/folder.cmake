target_link_libraries(bilevel_oracle PRIVATE $<BUILD_INTERFACE:deps::highway>)
# Registers are only used where loops over tiles are unrolled, which needs more than -O2. The kernels include nothing of LibTorch's.
set_source_files_properties("${folder}/native_kernels.cpp" PROPERTIES COMPILE_OPTIONS "-O3" SKIP_PRECOMPILE_HEADERS ON)
if(NOT BILEVEL_SANITIZE)  # with UBSan, GCC 12 crashes on native.cpp at -O3
  set_source_files_properties("${folder}/native.cpp" "${folder}/native_coefficients.cpp" PROPERTIES COMPILE_OPTIONS "-O3")
endif()
