#!/bin/bash
# Cleanlab's filter beside the rows of `bilevel reweight`: bench/cleanlab/run.sh [--seeds N] [--simulate mixed swapping]
# Builds reweight_bench in $BUILD (build), makes an environment there, writes bench/results/cleanlab.json.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${BUILD:-build}
environment=$build/bench/cleanlab
if ! "$environment/bin/python" -c 'import cleanlab' 2>/dev/null; then
  python3 -m venv "$environment"
  "$environment/bin/pip" install --quiet cleanlab==2.9.0 scikit-learn==1.9.1
fi
cmake --build "$build" --target reweight_bench
export OMP_NUM_THREADS=1
"$environment/bin/python" bench/cleanlab/run.py --bench "$build/bench/reweight_bench" --out bench/results/cleanlab.json "$@"
