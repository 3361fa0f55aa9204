#include "bilevel/core/file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fmt/format.h>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

[[noreturn]] void fail(const char* what, const std::string& path, int error) {
  throw Error(fmt::format("{} {}: {}.", what, path, std::strerror(error)));
}

}  // namespace

std::string read_file(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) fail("Cannot read", path, errno);
  if (S_ISDIR(info.st_mode)) fail("Cannot read", path, EISDIR);
  std::ifstream in(path, std::ios::binary);
  if (!in) fail("Cannot read", path, errno);
  std::ostringstream bytes;
  bytes << in.rdbuf();
  if (in.bad() || bytes.bad()) fail("Cannot read", path, EIO);
  return std::move(bytes).str();
}

void write_file(const std::string& path, std::string_view bytes) {
  const std::string beside = path + ".partial";
  const int fd = open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) fail("Cannot write", path, errno);
  int error = 0;
  while (!bytes.empty() && error == 0) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written >= 0) {
      bytes.remove_prefix(static_cast<size_t>(written));
    } else if (errno != EINTR) {
      error = errno;
    }
  }
  if (error == 0 && fsync(fd) != 0) error = errno;
  if (close(fd) != 0 && error == 0) error = errno;
  if (error == 0 && rename(beside.c_str(), path.c_str()) != 0) error = errno;
  if (error != 0) {
    unlink(beside.c_str());
    fail("Cannot write", path, error);
  }
}

}  // namespace bilevel
