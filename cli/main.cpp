#include <dlfcn.h>

#include <c10/util/Flags.h>

#include "cli/commands.h"

C10_DECLARE_int(caffe2_log_level);

int main(int argc, char** argv) {
  dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);  // of a CUDA build, where a wheel's command is not linked with it
  FLAGS_caffe2_log_level = 2;                          // errors only: stderr is for what this program has to say
  return bilevel::cli::command(argc, argv);
}
