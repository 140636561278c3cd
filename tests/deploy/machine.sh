#!/usr/bin/env bash
# A disposable machine: an overlay of this machine's files, whose changes go to a layer of their own.
#
#   machine.sh run BELOW CHANGES COMMAND…   runs COMMAND in a chroot; the layer CHANGES keeps its changes
#   machine.sh boot BELOW FILES UNIT        boots systemd as process 1 of a container, with the folder FILES copied
#                                           to / and FILES/results mounted at /results. systemd starts UNIT; the
#                                           container stops when UNIT stops it
#
# BELOW is the layer of an earlier `run`, or an empty folder. Start this script with `unshare --mount`, and put the
# layers on a tmpfs: overlayfs cannot use a folder as a layer above its own file system.
#
# The container's network is loopback only. Its /dev and /proc/devices name cameras without a driver: opening an
# allowed camera fails with ENXIO, opening a forbidden device fails with EPERM.
set -euo pipefail

mount_layers() { # BELOW CHANGES: mounts the overlay at $root
    root=$(mktemp -d)
    mount -t tmpfs tmpfs "$root"
    mkdir -p "$root"/{changes,work,root} "$2/changes" "$2/work"
    mount -t overlay overlay -o "lowerdir=$1/changes:/,upperdir=$2/changes,workdir=$2/work" "$root/root"
    root=$root/root
}

run_command() { # BELOW CHANGES COMMAND…
    local folder clone
    mkdir -p "$1/changes"
    mount_layers "$1" "$2"
    for folder in /proc /sys /dev; do mount --rbind "$folder" "$root$folder"; done
    # The clone is mounted after /tmp, because it may be below /tmp. The overlay shows no other file systems.
    clone=$(cd "$(dirname "$0")/../.." && pwd)
    mount -t tmpfs tmpfs "$root/tmp"
    mkdir -p "$root$clone"
    mount --bind "$clone" "$root$clone"
    mount -o remount,ro,bind "$root$clone"
    cp --remove-destination /etc/resolv.conf "$root/etc/resolv.conf"
    # With SYSTEMD_OFFLINE, systemctl changes files only and ignores the services of the real machine.
    SYSTEMD_OFFLINE=1 exec chroot "$root" "${@:3}"
}

boot() { # BELOW FILES UNIT
    local changes groups=() hierarchy group status=0
    changes=$(mktemp -d)
    mount -t tmpfs tmpfs "$changes"
    mount_layers "$1" "$changes"
    cp -r "$2"/. "$root"
    cat >"$root/init" <<INIT
#!/bin/sh
sed 's/^Character devices:/&\n 81 video4linux\n510 dma_heap\n511 media/' /proc/devices >/devices
mount --bind /devices /proc/devices
mkdir /dev/dma_heap
mknod -m 660 /dev/video0 c 81 0
mknod -m 660 /dev/media0 c 511 0
mknod -m 660 /dev/dma_heap/system c 510 0
chgrp video /dev/video0 /dev/media0 /dev/dma_heap/system
mknod -m 666 /dev/another c 1 11
exec /lib/systemd/systemd systemd.unit=$3 systemd.log_target=journal
INIT
    chmod +x "$root/init"
    # In control groups of its own, because systemd takes over the root of the groups that it starts in.
    for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
        [ -e "$hierarchy/cgroup.procs" ] || continue
        groups+=("$hierarchy/vgg-edge-test-$$")
        mkdir "${groups[-1]}"
        echo $$ >"${groups[-1]}/cgroup.procs"
    done
    # systemd enforces DeviceAllow with cgroup 2 and bpf.
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout --kill-after 5 120 systemd-nspawn --quiet --directory "$root" \
        --register no --keep-unit --console pipe --machine "vgg-edge-test-$$" --private-network \
        --capability all --system-call-filter bpf --bind "$2/results:/results" /init </dev/null || status=$?
    for group in "${groups[@]}"; do
        echo $$ >"$(dirname "$group")/cgroup.procs"
        find "$group" -depth -type d -exec rmdir {} +
    done
    exit "$status"
}

case $1 in
    run) run_command "${@:2}" ;;
    boot) boot "${@:2}" ;;
esac
