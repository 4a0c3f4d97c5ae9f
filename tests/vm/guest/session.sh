#!/bin/sh
# Process 1 of the guest once the host's root is in place: mounts what a running system has, runs
# the one command, leaves its exit code and the kernel's log in the results folder, powers off.
results=$1
. "$results/guest.env"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

mount -t sysfs sysfs /sys
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm /run/tmp /run/netns /run/lock
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
chmod 1777 /run/tmp
hostname mapbridge-vm
ip link set lo up
# Ring buffers and maps count against the locked memory on kernels before 5.11.
ulimit -l unlimited
ulimit -n 65536

link_headers() {
    headers=/lib/modules/$(uname -r)
    [ -e "$headers/build" ] && return
    # Any version serves: the probes read no kernel struct through them.
    newest=$(ls -d /usr/src/linux-headers-*-"$GUEST_ARCHITECTURE" 2>/dev/null | sort -V | tail -n 1)
    [ -n "$newest" ] || return
    ln -sfn "$newest" "$headers/build"
    [ -d "${newest%-*}-common" ] && newest="${newest%-*}-common"
    ln -sfn "$newest" "$headers/source"
}

# The line carries bytes as they are: whoever shows them on the host turns line ends as it needs.
# Held open, because the size of a terminal is forgotten when nobody has it open.
exec 9<>/dev/ttyS1
stty -F /dev/ttyS1 115200 raw -echo isig rows "$GUEST_ROWS" cols "$GUEST_COLUMNS"
link_headers
cat /proc/uptime >"$results/booted"

if [ "$GUEST_TERMINAL" = 1 ]; then
    setsid -c /bin/sh "$results/command.sh" </dev/ttyS1 >/dev/ttyS1 2>&1
    code=$?
else
    # A pipe, so that the command does not take the line for a person's terminal.
    mkfifo /run/output
    cat </run/output >/dev/ttyS1 &
    printer=$!
    /bin/sh "$results/command.sh" </dev/null >/run/output 2>&1
    code=$?
    # Whatever the command left running may hold the pipe open: its last output is awaited briefly.
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        kill -0 "$printer" 2>/dev/null || break
        sleep 0.2
    done
fi

dmesg >"$results/dmesg"
echo "$code" >"$results/exit.partial"
mv "$results/exit.partial" "$results/exit"
sync
busybox poweroff -f
