#!/usr/bin/env bash
# Manual pages and completions in the places below a prefix where man(1) and shells look for them.
set -euo pipefail

readonly MAPBRIDGE=$1 SHARE=$2

rm -rf "$SHARE"
mkdir -p "$SHARE"/{man/man1,bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
"$MAPBRIDGE" man --output "$SHARE/man/man1"
"$MAPBRIDGE" completion bash >"$SHARE/bash-completion/completions/mapbridge"
"$MAPBRIDGE" completion zsh >"$SHARE/zsh/site-functions/_mapbridge"
"$MAPBRIDGE" completion fish >"$SHARE/fish/vendor_completions.d/mapbridge.fish"
