#!/usr/bin/env bash
# Runs every test on a bare machine: sudo ./tests/run.sh
#
# Sets up what the tests need (packages, Docker, CRIU, the pod image, the client
# of pody 0.4.1, an S3 server), then checks format, lints and tests. Nothing is skipped here: a
# missing capability fails the run. dockerd keeps running afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source-path=SCRIPTDIR source=../install.sh
. ./install.sh

# The original, client and server, for the compatibility tests; kept between runs.
readonly client_version=0.4.1
readonly client_home=/var/cache/pody-tests/original-$client_version
# A server that speaks S3, for the tests of the remote store.
readonly moto_version=5.2.5
readonly s3_home=/var/cache/pody-tests/moto-$moto_version

ensure_python_client() {
    install_packages python3-venv
    if [ ! -e "$client_home/complete" ]; then
        rm -rf "$client_home"
        mkdir -p "${client_home%/*}"
        quiet python3 -m venv "$client_home"
        quiet "$client_home/bin/pip" install --quiet "pody[server]==$client_version" fastapi==0.115.14
        touch "$client_home/complete"
    fi
    export PODY_TEST_PYCLIENT=$client_home
}

ensure_s3_server() {
    if [ ! -e "$s3_home/complete" ]; then
        rm -rf "$s3_home"
        quiet python3 -m venv "$s3_home"
        quiet "$s3_home/bin/pip" install --quiet "moto[server]==$moto_version"
        touch "$s3_home/complete"
    fi
    export PODY_TEST_MOTO=$s3_home
}

ensure_rust_components() {
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        quiet rustup component add rustfmt clippy
    fi
}

# Adds up the `test result` lines of all test programs.
summary() {
    awk '/^test result:/ {
            passed += $4; failed += $6; ignored += $8; programs++
        }
        END { printf "%d passed, %d failed, %d ignored in %d test programs\n", passed, failed, ignored, programs }' "$1"
}

require_root "the whole test suite"
trap on_exit EXIT
prepare criu-required
step "pody $client_version, the original"
ensure_python_client
step "moto $moto_version, an S3 server"
ensure_s3_server
step "rustfmt and clippy"
ensure_rust_components

export PODY_TESTS_REQUIRE_ALL=1 CARGO_TERM_COLOR=never RUST_BACKTRACE=1
trap - EXIT # from here on cargo says itself what failed

step "cargo fmt"
cargo fmt --all --check

step "cargo clippy"
cargo clippy --locked --workspace --all-targets --features failpoints -- -D warnings

step "cargo test"
output=$(mktemp)
status=0
cargo test --locked --workspace --features failpoints --no-fail-fast 2>&1 | tee "$output" || status=$?

step "a real card, where there is one"
tests/gpu/run.sh || status=$?

step "summary"
note "$(summary "$output") ($((SECONDS / 60)) min $((SECONDS % 60)) s)"
rm -f "$output"
exit "$status"
