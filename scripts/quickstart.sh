#!/usr/bin/env bash
# From a fresh clone to a language model that has learned to obey constraints by GAPO:
#
#   bash scripts/quickstart.sh [ARGUMENTS FOR scripts/train.py]
#
# Makes .venv, installs the package, obtains the two small models and trains with
# configs/gapo_quickstart.py. Run it again to reuse all that is already there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/find_python.sh
. scripts/find_python.sh

say() { printf '[quickstart %4ds] %s\n' "$SECONDS" "$*"; }

find_python
say "1/4 environment: .venv ($("$python" --version))"
say "2/4 package and its dependencies (2 to 3 minutes the first time)"
make_environment .venv "-e ."
say "3/4 weights: SmolLM2-135M-Instruct and all-MiniLM-L6-v2"
.venv/bin/python scripts/fetch_weights.py || {
  echo "error: the weights could not be obtained (the message above says why)." >&2
  echo "       Once there is a network, run this command again; it starts where it stopped." >&2
  exit 1
}
# Large pages for the buffers of a step: a tenth of its time on Linux, ignored elsewhere.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
say "4/4 training: python scripts/train.py --config configs/gapo_quickstart.py $*"
status=0
.venv/bin/python scripts/train.py --config configs/gapo_quickstart.py "$@" || status=$?
case "$status" in
  0) say "done" ;;
  75) say "stopped after saving; the same command continues the run" ;;
esac
exit "$status"
