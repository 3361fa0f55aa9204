# Finds the LibTorch inside a torch wheel, CPU or CUDA build, without a CUDA toolkit (the wheel's own
# TorchConfig.cmake asks for one). Defines the imported target LibTorch::LibTorch, LibTorch_VERSION and LibTorch_ROOT.
#
#   Python3_EXECUTABLE   the interpreter whose torch is used
#   LibTorch_ROOT        or the torch folder itself

set(LibTorch_TESTED_MIN 2.11)  # oldest and newest minor release that the tests have run on
set(LibTorch_TESTED_MAX 2.13)

if(NOT LibTorch_ROOT)
  find_package(Python3 QUIET COMPONENTS Interpreter)
  if(Python3_EXECUTABLE)
    execute_process(
      COMMAND "${Python3_EXECUTABLE}" -c
              "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
      OUTPUT_VARIABLE LibTorch_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
endif()

# Another folder than last time: what was found in that one is not to be kept.
if(NOT LibTorch_ROOT STREQUAL "${LibTorch_FOUND_IN}")
  foreach(_name INCLUDE_DIR CPU_LIBRARY C10_LIBRARY CUDA_LIBRARY C10_CUDA_LIBRARY)
    unset(LibTorch_${_name} CACHE)
  endforeach()
  set(LibTorch_FOUND_IN "${LibTorch_ROOT}" CACHE INTERNAL "folder in which LibTorch was looked for")
endif()
find_path(LibTorch_INCLUDE_DIR ATen/ATen.h HINTS "${LibTorch_ROOT}/include" NO_DEFAULT_PATH)
find_library(LibTorch_CPU_LIBRARY torch_cpu HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)
find_library(LibTorch_C10_LIBRARY c10 HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)
find_library(LibTorch_CUDA_LIBRARY torch_cuda HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)
find_library(LibTorch_C10_CUDA_LIBRARY c10_cuda HINTS "${LibTorch_ROOT}/lib" NO_DEFAULT_PATH)

if(EXISTS "${LibTorch_ROOT}/version.py")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${LibTorch_ROOT}/version.py")  # asked again after an upgrade
  file(STRINGS "${LibTorch_ROOT}/version.py" _version REGEX "^__version__ *=")
  string(REGEX MATCH "[0-9]+\\.[0-9]+(\\.[0-9]+)?" LibTorch_VERSION "${_version}")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(LibTorch
  REQUIRED_VARS LibTorch_INCLUDE_DIR LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_VERSION
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE "No torch wheel was found: `make setup` in bilevel's sources installs one. Or pass -DLibTorch_ROOT=<folder of torch>.")

if(LibTorch_FOUND)
  string(REGEX MATCH "^[0-9]+\\.[0-9]+" _minor "${LibTorch_VERSION}")
  if(_minor VERSION_LESS LibTorch_TESTED_MIN OR _minor VERSION_GREATER LibTorch_TESTED_MAX)
    message(FATAL_ERROR
      "bilevel is tested with torch ${LibTorch_TESTED_MIN} to ${LibTorch_TESTED_MAX}, and this is torch ${LibTorch_VERSION} "
      "(${LibTorch_ROOT}). Use an environment with a release in that range, for example torch==2.13.0.")
  endif()
endif()

if(LibTorch_FOUND AND NOT TARGET LibTorch::LibTorch)
  set(_libraries "${LibTorch_C10_LIBRARY}" "${LibTorch_CPU_LIBRARY}")
  add_library(LibTorch::LibTorch INTERFACE IMPORTED)
  target_include_directories(LibTorch::LibTorch SYSTEM INTERFACE
    "${LibTorch_INCLUDE_DIR}" "${LibTorch_INCLUDE_DIR}/torch/csrc/api/include")
  target_compile_definitions(LibTorch::LibTorch INTERFACE _GLIBCXX_USE_CXX11_ABI=1)
  # Nothing refers to torch_cuda by name: it registers its kernels when it is loaded, so the linker must not drop it. A wheel goes
  # without, so that it loads with a CPU build of the same release too: Python has loaded torch_cuda, and the command asks for it.
  if(LibTorch_CUDA_LIBRARY AND NOT SKBUILD)
    target_link_options(LibTorch::LibTorch INTERFACE
      "-Wl,--push-state,--no-as-needed,${LibTorch_CUDA_LIBRARY},${LibTorch_C10_CUDA_LIBRARY},--pop-state")
  endif()
  target_link_libraries(LibTorch::LibTorch INTERFACE ${_libraries})
  target_link_options(LibTorch::LibTorch INTERFACE "-Wl,-rpath-link,${LibTorch_ROOT}/lib")
endif()
mark_as_advanced(LibTorch_INCLUDE_DIR LibTorch_CPU_LIBRARY LibTorch_C10_LIBRARY LibTorch_CUDA_LIBRARY LibTorch_C10_CUDA_LIBRARY)
