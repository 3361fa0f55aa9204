#include "bilevel/problem/gzip.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>
#include <zlib.h>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

class Inflater {
 public:
  Inflater() { require(inflateInit2(&stream_, 15 + 16) == Z_OK, "gunzip: zlib could not start."); }  // 16: gzip, not zlib
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;
  z_stream* operator->() { return &stream_; }
  z_stream* get() { return &stream_; }

 private:
  z_stream stream_{};
};

}  // namespace

bool is_gzip(std::string_view bytes) { return bytes.starts_with("\x1f\x8b"); }

std::string gunzip(std::string_view bytes, const std::string& name) {
  Inflater stream;
  std::string content;
  char buffer[1 << 16];
  size_t at = 0;  // of what has been handed to zlib
  for (;;) {
    if (stream->avail_in == 0 && at < bytes.size()) {
      const size_t count = std::min<size_t>(bytes.size() - at, std::numeric_limits<uInt>::max());
      stream->next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data() + at));  // zlib does not write there
      stream->avail_in = static_cast<uInt>(count);
      at += count;
    }
    stream->next_out = reinterpret_cast<Bytef*>(buffer);
    stream->avail_out = sizeof(buffer);
    const int status = inflate(stream.get(), Z_NO_FLUSH);
    content.append(buffer, sizeof(buffer) - stream->avail_out);
    if (status == Z_STREAM_END) {
      const std::string_view rest = bytes.substr(at - stream->avail_in);
      if (rest.empty()) return content;
      if (!is_gzip(rest)) throw Error(fmt::format("{}: {} bytes follow the end of the gzip data.", name, rest.size()));
      inflateReset(stream.get());
    } else if (status == Z_BUF_ERROR ||
               (status == Z_OK && stream->avail_in == 0 && at == bytes.size() && stream->avail_out > 0)) {
      throw Error(fmt::format("{}: the gzip data are cut off after {} bytes.", name, bytes.size()));
    } else if (status != Z_OK) {
      throw Error(fmt::format("{}: the gzip data are damaged ({}).", name, stream->msg ? stream->msg : "zlib gives no reason"));
    }
  }
}

}  // namespace bilevel
