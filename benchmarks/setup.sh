#!/usr/bin/env bash
# Installs what `mapbridge bench transports` compares with: Go, gRPC for it, conntrackd. Debian and
# Ubuntu only, about 500 MB; Python's grpcio and matplotlib come with `pip install mapbridge[bench]`.
#
# Safe to run again: apt is not called when everything is there.
set -euo pipefail

readonly PACKAGES=(
    golang-go golang-google-grpc-dev golang-google-protobuf-dev
    golang-github-golang-protobuf-1-5-dev protoc-gen-go-1-5 protobuf-compiler
    conntrackd nftables
)

as_root() { if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }
apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 "$@"
}
installed() { dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }

missing=()
for package in "${PACKAGES[@]}"; do installed "$package" || missing+=("$package"); done
[ "${#missing[@]}" -gt 0 ] || exit 0
echo "benchmarks: installing ${missing[*]}"
# Lists that are out of date name files that are gone: refresh once, then try again.
apt_get install --no-install-recommends "${missing[@]}" ||
    { apt_get update && apt_get install --no-install-recommends "${missing[@]}"; }
