#!/usr/bin/env bash
# Boxes: other versions of Docker beside the machine's own, without virtual machines.
#
# A box is a small Debian in namespaces of its own (mounts, processes, network, IPC,
# host name, cgroups), with a /dev of its own and its own dockerd. It is up in about
# a second. See usage() below; tests/engines/run.sh drives a round in each.
#
# What a box can reach of the machine: the system root and Pody's binary, both read
# only, and its own folder below $boxes/state. Never the machine's /dev or network.
set -euo pipefail

readonly boxes=${PODY_TEST_BOXES:-/var/cache/pody-tests/boxes}
tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly packages=docker.io,containerd,runc,iptables,openssh-client,python3,ca-certificates,tar,procps,kmod,iproute2,mount
# One cgroup of the machine holds all that runs in a box.
readonly cgroups=/sys/fs/cgroup

usage() {
    cat <<USAGE
usage: box.sh make SUITE             make the system of a Debian suite, once
       box.sh start BOX [PODY]       start a box with its dockerd; PODY is the binary
                                     to mount as /usr/local/bin/pody
       box.sh enter BOX COMMAND...   run a command in it
       box.sh stop BOX               end all that runs in it and remove its data

SUITE  bookworm (Docker 20.10), trixie (26.1) or sid (28)
BOX    a suite, or SUITE-containerd: with the image store of containerd
USAGE
}

die() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

# ---------------------------------------------------------------- the system

# The address of the machine's own Debian mirror, of apt's lists.
mirror() {
    # shellcheck disable=SC2016  # $(…) is apt's format language
    apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(REPO_URI) $(COMPONENT)' |
        awk '$1 == "Packages" && $2 == "Debian" && $3 !~ /security/ && $4 == "main" { print $3; exit }'
}

# A make that fails leaves nothing: the root takes its name when it is whole.
make_root() {
    local suite=$1 new client='' address
    [ ! -d "$boxes/$suite" ] || return 0
    new=$boxes/$suite.new
    # Since Debian 13 the client is a package of its own.
    [ "$suite" = bookworm ] || client=,docker-cli
    address=$(mirror)
    [ -n "$address" ] || die "apt has no lists of a Debian mirror; run 'apt-get update'"
    mkdir -p "$boxes"
    rm -rf --one-file-system "$new"
    # Without documents, and without waiting for the disk: a root can be made again. The mirror may
    # be a copy of another day, whose lists have run out.
    nice mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io --include="$packages$client" \
        --aptopt='Acquire::Check-Valid-Until "false"' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' "$suite" "$new" \
        "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $address $suite main"
    mv "$new" "$boxes/$suite"
}

# ---------------------------------------------------------------- a box

# The mounts and devices of a box: runs in its namespaces, as its first process, which also
# collects the processes that lose their parent.
first_process() {
    local box=$1 root=$2 state=$3 pody=$4 name
    mount --make-rprivate /
    mkdir -p "$root"/{opt,etc}/criu "$root/etc/docker" "$root"/var/lib/{docker,containerd,pody,pody-volumes}
    mount --bind "$root" "$root"
    mount -o remount,bind,ro "$root"
    # What is written in a box: in memory, or in its own folder on the disk.
    for name in etc/docker etc/criu root run tmp usr/local var/log dev; do
        mount -t tmpfs -o mode=0755 box "$root/$name"
    done
    chmod 1777 "$root/tmp"
    for name in docker containerd pody pody-volumes; do
        mkdir -p "$state/$name"
        mount --bind "$state/$name" "$root/var/lib/$name"
    done

    make_devices "$root/dev"
    mount -t proc proc "$root/proc"
    mount -t sysfs sysfs "$root/sys"
    make_cgroups "$root$cgroups"

    mkdir -p "$root"/usr/local/{bin,sbin} "$root/run/lock"
    read_only "$pody" "$root/usr/local/bin/pody"
    ln -s pody "$root/usr/local/bin/pody-runc"
    read_only "$boxes/pody-base.tar" "$root/usr/local/pody-base.tar"
    read_only "$tree/tests/engines/round.sh" "$root/usr/local/bin/round.sh"
    # The machine's CRIU, which install.sh put into a prefix with all its libraries.
    mount --bind /opt/criu "$root/opt/criu"
    mount -o remount,bind,ro "$root/opt/criu"
    install -m 0755 /usr/local/sbin/criu "$root/usr/local/sbin/criu"
    daemon_json "$box" >"$root/etc/docker/daemon.json"

    ip link set lo up
    hostname "$box"
    cd "$root"
    pivot_root . mnt
    umount -l /mnt
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
    touch /run/box-is-up
    # shellcheck disable=SC2093  # nothing comes after it
    exec chroot / /bin/sh -c 'while :; do sleep 1000 & wait $!; done'
}

# read_only FILE PATH
read_only() {
    touch "$2"
    mount --bind "$1" "$2"
    mount -o remount,bind,ro "$2"
}

# make_devices DEV: a /dev of the box's own. The machine's is never mounted in a box: what is
# deleted there is gone for all.
make_devices() {
    local dev=$1 name major minor
    while read -r name major minor; do
        mknod -m 0666 "$dev/$name" c "$major" "$minor"
    done <<DEVICES
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
fuse 10 229
DEVICES
    mkdir "$dev/pts" "$dev/shm" "$dev/mqueue" "$dev/net"
    mknod -m 0666 "$dev/net/tun" c 10 200
    mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$dev/pts"
    mount -t tmpfs -o mode=1777 shm "$dev/shm"
    mount -t mqueue mqueue "$dev/mqueue"
    ln -s pts/ptmx "$dev/ptmx"
    ln -s /proc/self/fd "$dev/fd"
    ln -s /proc/self/fd/0 "$dev/stdin"
    ln -s /proc/self/fd/1 "$dev/stdout"
    ln -s /proc/self/fd/2 "$dev/stderr"
}

# The controllers of the machine, as the option of a mount; of version 1, as version 2 holds none where these are.
hierarchies() { sed -n 's/^[0-9]*:\([^:]\{1,\}\):.*/\1/p' /proc/self/cgroup; }

# The same as the machine has. A namespace makes the box's cgroup the root of each.
make_cgroups() {
    local folder=$1 controllers
    mount -t tmpfs -o mode=0755 cgroup "$folder"
    for controllers in $(hierarchies); do
        mkdir "$folder/${controllers#name=}"
        mount -t cgroup -o "$controllers" cgroup "$folder/${controllers#name=}"
    done
}

daemon_json() {
    local store=false
    [[ $1 != *-containerd ]] || store=true
    cat <<JSON
{
    "experimental": true,
    "live-restore": true,
    "features": {"containerd-snapshotter": $store},
    "runtimes": {"pody": {"path": "/usr/local/bin/pody-runc"}}
}
JSON
}

# join_cgroups BOX: this process into the box's cgroup of each hierarchy of the machine.
join_cgroups() {
    local controllers folder file
    for controllers in $(hierarchies); do
        folder=$cgroups/${controllers#name=}/pody-tests-$1
        if [ ! -d "$folder" ]; then
            mkdir "$folder"
            # A new set of processors is empty, and takes no process then.
            for file in cpuset.cpus cpuset.mems; do
                [ ! -e "$folder/$file" ] || cat "$folder/../$file" >"$folder/$file"
            done
        fi
        echo $BASHPID >"$folder/cgroup.procs"
    done
}

is_running() { [ -e "$state/pid" ] && [ -e "/proc/$(cat "$state/pid")/root/run/box-is-up" ]; }

# In the box, the machine's descriptors and environment left behind.
enter() {
    is_running || die "the box $box does not run; start it"
    (
        join_cgroups "$box"
        exec nsenter --target "$(cat "$state/pid")" --all --root --wd env -i TERM="${TERM:-dumb}" HOME=/root LANG=C.UTF-8 \
            PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
    )
}

start() {
    local pody=${1:-$tree/target/debug/pody} outer first image
    ! is_running || die "the box $box runs already"
    [ -d "$boxes/$suite" ] || die "there is no $suite; run: $0 make $suite"
    [ -x "$pody" ] || die "there is no $pody; build it"
    [ ! -e "$cgroups/cgroup.controllers" ] || die "boxes need cgroups of version 1"
    image=$(docker image inspect --format '{{.Id}}' pody-base)
    if [ "$(cat "$boxes/pody-base.id" 2>/dev/null)" != "$image" ]; then
        docker save -o "$boxes/pody-base.tar.new" pody-base
        mv "$boxes/pody-base.tar.new" "$boxes/pody-base.tar"
        echo "$image" >"$boxes/pody-base.id"
    fi
    stop
    mkdir -p "$state"
    (
        join_cgroups "$box"
        exec setsid unshare --mount --pid --fork --net --ipc --uts --cgroup --kill-child \
            "$0" first-process "$box" "$boxes/$suite" "$state" "$(realpath "$pody")" >"$state/log" 2>&1 </dev/null
    ) &
    outer=$!
    until first=$(tr -d ' ' 2>/dev/null <"/proc/$outer/task/$outer/children") && [ -e "/proc/${first:-none}/root/run/box-is-up" ]; do
        kill -0 "$outer" 2>/dev/null || die "the box $box did not start: $(cat "$state/log")"
        sleep 0.05
    done
    echo "$first" >"$state/pid"
    start_dockerd
}

# dockerd of a box, with a containerd of its own; also after it was ended.
start_dockerd() {
    # shellcheck disable=SC2016  # the box's shell reads it
    enter sh -c 'setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &'
    for _ in $(seq 300); do
        ! enter docker version >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    enter tail -n 30 /var/log/dockerd.log >&2
    die "dockerd of the box $box does not answer"
}

# The first process of a PID namespace takes all others with it, and the last process of a mount
# namespace its mounts.
stop() {
    local controllers folder
    if is_running; then
        kill -KILL "$(cat "$state/pid")"
        while is_running; do sleep 0.05; done
    fi
    for controllers in $(hierarchies); do
        folder=$cgroups/${controllers#name=}/pody-tests-$box
        # Folders from the inside out; the kernel removes them when their last process is gone.
        for _ in $(seq 100); do
            [ -d "$folder" ] || break
            find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null || sleep 0.05
        done
    done
    rm -rf --one-file-system "$state"
}

box=${2:-}
suite=${box%-containerd}
state=$boxes/state/${box:?$(usage)}
case "${1:-}:$suite" in
first-process:*) shift && first_process "$@" ;;
make:bookworm | make:trixie | make:sid) make_root "$suite" ;;
start:bookworm | start:trixie | start:sid) start "${3:-}" ;;
enter:*) shift 2 && enter "$@" ;;
dockerd:*) start_dockerd ;;
stop:*) stop ;;
*) usage && exit 2 ;;
esac
