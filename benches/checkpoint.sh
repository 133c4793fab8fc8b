#!/usr/bin/env bash
# Checkpoint and restore side by side, in one run, on one Docker with the same program: the raw disk, the engine's own
# `docker checkpoint create` / `docker start --checkpoint`, Podman (apt install podman) where it is installed, and this pody. Prints Markdown
# tables. Needs root, Docker with "experimental": true, CRIU, the image pody-base, python3, and four times the largest size
# on the disk. Sizes in MiB as arguments; without them 64, 1024 and 4096.
set -euo pipefail
cd "$(dirname "$0")/.."

binary=${PODY_BENCH_BINARY:-}
if [ -z "$binary" ]; then
    cargo build --release --locked
    binary=${CARGO_TARGET_DIR:-target}/release/pody
fi
exec python3 benches/checkpoint.py --binary "$binary" "$@"
