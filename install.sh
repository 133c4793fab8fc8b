#!/usr/bin/env bash
# Installs Pody on this machine, or upgrades and repairs it: see usage() below.
#
# Start reading at main() at the end. Every step checks first and changes only
# what is missing, so the script may be run again at any time. tests/run.sh
# sources this file for the same preparation.
set -euo pipefail

# /usr/local/sbin holds a newer CRIU than /usr/sbin may.
export PATH=/usr/local/sbin:$PATH:/usr/sbin:/sbin HOME=${HOME:-/root}

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Where things are installed. The old names are those of pody 0.4.1.
PODY_HOME=${PODY_HOME:-/var/lib/pody}
readonly binary=/usr/local/bin/pody
readonly old_names="podx pody-serve pody-user pody-quota pody-util pody-log"
readonly unit=/etc/systemd/system/pody.service
readonly drain_unit=/etc/systemd/system/pody-drain.service
readonly default_port=8799
# Used only where there is no systemd.
readonly daemon_log=/var/log/pody.log
readonly dockerd_log=/var/log/pody-dockerd.log
# The output of the programs that the steps run.
readonly install_log=/var/log/pody-install.log
# A newer CRIU than the distribution's lives in a prefix of its own.
readonly criu_prefix=/opt/criu
readonly criu_wrapper=/usr/local/sbin/criu
# The OCI runtime that restores pods: the binary under this name. tests/run.sh registers one of its own.
runtime_name=pody
runtime_path=/usr/local/bin/pody-runc

usage() {
    cat <<USAGE
Installs Pody on Debian 12/13 or Ubuntu 22.04/24.04. Running it again upgrades
and repairs; configuration, accounts and pods are kept.

usage: sudo ./install.sh [--port PORT] [--foreground]
       sudo ./install.sh --uninstall

  --port PORT    port of the web address and API (default $default_port, or what the
                 installed service uses)
  --foreground   install no service: run the daemon in this terminal
  --uninstall    stop the service and remove the program; keeps \$PODY_HOME,
                 pods and Docker
  --help         print this text

environment:
  PODY_HOME      configuration and database (default /var/lib/pody)
USAGE
}

# ---------------------------------------------------------------- messages

step() { current_step=$1 && printf '==> %s\n' "$1"; }
note() { printf '    %s\n' "$1"; }
warn() { printf 'warning: %s\n' "$1" >&2 && hint "${2:-}"; }
hint() { [ -z "$1" ] || printf 'hint: %s\n' "$1" >&2; }

# die RULE [NEXT STEP]
die() {
    printf 'error: %s\n' "$1" >&2
    hint "${2:-}"
    explained=yes
    exit 1
}

# Prints where the run stopped, unless die() explained it.
on_exit() {
    local status=$?
    [ "$status" = 0 ] || [ -n "${explained:-}" ] || {
        printf 'error: stopped at: %s\n' "${current_step:-the start}" >&2
        hint "see the end of $install_log; fix the cause and run this again, finished steps are skipped"
    }
}

# Runs a command with its output in the log; shows the log's end if it fails.
quiet() {
    printf '\n$ %s\n' "$*" >>"$install_log"
    "$@" >>"$install_log" 2>&1 && return
    tail -n 25 "$install_log" >&2
    return 1
}

# ---------------------------------------------------------------- the machine

has() { command -v "$1" >/dev/null 2>&1; }
has_systemd() { [ -d /run/systemd/system ]; }
# version_at_least HAVE WANT
version_at_least() { printf '%s\n%s\n' "$2" "$1" | sort -VC; }

require_root() { [ "$(id -u)" = 0 ] || die "$1 needs root" "run it with sudo"; }

require_known_distribution() {
    # shellcheck source=/dev/null
    . /etc/os-release
    case "$ID" in
    debian | ubuntu) ;;
    *) die "this is ${PRETTY_NAME:-$ID}; only Debian and Ubuntu are supported" \
        "elsewhere install Docker and Rust yourself, then: cargo build --release" ;;
    esac
}

# Installs the packages that are missing.
install_packages() {
    local package missing=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q ' installed$' || missing+=("$package")
    done
    # Building the image reads the mirror's address from apt's lists.
    # shellcheck disable=SC2016  # $(…) is apt's format language
    if [ ${#missing[@]} -gt 0 ] || ! apt-get indextargets --format '$(ORIGIN)' | grep -qxE 'Debian|Ubuntu'; then
        quiet apt-get update
    fi
    [ ${#missing[@]} -gt 0 ] || return 0
    note "installing ${missing[*]}"
    quiet env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
}

# ---------------------------------------------------------------- Docker

docker_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# Enables what pods need of the engine: the runtime that restores them, and pods that
# outlive dockerd (live-restore); the engine's own checkpoints (experimental) serve only
# where runc's directory is not found. Keeps every other key; prints "changed" if it wrote.
configure_dockerd() {
    mkdir -p /etc/docker
    python3 - /etc/docker/daemon.json "$runtime_name" "$runtime_path" <<'PYTHON'
import json, os, sys

path, name, program = sys.argv[1:]
old = {}
if os.path.exists(path):
    with open(path) as file:
        old = json.loads(file.read() or "{}")
runtimes = old.get("runtimes", {}) | {name: {"path": program}}
new = old | {"experimental": True, "live-restore": True, "runtimes": runtimes}
if new != old:
    with open(path + ".new", "w") as file:
        json.dump(new, file, indent=4)
        file.write("\n")
    os.replace(path + ".new", path)
    print("changed")
PYTHON
}

ensure_docker() {
    if ! has dockerd && ! docker_answers; then
        # Before the package starts its daemon, so that it starts with these settings.
        configure_dockerd >/dev/null
        install_packages docker.io
    fi
    # Since Debian 13 the client is a package of its own.
    has docker || install_packages docker-cli
    # Docker only recommends it, but starts no container without it where the kernel
    # has AppArmor enabled.
    if [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ] && ! has apparmor_parser; then
        install_packages apparmor
    fi
    if docker_answers; then
        adapt_running_dockerd
    elif has_systemd; then
        configure_dockerd >/dev/null
        quiet systemctl enable --now docker
    else
        configure_dockerd >/dev/null
        start_dockerd
    fi
    docker_answers || die "no Docker engine answers" "see the end of $install_log, or 'docker version'"
}

# An engine that was already there may run other people's containers: it is
# restarted only when it is idle.
adapt_running_dockerd() {
    local live_restore containers swarm
    # Both are read again on SIGHUP, and no container notices.
    if [ "$(configure_dockerd)" = changed ]; then
        reload_dockerd
    fi
    read -r live_restore containers swarm < <(docker info --format \
        '{{.LiveRestoreEnabled}} {{.ContainersRunning}} {{.Swarm.LocalNodeState}}')
    if [ "$live_restore" = true ] && has_runtime; then
        return
    fi
    if has_systemd && [ "$containers" = 0 ] && [ "$swarm" = inactive ] && systemctl is-active -q docker; then
        quiet systemctl restart docker
        return
    fi
    warn "Docker has not read /etc/docker/daemon.json: restores need its runtime \"$runtime_name\", pods that outlive dockerd need live-restore" \
        "restart Docker when its $containers running containers may stop"
}

has_runtime() { docker info --format '{{range $name, $_ := .Runtimes}}{{println $name}}{{end}}' | grep -qx "$runtime_name"; }

# Has dockerd read daemon.json again, and waits until it knows the runtime.
reload_dockerd() {
    local pid
    pid=$(cat /var/run/docker.pid 2>/dev/null || pidof -s dockerd) || return 0
    kill -HUP "$pid"
    for _ in $(seq 100); do
        ! has_runtime || return 0
        sleep 0.1
    done
}

# Without systemd: dockerd in the background, in a session of its own.
start_dockerd() {
    note "starting dockerd (log: $dockerd_log)"
    mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # A pid file from before a reboot may name a process that is another program now.
    if [ -f /var/run/docker.pid ] && ! grep -qs dockerd "/proc/$(cat /var/run/docker.pid)/comm"; then
        rm -f /var/run/docker.pid
    fi
    setsid nohup dockerd >>"$dockerd_log" 2>&1 </dev/null &
    for _ in $(seq 300); do
        docker_answers && return
        sleep 0.2
    done
    tail -n 25 "$dockerd_log" >&2
    die "dockerd does not answer after a minute" "see $dockerd_log"
}

# ---------------------------------------------------------------- CRIU

# Kernels since 6.16 refuse a socket option that CRIU before 4.2 reads of every
# socket, so nothing with a network connection could be saved; `criu check` does
# not notice. CRIU before 3.19 exits when runc calls it with action scripts.
criu_usable() {
    local version needed=3.19
    has criu && criu check >/dev/null 2>&1 || return 1
    version=$(criu --version | sed -n 's/^Version: //p')
    ! version_at_least "$(uname -r)" 6.16 || needed=4.2
    version_at_least "$version" "$needed"
}

# The distribution's CRIU, else a newer one. Fails when neither is usable.
ensure_criu() {
    criu_usable && return
    if [ -n "$(apt-cache madison criu 2>/dev/null)" ]; then
        install_packages criu || true
        hash -r
        criu_usable && return
    fi
    case "$ID" in
    debian) install_criu_from_sid || true ;;
    ubuntu) install_criu_from_ppa || true ;;
    esac
    hash -r
    criu_usable
}

# The newest CRIU package of the machine's own Debian mirror, unpacked with all its
# dependencies (libc too) into a prefix, so that the system's libraries stay as they
# are. A separate, empty package database makes apt resolve all of them.
install_criu_from_sid() {
    local mirror work package new=$criu_prefix.new
    note "the distribution's CRIU cannot save pods on kernel $(uname -r): fetching a newer one"
    # shellcheck disable=SC2016  # $(…) is apt's format language
    mirror=$(apt-get indextargets --format '$(CREATED_BY) $(ORIGIN) $(CODENAME) $(REPO_URI)' |
        awk -v codename="$VERSION_CODENAME" '$1 == "Packages" && $2 == "Debian" && $3 == codename { print $4; exit }')
    [ -n "$mirror" ] || return 1

    work=$(mktemp -d)
    chmod 0755 "$work" # apt fetches as the user _apt
    mkdir -p "$work/lists/partial" "$work/archives/partial"
    touch "$work/status"
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s sid main\n' "$mirror" >"$work/sources.list"
    cat >"$work/apt.conf" <<CONF
Dir::State::lists "$work/lists";
Dir::State::status "$work/status";
Dir::Cache "$work";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
CONF
    quiet env APT_CONFIG="$work/apt.conf" apt-get update || return 1
    quiet env APT_CONFIG="$work/apt.conf" apt-get install -y --no-install-recommends --download-only criu || return 1

    rm -rf "$new"
    mkdir -p "$new"
    for package in "$work"/archives/*.deb; do
        dpkg -x "$package" "$new" || return 1
    done
    rm -rf "$work" "$criu_prefix"
    mv "$new" "$criu_prefix"
    install -m 0755 /dev/stdin "$criu_wrapper" <<WRAPPER
#!/bin/sh
# Written by Pody's install.sh: runs the CRIU of $criu_prefix with its own libraries.
exec $(find "$criu_prefix" -path '*lib64/ld-linux*' -o -path '*/lib/ld-linux*' | head -n1) \\
    --library-path $(dirname "$(find "$criu_prefix" -name 'libc.so.6' | head -n1)") $criu_prefix/usr/sbin/criu "\$@"
WRAPPER
}

install_criu_from_ppa() {
    note "the distribution's CRIU cannot save pods on kernel $(uname -r): adding ppa:criu/ppa"
    install_packages software-properties-common || return 1
    quiet add-apt-repository -y ppa:criu/ppa || return 1
    quiet env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends criu
}

# ---------------------------------------------------------------- Rust

# Puts a cargo on PATH that is new enough for Cargo.toml. Under sudo the caller's
# toolchain serves as well; downloads still go to root's CARGO_HOME.
ensure_rust() {
    local user_home
    # First on PATH: the distribution's cargo, if any, is older.
    export PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
    cargo_usable && return
    user_home=$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)
    if PATH=$user_home/.cargo/bin:$PATH RUSTUP_HOME=$user_home/.rustup cargo_usable; then
        export PATH=$user_home/.cargo/bin:$PATH RUSTUP_HOME=$user_home/.rustup
        return
    fi
    if has rustup; then
        quiet rustup toolchain install stable --profile minimal
        export RUSTUP_TOOLCHAIN=stable
    else
        note "installing Rust with rustup"
        quiet bash -o pipefail -c "curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
            sh -s -- -y --profile minimal --no-modify-path"
        hash -r
    fi
    cargo_usable || die "no cargo $(required_rust) or newer" "install one from https://rustup.rs and run this again"
}

required_rust() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repo/Cargo.toml"; }
cargo_usable() {
    has cargo && version_at_least "$(cd "$repo" && cargo --version 2>/dev/null | cut -d' ' -f2)" "$(required_rust)"
}

# ---------------------------------------------------------------- preparation

# Installs what building, running and testing Pody needs.
# prepare criu-optional|criu-required: whether a missing CRIU is fatal.
prepare() {
    step "packages"
    require_known_distribution
    install_packages ca-certificates curl gcc git iptables libc6-dev make mmdebstrap openssh-client pkg-config procps python3

    step "Docker"
    ensure_docker

    step "CRIU"
    if ! ensure_criu; then
        [ "$1" = criu-optional ] || die "no CRIU works on kernel $(uname -r)" "see the end of $install_log"
        warn "no CRIU works on kernel $(uname -r): checkpoints stay off, all else works" \
            "see the end of $install_log; run this again to retry"
    fi

    step "Rust"
    ensure_rust

    step "pod image"
    quiet "$repo/images/build.sh" pody-base
}

# ---------------------------------------------------------------- the program

build() {
    # Another user's checkout gets no build output that only root can delete.
    if [ "$(stat -c %u "$repo")" != 0 ]; then
        export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-/var/cache/pody/target}
    fi
    built=${CARGO_TARGET_DIR:-$repo/target}/release/pody
    quiet cargo build --manifest-path "$repo/Cargo.toml" --release --locked --bin pody
}

# Installs the binary under all its names. Sets binary_changed.
install_binary() {
    local name
    binary_changed=
    if ! cmp -s "$built" "$binary"; then
        set_aside "$binary"
        install -m 0755 "$built" "$binary.new"
        mv -f "$binary.new" "$binary"
        binary_changed=yes
    fi
    # A later upgrade replaces the binary: the next container that is created gets the new one.
    ln -sfn "${binary##*/}" "$runtime_path"
    for name in $old_names; do
        set_aside "${binary%/*}/$name"
        ln -sfn "${binary##*/}" "${binary%/*}/$name"
    done
}

# pody 0.4.1, in Python, has programs of the same names; they are kept beside ours.
set_aside() {
    if [ ! -L "$1" ] && [ -f "$1" ] && [ "$(head -c2 "$1")" = '#!' ]; then
        note "$1 was a script; kept as $1.old"
        mv "$1" "$1.old"
    fi
}

write_config() {
    install -d -m 0700 "$PODY_HOME"
    [ -e "$PODY_HOME/config.toml" ] || install -m 0600 "$repo/config.toml.example" "$PODY_HOME/config.toml"
}

# Sets admin to the name of an administrator, and admin_password if it is new.
ensure_admin() {
    admin_password=
    admin=$("$binary" user list --json |
        python3 -c 'import json, sys; print(next((u["name"] for u in json.load(sys.stdin) if u["is_admin"]), ""))')
    [ -z "$admin" ] || return 0
    admin="admin"
    admin_password=$(head -c 18 /dev/urandom | base64 | tr '+/' '-_')
    quiet "$binary" user add "$admin" --admin --password-stdin <<<"$admin_password"
    note "name:     $admin"
    note "password: $admin_password   (shown only once; change it with: pody passwd)"
}

# ---------------------------------------------------------------- the service

# The port given, else the one in use, else the default.
choose_port() {
    local pid
    [ -n "$port" ] || port=$(sed -n 's/^ExecStart=.* --port \([0-9]*\).*/\1/p' "$unit" 2>/dev/null || true)
    pid=$(daemon)
    [ -n "$port" ] || [ -z "$pid" ] ||
        port=$(tr '\0' '\n' <"/proc/$pid/cmdline" | grep -x -A1 -e --port | tail -n1 || true)
    port=${port:-$default_port}
}

write_unit() {
    local text
    text=$(PODY_HOME=$PODY_HOME "$binary" util systemd-unit --port "$port")
    unit_changed=
    [ "$text" != "$(cat "$unit" 2>/dev/null)" ] || return 0
    printf '%s\n' "$text" >"$unit"
    unit_changed=yes
}

# Saves pods when the host goes down, if before_shutdown is set. Never restarted:
# its work is done when it is stopped.
write_drain_unit() {
    PODY_HOME=$PODY_HOME "$binary" util systemd-unit --drain >"$drain_unit"
}

start_service() {
    write_unit
    write_drain_unit
    quiet systemctl daemon-reload
    quiet systemctl enable pody
    quiet systemctl enable --now pody-drain
    if [ -n "$binary_changed$unit_changed" ] || ! systemctl is-active -q pody; then
        quiet systemctl restart pody
    fi
}

# The process of the daemon of this $PODY_HOME, however it was started: it holds a
# lock (proc_locks(5)). Its program may have been replaced or removed since.
daemon() {
    local inode pid
    inode=$(stat -c %i "$PODY_HOME/pody.lock" 2>/dev/null) || return 0
    awk -v "inode=:$inode" '$2 == "FLOCK" && index($6 "$", inode "$") { print $5 }' /proc/locks | while read -r pid; do
        [[ "$(readlink "/proc/$pid/exe" 2>/dev/null)" != "$binary"* ]] || echo "$pid"
    done
}

# Without systemd: the daemon in the background, in a session of its own.
start_daemon() {
    ! has_systemd || ! systemctl is-active -q pody || die "the service pody is running" "stop it first: systemctl stop pody"
    if [ -n "$(daemon)" ]; then
        [ -n "$binary_changed" ] || ! healthy || return 0
        stop_daemon
    fi
    ! healthy || die "something else answers on port $port" "stop it, or choose another with --port"
    setsid nohup "$binary" serve --port "$port" >>"$daemon_log" 2>&1 </dev/null &
}

stop_daemon() {
    local pid
    pid=$(daemon)
    [ -n "$pid" ] || return 0
    kill -TERM "$pid"
    for _ in $(seq 100); do
        [ -d "/proc/$pid" ] || break
        sleep 0.1
    done
    [ ! -d "/proc/$pid" ] || kill -KILL "$pid"
}

uses_tls() { grep -q '^ *tls_cert *=' "$PODY_HOME/config.toml"; }
scheme() { if uses_tls; then echo https; else echo http; fi; }
healthy() { curl -ksf --max-time 2 "$(scheme)://127.0.0.1:$port/healthz" >/dev/null 2>&1; }

wait_until_healthy() {
    for _ in $(seq 150); do
        healthy && return
        sleep 0.2
    done
    if has_systemd && [ -z "$foreground" ]; then
        journalctl -u pody -n 20 --no-pager >&2 || true
        die "the service does not answer on port $port" "see journalctl -u pody"
    fi
    tail -n 20 "$daemon_log" >&2
    die "the daemon does not answer on port $port" "see $daemon_log"
}

# ---------------------------------------------------------------- the proof

# Creates a pod as a user would and runs a command in it. The first installation
# keeps it for the admin to try; later ones delete it.
prove() {
    local made=''
    if uses_tls; then
        note "skipped: with tls_cert the daemon's name is needed, not 127.0.0.1"
        return
    fi
    if ! grep -q '^name *= *"pody-base' "$PODY_HOME/config.toml"; then
        note "skipped: pody-base is not among the images of $PODY_HOME/config.toml"
        return
    fi
    export PODY_API_BASE=http://127.0.0.1:$port
    if [ -n "$admin_password" ]; then
        export PODY_USERNAME=$admin PODY_PASSWORD=$admin_password
    else
        PODY_TOKEN=$("$binary" user token "$admin" --expires 1h)
        export PODY_TOKEN
    fi
    if ! "$binary" exec hello -- true >>"$install_log" 2>&1; then
        quiet "$binary" create hello --image pody-base
        made=yes
    fi
    note "pod hello: $("$binary" exec hello -- uname -a)"
    if [ -n "$made" ] && [ -z "$admin_password" ]; then
        quiet "$binary" rm -y hello
    else
        hello_stays=yes
    fi
    unset PODY_USERNAME PODY_PASSWORD PODY_TOKEN
}

farewell() {
    local address
    address=$(scheme)://$(hostname -f 2>/dev/null || hostname):$port
    cat <<TEXT

Pody runs at $address

  As the admin, on this machine:
    export PODY_API_BASE=$(scheme)://127.0.0.1:$port
    pody login                        asks for name and password, stores a token
${hello_stays:+    pody ssh hello                    a shell in the pod
}    pody user add NAME                an account for a member; asks for the password
    pody doctor                       checks this machine

  A member, from anywhere:
    export PODY_API_BASE=$address
    pody login
    pody create work --image pody-base
    pody ssh work

  Configuration: $PODY_HOME/config.toml
TEXT
    if has_systemd; then
        echo "  Service:       systemctl status pody; journalctl -u pody"
    elif [ -z "$foreground" ]; then
        cat <<TEXT
  The daemon runs in the background: log $daemon_log
    stop it:         kill $(daemon)
    at every boot:   PODY_HOME=$PODY_HOME $binary serve --port $port
                     (no systemd here: add it to what this machine starts at boot)
TEXT
    fi
}

# ---------------------------------------------------------------- removal

# Takes the runtime out of Docker's configuration. Pods that still exist name it, so then it becomes
# plain runc: they can be started as before.
unregister_runtime() {
    local users
    docker_answers || return 0
    users=$(docker ps -aq | xargs -r docker inspect --format '{{.HostConfig.Runtime}}' | grep -cx "$runtime_name" || true)
    python3 - /etc/docker/daemon.json "$runtime_name" "$users" <<'PYTHON'
import json, os, sys

path, name, users = sys.argv[1:]
try:
    with open(path) as file:
        config = json.load(file)
except FileNotFoundError:
    sys.exit()
runtimes = config.get("runtimes", {})
if name in runtimes:
    del runtimes[name]
    if users != "0":
        runtimes[name] = {"path": "runc"}
    elif not runtimes:
        del config["runtimes"]
    with open(path + ".new", "w") as file:
        json.dump(config, file, indent=4)
        file.write("\n")
    os.replace(path + ".new", path)
PYTHON
    [ ! -s /var/run/docker.pid ] || kill -HUP "$(cat /var/run/docker.pid)"
}

uninstall() {
    local name
    step "removing Pody"
    if has_systemd && [ -e "$unit" ]; then
        [ ! -e "$drain_unit" ] || quiet systemctl disable --now pody-drain
        quiet systemctl disable --now pody
        rm -f "$unit" "$drain_unit"
        quiet systemctl daemon-reload
    fi
    stop_daemon
    for name in $old_names; do
        name=${binary%/*}/$name
        [ "$(readlink "$name")" != "${binary##*/}" ] || rm -f "$name"
    done
    unregister_runtime
    rm -f "$runtime_path" "$binary"
    note "kept: $PODY_HOME (configuration, accounts), the pods, Docker, CRIU, the pod image"
    note "running this script without --uninstall brings everything back"
}

# ---------------------------------------------------------------- main

main() {
    local action=install
    port='' foreground=''
    while [ $# -gt 0 ]; do
        case "$1" in
        --port)
            if ! [[ "${2:-}" =~ ^[0-9]{1,5}$ ]] || [ "$2" -lt 1 ] || [ "$2" -gt 65535 ]; then
                die "--port needs a number from 1 to 65535" "for example: --port $default_port"
            fi
            port=$2
            shift
            ;;
        --foreground) foreground=yes ;;
        --uninstall) action=uninstall ;;
        -h | --help) usage && exit 0 ;;
        *) die "unknown option $1" "./install.sh --help lists the options" ;;
        esac
        shift
    done
    require_root "installing"
    trap on_exit EXIT
    export PODY_HOME
    if [ "$action" = uninstall ]; then
        uninstall
        return
    fi

    prepare criu-optional
    step "building (the first time takes some minutes)"
    build
    step "program: $binary"
    install_binary
    step "configuration: $PODY_HOME"
    write_config
    choose_port
    step "admin account"
    ensure_admin
    step "service on port $port"
    if has_systemd && [ -z "$foreground" ]; then start_service; else start_daemon; fi
    wait_until_healthy
    step "proof"
    prove
    farewell
    if [ -n "$foreground" ]; then
        stop_daemon
        printf '\nrunning in this terminal; Ctrl-C stops the daemon, pods keep running\n'
        exec "$binary" serve --port "$port"
    fi
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    main "$@"
fi
