#!/usr/bin/env bash
# Compares the original pody 0.4.1 server, this one and the raw engine in one run, on one Docker with the same pods and the
# same stand-in for NVIDIA's library. Prints Markdown tables. Takes about five minutes; needs root, Docker, the image
# pody-base, wrk and python3.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v wrk >/dev/null || apt-get install -y -qq wrk >/dev/null
cargo build --release --locked
cargo build --release --locked -p nvml-stand-in

# The original, in an environment of its own.
venv=${PODY_BENCH_VENV:-/var/cache/pody-bench/original-0.4.1}
if [ ! -x "$venv/bin/pody-serve" ]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet 'pody[server]==0.4.1' 'fastapi==0.115.14'
fi

built=${CARGO_TARGET_DIR:-target}/release
exec python3 benches/compare.py --binary "$built/pody" --original "$venv/bin" --nvml "$built/libnvml_stand_in.so"
