# Installs bilevel, builds the project beside this file against the installed tree, far from the sources, and runs it.
#   cmake -DBUILD=<build folder> -DTORCH=<folder of torch> -DVERSION=<of torch> -DGENERATOR=Ninja -DMAKE_PROGRAM=<ninja> -DFLAGS=<c++ flags> -P run.cmake
execute_process(COMMAND mktemp -d OUTPUT_VARIABLE work OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)

function(step expected)  # runs a command, and ends the test unless its output matches `expected` and, without one, it succeeds
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE text ERROR_VARIABLE text)
  string(REGEX REPLACE "[ \n]+" " " flat "${text}")  # CMake breaks the lines of its messages
  if((expected STREQUAL "" AND NOT code EQUAL 0) OR (NOT expected STREQUAL "" AND (code EQUAL 0 OR NOT flat MATCHES "${expected}")))
    file(REMOVE_RECURSE "${work}")
    message(FATAL_ERROR "${ARGN}\nexit ${code}, expected '${expected}'\n${text}")
  endif()
  message("${text}")
endfunction()

# The project is moved away from the sources, and the installed tree from where it was installed.
step("" ${CMAKE_COMMAND} --install "${BUILD}" --prefix "${work}/first")
file(RENAME "${work}/first" "${work}/installed")
file(COPY "${CMAKE_CURRENT_LIST_DIR}/CMakeLists.txt" "${CMAKE_CURRENT_LIST_DIR}/main.cpp" DESTINATION "${work}/project")
set(configure ${CMAKE_COMMAND} -G ${GENERATOR} -S "${work}/project" "-DCMAKE_PREFIX_PATH=${work}/installed"
    "-DCMAKE_MAKE_PROGRAM=${MAKE_PROGRAM}" -DCMAKE_BUILD_TYPE=Release "-DCMAKE_CXX_FLAGS=${FLAGS}" -DCMAKE_FIND_USE_PACKAGE_REGISTRY=OFF)
step("" ${configure} -B "${work}/build")
step("" ${CMAKE_COMMAND} --build "${work}/build")
step("" "${work}/build/example")
step("" "${work}/installed/bin/bilevel" --version)

# The installed headers stand alone: none needs a library that was only needed to build.
file(GLOB_RECURSE headers RELATIVE "${work}/installed/include" "${work}/installed/include/bilevel/*.h")
set(all "")
foreach(header IN LISTS headers)
  string(APPEND all "#include \"${header}\"\n")
endforeach()
file(WRITE "${work}/project/main.cpp" "${all}int main() {}\n")
step("" ${CMAKE_COMMAND} --build "${work}/build")

# Another torch than the one it was built with, even a tested one, is refused in words.
if(VERSION VERSION_GREATER_EQUAL 2.13)
  set(other 2.12.7)
else()
  set(other 2.13.7)
endif()
file(MAKE_DIRECTORY "${work}/torch")
file(CREATE_LINK "${TORCH}/include" "${work}/torch/include" SYMBOLIC)
file(CREATE_LINK "${TORCH}/lib" "${work}/torch/lib" SYMBOLIC)
file(WRITE "${work}/torch/version.py" "__version__ = '${other}+cpu'\n")
step("bilevel was built with torch ${VERSION}, and this is torch ${other}" ${configure} -B "${work}/other" "-DLibTorch_ROOT=${work}/torch")
file(WRITE "${work}/torch/version.py" "__version__ = '2.10.1'\n")
step("bilevel is tested with torch 2.11 to 2.13, and this is torch 2.10.1" ${configure} -B "${work}/old" "-DLibTorch_ROOT=${work}/torch")

file(REMOVE_RECURSE "${work}")
