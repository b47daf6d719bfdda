#!/usr/bin/env bash
# Do the oldest and the newest versions that pyproject.toml allows still import, all modules of them?
#
#   bash scripts/check_bounds.sh [lowest-direct | highest]     (both, if none is named)
#
# It downloads an environment for each, some 2 GB, so CI does not run it: run it before a release.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/find_python.sh
. scripts/find_python.sh
find_python
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/source"
git archive HEAD | tar -x -C "$scratch/source"  # building writes beside the sources
"$python" -m venv "$scratch/uv"
"$scratch/uv/bin/pip" install --quiet --disable-pip-version-check uv
for resolution in "${@:-lowest-direct highest}"; do
  for each in $resolution; do
    echo "== $each"
    "$scratch/uv/bin/uv" venv --quiet --python "$python" "$scratch/$each"
    "$scratch/uv/bin/uv" pip install --quiet --python "$scratch/$each/bin/python" \
      --resolution "$each" "$scratch/source"
    "$scratch/uv/bin/uv" pip freeze --python "$scratch/$each/bin/python" |
      grep -iE '^(jax|jaxlib|flax|optax|orbax-checkpoint|numpy|transformers|tokenizers)=='
    (cd "$scratch" && JAX_PLATFORMS=cpu "$scratch/$each/bin/python" - <<'END'
import importlib, pkgutil, sys
import gapo_jax
optional = {"beam", "benchmarks"}  # what needs an extra
failed = []
for module in pkgutil.walk_packages(gapo_jax.__path__, "gapo_jax."):
    if module.name.rsplit(".", 1)[-1] in optional or ".benchmarks." in module.name:
        continue
    try:
        importlib.import_module(module.name)
    except Exception as error:
        failed.append(f"{module.name}: {type(error).__name__}: {error}")
print("\n".join(failed) or "every module imports")
sys.exit(bool(failed))
END
    )
  done
done
