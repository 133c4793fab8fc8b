#!/usr/bin/env bash
# Repeats the tests beside this, which use a stand-in for NVIDIA's library, on a machine with a card: sudo ./tests/gpu/run.sh
#
# Starts a daemon of its own, and programs that take GPU memory and compute, on the host and in a pod, and compares the
# daemon's output with nvidia-smi's own list. Without a card it says why it skips, and exits with 0; with
# PODY_TESTS_REQUIRE_ALL=gpu that is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

skip() {
    printf 'skipped: tests/gpu/run.sh: %s\n' "$1" >&2
    [ "${PODY_TESTS_REQUIRE_ALL:-}" = gpu ] && exit 1
    exit 0
}

command -v nvidia-smi >/dev/null || skip "there is no nvidia-smi, so no NVIDIA driver"
# If the driver sees no card, nvidia-smi exits with 0 and says so in words.
cards=$(nvidia-smi --query-gpu=uuid --format=csv,noheader 2>&1) || skip "nvidia-smi fails: $cards"
case $cards in GPU-*) ;; *) skip "nvidia-smi lists no GPU: $cards" ;; esac
command -v python3 >/dev/null || skip "there is no python3 for the programs that compute"
python3 -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2>/dev/null || skip "there is no libcuda.so.1 to compute with"
[ "$(id -u)" = 0 ] || skip "only root sees which container a process is in"

binary=${PODY_BINARY:-}
if [ -z "$binary" ]; then
    cargo build --locked --features failpoints
    binary=${CARGO_TARGET_DIR:-target}/debug/pody
fi
exec python3 tests/gpu/real.py --binary "$binary"
