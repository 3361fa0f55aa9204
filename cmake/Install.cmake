# An installed tree: headers, one static library per folder, the command, and a CMake package.
include(CMakePackageConfigHelpers)

get_property(_folders GLOBAL PROPERTY BILEVEL_FOLDERS)
set(_package ${CMAKE_INSTALL_LIBDIR}/cmake/bilevel)
install(TARGETS bilevel bilevel_flags ${_folders} EXPORT bilevelTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY bilevel tasks DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(EXPORT bilevelTargets NAMESPACE bilevel:: DESTINATION ${_package})
configure_package_config_file(cmake/bilevelConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/bilevelConfig.cmake INSTALL_DESTINATION ${_package})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/bilevelConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/bilevelConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/bilevelConfigVersion.cmake
              cmake/FindLibTorch.cmake DESTINATION ${_package})
if(TARGET bilevel_cli)
  install(TARGETS bilevel_cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()
