# Compiler cache, fast linker, warnings, sanitizers: whatever the machine offers, nothing required.
find_program(BILEVEL_CCACHE ccache)
if(BILEVEL_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # A precompiled header is cached only if its time stamps and macros are left out of the key.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1 ${BILEVEL_CCACHE})
endif()
find_program(BILEVEL_MOLD mold)
if(BILEVEL_MOLD)
  add_link_options(-fuse-ld=mold)
endif()

add_library(bilevel_flags INTERFACE)
target_compile_options(bilevel_flags INTERFACE -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(bilevel_flags INTERFACE -fpch-preprocess)
endif()
if(BILEVEL_WERROR)
  target_compile_options(bilevel_flags INTERFACE -Werror)
endif()
if(BILEVEL_SANITIZE)
  add_compile_options(-fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined)
  add_link_options(-fsanitize=address,undefined)
endif()
