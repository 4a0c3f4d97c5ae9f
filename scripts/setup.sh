#!/usr/bin/env bash
# Makes the machine and .venv ready to run, test and develop mapbridge. Debian and Ubuntu only.
#
# Safe to run again: what is there already is left alone, and apt is not called when it has nothing
# to do. The virtual environment is made from the system's Python, not from the first one on PATH,
# because BCC's Python package is the distribution's and belongs to that interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PYTHON=/usr/bin/python3
readonly VENV=.venv

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$@" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "needs root to install packages, and there is no sudo" "run as root: $*"
    fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 "$@"
}

installed() { dpkg-query -W -f '${db:Status-Status}\n' "$1" 2>/dev/null | grep -qx installed; }
known() { [ -n "$(apt-cache show --no-all-versions "$1" 2>/dev/null)" ]; }

# The first of the names that is installed or, failing that, that apt knows.
first_of() {
    local name
    for name in "$@"; do if installed "$name"; then echo "$name"; return; fi; done
    for name in "$@"; do if known "$name"; then echo "$name"; return; fi; done
    echo "$1"
}

need_debian() {
    command -v apt-get >/dev/null && command -v dpkg-query >/dev/null && return
    die "this is not a Debian or Ubuntu system, install these by hand and then run:" \
        "    python3 -m venv --system-site-packages $VENV" \
        "    $VENV/bin/pip install -e '.[embedded,test,dev]' && touch $VENV/.ready" \
        "needed: Python 3.11 or newer with venv, BCC with its Python 3 bindings, clang, llvm," \
        "    bpftool, libbpf's and the kernel's headers, gcc, make, iproute2;" \
        "    keepalived for \`make demo ARGS='--fail host'\`;" \
        "    for tests on other kernels: qemu-system, a static busybox, kmod"
}

wanted_packages() {
    local machine headers qemu
    machine=$(dpkg --print-architecture)
    # BCC reads the running kernel's headers. A kernel that is not the distribution's has none to
    # install; those of another version serve, since the probes read no kernel struct through them.
    headers=$(first_of "linux-headers-$(uname -r)" "linux-headers-$machine" linux-headers-generic)
    case $machine in
        amd64) qemu=qemu-system-x86 ;;
        arm64) qemu=qemu-system-arm ;;
        *) qemu=qemu-system-misc ;;
    esac
    # libbpf-tools: programs of others, whose maps the tests of layouts read; mandoc, fish and zsh:
    # readers of manual pages and of completions; a browser for the test of the daemon's page.
    echo python3 python3-venv python3-bpfcc clang llvm "$(first_of bpftool linux-tools-generic)" \
        libbpf-dev libbpf-tools "$headers" gcc libc6-dev make iproute2 keepalived "$qemu" \
        busybox-static kmod util-linux ca-certificates mandoc fish zsh \
        "$(first_of chromium-headless-shell chromium)" fonts-dejavu-core
}

install_packages() {
    local package missing=()
    known python3-bpfcc || installed python3-bpfcc || apt_get update
    for package in $(wanted_packages); do
        installed "$package" || missing+=("$package")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    say "installing ${missing[*]}"
    # Lists that are out of date name files that are gone: refresh once, then try again.
    apt_get install --no-install-recommends "${missing[@]}" ||
        { apt_get update && apt_get install --no-install-recommends "${missing[@]}"; }
}

make_venv() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$PYTHON is $("$PYTHON" --version 2>&1), mapbridge needs 3.11 or newer"
    if [ -x $VENV/bin/python ] && grep -qi '^include-system-site-packages *= *true' \
        $VENV/pyvenv.cfg && [ "$($VENV/bin/python -c 'import sys; print(sys.base_prefix)')" = /usr ]
    then
        return
    fi
    say "making $VENV from $PYTHON ($("$PYTHON" --version))"
    "$PYTHON" -m venv --clear --system-site-packages $VENV
}

install_project() {
    say "installing mapbridge and its extras into $VENV"
    $VENV/bin/python -m pip --disable-pip-version-check install -qq \
        --editable '.[embedded,test,dev]'
}

# Prometheus' own checker of rules and metrics, for the tests. Its package would start a server: the
# one program is taken out of it.
install_promtool() {
    local folder
    [ ! -x $VENV/bin/promtool ] || return 0
    if command -v promtool >/dev/null; then
        ln -sf "$(command -v promtool)" $VENV/bin/promtool
        return
    fi
    say "taking promtool out of the package prometheus"
    folder=$(mktemp -d)
    (cd "$folder" && apt-get -q download prometheus && dpkg -x prometheus_*.deb .)
    install -m 755 "$folder/usr/bin/promtool" $VENV/bin/promtool
    rm -r "$folder"
}

check() {
    $VENV/bin/python - <<'END' || die "the BCC that $VENV sees is not the kernel's BCC"
import bcc
assert hasattr(bcc, "BPF"), bcc.__file__
END
    $VENV/bin/mapbridge --version
}

need_debian
install_packages
make_venv
install_project
install_promtool
check
touch $VENV/.ready
