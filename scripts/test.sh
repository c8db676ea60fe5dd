#!/usr/bin/env bash
# Lint, types and tests in a virtual environment of this clone: ./scripts/test.sh [pytest arguments]
# The last line printed is pytest's; the exit code is not 0 when anything failed.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh

make_venv test -e ".[test,dev]" || exit
failed=0
.venv/bin/ruff check . || failed=1
.venv/bin/ruff format --check . || failed=1
link_package .venv/types && MYPYPATH=.venv/types .venv/bin/mypy -p sparsetvm || failed=1
[ "$failed" = 0 ] || echo "error: ruff or mypy found something (above)"
# One process per core; the tests of a file stay together, because fixtures of a file may hold worker processes.
.venv/bin/python -m pytest -q -n auto --dist loadfile "$@" || failed=$?
exit "$failed"
