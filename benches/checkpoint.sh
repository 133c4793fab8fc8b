#!/usr/bin/env bash
# Compares checkpoint and restore in one run, on one Docker with the same program: the raw disk, the engine's own
# `docker checkpoint create` / `docker start --checkpoint`, Podman if it is installed (apt install podman), and this pody.
# Prints Markdown tables. Needs root, Docker with "experimental": true, CRIU, the image pody-base, python3, and four times
# the largest size on the disk. Arguments are sizes in MiB; the default is 64, 1024 and 4096.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${PODY_BENCH_BINARY:-}
if [ -z "$binary" ]; then
    cargo build --release --locked
    binary=${CARGO_TARGET_DIR:-target}/release/pody
fi
exec python3 benches/checkpoint.py --binary "$binary" "$@"
