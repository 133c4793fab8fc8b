#!/usr/bin/env bash
# Installs Pody on a bare Debian in a virtual machine, and tests there what other
# tests cannot: systemd, cgroup v2, another kernel and another CRIU, a reboot.
#
#   sudo ./tests/vm/run.sh bookworm|trixie
#
# Without hardware virtualization the machine is emulated, which takes most of an
# hour. Everything is kept in /var/cache/pody-vm; at the end the machine is stopped
# and its disk removed. KEEP=yes keeps both, to look around.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# shellcheck source-path=SCRIPTDIR source=../../install.sh
. ./install.sh

readonly suite=${1:-}
readonly home=/var/cache/pody-vm
readonly memory=6G
readonly disk_size=30G
# How long the machine may take to answer, seconds.
readonly boot=600

case $suite in
bookworm | trixie) ;;
*) die "usage: sudo ./tests/vm/run.sh bookworm|trixie" ;;
esac
readonly machine=$home/$suite

# A bare machine with systemd that accepts SSH logins. Its network and our key are
# all that is configured.
ensure_disk() {
    local base=$home/$suite.base root
    [ -e "$home/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$home/key"
    if [ ! -e "$base" ]; then
        root=$(mktemp -d -p "$home")
        quiet mmdebstrap --variant=minbase --include=systemd-sysv,systemd-resolved,linux-image-cloud-amd64,initramfs-tools,openssh-server,udev,dbus,iproute2,ca-certificates,sudo \
            "$suite" "$root" "deb http://deb.debian.org/debian $suite main"
        echo "/dev/vda / ext4 defaults 0 1" >"$root/etc/fstab"
        echo "pody-$suite" >"$root/etc/hostname"
        printf '[Match]\nName=en*\n\n[Network]\nDHCP=yes\n' >"$root/etc/systemd/network/10-all.network"
        # If the host accepts a frozen mirror, so does the machine.
        apt-config dump Acquire::Check-Valid-Until >"$root/etc/apt/apt.conf.d/90valid-until"
        quiet chroot "$root" systemctl enable systemd-networkd systemd-resolved ssh
        install -d -m 0700 "$root/root/.ssh"
        install -m 0600 "$home/key.pub" "$root/root/.ssh/authorized_keys"
        cp "$root"/boot/vmlinuz-* "$home/$suite.kernel"
        cp "$root"/boot/initrd.img-* "$home/$suite.initrd"
        truncate -s "$disk_size" "$base.new"
        quiet mke2fs -q -t ext4 -d "$root" -F "$base.new"
        mv "$base.new" "$base"
        rm -rf "$root"
    fi
    cp --sparse=always "$base" "$machine.disk"
}

# Boots the machine, with its SSH port on loopback. Under multi-threaded emulation a kernel may panic while it patches itself
# at boot: then it is started again.
start_machine() {
    local acceleration=tcg,thread=multi processor=max begun=$SECONDS
    if [ -w /dev/kvm ] && grep -qwE 'svm|vmx' /proc/cpuinfo; then
        acceleration=kvm processor=host
    fi
    qemu=
    until inside true 2>/dev/null; do
        if [ -z "$qemu" ] || ! kill -0 "$qemu" 2>/dev/null; then
            [ -z "$qemu" ] || grep -qs 'Kernel panic' "$machine.console" ||
                die "the machine stopped" "see $machine.log and $machine.console"
            qemu-system-x86_64 -name "pody-$suite" -accel "$acceleration" -cpu "$processor" -smp 2 -m "$memory" -no-reboot \
                -kernel "$home/$suite.kernel" -initrd "$home/$suite.initrd" \
                -append "root=/dev/vda rw console=ttyS0 panic=-1" \
                -drive "file=$machine.disk,format=raw,if=virtio,cache=unsafe" \
                -nic "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:$port_of_machine-:22" \
                -serial "file:$machine.console" -display none -monitor none </dev/null >>"$machine.log" 2>&1 &
            qemu=$!
        fi
        [ $((SECONDS - begun)) -lt "$boot" ] || die "the machine does not answer after $boot s" "see $machine.console"
        sleep 2
    done
}

stop_machine() {
    [ "${KEEP:-}" != yes ] || {
        note "the machine keeps running: ssh -i $home/key -p $port_of_machine root@127.0.0.1; stop it with: kill ${qemu:-}"
        return
    }
    [ -z "${qemu:-}" ] || kill "$qemu" 2>/dev/null || true
    rm -f "$machine.disk"
}

inside() {
    ssh -q -i "$home/key" -p "$port_of_machine" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        -o ConnectTimeout=10 root@127.0.0.1 "$@"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

require_root "a virtual machine with a disk of its own"
mkdir -p "$home"
step "packages"
require_known_distribution
install_packages qemu-system-x86 mmdebstrap openssh-client e2fsprogs python3
step "the program"
ensure_rust
build
step "a bare $suite"
ensure_disk
port_of_machine=$(free_port)
trap stop_machine EXIT
start_machine
note "$(inside 'uname -r; stat -fc %T /sys/fs/cgroup' | tr '\n' ' ')"

step "install.sh inside"
tar -c --exclude=./target --exclude=./.git . | inside 'mkdir -p pody && tar -xC pody'
inside 'install -D -m 0755 /dev/stdin pody/target/release/pody' <"$built"
# The program is built on the host, once for all machines: inside, cargo has nothing to do.
inside 'install -D -m 0755 /dev/stdin .cargo/bin/cargo' <<STUB
#!/bin/sh
[ "\$1" != --version ] || echo "cargo $(required_rust)"
STUB
inside 'apt-get -qq update && cd pody && ./install.sh'

step "checkpoints"
inside 'bash -s' -- before <tests/vm/inside.sh

step "a reboot"
inside 'systemctl reboot' || true
wait "$qemu" || true
start_machine
inside 'bash -s' -- after <tests/vm/inside.sh

step "done"
note "all tests passed on $suite"
