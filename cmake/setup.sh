#!/usr/bin/env bash
# Gets what the build and the tests need, once: a compiler, small libraries and a browser from Debian packages, tools from pip, and
# LibTorch from a torch wheel. Root installs Debian packages; anyone else unpacks them below build/, and nothing else is touched.
# Ends by writing the folder of torch to build/torch.path, for the Makefile.
set -euo pipefail
cd "$(dirname "$0")/.."
torch_release=2.13.0
build=$PWD/build
deps=$build/deps/usr
log=$build/setup.log
started=$SECONDS
mkdir -p "$build"
PATH=${PATH//"$build/venv/bin:"/}  # the Makefile puts it first; the Python asked for here is the user's own

say() { printf '[setup] %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
timed() { local t=$SECONDS what=$1; shift; say "$what …"; "$@" || return 1; say "$what: $((SECONDS - t)) s"; }

# Two calls at once wait for each other; a call that finds this script, the tested range and Python as they were does nothing.
exec 9>"$build/.setup.lock"
flock 9
python=$(command -v python3) || fail "python3 is missing: the Debian package python3 has it (3.10 or newer)."
stamp="$(cat cmake/setup.sh cmake/FindLibTorch.cmake | cksum) $python $PWD"
if [ "$(cat "$build/.setup" 2>/dev/null)" = "$stamp" ] && [ -f "$(cat "$build/torch.path" 2>/dev/null)/version.py" ]; then exit 0; fi
: >"$log"
say "once: Debian packages, Python tools and torch, into this machine's package system or $build; details in build/setup.log"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$python is $("$python" -V); 3.10 or newer is needed."

# --- Debian packages: name, and a file that shows it is there, below /usr or build/deps/usr ---
root=; [ "$(id -u)" != 0 ] || root=1
triplet=$(gcc -print-multiarch 2>/dev/null || echo "$(uname -m)-linux-gnu")
required=(
  "nlohmann-json3-dev include/nlohmann/json.hpp"
  "libtomlplusplus-dev include/toml++/toml.h"
  "libcli11-dev include/CLI/CLI.hpp"
  "zlib1g-dev lib/$triplet/libz.a"
  "libcsv-dev lib/$triplet/libcsv.a"
  "libhwy-dev include/hwy/highway.h"
  "libhwy1 lib/$triplet/libhwy.so.1"
  "libgtest-dev lib/$triplet/libgtest.a"
  "libgmock-dev lib/$triplet/libgmock.a"
  "libjs-chart.js share/javascript/chart.js/chart.min.js"
)
headers=$("$python" -c 'import sys, sysconfig; print("libpython%d.%d-dev" % sys.version_info[:2], sysconfig.get_path("include"))')
[ -e "${headers#* }/Python.h" ] || required+=("${headers% *} ${headers#* /usr/}/Python.h")
optional=("dataset-fashion-mnist share/datasets/fashion-mnist The demonstration will use the embedded handwritten digits.")
[ -z "$root" ] || optional+=("ccache bin/ccache The wheel's test will compile the engine a second time." "mold bin/mold Linking will take longer.")

missing_of() {  # prints the packages whose file is not there
  local entry package file
  for entry in "$@"; do
    read -r package file _ <<<"$entry"
    [ -e "/usr/$file" ] || [ -e "$deps/$file" ] || printf '%s\n' "$package"
  done
}

# A user may not refresh the system's package lists, so a second try keeps lists of its own.
own_lists=(-o "Dir::State::Lists=$build/apt/lists" -o "Dir::Cache=$build/apt/cache" -o Debug::NoLocking=1)
apt=(apt-get -qq)
refresh() {
  if [ -z "$root" ]; then
    apt+=("${own_lists[@]}")
    mkdir -p "$build/apt/lists/partial" "$build/apt/cache/archives/partial"
  fi
  "${apt[@]}" update >>"$log" 2>&1 || true
}
with_refresh() { "$@" || { refresh; "$@"; }; }

install_packages() { DEBIAN_FRONTEND=noninteractive "${apt[@]}" install -y --no-install-recommends "$@" >>"$log" 2>&1; }
unpack_packages() {  # FOLDER PACKAGE...
  local folder=$1 archives=$build/apt/archives
  shift
  rm -rf "$archives" && mkdir -p "$archives" "$folder"
  (cd "$archives" && "${apt[@]}" download "$@" >>"$log" 2>&1) || return 1
  for package in "$archives"/*.deb; do dpkg-deb -x "$package" "$folder"; done
  rm -rf "$archives"
}
get_packages() {
  if [ -n "$root" ]; then with_refresh install_packages "$@"; else with_refresh unpack_packages "$build/deps" "$@"; fi
}

if ! command -v g++ >/dev/null || ! command -v gcc >/dev/null; then
  [ -n "$root" ] || fail "g++ is missing: ask an administrator for the Debian package g++."
  timed "Debian package g++" get_packages g++ || { tail -n 5 "$log" >&2; fail "Could not install g++; see $log."; }
fi
mapfile -t missing < <(missing_of "${required[@]}")
if [ ${#missing[@]} -gt 0 ]; then
  timed "Debian packages ${missing[*]}" get_packages "${missing[@]}" || { tail -n 5 "$log" >&2; fail "Could not get ${missing[*]}; see $log."; }
fi
for entry in "${optional[@]}"; do
  read -r package _ without <<<"$entry"
  [ -n "$(missing_of "$entry")" ] || continue
  timed "Debian package $package" get_packages "$package" || say "$package cannot be had. $without"
done

# --- Python: the tools in a virtual environment ---
if ! "$build/venv/bin/python" -c 'import pip' 2>/dev/null; then
  rm -rf "$build/venv"
  "$python" -m venv "$build/venv" >>"$log" 2>&1 || {
    [ -n "$root" ] || fail "$python -m venv does not work: ask an administrator for the Debian package python3-venv."
    timed "Debian package python3-venv" get_packages python3-venv || fail "Could not install python3-venv; see $log."
    rm -rf "$build/venv"
    "$python" -m venv "$build/venv" >>"$log" 2>&1 || fail "$python -m venv does not work; see $log."
  }
fi
pip_install() { "$build/venv/bin/python" -m pip --disable-pip-version-check -q install "$@" >>"$log" 2>&1; }
tools=(cmake ipykernel matplotlib mkdocs mypy nbclient ninja numpy pandas pybind11 pytest ruff scikit-build-core tqdm)
modules=$(IFS=,; printf '%s' "${tools[*]}")
modules=${modules//-/_}
"$build/venv/bin/python" -c "import $modules" 2>/dev/null || timed "Python packages ${tools[*]}" pip_install "${tools[@]}" ||
  { tail -n 5 "$log" >&2; fail "pip could not install them; see $log."; }

# --- A browser, in which the report is tested ---
unpack_browser() {  # Chromium and those of its libraries that the system lacks, and a command that finds them
  local packages libraries
  packages=$("${apt[@]}" -s -o Debug::NoLocking=1 --no-install-recommends install chromium fonts-dejavu-core 2>>"$log" |
    awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }') && [ -n "$packages" ] || return 1
  # shellcheck disable=SC2086
  unpack_packages "$build/browser" $packages || return 1
  libraries=$(find "$build/browser" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
  cat >"$build/venv/bin/chromium" <<WRAPPER
#!/bin/sh
# Written by cmake/setup.sh: Chromium as unpacked below build/browser.
export LD_LIBRARY_PATH="$libraries"
export XDG_DATA_DIRS="$build/browser/usr/share:/usr/local/share:/usr/share"
[ -e /etc/fonts/fonts.conf ] || export FONTCONFIG_FILE="$build/browser/fonts.conf"
exec "$build/browser/usr/lib/chromium/chromium" "\$@"
WRAPPER
  printf '<fontconfig><dir>%s/usr/share/fonts</dir><dir>/usr/share/fonts</dir><cachedir>%s/cache</cachedir></fontconfig>\n' \
    "$build/browser" "$build/browser" >"$build/browser/fonts.conf"
  chmod +x "$build/venv/bin/chromium"
}
get_browser() {
  if [ -n "$root" ]; then get_packages chromium fonts-dejavu-core; else with_refresh unpack_browser; fi
}
if ! command -v chromium chromium-browser google-chrome >/dev/null && [ ! -x "$build/venv/bin/chromium" ]; then
  timed "Debian package chromium" get_browser || say "chromium cannot be had: the report's test in a browser will fail or be skipped."
fi

# --- LibTorch: the torch of the active environment where it is a tested release, else one of our own ---
torch_folder() {  # PYTHON: prints the folder of its torch, if this project is tested with it
  "$1" - <<'PY' 2>/dev/null
import importlib.util, pathlib, re, sys
folder = pathlib.Path(importlib.util.find_spec("torch").submodule_search_locations[0])
release = re.search(r"__version__ *= *'([^']+)", (folder / "version.py").read_text()).group(1)
tested = re.findall(r"set\(LibTorch_TESTED_M\w\w (\d+)\.(\d+)\)", pathlib.Path("cmake/FindLibTorch.cmake").read_text())
low, high = [tuple(map(int, pair)) for pair in tested]
if low <= tuple(map(int, release.split(".")[:2])) <= high:
    print(folder)
else:
    print(release)
    sys.exit(3)
PY
}
torch=$(torch_folder "$python") || {
  [ -z "$torch" ] || say "torch $torch of $python is outside the tested range; build/venv gets torch $torch_release."
  torch=$(torch_folder "$build/venv/bin/python") || {
    timed "Python package torch $torch_release (LibTorch is in it)" pip_install "torch==$torch_release" ||
      { tail -n 5 "$log" >&2; fail "pip could not install torch $torch_release; see $log."; }
    torch=$(torch_folder "$build/venv/bin/python") || fail "torch $torch_release was installed but cannot be found."
  }
}
say "torch: $torch"

[ "$(cat "$build/torch.path" 2>/dev/null)" = "$torch" ] || printf '%s\n' "$torch" >"$build/torch.path"
printf '%s' "$stamp" >"$build/.setup"
say "done in $((SECONDS - started)) s"
