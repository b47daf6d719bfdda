#!/usr/bin/env bash
# What CI runs, in an environment of its own (.venv-test), from any clone:
#
#   bash scripts/test.sh                 everything: format, lint, types, tests
#   bash scripts/test.sh lint            format, lint and types only
#   bash scripts/test.sh pytest ARGS     only the tests, arguments passed on
#
# PYTHON names the interpreter, GAPO_JAX_TEST_WORKERS the number of test processes (2).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec </dev/null
# shellcheck source=scripts/find_python.sh
. scripts/find_python.sh

mode="${1:-all}"
[ "$#" -gt 0 ] && shift
case "$mode" in
  all | lint | pytest) ;;
  *) echo "error: wanted 'lint', 'pytest' or nothing, got '$mode'." >&2 && exit 2 ;;
esac

say() { printf '[test %4ds] %s\n' "$SECONDS" "$*"; }

find_python
say "environment .venv-test ($("$python" --version))"
# torch by version first, and alone: the tests compare with it on the CPU, and asking for
# `torch` without a version may bring gigabytes of accelerator libraries.
make_environment .venv-test torch==2.13.0 "-e .[test]"
bin="$PWD/.venv-test/bin"
export PATH="$bin:$PATH"

if [ "$mode" != pytest ]; then
  say "ruff format --check" && ruff format --check .
  say "ruff check" && ruff check .
  say "pyright gapo_jax" && pyright --pythonpath "$bin/python"
fi
if [ "$mode" != lint ]; then
  say "weights for the tests that need a real model"
  "$bin/python" scripts/fetch_weights.py ||
    say "no weights: the tests that need them are skipped and say so"
  say "pytest"
  JAX_PLATFORMS=cpu "$bin/python" -m pytest -n "${GAPO_JAX_TEST_WORKERS:-2}" --dist loadfile \
    --no-loadscope-reorder --durations=10 "$@"
fi
say "passed"
