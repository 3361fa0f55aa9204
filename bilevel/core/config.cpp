#include "bilevel/core/config.h"

#include <cmath>
#include <filesystem>
#include <sstream>
#include <variant>

#include <fmt/format.h>
#include <fmt/ranges.h>

// Some malformed files, such as "[`a]", fail an assertion of toml++ 3.3 instead of being refused: it would end the program, or,
// with NDEBUG, be undefined behaviour. So it throws.
namespace bilevel {
struct TomlAssertion {};
[[noreturn, gnu::noinline]] static void fail_toml_assertion() { throw TomlAssertion{}; }
}  // namespace bilevel
#define TOML_ASSERT(condition) (static_cast<bool>(condition) ? void() : ::bilevel::fail_toml_assertion())
#define TOML_ENABLE_UNRELEASED_FEATURES 0
#pragma push_macro("NDEBUG")
#undef NDEBUG
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"

namespace bilevel {

// An ordered tree: toml++ sorts the keys of a table, and order matters in a configuration.
struct Section::Node {
  using Scalar = std::variant<bool, int64_t, double, std::string>;
  using List = std::vector<Scalar>;
  using Table = std::vector<std::pair<std::string, std::shared_ptr<Node>>>;

  std::variant<Scalar, List, Table> value = Table{};
  int64_t line = 0;  // 0: not from the file
  bool read = false;

  Table* table() { return std::get_if<Table>(&value); }
  Node* child(const std::string& key) {
    if (Table* entries = table()) {
      for (auto& [name, node] : *entries) {
        if (name == key) return node.get();
      }
    }
    return nullptr;
  }
  std::shared_ptr<Node> shared_child(const std::string& key) {
    for (auto& [name, node] : *table()) {
      if (name == key) return node;
    }
    return nullptr;
  }
};

namespace {

using Node = Section::Node;

std::string place(const std::string& file, int64_t line) {
  return line > 0 ? fmt::format("{}:{}", file, line) : file;
}

Node::Scalar scalar_from(const toml::node& node, const std::string& file) {
  if (const auto* value = node.as_boolean()) return value->get();
  if (const auto* value = node.as_integer()) return value->get();
  if (const auto* value = node.as_floating_point()) return value->get();
  if (const auto* value = node.as_string()) return value->get();
  throw Error(fmt::format("{}: expected a string, a number or a boolean.", place(file, node.source().begin.line)));
}

std::shared_ptr<Node> node_from(const toml::node& source, const std::string& file) {
  auto node = std::make_shared<Node>();
  node->line = source.source().begin.line;
  if (const auto* table = source.as_table()) {
    std::vector<std::pair<std::pair<int64_t, int64_t>, std::pair<std::string, std::shared_ptr<Node>>>> entries;
    for (const auto& [key, child] : *table) {
      auto entry = node_from(child, file);
      auto begin = child.source().begin;
      if (key.source().begin.line > 0) begin = key.source().begin;
      entry->line = begin.line;
      entries.push_back({{begin.line, begin.column}, {std::string(key.str()), entry}});
    }
    std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    Node::Table ordered;
    for (auto& [position, entry] : entries) ordered.push_back(std::move(entry));
    node->value = std::move(ordered);
  } else if (const auto* array = source.as_array()) {
    Node::List list;
    for (const auto& element : *array) list.push_back(scalar_from(element, file));
    node->value = std::move(list);
  } else {
    node->value = scalar_from(source, file);
  }
  return node;
}

/// The line of `text` at which toml++ fails its assertion: that of the shortest beginning where it does.
int64_t line_of_assertion(std::string_view text) {
  int64_t line = 1;
  for (size_t end = 0; end < text.size(); ++end) {
    if (text[end] != '\n') continue;
    try {
      static_cast<void>(toml::parse(text.substr(0, end)));
    } catch (const toml::parse_error&) {  // a string or a list that goes on
    } catch (const TomlAssertion&) {
      break;
    }
    ++line;
  }
  return line;
}

std::shared_ptr<Node> parse_tree(std::string_view text, const std::string& file) {
  try {
    return node_from(toml::parse(text), file);
  } catch (const TomlAssertion&) {
    throw Error(fmt::format("{}: this is no TOML; a name with other characters than A–Z, a–z, 0–9, - and _ needs quotes.",
                            place(file, line_of_assertion(text))));
  } catch (const toml::parse_error& error) {
    throw Error(fmt::format("{}: {}.", place(file, error.source().begin.line), error.description()));
  }
}

// toml++ would write a text with line ends as a multi-line string, which no key may be and which it does not always read again.
std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string number_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string scalar_text(const Node::Scalar& scalar) {
  if (const auto* value = std::get_if<bool>(&scalar)) return *value ? "true" : "false";
  if (const auto* value = std::get_if<int64_t>(&scalar)) return std::to_string(*value);
  if (const auto* value = std::get_if<double>(&scalar)) return number_text(*value);
  return quoted(std::get<std::string>(scalar));
}

std::string key_text(const std::string& key) {
  const bool bare = !key.empty() && key.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == std::string::npos;
  return bare ? key : quoted(key);
}

void write(std::string& out, Node& node, const std::string& path) {
  for (const auto& [key, child] : *node.table()) {
    if (child->table()) continue;
    out += key_text(key) + " = ";
    if (const auto* list = std::get_if<Node::List>(&child->value)) {
      out += "[";
      for (size_t i = 0; i < list->size(); ++i) out += (i > 0 ? ", " : "") + scalar_text((*list)[i]);
      out += "]\n";
    } else {
      out += scalar_text(std::get<Node::Scalar>(child->value)) + "\n";
    }
  }
  for (const auto& [key, child] : *node.table()) {
    if (!child->table()) continue;
    const std::string name = path.empty() ? key_text(key) : path + "." + key_text(key);
    out += fmt::format("\n[{}]\n", name);
    write(out, *child, name);
  }
}

template <class T>
bool convert(const Node::Scalar& scalar, T& value) {
  if (const T* exact = std::get_if<T>(&scalar)) {
    value = *exact;
    return true;
  }
  return false;
}

bool convert(const Node::Scalar& scalar, double& value) {
  if (const auto* integer = std::get_if<int64_t>(&scalar)) {
    value = static_cast<double>(*integer);
    return true;
  }
  const auto* number = std::get_if<double>(&scalar);
  if (number) value = *number;
  return number != nullptr;
}

}  // namespace

Section::Section(std::shared_ptr<Node> node, std::string path, std::string file)
    : node_(std::move(node)), path_(std::move(path)), file_(std::move(file)) {}

std::string Section::full(const std::string& key) const { return path_.empty() ? key : path_ + "." + key; }

void Section::fail(const std::string& key, std::string_view message) const {
  const Node* node = node_->child(key);
  throw Error(fmt::format("{}: {}: {}", place(file_, node ? node->line : node_->line), full(key), message));
}

Section::Node* Section::find(const std::string& key, bool mark) const {
  Node* node = node_->child(key);
  if (node && mark) node->read = true;
  return node;
}

template <class T>
void Section::read_scalar(const std::string& key, T& value, const char* type) {
  Node* node = find(key, true);
  if (!node) {
    auto added = std::make_shared<Node>();
    added->value = Node::Scalar(value);
    added->read = true;
    node_->table()->emplace_back(key, added);
    return;
  }
  const auto* scalar = std::get_if<Node::Scalar>(&node->value);
  if (!scalar || !convert(*scalar, value)) {
    fail(key, fmt::format("expected {}, got {}.", type, scalar ? scalar_text(*scalar) : node->table() ? "a table" : "a list"));
  }
}

template <class T>
void Section::read_list(const std::string& key, std::vector<T>& value, const char* type) {
  Node* node = find(key, true);
  if (!node) {
    auto added = std::make_shared<Node>();
    added->value = Node::List(value.begin(), value.end());
    added->read = true;
    node_->table()->emplace_back(key, added);
    return;
  }
  const auto* list = std::get_if<Node::List>(&node->value);
  if (!list) fail(key, fmt::format("expected a list of {}.", type));
  value.clear();
  for (const auto& element : *list) {
    T item{};
    if (!convert(element, item)) fail(key, fmt::format("expected a list of {}, and {} is none.", type, scalar_text(element)));
    value.push_back(std::move(item));
  }
}

void Section::read(const std::string& key, bool& value) { read_scalar(key, value, "true or false"); }
void Section::read(const std::string& key, int64_t& value) { read_scalar(key, value, "a whole number"); }
void Section::read(const std::string& key, double& value) { read_scalar(key, value, "a number"); }
void Section::read(const std::string& key, std::string& value) { read_scalar(key, value, "a string"); }
void Section::read(const std::string& key, std::vector<int64_t>& value) { read_list(key, value, "whole numbers"); }
void Section::read(const std::string& key, std::vector<double>& value) { read_list(key, value, "numbers"); }
void Section::read(const std::string& key, std::vector<std::string>& value) { read_list(key, value, "strings"); }

void Section::read_path(const std::string& key, std::string& value) {
  read(key, value);
  if (value.empty()) return;
  const std::filesystem::path base = std::filesystem::absolute(file_).parent_path();
  value = std::filesystem::path(value).is_absolute() ? value : (base / value).lexically_normal().string();
  node_->child(key)->value = Node::Scalar(value);
}

void Section::read_choice(const std::string& key, std::string& value, const std::vector<std::string>& known) {
  read(key, value);
  if (std::find(known.begin(), known.end(), value) == known.end()) {
    fail(key, fmt::format("\"{}\" is not known.{}", value, suggestion(value, known)));
  }
}

bool Section::has(const std::string& key) const { return find(key, false) != nullptr; }

bool Section::is_text(const std::string& key) const {
  const Node* node = find(key, false);
  const auto* scalar = node ? std::get_if<Node::Scalar>(&node->value) : nullptr;
  return scalar && std::holds_alternative<std::string>(*scalar);
}

bool Section::is_number(const std::string& key) const {
  const Node* node = find(key, false);
  const auto* scalar = node ? std::get_if<Node::Scalar>(&node->value) : nullptr;
  return scalar && (std::holds_alternative<int64_t>(*scalar) || std::holds_alternative<double>(*scalar));
}

bool Section::is_table(const std::string& key) const {
  Node* node = find(key, false);
  return node && node->table();
}

std::vector<std::string> Section::keys() const {
  std::vector<std::string> names;
  for (const auto& [name, node] : *node_->table()) names.push_back(name);
  return names;
}

Section Section::section(const std::string& key) {
  if (Node* node = find(key, true)) {
    if (!node->table()) fail(key, "expected a table.");
  } else {
    auto added = std::make_shared<Node>();
    added->read = true;
    node_->table()->emplace_back(key, added);
  }
  return {node_->shared_child(key), full(key), file_};
}

void Section::erase(const std::string& key) {
  std::erase_if(*node_->table(), [&](const auto& entry) { return entry.first == key; });
}

void Section::finish() const {
  std::vector<std::string> known;
  for (const auto& [name, node] : *node_->table()) {
    if (node->read) known.push_back(name);
  }
  for (const auto& [name, node] : *node_->table()) {
    if (!node->read) fail(name, fmt::format("unknown key.{}", suggestion(name, known)));
  }
}

void Section::check(const std::vector<std::string>& violations) const {
  if (violations.empty()) return;
  throw Error(fmt::format("{}: {}: {}", place(file_, node_->line), path_, fmt::join(violations, "; ")));
}

Config Config::parse(std::string_view text, const std::string& file) {
  Config config;
  config.root_ = parse_tree(text, file);
  config.file_ = file;
  return config;
}

Config Config::load(const std::string& path) { return parse(read_file(path), path); }

void Config::set(std::string_view assignment) {
  const size_t equals = assignment.find('=');
  require(equals != std::string_view::npos && equals > 0,
          fmt::format("--set {}: expected key=value, for example inner.steps=100.", assignment));
  const std::string keys(assignment.substr(0, equals));
  const std::string value(assignment.substr(equals + 1));
  const std::string file = fmt::format("--set {}", assignment);
  std::shared_ptr<Node> parsed;
  const auto result = [&]() -> std::shared_ptr<Node> {
    try {
      return parse_tree("value = " + value, file);
    } catch (const Error&) {
      return parse_tree("value = " + quoted(value), file);  // an unquoted string
    }
  }();
  parsed = result->table()->front().second;
  parsed->line = 0;

  std::shared_ptr<Node> node = root_;
  std::istringstream path(keys);
  std::vector<std::string> names;
  for (std::string name; std::getline(path, name, '.');) {
    require(!name.empty(), fmt::format("--set {}: the key has an empty part.", assignment));
    names.push_back(name);
  }
  for (size_t i = 0; i < names.size(); ++i) {
    if (!node->table()) throw Error(fmt::format("--set {}: {} is not a table.", assignment, names[i - 1]));
    const bool last = i + 1 == names.size();
    auto child = node->shared_child(names[i]);
    if (!child) {
      child = last ? parsed : std::make_shared<Node>();
      node->table()->emplace_back(names[i], child);
    } else if (last) {
      child->value = parsed->value;
    }
    node = child;
  }
}

Section Config::root() const { return {root_, "", file_}; }

std::string Config::text() const {
  std::string out;
  write(out, *root_, "");
  return out.substr(out.find_first_not_of('\n') == std::string::npos ? 0 : out.find_first_not_of('\n'));
}

}  // namespace bilevel
