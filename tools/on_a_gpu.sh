#!/usr/bin/env bash
# Run the tests that need a GPU, then measure the cost of explanations on it.
#
#   PYTHON=.venv/bin/python tools/on_a_gpu.sh DIR     # writes logs and the benchmarks' JSON to DIR
#   DEVICE=cpu ROUNDS=2 tools/on_a_gpu.sh DIR         # checks the script itself without a GPU
#
# All steps run, even if one fails; the exit status is the highest one of all steps. Installed peers are measured too,
# see docs/figures.md.
set -u
out=${1:?give a folder for the results}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
rounds=${ROUNDS:-5}
here=$(dirname "$0")/..
export PYTHONPATH=$here/src${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out"
status=0

step() {
    local name=$1
    shift
    echo "== $name"
    "$@" >"$out/$name.log" 2>&1
    local code=$?
    tail -n "${LINES_SHOWN:-40}" "$out/$name.log"
    if [ "$code" -gt "$status" ]; then status=$code; fi
}

step tests env WHYCAM_TEST_DEVICE="$device" "$python" -m pytest -q -p no:cacheprovider -c "$here/pyproject.toml" \
    "$here/tests/cuda" "$here/tests/training/test_cuda_graph.py"
for network in cifar:64 resnet50:16 vit-b16:8; do
    name=explain-${network%:*}
    step "$name" "$python" "$here/benchmarks/explain_cost.py" --device "$device" --network "${network%:*}" \
        --batch "${network#*:}" --rounds "$rounds" --json "$out/$name.json"
done
step perturbation "$python" "$here/benchmarks/perturbation_cost.py" --device "$device" --rows 1024 \
    --rounds "$rounds" --json "$out/perturbation.json"
exit "$status"
