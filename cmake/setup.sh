#!/usr/bin/env bash
# Gets what the build needs, once: a compiler, Python tools, LibTorch from the torch wheel, small libraries from Debian packages.
# As root it installs Debian packages; otherwise it unpacks them into build/deps. Ends by writing build/setup.mk for the Makefile.
set -euo pipefail
cd "$(dirname "$0")/.."
torch_release=2.13.0
build=build
deps=$build/deps/usr
started=$SECONDS
mkdir -p "$build"

say() { printf '\033[2m[setup]\033[0m %s\n' "$*" >&2; }
fail() { printf '[setup] %s\n' "$*" >&2; exit 1; }
timed() { local t=$SECONDS what=$1; shift; say "$what …"; "$@"; say "$what: $((SECONDS - t)) s"; }

stamp=$(cat cmake/setup.sh cmake/FindLibTorch.cmake | cksum)
if [ "$(cat $build/.setup 2>/dev/null)" = "$stamp $(command -v python3)" ] && [ -f $build/setup.mk ]; then exit 0; fi

# --- Debian packages: name, and a file that shows it is there (relative to /usr or build/deps/usr) ---
triplet=$(gcc -print-multiarch 2>/dev/null || echo "$(uname -m)-linux-gnu")
required=(
  "nlohmann-json3-dev include/nlohmann/json.hpp"
  "libtomlplusplus-dev include/toml++/toml.h"
  "libcli11-dev include/CLI/CLI.hpp"
  "zlib1g-dev lib/$triplet/libz.a"
  "libcsv-dev lib/$triplet/libcsv.a"
  "libgtest-dev lib/$triplet/libgtest.a"
  "libgmock-dev lib/$triplet/libgmock.a"
  "libjs-chart.js share/javascript/chart.js/chart.min.js"
)
optional=("dataset-fashion-mnist share/dataset-fashion-mnist share/datasets")  # the demo falls back on the embedded digits

missing_of() {  # prints the packages none of whose files is there
  local entry package file found
  for entry in "$@"; do
    read -r package files <<<"$entry"; found=
    for file in $files; do if [ -e "/usr/$file" ] || [ -e "$deps/$file" ]; then found=1; fi; done
    [ -n "$found" ] || dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok' || printf '%s\n' "$package"
  done
}
apt_refreshed=
refresh() { [ -n "$apt_refreshed" ] || { apt-get update -qq >/dev/null 2>&1 || true; apt_refreshed=1; }; }
install_packages() {
  refresh
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >"$build/apt.log" 2>&1
}
unpack_packages() {
  local folder=$build/packages package
  mkdir -p "$folder" "$build/deps"
  for package in "$@"; do
    (cd "$folder" && apt-get download -qq "$package" >/dev/null 2>&1) || return 1
    dpkg-deb -x "$(ls -t "$folder/$package"_*.deb | head -n 1)" "$build/deps"
  done
}
get_packages() { if [ "$(id -u)" = 0 ]; then install_packages "$@"; else unpack_packages "$@"; fi; }

if ! command -v g++ >/dev/null; then
  [ "$(id -u)" = 0 ] || fail "g++ is missing; ask an administrator for the Debian package g++."
  timed "Debian package g++" install_packages g++
fi
mapfile -t missing < <(missing_of "${required[@]}")
if [ ${#missing[@]} -gt 0 ]; then
  timed "Debian packages ${missing[*]}" get_packages "${missing[@]}" ||
    fail "Could not get ${missing[*]}; see $build/apt.log. 'apt-get update' may be needed."
fi
mapfile -t missing < <(missing_of "${optional[@]}")
if [ ${#missing[@]} -gt 0 ]; then
  timed "Debian package ${missing[*]}" get_packages "${missing[@]}" || say "${missing[*]} cannot be had; the demonstration will use the handwritten digits."
fi
# The report is tested in a real browser; a browser cannot be unpacked beside the system, so only root installs it.
if [ "$(id -u)" = 0 ] && ! command -v chromium >/dev/null; then
  timed "Debian package chromium" install_packages chromium || say "chromium cannot be had; the browser test will say so."
fi

# --- Python: the tools in a virtual environment, torch from the active environment where it fits ---
command -v python3 >/dev/null || fail "python3 is missing; the Debian package python3 has it."
if [ ! -x $build/venv/bin/python ]; then
  python3 -m venv $build/venv >/dev/null 2>&1 || {
    [ "$(id -u)" = 0 ] || fail "python3 -m venv does not work; ask for the Debian package python3-venv."
    install_packages python3-venv
    python3 -m venv $build/venv
  }
fi
pip() { $build/venv/bin/python -m pip --disable-pip-version-check -q "$@" >"$build/pip.log" 2>&1 || { cat "$build/pip.log" >&2; fail "pip $1 failed."; }; }
$build/venv/bin/python -c 'import cmake, ninja, pybind11, pytest, numpy' 2>/dev/null ||
  timed "Python packages cmake, ninja, pybind11, numpy, pytest" pip install cmake ninja pybind11 numpy pytest

torch_folder() {  # prints the folder of a torch that this project is tested with
  "$1" - <<'PY' 2>/dev/null
import importlib.util, pathlib, re
folder = pathlib.Path(importlib.util.find_spec("torch").submodule_search_locations[0])
major, minor = map(int, re.search(r"__version__ = '(\d+)\.(\d+)", (folder / "version.py").read_text()).groups())
assert (2, 11) <= (major, minor) <= (2, 13)
print(folder)
PY
}
torch=$(torch_folder python3 || torch_folder $build/venv/bin/python || true)
if [ -z "$torch" ]; then
  timed "Python package torch $torch_release" pip install "torch==$torch_release"
  torch=$(torch_folder $build/venv/bin/python) || fail "torch was installed but cannot be found."
fi
say "torch: $torch"

printf 'TORCH := %s\n' "$torch" >$build/setup.mk
printf '%s' "$stamp $(command -v python3)" >$build/.setup
say "done in $((SECONDS - started)) s"
