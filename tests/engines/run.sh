#!/usr/bin/env bash
# The round of round.sh on the Docker of Debian 12, 13 and sid, in boxes of this machine (box.sh):
#
#   sudo ./tests/engines/run.sh [BOX...]
#   PODY=target/release/pody sudo -E ./tests/engines/run.sh sid
#
# The systems are made at the first run, from the machine's own Debian mirror. The boxes run side by side; each ends with
# what ran in it.
set -euo pipefail
# The binary to test; without one, what `cargo build` made.
pody=${PODY:+$(realpath "$PODY")}
cd "$(dirname "${BASH_SOURCE[0]}")"

# How long a round may take, seconds.
readonly limit=240

skip() {
    printf '    skipped: %s\n' "$1"
    exit 0
}
[ ! -e /sys/fs/cgroup/cgroup.controllers ] || skip "boxes need cgroups of version 1"
grep -qx ID=debian /etc/os-release || skip "boxes are made from a mirror of Debian, and this is another system"

readonly all="bookworm trixie sid sid-containerd"
read -ra chosen <<<"${*:-$all}"
logs=$(mktemp -d)

# The round in one box.
round() {
    ./box.sh start "$1" "$pody" && ./box.sh enter "$1" timeout "$limit" round.sh
}

trap 'for box in "${chosen[@]}"; do ./box.sh stop "$box"; done; rm -rf "${logs:?}"' EXIT

declare -A running
for box in "${chosen[@]}"; do
    ./box.sh make "$box"
    round "$box" >"$logs/$box" 2>&1 &
    running[$box]=$!
done
status=0
for box in "${chosen[@]}"; do
    if wait "${running[$box]}"; then
        printf '    %s: %s\n' "$box" "$(tail -n 1 "$logs/$box")"
    else
        status=1
        printf 'error: %s\n' "$box" >&2
        tail -n 60 "$logs/$box" >&2
    fi
done
exit "$status"
