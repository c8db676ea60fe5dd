#!/usr/bin/env bash
# From a clean clone to a compiled model and a table of its speed: ./scripts/quickstart.sh
# Needs Python 3.10 or newer with venv, and a C++ compiler. Takes under ten minutes on two cores; run it again to see
# that the tuning log is used: the second time nothing is measured anew. BUDGET=1m makes the search shorter.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh

# Not the clone's own tuning_logs/: those records are shipped with the package.
export SPARSETVM_LOG_DIR="${SPARSETVM_LOG_DIR:-$PWD/.venv/tuning_logs}"
begun=$SECONDS
make_venv quickstart -e . "onnxruntime>=1.20"
sparsetvm=.venv/bin/sparsetvm
model=example:digits
module=digits.so

"$sparsetvm" inspect "$model"
echo
"$sparsetvm" tune "$model" --threads 1 --budget "${BUDGET:-4m}" -o "$module"
echo
"$sparsetvm" verify "$module" --reference "$model"
echo
"$sparsetvm" bench "$module" --against ort,dense --reference "$model" --threads 1
echo
echo "$module ($(wc -c < "$module") bytes) is ready after $((SECONDS - begun)) s; docs/deploy.md says how to ship it"
