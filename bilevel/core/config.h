#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace bilevel {

/// One table of a configuration.
///
/// `read` fills `value` where the key is there, and writes the default into the configuration where it is not, so that the
/// configuration is complete once everything has been read, and `Config::text` repeats the run. Each key must be read before
/// `finish`, which refuses the keys that nobody asked for. Every error names the file, the line and what would be right.
class Section {
 public:
  struct Node;
  Section(std::shared_ptr<Node> node, std::string path, std::string file);

  void read(const std::string& key, bool& value);
  void read(const std::string& key, int64_t& value);
  void read(const std::string& key, double& value);
  void read(const std::string& key, std::string& value);
  void read(const std::string& key, std::vector<int64_t>& value);
  void read(const std::string& key, std::vector<double>& value);
  void read(const std::string& key, std::vector<std::string>& value);
  /// A path, relative to the configuration's file; stored absolute.
  void read_path(const std::string& key, std::string& value);
  /// A string out of `known`; the nearest is suggested otherwise.
  void read_choice(const std::string& key, std::string& value, const std::vector<std::string>& known);
  /// The same for an enumeration; `names` are those of its values, in their order from 0.
  template <class Enum>
    requires std::is_enum_v<Enum>
  void read_choice(const std::string& key, Enum& value, const std::vector<std::string>& names) {
    std::string name = names.at(static_cast<size_t>(value));
    read_choice(key, name, names);
    value = static_cast<Enum>(std::find(names.begin(), names.end(), name) - names.begin());
  }

  bool has(const std::string& key) const;
  bool is_text(const std::string& key) const;  // false where the key is absent
  bool is_number(const std::string& key) const;
  bool is_table(const std::string& key) const;
  bool was_set(const std::string& key) const;  // by Config::set, and not in the file
  /// The keys in the order of the file; keys added by `Config::set` come last.
  std::vector<std::string> keys() const;
  /// The table of that name, made where it is not there.
  Section section(const std::string& key);
  /// Drops a key and all below it: for what a command replaces.
  void erase(const std::string& key);

  /// The keys that nobody has read so far.
  std::vector<std::string> unread() const;
  /// Throws Error for a key that was not read.
  void finish() const;
  /// Throws Error for each line of `violations` (as an options struct reports them).
  void check(const std::vector<std::string>& violations) const;
  /// Throws Error about `key` with its file and line.
  [[noreturn]] void fail(const std::string& key, std::string_view message) const;

 private:
  Node* find(const std::string& key, bool mark) const;
  template <class T>
  void read_scalar(const std::string& key, T& value, const char* type);
  template <class T>
  void read_list(const std::string& key, std::vector<T>& value, const char* type);
  std::string full(const std::string& key) const;

  std::shared_ptr<Node> node_;
  std::string path_, file_;
};

/// A TOML configuration. Order matters in it and is kept.
class Config {
 public:
  static Config parse(std::string_view text, const std::string& file);
  static Config load(const std::string& path);

  /// `key.path=value`, the value in TOML or, where it is none, a plain string.
  void set(std::string_view assignment);
  Section root() const;
  /// The configuration as TOML, complete with what `Section::read` filled in.
  std::string text() const;

 private:
  std::shared_ptr<Section::Node> root_;
  std::string file_;
};

}  // namespace bilevel
