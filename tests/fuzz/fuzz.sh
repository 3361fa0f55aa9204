#!/bin/bash
# fuzz.sh READER SECONDS: fuzzes one reader (toml, csv, npy, idx or safetensors) with libFuzzer, ASan and UBSan.
# Needs clang 16 or newer with its runtime (Debian: clang-16 libclang-rt-16-dev) and the torch wheel of $PYTHON.
set -eu
reader=$1 seconds=$2
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/fuzz
torch=$("${PYTHON:-python3}" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
deps=$root/build/deps/usr
mkdir -p "$build/$reader"

case $reader in
  toml) sources="core/config core/error core/file" ;;
  safetensors) sources="core/safetensors core/error core/file" ;;
  npy) sources="problem/npy core/error core/file" ;;
  idx) sources="problem/idx problem/gzip core/error core/file" ;;
  csv) sources="problem/dataset problem/csv problem/npy problem/idx problem/gzip problem/digits core/config core/error core/file" ;;
  *) echo "fuzz.sh: the readers are toml, csv, npy, idx and safetensors." >&2; exit 2 ;;
esac
files="$root/tests/fuzz/fuzz_$reader.cpp"
for source in $sources; do files="$files $root/bilevel/$source.cpp"; done

# shellcheck disable=SC2086
"${CXX:-clang++-16}" -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined \
  -DFMT_HEADER_ONLY=1 -DBILEVEL_DEPS="\"$deps\"" -DBILEVEL_DIGITS="\"$root/bilevel/problem/data/digits.csv.gz\"" \
  -I"$root" -isystem "$torch/include" -isystem "$deps/include" $files -o "$build/fuzz_$reader" \
  -L"$torch/lib" -L"$deps/lib/$(uname -m)-linux-gnu" -Wl,-rpath,"$torch/lib" -ltorch_cpu -lc10 -l:libcsv.a -l:libz.a

cd "$build"
export OMP_NUM_THREADS=1 ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=1
exec nice "./fuzz_$reader" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
  "$build/$reader" "$root/tests/fuzz/corpus/$reader"
