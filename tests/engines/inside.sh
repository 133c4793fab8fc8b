#!/bin/bash
# The first process of a box, see run.sh: starts its Docker and pody, and does a round with the real client.
# shellcheck disable=SC2317  # until_true calls functions by name
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
export PODY_HOME=/root/pody PODY_API_BASE=http://127.0.0.1:8799 PODY_USERNAME=alice PODY_PASSWORD=alice-secret-1

# ---------------------------------------------------------------- the box

mount -t proc proc /proc
# The machine's root.
umount --lazy /old
mount -t sysfs -o ro sysfs /sys
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount --rbind /cgroups /sys/fs/cgroup
# A /dev of its own, of which no driver serves anything else.
mount -t tmpfs -o mode=755 tmpfs /dev
while read -r name major minor; do
    mknod -m 666 "/dev/$name" c "$major" "$minor"
done <<'NODES'
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
NODES
mkdir /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts /dev/pts
ln -s pts/ptmx /dev/ptmx
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
mount -t tmpfs tmpfs /dev/shm
mount -t mqueue mqueue /dev/mqueue
ip link set lo up
install -D -m 755 /share/criu /usr/local/sbin/criu
install -m 755 /share/pody /usr/local/bin/pody
ln -sfn pody /usr/local/bin/pody-runc

# ---------------------------------------------------------------- helpers

fail() {
    printf 'error: %s\n' "$1" >&2
    tail -n 40 /root/pody.log /root/dockerd.log >&2 || true
    exit 1
}

# until_true WHAT COMMAND...: waits up to 60 seconds.
until_true() {
    local what=$1
    shift
    for _ in $(seq 600); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    fail "$what"
}

inside() { pody exec "$1" -- sh -c "$2" | tr -d '\r'; }
count() { inside "$1" 'cat /root/count'; }
counts_beyond() { [ "$(count "$1")" -gt "$2" ]; }

# continues POD FROM: its counter continued from where it was, and continues.
continues() {
    local now
    now=$(count "$1")
    [ "$now" -ge "$2" ] || fail "$1 began again: $now after $2"
    until_true "$1 does not count" counts_beyond "$1" "$now"
}

start_docker() {
    # Without "experimental": restores do not need the engine's own checkpoints.
    cat >/etc/docker/daemon.json <<'JSON'
{"live-restore": true, "cgroup-parent": "/pody-engines", "runtimes": {"pody": {"path": "/usr/local/bin/pody-runc"}}}
JSON
    setsid dockerd >>/root/dockerd.log 2>&1 </dev/null &
    dockerd=$!
    until_true "dockerd does not answer" docker version
}

# ---------------------------------------------------------------- the round

mkdir -p /etc/docker
start_docker
docker load -qi /share/pody-base.tar >/dev/null
version=$(docker version --format '{{.Server.Version}}')
printf '    Docker %s, %s\n' "$version" "$(runc --version | head -n 1)"

rm -rf "${PODY_HOME:?}"
mkdir -m 700 "$PODY_HOME"
install -m 600 /dev/stdin "$PODY_HOME/config.toml" <<'TOML'
available_ports = "21000-21100"
volume_mappings = ["/root/volumes/$username:/workspace:rw"]
[[images]]
name = "pody-base"
ports = [22]
TOML
pody user add alice alice-secret-1 >/dev/null 2>&1
setsid pody serve --host 127.0.0.1 --port 8799 >/root/pody.log 2>&1 </dev/null &
until_true "pody does not answer" pody ls

pody doctor | grep -q 'ok *runtime' || fail "doctor does not say that pods can be restored"

pody create main --image pody-base >/dev/null
inside main 'echo kept >/root/kept; echo shared >/workspace/file'
# shellcheck disable=SC2016  # the pod's shell expands it
inside main 'cat >/root/counter <<"END"
n=0
while :; do n=$((n + 1)); echo $n >/root/new; mv /root/new /root/count; sleep 0.05; done
END'
pody exec main --detach -- sh /root/counter >/dev/null
until_true "the counter does not run" counts_beyond main 3

pody checkpoint main >/dev/null
continues main 3
before=$(count main)
pody checkpoint main --stop >/dev/null
pody restore main >/dev/null
continues main "$before"
[ "$(inside main 'cat /root/kept /workspace/file')" = $'kept\nshared' ] || fail "files are missing"
printf '    a pod came back in place\n'

pody restore main --as twin >/dev/null
continues twin "$before"
printf '    as a twin\n'
pody rm main -y >/dev/null
pody restore main >/dev/null
continues main "$before"
printf '    after it was removed\n'

port=$(docker port "$(docker ps --filter name=twin --format '{{.Names}}')" 22/tcp | head -n 1 | grep -o '[0-9]*$')
ssh_answers() { timeout 5 bash -c "exec 3<>/dev/tcp/127.0.0.1/$port; head -c 3 <&3" | grep -q SSH; }
until_true "no sshd behind the published port $port of a restored pod" ssh_answers
printf '    its published port leads to it\n'

# Docker restarted: pods live on, and are saved and restored afterwards.
kill "$dockerd"
wait "$dockerd" || true
start_docker
until_true "pody does not see the pod" counts_beyond main "$before"
before=$(count main)
pody checkpoint main --stop >/dev/null
kill "$dockerd"
wait "$dockerd" || true
start_docker
until_true "pody does not see the saved pod" sh -c 'pody ps --all 2>/dev/null | grep main | grep -q exited || pody ls | grep main | grep -q exited'
pody restore main >/dev/null
continues main "$before"
printf '    after restarts of Docker\n'

pody drain --reason test >/dev/null 2>&1 || fail "the drain failed"
until_true "the drain does not end" sh -c '! pody ps | grep -q running'
pody undrain >/dev/null 2>&1 || fail "the undrain failed"
until_true "the pods are not back after the undrain" counts_beyond main "$before"
printf '    after a drain\n'

[ -z "$(ls /run/pody-runc 2>/dev/null)" ] || fail "something is left for the runtime: $(ls /run/pody-runc)"
pody rm main -y >/dev/null
pody rm twin -y >/dev/null
[ -z "$(docker ps -aq)" ] || fail "containers are left"
kill "$dockerd"
wait "$dockerd" || true
exit 0
