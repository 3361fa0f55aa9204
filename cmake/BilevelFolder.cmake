# One static library per folder: x.h, x.cpp and x_test.cpp side by side. A test program links its folder and what that
# folder may use, so a dependency that points the wrong way does not link.

function(bilevel_folder name)
  cmake_parse_arguments(ARG "" "" "USES" ${ARGN})
  set(folder "${PROJECT_SOURCE_DIR}/bilevel/${name}")
  if(NOT IS_DIRECTORY "${folder}")
    set(folder "${PROJECT_SOURCE_DIR}/${name}")
  endif()
  file(GLOB sources CONFIGURE_DEPENDS "${folder}/*.cpp")
  set(tests ${sources})
  list(FILTER sources EXCLUDE REGEX "_test\\.cpp$")
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")

  add_library(bilevel_${name} STATIC ${sources})
  add_library(bilevel::${name} ALIAS bilevel_${name})
  set_property(GLOBAL APPEND PROPERTY BILEVEL_FOLDERS bilevel_${name})
  target_include_directories(bilevel_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_link_libraries(bilevel_${name} PRIVATE $<BUILD_INTERFACE:bilevel_flags>
                                        PUBLIC LibTorch::LibTorch)
  foreach(used IN LISTS ARG_USES)
    target_link_libraries(bilevel_${name} PUBLIC bilevel_${used})
  endforeach()
  if(EXISTS "${folder}/folder.cmake")
    include("${folder}/folder.cmake")
  endif()
  bilevel_precompiled_header(bilevel_${name})

  if(BILEVEL_TESTS AND tests)
    bilevel_test(${name}_test SOURCES ${tests} USES bilevel_${name})
  endif()
endfunction()

# A source into which the assembler copies files: compiled again when one of them changes, and their checksum is a definition, for the
# compiler cache does not see them.
function(bilevel_embeds source)
  set(checksums "")
  foreach(file IN LISTS ARGN)
    file(MD5 "${file}" checksum)
    string(APPEND checksums ${checksum})
  endforeach()
  set_property(SOURCE "${source}" APPEND PROPERTY OBJECT_DEPENDS ${ARGN})
  set_property(SOURCE "${source}" APPEND PROPERTY COMPILE_DEFINITIONS "BILEVEL_EMBEDDED=\"${checksums}\"")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${ARGN})
endfunction()

# The header is compiled once, with core, and used again by everything with the same flags.
function(bilevel_precompiled_header target)
  if(target STREQUAL "bilevel_core")
    target_precompile_headers(${target} PRIVATE <ATen/ATen.h> <torch/csrc/autograd/autograd.h> <fmt/format.h> <fmt/ranges.h>
      <algorithm> <cmath> <functional> <map> <memory> <optional> <string> <vector>)
  else()
    target_precompile_headers(${target} REUSE_FROM bilevel_core)
  endif()
endfunction()

# Flags of a program: -fPIC as in the libraries, for the precompiled header's sake, and where to find LibTorch.
function(bilevel_program name)
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE OFF BUILD_RPATH "${LibTorch_ROOT}/lib")
  target_compile_options(${name} PRIVATE -fPIC)
  bilevel_precompiled_header(${name})
endfunction()

function(bilevel_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;USES;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_compile_options(${name} PRIVATE -O1)  # a test waits for the engine, and not for itself
  target_link_libraries(${name} PRIVATE bilevel_flags ${ARG_USES} deps::gtest)
  target_include_directories(${name} PRIVATE "${PROJECT_SOURCE_DIR}")
  bilevel_program(${name})
  # One call for a program, not for each of its tests: loading LibTorch takes longer than most of them.
  add_test(NAME ${name} COMMAND ${name} --gtest_brief=1)
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 1200 ENVIRONMENT "OMP_NUM_THREADS=1;OMP_WAIT_POLICY=passive")
endfunction()
