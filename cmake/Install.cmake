# An installed tree: the engine's headers, one static library per folder, the command, and a CMake package.
include(CMakePackageConfigHelpers)

set(_package ${CMAKE_INSTALL_LIBDIR}/cmake/bilevel)
get_property(_folders GLOBAL PROPERTY BILEVEL_FOLDERS)
list(REMOVE_ITEM _folders bilevel_tasks bilevel_studies)  # for the command; their code is inside it
foreach(_folder IN LISTS _folders)
  string(REGEX REPLACE "^bilevel_" "" _name ${_folder})
  set_target_properties(${_folder} PROPERTIES EXPORT_NAME ${_name})
  target_compile_features(${_folder} PUBLIC cxx_std_20)
endforeach()

install(TARGETS bilevel ${_folders} EXPORT bilevelTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY bilevel DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h" PATTERN "*_test.h" EXCLUDE PATTERN "*_for_tests.h" EXCLUDE PATTERN "test_*.h" EXCLUDE)
install(EXPORT bilevelTargets NAMESPACE bilevel:: DESTINATION ${_package})
if(SKBUILD)  # in a wheel: torch/ beside bilevel/, wherever that is
  set(bilevel_TORCH_FOLDER "\${PACKAGE_PREFIX_DIR}/../torch")
else()
  set(bilevel_TORCH_FOLDER "${LibTorch_ROOT}")
endif()
configure_package_config_file(cmake/bilevelConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/bilevelConfig.cmake INSTALL_DESTINATION ${_package})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/bilevelConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/bilevelConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/bilevelConfigVersion.cmake
              cmake/FindLibTorch.cmake DESTINATION ${_package})
if(TARGET bilevel_cli)
  cmake_path(GET BILEVEL_deps__highway_LIBRARY PARENT_PATH _highway)  # unpacked below build/, or the system's
  if(SKBUILD)  # in a wheel: bilevel/bin/bilevel beside torch/
    set_target_properties(bilevel_cli PROPERTIES INSTALL_RPATH "$ORIGIN/../../torch/lib;$ORIGIN/../${CMAKE_INSTALL_LIBDIR}")
  else()
    set_target_properties(bilevel_cli PROPERTIES INSTALL_RPATH "${LibTorch_ROOT}/lib;${_highway}")
  endif()
  install(TARGETS bilevel_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
if(SKBUILD)
  install(TARGETS bilevel_python LIBRARY DESTINATION .)
  install(FILES "${CMAKE_BINARY_DIR}/python/bilevel/_built.py" DESTINATION .)
  # What the engine's libraries need comes along, so that a wheel asks for no Debian package.
  install(FILES "${BILEVEL_deps__zlib_LIBRARY}" "${BILEVEL_deps__csv_LIBRARY}" DESTINATION ${CMAKE_INSTALL_LIBDIR})
  file(REAL_PATH "${BILEVEL_deps__highway_LIBRARY}" _highway)  # a shared library only, in Debian
  install(FILES "${_highway}" DESTINATION ${CMAKE_INSTALL_LIBDIR} RENAME libhwy.so.1)
endif()
