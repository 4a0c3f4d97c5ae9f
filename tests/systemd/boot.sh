#!/usr/bin/env bash
# In a virtual machine: a systemd of its own in a pid namespace, whose only service is trial.py.
set -euo pipefail
cd "$(dirname "$0")/../.."

# A systemd that starts tidies up /tmp and sets what concerns the whole kernel.
[ "$(hostname)" = mapbridge-vm ] || { echo "only in the virtual machine: make systemd-check"; exit 2; }

readonly UNITS=/run/systemd/system TRIAL=/var/trial
mkdir -p $UNITS/mapbridge.service.d $TRIAL /etc/mapbridge
cp deploy/systemd/mapbridge.service $UNITS/

# No journal and no targets of a whole system here; a shorter watchdog.
cat >$UNITS/mapbridge.service.d/trial.conf <<END
[Unit]
DefaultDependencies=no
[Service]
ExecStart=
ExecStart=$PWD/.venv/bin/mapbridge run --config /etc/mapbridge/mapbridge.toml --json
ExecReload=
ExecReload=$PWD/.venv/bin/mapbridge reload --config /etc/mapbridge/mapbridge.toml
WatchdogSec=10s
TimeoutStartSec=300s
StandardError=append:$TRIAL/log
END
cat >$UNITS/trial.service <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
WorkingDirectory=$PWD
Environment=PATH=$PATH
ExecStart=/bin/sh -c '$PWD/.venv/bin/python -m tests.systemd.trial; systemctl exit \$\$?'
StandardOutput=append:$TRIAL/told
StandardError=append:$TRIAL/told
END

set +e
# A systemd in a container ends with the code that it was told. Units must outlive its new /run.
mkdir -p /etc/systemd/system && cp -r $UNITS/. /etc/systemd/system/
unshare --pid --fork --mount --mount-proc env -i container=trial PATH="$PATH" \
    /lib/systemd/systemd --unit=trial.service --log-target=console --log-level=warning
code=$?
cat $TRIAL/told
[ $code -eq 0 ] || tail -n 20 $TRIAL/log
exit $code
