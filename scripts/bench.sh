#!/usr/bin/env bash
# Measures everything that docs/explanation/performance.md shows, into build/bench, and draws it.
#
#   scripts/bench.sh [NAME...]      only these, such as: sync-rate late-join overhead-vm
#
# Run it on a machine that does nothing else. A measurement that fails leaves the older file alone.
set -uo pipefail
cd "$(dirname "$0")/.."

readonly OUT=build/bench KERNEL=${KERNEL:-6.1}
failed=()

measure() { # NAME COMMAND...
    local name=$1
    shift
    echo "bench: $name"
    if "$@" >"$OUT/$name.new" 2>"$OUT/$name.log"; then
        tail -n 1 "$OUT/$name.new" >"$OUT/$name.json"
    else
        echo "bench: $name failed: $(tail -n 2 "$OUT/$name.log")" >&2
        failed+=("$name")
    fi
    rm -f "$OUT/$name.new"
}

bench() { .venv/bin/mapbridge bench "$@" --json; }

in_guest() {
    .venv/bin/python -m tests.vm run --kernel "$KERNEL" --timeout 900 -- \
        .venv/bin/mapbridge bench "$@" --json
}

one() {
    case $1 in
        sync-rate) measure sync-rate bench sync-rate --seconds 30 --rate 1000 --rate 10000 \
            --rate 100000 --rate 500000 --rate 1000000 ;;
        late-join) measure late-join bench late-join ;;
        transports) measure transports bench transports ;;
        overhead) measure overhead bench overhead ;;
        overhead-vm) measure "overhead.$KERNEL" in_guest overhead --part connections \
            --mode fentry --mode kprobe --rounds 3 --seconds 5 ;;
        drops) measure drops bench drops ;;
        memory) measure memory bench memory ;;
        scan) measure scan bench scan ;;
        codecs) measure codecs bench codecs ;;
        *) echo "bench: no such measurement: $1" >&2; exit 2 ;;
    esac
}

mkdir -p "$OUT"
[ $# -gt 0 ] || set -- sync-rate late-join transports overhead overhead-vm drops memory scan codecs
.venv/bin/python -m bridge.bench.page --machine "$OUT/machine.json"
for name; do one "$name"; done
.venv/bin/mapbridge bench plot "$OUT"
[ ${#failed[@]} -eq 0 ] || { echo "bench: failed: ${failed[*]}" >&2; exit 1; }
