#!/usr/bin/env bash
# A machine made of this one, on which nothing that happens stays: this one's files below, changes above.
#
#   machine.sh run BELOW CHANGES COMMAND…   COMMAND in a chroot; CHANGES keeps what it changed
#   machine.sh boot BELOW FILES UNIT        systemd, as process 1 of a container, starts UNIT with the folder
#                                           FILES laid over / and FILES/results at /results, and ends when UNIT does
#
# To be started by `unshare --mount`, where a tmpfs holds BELOW and CHANGES: a folder is no layer over its own
# file system.
#
# BELOW is what an earlier `run` changed, or /. The container has a network of its own with nothing but
# loopback, and /dev and /proc/devices name cameras that no driver is behind: opening one that may be opened fails
# with ENXIO, one that may not with EPERM.
set -euo pipefail

layers() { # BELOW CHANGES: the machine appears at $root
    root=$(mktemp -d)
    mount -t tmpfs tmpfs "$root"
    mkdir -p "$root"/{changes,work,root} "$2/changes" "$2/work"
    mount -t overlay overlay -o "lowerdir=$1/changes:/,upperdir=$2/changes,workdir=$2/work" "$root/root"
    root=$root/root
}

case $1 in
    run)
        mkdir -p "$2/changes"
        layers "$2" "$3"
        for folder in /proc /sys /dev; do mount --rbind "$folder" "$root$folder"; done
        # The clone may be on a file system of its own, which a layer does not show.
        clone=$(cd "$(dirname "$0")/../.." && pwd)
        mkdir -p "$root$clone"
        mount --bind "$clone" "$root$clone"
        mount -o remount,ro,bind "$root$clone"
        mount -t tmpfs tmpfs "$root/tmp"
        cp --remove-destination /etc/resolv.conf "$root/etc/resolv.conf"
        # systemctl changes files and leaves the services of the machine around it alone.
        SYSTEMD_OFFLINE=1 exec chroot "$root" "${@:4}"
        ;;
    boot)
        changes=$(mktemp -d)
        mount -t tmpfs tmpfs "$changes"
        layers "$2" "$changes"
        cp -r "$3"/. "$root"
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
exec /lib/systemd/systemd systemd.unit=$4 systemd.log_target=journal
INIT
        chmod +x "$root/init"
        # In control groups of its own: systemd takes charge of the root of those that it finds itself in.
        groups=()
        for hierarchy in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
            [ -e "$hierarchy/cgroup.procs" ] || continue
            groups+=("$hierarchy/vgg-edge-test-$$")
            mkdir "${groups[-1]}"
            echo $$ >"${groups[-1]}/cgroup.procs"
        done
        # cgroup 2 and bpf: what systemd enforces DeviceAllow with.
        status=0
        SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 timeout --kill-after 5 120 systemd-nspawn --quiet --directory "$root" \
            --register no --keep-unit --console pipe --machine "vgg-edge-test-$$" --private-network \
            --capability all --system-call-filter bpf --bind "$3/results:/results" /init </dev/null || status=$?
        for group in "${groups[@]}"; do
            echo $$ >"$(dirname "$group")/cgroup.procs"
            find "$group" -depth -type d -exec rmdir {} +
        done
        exit "$status"
        ;;
esac
