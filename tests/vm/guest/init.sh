#!/bin/busybox sh
# First program of the guest: makes the host's root the guest's, copy on write. Runs from the
# initramfs, where busybox is all there is. Every failure ends the machine, and the host tells so
# because no exit code was written.
export PATH=/bin

fail() {
    echo "guest: $*" >/dev/ttyS0
    poweroff -f
}

/bin/busybox mkdir -p /proc /dev /host /results /cow /root
/bin/busybox --install -s /bin
mount -t proc proc /proc || fail "no proc"
mount -t devtmpfs devtmpfs /dev || fail "no devtmpfs"

while read -r module; do
    insmod "/modules/$module" || fail "module $module does not load"
done </modules/order

share="trans=virtio,version=9p2000.L,msize=262144"
mount -t 9p -o "$share,rw,cache=none" results /results || fail "no results share"
. /results/guest.env
# Loose: nobody but the host writes below, and what it changes meanwhile need not be seen.
mount -t 9p -o "$share,ro,cache=loose" host /host || fail "no host root"

mount -t tmpfs -o size=75%,mode=755 cow /cow || fail "no tmpfs"
mkdir -p /cow/root /cow/root.work /cow/modules /cow/modules.work
mount -t overlay -o lowerdir=/host,upperdir=/cow/root,workdir=/cow/root.work root /root ||
    fail "no overlay"
# The host's folder stays below: it holds the links to the headers, where they are installed.
mkdir -p /root/lib/modules
lower="/host$GUEST_MODULES"
[ -d /host/lib/modules ] && lower="$lower:/host/lib/modules"
mount -t overlay -o "lowerdir=$lower,upperdir=/cow/modules,workdir=/cow/modules.work" \
    modules /root/lib/modules || fail "no overlay for the modules"

mount -t tmpfs -o mode=755 run /root/run || fail "no tmpfs on run"
mkdir -p "/root$GUEST_RESULTS"
mount --move /results "/root$GUEST_RESULTS"
mount --move /proc /root/proc
mount --move /dev /root/dev
exec switch_root /root /bin/sh "$GUEST_CHECKOUT/tests/vm/guest/session.sh" "$GUEST_RESULTS"
fail "no switch_root"
