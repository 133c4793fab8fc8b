#!/usr/bin/env bash
# Runs in the virtual machine of run.sh, as root: what a member would see there,
# `before` a reboot that pods are saved for, and `after` it.
set -euo pipefail

export PODY_API_BASE=http://127.0.0.1:8799 PODY_USERNAME=alice PODY_PASSWORD=not-a-secret-here
readonly patience=300

log() { printf '    %s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    pody actions >&2 || true
    journalctl -u pody --no-pager -o cat -n 30 >&2
    exit 1
}

# eventually WHAT COMMAND...
eventually() {
    local what=$1 begun=$SECONDS
    shift
    until "$@" >/dev/null 2>&1; do
        [ $((SECONDS - begun)) -lt $patience ] || fail "not within $patience s: $what"
        sleep 1
    done
}

# The name that the program chose at its start, and how far it has counted.
# The command has a terminal, which ends lines with CR LF.
count_file() { pody exec "$1" -- cat /root/count | tr -d '\r'; }
name_of() { count_file "$1" | cut -d' ' -f1; }
count_of() { count_file "$1" | cut -d' ' -f2; }
counts() {
    local from
    from=$(count_of "$1") && sleep 1 && [ "$(count_of "$1")" -gt "$from" ]
}

# is_resumed POD NAME FROM: the same program runs, and it was not restarted.
is_resumed() {
    eventually "$1 counts" counts "$1"
    [ "$(name_of "$1")" = "$2" ] || fail "$1 runs another program than before"
    [ "$(count_of "$1")" -ge "$3" ] || fail "$1 was restarted"
}

# All programs of a pod are in its own cgroup, and the cgroup has the limits.
is_in_its_cgroup() {
    local id pid
    id=$(docker inspect -f '{{.Id}}' "alice-$1")
    for pid in $(docker top "alice-$1" -eo pid | tail -n +2); do
        grep -q "$id" "/proc/$pid/cgroup" || fail "a program of $1 is in $(cat "/proc/$pid/cgroup")"
    done
    [ "$(docker exec "alice-$1" cat /sys/fs/cgroup/memory.max)" = 536870912 ] || fail "$1 has no memory limit"
}

# Chooses a name once, then writes it again and again with a count.
readonly program='
import os, time
name, n = os.urandom(8).hex(), 0
while True:
    n += 1
    with open("/root/new", "w") as file:
        file.write(f"{name} {n}\n")
    os.replace("/root/new", "/root/count")
    time.sleep(0.05)
'

before() {
    local name from findings pod
    findings=$(pody doctor) || fail "doctor: $findings"
    pody user add alice --password-stdin <<<"$PODY_PASSWORD"
    pody quota update alice --max-pods 3 --memory-limit 512m
    pody create main --image pody-base
    pody exec main -- "echo $(base64 -w0 <<<"$program") | base64 -d >/root/counter.py"
    pody exec -d main -- python3 /root/counter.py
    eventually "main counts" counts main
    name=$(name_of main) from=$(count_of main)

    log "saved while running"
    pody checkpoint main
    is_resumed main "$name" "$from"
    from=$(count_of main)
    log "saved and stopped, restored in place and as a twin"
    pody checkpoint main --stop
    pody restore main
    is_resumed main "$name" "$from"
    pody restore main --as twin
    is_resumed twin "$name" "$from"
    is_in_its_cgroup main
    is_in_its_cgroup twin
    log "deleted and restored"
    pody checkpoint twin --compression zstd
    pody rm -y twin
    pody restore twin
    is_resumed twin "$name" "$from"
    is_in_its_cgroup twin

    sed -i 's/^before_shutdown = false/before_shutdown = true/' /var/lib/pody/config.toml
    grep -q '^before_shutdown = true' /var/lib/pody/config.toml || fail "config.toml has no before_shutdown"
    # Each has a count of its own: the twin did not count while it was deleted.
    for pod in main twin; do
        count_file "$pod" >"/root/before.$pod"
    done
}

after() {
    local name from pod
    for pod in main twin; do
        log "$pod after the reboot"
        read -r name from <"/root/before.$pod"
        is_resumed "$pod" "$name" "$from"
        is_in_its_cgroup "$pod"
    done
    [ "$(pody drain --status)" = "nothing is drained" ] || fail "$(pody drain --status)"
}

"$1"
