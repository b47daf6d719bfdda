# shellcheck shell=bash
# Sourced by the other scripts: sets `python` to an interpreter that is new enough, or says
# what to install. PYTHON=/path/to/python overrides the search.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13 python}; do
    # Run it: a name on PATH may be a shim for a version that is not installed.
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; then
      python="$candidate"
      return 0
    fi
  done
  echo "error: wanted Python 3.11, 3.12 or 3.13, found: $(python3 --version 2>&1 || echo none)." >&2
  echo "       Install it, or name it: PYTHON=/path/to/python3.11 bash $0" >&2
  return 1
}

# A stamp of what an environment was built from: the requirements and the interpreter.
environment_stamp() {
  "$python" -c 'import hashlib, sys
print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest(), sys.version.split()[0])'
}

# make_environment FOLDER PIP_ARGS...: a virtual environment, installed unless its stamp still holds.
make_environment() {
  local folder="$1" stamp
  shift
  stamp="$(environment_stamp)"
  if [ -x "$folder/bin/python" ] && [ "$(cat "$folder/.stamp" 2>/dev/null)" = "$stamp" ]; then
    return 0
  fi
  if [ "$(cut -d' ' -f2 "$folder/.stamp" 2>/dev/null)" != "${stamp#* }" ]; then
    "$python" -m venv --clear "$folder" || {
      echo "error: could not make $folder: is the venv module there and the disk writable?" >&2
      echo "       On Debian or Ubuntu: sudo apt-get install python3-venv" >&2
      return 1
    }
  fi
  rm -f "$folder/.stamp"
  local requirement
  for requirement in "$@"; do
    # Split on purpose: "-e .[test]" is an option and its argument.
    # shellcheck disable=SC2086
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check $requirement || {
      echo "error: pip could not install '$requirement' (its own message stands above)." >&2
      echo "       Without a network, point pip at a mirror (PIP_INDEX_URL) or at a folder of" >&2
      echo "       wheels (PIP_FIND_LINKS), then run the same command again." >&2
      return 1
    }
  done
  echo "$stamp" > "$folder/.stamp"
}
