#!/usr/bin/env bash
# Runs in a box (box.sh), as root: what a member and an admin do with pods, on the Docker
# of the box, with the real client. Ends at the first thing that is not as it must be.
set -euo pipefail

export PODY_API_BASE=http://127.0.0.1:8799 PODY_USERNAME=alice PODY_PASSWORD=not-a-secret-here
readonly home=/var/lib/pody patience=60

part() { printf '    %4d s  %s\n' "$SECONDS" "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    {
        pody actions || true
        tail -n 20 /var/log/pody.log
        tail -n 10 /var/log/dockerd.log
    } >&2
    exit 1
}

# eventually WHAT COMMAND...
eventually() {
    local what=$1 begun=$SECONDS
    shift
    until "$@" >/tmp/said 2>&1; do
        [ $((SECONDS - begun)) -lt $patience ] || fail "not within $patience s: $what; last: $(tail -n 3 /tmp/said)"
        sleep 0.1
    done
}

# expect WHAT IS WANTED
expect() { [ "$2" = "$3" ] || fail "$1: $2, not $3"; }

# refused PART_OF_THE_SENTENCE COMMAND...
refused() {
    local sentence=$1 said
    shift
    if said=$("$@" 2>&1); then fail "not refused: $*"; fi
    [[ $said == *"$sentence"* ]] || fail "$*: $said"
}

# ---------------------------------------------------------------- a program to save

# Chooses a name once, holds memory and a connection to itself, and then writes name and count
# again and again: a program that was resumed has the same name.
readonly program='
import os, socket, time
name, n, memory = os.urandom(8).hex(), 0, os.urandom(16 << 20)
server = socket.create_server(("127.0.0.1", 0))
ours = socket.create_connection(server.getsockname())
theirs, _ = server.accept()
while True:
    n += 1
    ours.sendall(b"x")
    assert theirs.recv(1) == b"x"
    with open("/root/new", "w") as file:
        file.write(f"{name} {n}\n")
    os.replace("/root/new", "/root/count")
    time.sleep(0.05)
'

# In the pod, without a terminal of ours.
inside() {
    local pod=$1
    shift
    pody exec "$pod" -- "$@" </dev/null | tr -d '\r'
}
name_of() { inside "$1" cat /root/count | cut -d' ' -f1; }
count_of() { inside "$1" cat /root/count | cut -d' ' -f2; }
counts_beyond() { [ "$(count_of "$1")" -gt "$2" ]; }

answers_ssh() { [ "$(pody ssh --tmp "$1" -- -q hostname </dev/null)" = "$(inside "$1" hostname)" ]; }

# begin_program POD: sets name and from.
begin_program() {
    inside "$1" "rm -f /root/count; echo $(base64 -w0 <<<"$program") | base64 -d >/root/counter.py"
    pody exec -d "$1" -- python3 /root/counter.py
    eventually "$1 counts" counts_beyond "$1" 0
    name=$(name_of "$1") from=$(count_of "$1")
}

# is_resumed POD: its program is the one that was begun, and counts on; in its own cgroup, with its limit.
is_resumed() {
    local id pid
    eventually "$1 counts beyond $from" counts_beyond "$1" "$from"
    expect "the program of $1" "$(name_of "$1")" "$name"
    id=$(docker inspect -f '{{.Id}}' "alice-$1")
    for pid in $(docker top "alice-$1" -eo pid | tail -n +2); do
        grep -q "$id" "/proc/$pid/cgroup" || fail "a program of $1 is in $(cat "/proc/$pid/cgroup")"
    done
    expect "the memory limit of $1" "$(cat "/sys/fs/cgroup/memory/docker/$id/memory.limit_in_bytes")" 536870912
    expect "the file of $1" "$(inside "$1" cat /root/written)" "by $1"
    answers_ssh "$1" || fail "$1 does not answer ssh"
}

# ---------------------------------------------------------------- parts

serve() {
    setsid pody serve >>/var/log/pody.log 2>&1 </dev/null &
    server=$!
    eventually "the daemon answers" pody whoami --json
}

end_server() {
    kill "$server"
    wait "$server" || true
}

# How often the daemon has found Docker again.
times_back() { grep -c 'Docker is back' /var/log/pody.log || true; }
is_back_after() { [ "$(times_back)" -gt "$1" ]; }
restart_dockerd() {
    local pid before
    before=$(times_back)
    pid=$(cat /run/docker.pid)
    kill "$pid"
    while [ -d "/proc/$pid" ]; do sleep 0.1; done
    setsid dockerd >>/var/log/dockerd.log 2>&1 </dev/null &
    eventually "dockerd answers" docker version
    eventually "the daemon finds it again" is_back_after "$before"
}

prepare() {
    local key=/root/.ssh/id_ed25519
    docker load --quiet -i /usr/local/pody-base.tar
    chmod 0700 $home
    cat >$home/config.toml <<CONFIG
available_ports = "20000-20100"
volume_mappings = ["/var/lib/pody-volumes/\$username:/workspace:rw"]

[[images]]
name = "pody-base"
ports = [22]

[checkpoint]
schedule_minimum_seconds = 1
CONFIG
    chmod 0600 $home/config.toml
    pody user add alice --password-stdin <<<"$PODY_PASSWORD"
    pody quota update alice --max-pods 4 --memory-limit 512m --pids-limit 300 --cpu-limit 1.5
    serve
    ssh-keygen -q -t ed25519 -N '' -f $key
    pody key add $key.pub
    pody doctor || fail "doctor says that the box is not ready"
}

basics() {
    pody create main --image pody-base
    inside main 'echo by main >/root/written; echo kept >/workspace/kept'
    expect "exec" "$(inside main cat /root/written)" "by main"
    [[ $(script -qec "pody shell main -- tty" /dev/null </dev/null) == */dev/pts/* ]] || fail "a shell has no terminal"
    expect "the volume" "$(cat /var/lib/pody-volumes/alice/kept)" kept
    eventually "ssh answers" answers_ssh main
    pody logs main >/dev/null
    pody stats main >/dev/null
    pody restart main
    eventually "ssh answers after a restart" answers_ssh main
}

quotas() {
    local id
    id=$(docker inspect -f '{{.Id}}' alice-main)
    expect "pids" "$(cat "/sys/fs/cgroup/pids/docker/$id/pids.max")" 300
    expect "cpu" "$(docker inspect -f '{{.HostConfig.NanoCpus}}' alice-main)" 1500000000
    pody quota update alice --max-pods 1
    refused "max_pods" pody create second --image pody-base
    pody quota update alice --max-pods 4
    # No box has a disk with project quotas: an engine that cannot keep a size must not promise one.
    pody quota update alice --storage-size 100m
    refused "storage_size" pody create second --image pody-base
    pody quota update alice --storage-size default --commit-size-limit 20m
    inside main 'head -c 40M /dev/urandom >/root/large'
    refused "commit_size_limit" pody commit main --tag large
    inside main 'rm /root/large'
    pody quota update alice --commit-size-limit default
}

commits() {
    pody commit main --tag saved
    pody create copy --image alice-saved
    expect "a committed file" "$(inside copy cat /root/written)" "by main"
    eventually "ssh answers in it" answers_ssh copy
    pody rm -y copy
}

checkpoints() {
    begin_program main
    pody checkpoint main
    is_resumed main
    from=$(count_of main)
    pody checkpoint main --stop
    pody restore main
    is_resumed main
    pody restore main --as twin
    inside twin 'echo by twin >/root/written'
    is_resumed twin
    from=$(count_of twin)
    pody checkpoint twin --compression zstd
    pody rm -y twin
    pody restore twin
    is_resumed twin
    pody rm -y twin
}

is_scheduled() { [ "$(pody checkpoints --json | grep -o '"origin":"schedule"' | wc -l)" -ge 2 ]; }
schedules() {
    pody schedule set main every 1s keep 2
    eventually "two checkpoints on schedule" is_scheduled
    pody schedule rm main
    is_resumed main
}

drains() {
    from=$(count_of main)
    pody drain --reason "a round"
    expect "after the drain" "$(docker inspect -f '{{.State.Status}}' alice-main)" exited
    pody undrain
    is_resumed main
}

restarts() {
    from=$(count_of main)
    end_server
    serve
    is_resumed main
    # Restored processes are the engine's like any others.
    from=$(count_of main)
    restart_dockerd
    is_resumed main
    from=$(count_of main)
    pody checkpoint main --stop
    restart_dockerd
    expect "a saved and stopped pod after a restart of Docker" "$(docker inspect -f '{{.State.Status}}' alice-main)" exited
    pody restore main
    is_resumed main
}

is_adopted() { pody ps --json | grep -q '"byhand"'; }
adoption() {
    docker run -d --name alice-byhand --memory 512m --entrypoint python3 pody-base -c "$program" >/dev/null
    eventually "a container by hand is a pod" is_adopted
    eventually "byhand counts" counts_beyond byhand 0
    name=$(name_of byhand) from=$(count_of byhand)
    pody checkpoint byhand --stop
    pody restore byhand
    eventually "byhand counts beyond $from" counts_beyond byhand "$from"
    expect "the program of byhand" "$(name_of byhand)" "$name"
    pody rm -y byhand
}

end() {
    pody rm -y main
    expect "the containers that are left" "$(docker ps -aq)" ""
    end_server
    if grep -E ' ERROR |panicked' /var/log/pody.log | grep -v 'Docker is down'; then fail "the daemon's log has errors"; fi
}

for each in prepare basics quotas commits checkpoints schedules drains restarts adoption end; do
    part "$each"
    $each
done
part "done"
