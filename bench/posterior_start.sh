#!/bin/bash
# What learning trust adds: the posterior of each label, begun from learned weights, from agreement weights and from equal ones:
# bench/posterior_start.sh [SEEDS]. Builds reweight_bench in $BUILD (build), writes bench/results/posterior_start.json.
# About a minute for each seed and kind of labellers.
set -euo pipefail
cd "$(dirname "$0")/.."
build=${BUILD:-build} seeds=${1:-3}
cmake --build "$build" --target reweight_bench
export OMP_NUM_THREADS=1
runs=$(mktemp)
trap 'rm -f "$runs"' EXIT
for simulate in mixed swapping; do
  for ((seed = 0; seed < seeds; ++seed)); do
    "$build/bench/reweight_bench" starts --simulate "$simulate" --seed "$seed" >>"$runs"
  done
done
python3 bench/means.py posterior_start "$runs" --command "bench/posterior_start.sh $seeds" --out bench/results/posterior_start.json
