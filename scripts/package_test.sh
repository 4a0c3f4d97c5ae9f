#!/usr/bin/env bash
# Builds an sdist, a wheel out of that and a wheel out of the checkout; then installs the wheel in a
# fresh environment outside the checkout and has it keep a map of two nodes equal.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly BIN=$PWD/$1 TRIAL=$PWD/tests/package/try_wheel.py
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

say() { printf 'package-test: %s\n' "$*"; }

"$BIN/python" -m build --no-isolation --outdir "$scratch/dist" . >"$scratch/log" 2>&1 &&
    "$BIN/python" -m build --no-isolation --wheel --outdir "$scratch/direct" . \
        >>"$scratch/log" 2>&1 || { cat "$scratch/log"; exit 1; }
wheel=$(echo "$scratch"/dist/*.whl)
cmp "$wheel" "$scratch/direct/$(basename "$wheel")" || {
    say "the wheel out of the sdist differs from the one out of the checkout:"
    diff <(unzip -v "$wheel") <(unzip -v "$scratch"/direct/*.whl)
    exit 1
}
say "$(cd "$scratch/dist" && du -h --apparent-size -- * | tr '\n\t' '  ')"
"$BIN/twine" check --strict "$scratch"/dist/*

/usr/bin/python3 -m venv --system-site-packages "$scratch/venv"
"$scratch/venv/bin/pip" --disable-pip-version-check install -q "$wheel[embedded]"
cd "$scratch"
"$scratch/venv/bin/python" -I "$TRIAL"
say "the installed wheel works"
