#!/usr/bin/env bash
# Saves and restores pods on a newer Docker than this machine's.
#
#   sudo tests/engines/run.sh target/debug/pody
#
# Makes the root of a Debian sid with its Docker once (/var/cache/pody-tests/engines), and starts it as a box: mount, pid,
# network, ipc and uts namespaces and a /dev of its own, so that the machine's Docker does not notice. In the box runs
# tests/engines/inside.sh, a round with the real client. Needs root, mmdebstrap, Docker with the image pody-base, CRIU.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

pody=$(realpath "${1:?usage: tests/engines/run.sh PODY}")
readonly cache=/var/cache/pody-tests/engines
readonly suite=sid
readonly root=$cache/$suite
readonly packages=docker.io,docker-cli,containerd,runc,iptables,openssh-client,ca-certificates,procps,iproute2,tar,gzip,mount
work=$(mktemp -d /tmp/pody-engines-XXXXXX)
box=

die() { printf 'error: %s\n' "$1" >&2 && exit 1; }

# The box ends with its first process, and its mounts with it.
clean_up() {
    [ -z "$box" ] || kill -KILL "$box" 2>/dev/null || true
    [ -z "$box" ] || wait "$box" 2>/dev/null || true
    rm -rf --one-file-system "${work:?}"
    rm -rf --one-file-system "${root:?}/data"
}

# The mirror that this machine's own packages come from.
mirror() {
    # shellcheck disable=SC2016  # $(…) is apt's format language
    apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(REPO_URI)' |
        awk '$1 == "Packages" && $2 == "Debian" && !/security/ { print $3; exit }'
}

ensure_root() {
    [ ! -e "$root/complete" ] || return 0
    rm -rf --one-file-system "$root" "$root.new"
    mkdir -p "$root.new"
    local from
    from=$(mirror)
    if [ -z "$from" ]; then
        printf 'skipped: apt knows no mirror of Debian here, which the box is made from\n'
        exit 0
    fi
    # A mirror may be a copy that is older than its own expiry.
    mmdebstrap --quiet --variant=minbase --include="$packages" --dpkgopt=force-unsafe-io \
        --aptopt='Acquire::Check-Valid-Until "false"' "$suite" "$root.new/root" \
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $suite main"
    touch "$root.new/complete"
    mv "$root.new" "$root"
}

[ "$(id -u)" = 0 ] || die "this needs root"
trap clean_up EXIT
ensure_root
mkdir -p "$root/data" "$work/share"
docker save pody-base:latest -o "$work/share/pody-base.tar"
cp "$pody" "$work/share/pody"
cp tests/engines/inside.sh "$work/share/"
[ ! -d /opt/criu ] || cp -a /opt/criu "$work/share/criu-prefix"
cp "$(command -v criu)" "$work/share/criu"

# shellcheck disable=SC2016  # the box expands its own arguments
unshare --mount --pid --fork --kill-child --net --ipc --uts bash -euc '
    root=$1 data=$2 share=$3
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mkdir -p "$root/cgroups" "$root/share" "$root/old" "$root/var/lib/docker" "$root/opt/criu"
    mount --rbind /sys/fs/cgroup "$root/cgroups"
    # Not overlay on overlay.
    mount --bind "$data" "$root/var/lib/docker"
    mount --bind "$share" "$root/share"
    [ ! -d "$share/criu-prefix" ] || mount --bind "$share/criu-prefix" "$root/opt/criu"
    cd "$root"
    pivot_root . old
    exec /share/inside.sh
' box "$root/root" "$root/data" "$work/share" &
box=$!
wait "$box" || die "the round on $suite failed"
box=
