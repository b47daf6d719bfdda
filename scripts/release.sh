#!/usr/bin/env bash
# Build, check and tag a release:
#
#   bash scripts/release.sh             # everything but the tag
#   bash scripts/release.sh --tag       # and the tag vVERSION, on a clean main; pushing it is up to you
#
# The version is that of gapo_jax/__init__.py. CHANGELOG.md has to name it with a date, CITATION.cff
# too, and requirements.lock has to be what the tests ran with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tag=0
case "${1:-}" in
  --tag) tag=1 ;;
  "") ;;
  *) echo "error: wanted --tag or nothing, got '$1'" >&2; exit 2 ;;
esac
# shellcheck source=scripts/find_python.sh
. scripts/find_python.sh
find_python
wrong=0
problem() { echo "not ready: $*" >&2; wrong=1; }
version="$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' gapo_jax/__init__.py)"
echo "version $version"
grep -qE "^## \[$version\] - [0-9]{4}-[0-9]{2}-[0-9]{2}$" CHANGELOG.md ||
  problem "CHANGELOG.md has no heading '## [$version] - DATE'"
grep -qx "version: $version" CITATION.cff || problem "CITATION.cff has another version"
[ -z "$(git status --porcelain)" ] || problem "there are changes that are not committed"
! git rev-parse -q --verify "refs/tags/v$version" >/dev/null || problem "v$version is tagged already"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
make_environment "$scratch/env" "build twine"
git archive HEAD | tar -x -C "$scratch" --one-top-level=source
"$scratch/env/bin/python" -m build --outdir "$scratch/dist" "$scratch/source" >"$scratch/build.log" 2>&1 ||
  { cat "$scratch/build.log" >&2; problem "the package does not build"; }
"$scratch/env/bin/python" -m twine check --strict "$scratch"/dist/* || problem "twine refuses it"
[ "$wrong" = 0 ] || [ "$tag" = 0 ] || exit 1
mkdir -p dist && cp "$scratch"/dist/* dist/ && ls -l dist
if [ "$tag" = 1 ]; then
  git tag -a "v$version" -m "gapo_jax $version"
  echo "tagged v$version; to publish: git push origin v$version && twine upload dist/*"
else
  echo "dry run: nothing is tagged$([ "$wrong" = 0 ] || echo ', and it would not be')"
fi
