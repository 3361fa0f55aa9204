#!/bin/bash
# The rankings of `bilevel reweight --by sample` under four kinds of label noise, with 50, 200 and 1000 trusted samples:
# bench/by_sample.sh [SEEDS]. Builds reweight_bench in $BUILD (build), writes bench/results/by_sample.json. About ten minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build} seeds=${1:-3}
cmake --build "$build" --target reweight_bench
export OMP_NUM_THREADS=1
runs=$(mktemp)
trap 'rm -f "$runs"' EXIT
for noise in uniform swap source feature; do
  for trusted in 50 200 1000; do
    for ((seed = 0; seed < seeds; ++seed)); do
      "$build/bench/reweight_bench" ranking --noise "$noise" --trusted "$trusted" --seed "$seed" >>"$runs"
    done
  done
done
python3 bench/means.py by_sample "$runs" --command "bench/by_sample.sh $seeds" --out bench/results/by_sample.json
