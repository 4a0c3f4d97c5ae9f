#!/bin/sh
# May this node carry the traffic? The exit code says so: 0 yes, anything else no.
#
#   check-mapbridge.sh synced              its maps hold now what the cluster's do
#   check-mapbridge.sh joined [ADDRESS]    its maps have held it once since the bridge started, or it carries
#                                          the traffic already: it has ADDRESS
#
# For keepalived, see keepalived.conf beside this; for whatever else decides by an exit code, too. What is
# passed on: 75 not (yet), 69 no bridge runs here, 78 its configuration is wrong.
#
#   MAPBRIDGE           the command, where it is not /usr/bin/mapbridge
#   MAPBRIDGE_CONFIG    the bridge's configuration, where it is not /etc/mapbridge/mapbridge.toml
#   MAPBRIDGE_MAP       one map instead of all
#   MAPBRIDGE_TIMEOUT   how long to wait for it, 0 by default: asked once, answered at once

set -u

case ${1:-synced} in
synced)
    joined=
    ;;
joined)
    if [ -n "${2:-}" ] && ip -o address show to "$2" | grep -q inet; then
        exit 0
    fi
    joined=--joined
    ;;
*)
    echo "usage: $0 synced | joined [ADDRESS]" >&2
    exit 2
    ;;
esac

exec "${MAPBRIDGE:-/usr/bin/mapbridge}" status \
    --config "${MAPBRIDGE_CONFIG:-/etc/mapbridge/mapbridge.toml}" \
    --wait-synced "${MAPBRIDGE_MAP:-all}" $joined --timeout "${MAPBRIDGE_TIMEOUT:-0}" >/dev/null
