# shellcheck shell=bash
# What scripts/up and scripts/test share: finding out what this machine lacks, installing it, and going on as the
# person who called. Sourced, never run.
#
# `set_up` writes nothing to stdout and reads nothing from stdin: both belong to the dialogue that follows. Every step
# asks first whether it has anything to do, so a second run installs nothing and starts nothing.

# shellcheck disable=SC2154  # `root`, the clone's top folder, is set by the script that sources this file.
readonly rustup_version=1.29.0
readonly docker_socket=/var/run/docker.sock
readonly docker_pidfile=/var/run/docker.pid
readonly dockerd_log=/var/log/musher-dockerd.log
readonly unavailable=69 # sysexits' EX_UNAVAILABLE: a part is missing and cannot be had
readonly proxy_variables=http_proxy,https_proxy,no_proxy,HTTP_PROXY,HTTPS_PROXY,NO_PROXY

# What the build and the gateway need, by Debian's package names; scripts/test adds its own.
parts=(gcc libc6-dev make git curl ca-certificates openssh-client mmdebstrap uidmap)

say() { printf '==> %s\n' "$*" >&2; }

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit "$unavailable"
}

have() { command -v "$1" >/dev/null 2>&1; }

# Runs a step with its output kept back; shows the end of it only when the step fails.
quietly() {
    local log
    log=$(mktemp)
    if "$@" </dev/null >"$log" 2>&1; then
        rm -f "$log"
        return
    fi
    tail -n 20 "$log" >&2
    rm -f "$log"
    die "this failed: $*"
}

## The account

# The person who called: under sudo the one who called sudo, otherwise whoever runs this.
calling_user() {
    if [ "$EUID" -eq 0 ] && [ -n "${SUDO_USER:-}" ]; then
        printf '%s' "$SUDO_USER"
    else
        id -un
    fi
}

# Runs a command as root. The proxy settings go along; nothing else of the environment does.
as_root() {
    if [ "$EUID" -eq 0 ]; then
        "$@"
    else
        sudo --preserve-env="$proxy_variables" -- "$@"
    fi
}

# Makes sure that root's rights can be had, before a step needs them. `$@` is what to say when they cannot.
require_root() {
    [ "$EUID" -ne 0 ] || return 0
    if have sudo && sudo -- true; then return; fi
    die "$@"
}

prepare_environment() {
    local cargo_home
    if [ -z "${HOME:-}" ]; then
        HOME=$(getent passwd "$EUID" | cut -d: -f6)
        [ -n "$HOME" ] || die "HOME is not set and uid $EUID has no entry in the user database; set HOME."
        export HOME
    fi
    cargo_home=${CARGO_HOME:-$HOME/.cargo}
    case ":$PATH:" in
    *":$cargo_home/bin:"*) ;;
    *) PATH=$cargo_home/bin:$PATH ;;
    esac
    # A person's PATH on Debian leaves out the folders that dockerd stands in.
    PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
    export PATH DEBIAN_FRONTEND=noninteractive
}

## Packages

part_is_present() {
    case "$1" in
    ca-certificates) [ -s /etc/ssl/certs/ca-certificates.crt ] || [ -s /etc/pki/tls/certs/ca-bundle.crt ] ;;
    docker-cli) have docker ;;
    debian-archive-keyring) [ -s /usr/share/keyrings/debian-archive-keyring.gpg ] ;;
    docker.io) have dockerd || socket_is_closed || engine_answers ;;
    iproute2) have ip ;;
    libc6-dev) [ -e /usr/include/stdlib.h ] ;;
    openssh-client) have ssh && have ssh-keygen && have sftp ;;
    procps) have ps ;;
    python3-venv) [ -n "$(python_with_venv)" ] ;;
    uidmap) have newuidmap ;;
    *) have "$1" ;;
    esac
}

# The first Python that can make a virtual environment: the one on PATH may be a shim that cannot.
python_with_venv() {
    local candidate
    for candidate in python3 /usr/bin/python3; do
        if have "$candidate" &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
}

# Prints the packages that are missing, one a line.
missing_parts() {
    local part wanted=("${parts[@]}")
    # Debian has its own keys; mmdebstrap needs them on Debian's relatives.
    have apt-get && wanted+=(debian-archive-keyring)
    # With an engine comes its client: the documents speak of `docker logs`.
    [ -n "${DOCKER_HOST:-}" ] || part_is_present docker.io || wanted+=(docker.io docker-cli)
    for part in $(printf '%s\n' "${wanted[@]}" | sort -u); do
        part_is_present "$part" || printf '%s\n' "$part"
    done
    # Where the kernel has AppArmor on, the engine starts no container without its parser.
    if [ -z "${DOCKER_HOST:-}" ] && ! have apparmor_parser &&
        [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ]; then
        printf 'apparmor\n'
    fi
}

# Prints the packages of the parts `$@`, one a line. Debian 12 has the engine's client in the engine's own package; which
# it is is known for sure once the package lists are there.
packages_of() {
    local part
    for part in "$@"; do
        if [ "$part" = docker-cli ] && ! apt-cache show docker-cli >/dev/null 2>&1; then
            part=docker.io
        fi
        printf '%s\n' "$part"
    done | sort -u
}

install_parts() {
    local missing packages
    mapfile -t missing < <(missing_parts)
    [ "${#missing[@]}" -gt 0 ] || return 0
    have apt-get || die "this system has no apt-get. Install these with its own package tool, then run this again" \
        "(Debian's names): ${missing[*]}"
    require_root "these packages are missing, and only root may install them. As root, run:" \
        "apt-get update && apt-get install --no-install-recommends $(packages_of "${missing[@]}" | xargs)"
    say "installing from the distribution's package mirror: $(packages_of "${missing[@]}" | xargs)"
    quietly as_root apt-get -q -o DPkg::Lock::Timeout=300 update
    mapfile -t packages < <(packages_of "${missing[@]}")
    quietly as_root apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${packages[@]}"
}

## The engine

# Whether there is an engine's socket that we may not write to.
socket_is_closed() { [ -z "${DOCKER_HOST:-}" ] && [ -S "$docker_socket" ] && [ ! -w "$docker_socket" ]; }

require_leave() {
    require_root "$(id -un) may not use the Docker engine. As root, run: usermod -aG docker $(id -un)" \
        "(then log in again)"
}

# Whether an engine answers where Musher will look for it. Where the socket is closed to us, root asks.
engine_answers() {
    local host=${DOCKER_HOST:-unix://$docker_socket} ask=() url
    have curl || return 1
    case "$host" in
    unix://*) url=(--unix-socket "${host#unix://}" http://localhost/_ping) ;;
    tcp://*) url=("http://${host#tcp://}/_ping") ;;
    *) die "DOCKER_HOST=$host is neither unix:// nor tcp://; Musher speaks to these two." ;;
    esac
    if socket_is_closed; then
        ask=(as_root)
    fi
    "${ask[@]}" curl --silent --fail --noproxy '*' --max-time 5 --output /dev/null "${url[@]}" </dev/null
}

# Where the system has no Docker socket, its Podman counts. An engine of the caller's own is rootless, which the gateway
# refuses: it must not keep Docker from being installed. The gateway looks at the same places in the same order.
find_engine() {
    local socket=/run/podman/podman.sock
    if [ -n "${DOCKER_HOST:-}" ] || [ -S "$docker_socket" ]; then return; fi
    if [ -S "$socket" ] && DOCKER_HOST=unix://$socket engine_answers; then
        export DOCKER_HOST=unix://$socket
    fi
}

dockerd_is_alive() {
    [ -r "$docker_pidfile" ] && [ "$(cat "/proc/$(cat "$docker_pidfile")/comm" 2>/dev/null)" = dockerd ]
}

ensure_engine() {
    if socket_is_closed; then require_leave; fi
    engine_answers && return
    [ -z "${DOCKER_HOST:-}" ] || die "no engine answers at DOCKER_HOST=$DOCKER_HOST; start it, or unset DOCKER_HOST."
    require_root "no Docker engine answers on $docker_socket, and only root may start one. As root, run:" \
        "systemctl start docker (without systemd: dockerd)"
    if [ -d /run/systemd/system ]; then
        say "starting the Docker engine (systemctl start docker)"
        quietly as_root systemctl start docker
    elif dockerd_is_alive; then
        say "waiting for the Docker engine that is starting (pid $(cat "$docker_pidfile"))"
    else
        say "starting the Docker engine in the background: log $dockerd_log, pid file $docker_pidfile"
        # A session of its own: it outlives this script, and Ctrl-C at the prompt does not reach it.
        # shellcheck disable=SC2016  # the inner shell, which is root's, expands these
        as_root sh -c 'exec setsid --fork dockerd --pidfile "$1" </dev/null >>"$2" 2>&1' sh \
            "$docker_pidfile" "$dockerd_log"
    fi
    wait_for_engine
}

wait_for_engine() {
    local deadline=$((SECONDS + 60))
    until engine_answers; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            if [ -r "$dockerd_log" ]; then tail -n 10 "$dockerd_log" >&2; fi
            die "the Docker engine did not answer on $docker_socket within a minute; its log says why."
        fi
        sleep 0.3
    done
}

in_docker_group() { id -nG "$1" | tr ' ' '\n' | grep -qx docker; }

join_docker_group() {
    in_docker_group "$1" && return
    say "adding $1 to the group docker, whose members may use the engine (as good as root on this machine)"
    quietly as_root usermod -aG docker "$1"
}

# Starts this script anew as `$1` with the arguments that follow, and with that user's groups as the database has
# them now. The environment is kept, so that no setting has to pass through an argument list.
restart_as() {
    local user=$1 home
    shift
    home=$(getent passwd "$user" | cut -d: -f6)
    local as_user=(setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups
        env -u SUDO_USER -u SUDO_UID -u SUDO_GID -u SUDO_COMMAND
        "HOME=$home" "USER=$user" "LOGNAME=$user" "PATH=$PATH" "$root/scripts/$(basename "$0")" "$@")
    if [ "$EUID" -eq 0 ]; then
        exec "${as_user[@]}"
    fi
    exec sudo --preserve-env -- "${as_user[@]}"
}

# Whether `$1`, whom sudo names, gets at this clone at all; one below /root is root's own.
require_reachable_clone() {
    if ! setpriv --reuid="$1" --regid="$(id -g "$1")" --init-groups test -r "$root/scripts/setup.sh"; then
        die "$1, who called sudo, cannot read $root. Clone it where $1 can, or run it as root all the way:" \
            "env -u SUDO_USER $0"
    fi
}

# From here on everything runs as the calling user, who may use the engine. Returns where that is already so.
continue_as_caller() {
    local user
    user=$(calling_user)
    if [ "$EUID" -eq 0 ]; then
        [ "$user" != root ] || return 0
        require_reachable_clone "$user"
        [ -n "${DOCKER_HOST:-}" ] || join_docker_group "$user"
        say "installed as root; going on as $user"
        restart_as "$user" "$@"
    fi
    socket_is_closed || return 0
    require_leave
    if id -nG | tr ' ' '\n' | grep -qx docker; then
        die "$user is in the group docker but may not write to $docker_socket; look at its owner and mode."
    fi
    join_docker_group "$user"
    say "going on with the group docker in effect"
    restart_as "$user" "$@"
}

## Rust

rust_channel() { sed -n 's/^channel *= *"\(.*\)"$/\1/p' "$root/rust-toolchain.toml"; }

# A cargo of the pinned version or a later one is used as it is, wherever it comes from.
rust_is_ready() {
    local wanted found tool
    wanted=$(rust_channel)
    found=$(cd "$root" && RUSTUP_AUTO_INSTALL=0 cargo --version 2>/dev/null | cut -d' ' -f2)
    [ -n "$found" ] || return 1
    [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ] || return 1
    for tool in "${rust_tools[@]}"; do
        (cd "$root" && RUSTUP_AUTO_INSTALL=0 cargo "$tool" --version >/dev/null 2>&1) || return 1
    done
}

# cargo's subcommands that must be there too; scripts/test names some.
rust_tools=()

rustup_target() {
    case "$(uname -m)" in
    x86_64) printf 'x86_64-unknown-linux-gnu 4acc9acc76d5079515b46346a485974457b5a79893cfb01112423c89aeb5aa10\n' ;;
    aarch64) printf 'aarch64-unknown-linux-gnu 9732d6c5e2a098d3521fca8145d826ae0aaa067ef2385ead08e6feac88fa5792\n' ;;
    *) die "no pinned Rust installer for $(uname -m); install Rust $(rust_channel) yourself, then run this again." ;;
    esac
}

install_rustup() {
    local target digest folder url
    read -r target digest < <(rustup_target)
    [ -n "${digest:-}" ] || exit "$unavailable"
    folder=$(mktemp -d)
    url=${RUSTUP_UPDATE_ROOT:-https://static.rust-lang.org/rustup}/archive/$rustup_version/$target/rustup-init
    say "fetching the Rust installer (rustup $rustup_version) from the Rust project's download server"
    if ! curl --silent --show-error --fail --location --retry 2 --max-time 300 --output "$folder/rustup-init" "$url" \
        </dev/null >&2; then
        rm -rf "$folder"
        die "the Rust installer could not be fetched. Without a way to that server: install Rust $(rust_channel)" \
            "from where you can, or name a mirror in RUSTUP_UPDATE_ROOT and RUSTUP_DIST_SERVER; then run this again."
    fi
    if ! printf '%s  %s\n' "$digest" "$folder/rustup-init" | sha256sum --check --status; then
        rm -rf "$folder"
        die "the Rust installer that was fetched is not the one pinned here (its sha256 differs); it was not run."
    fi
    chmod +x "$folder/rustup-init"
    quietly "$folder/rustup-init" -y --no-modify-path --profile minimal --default-toolchain none
    rm -rf "$folder"
}

ensure_rust() {
    rust_is_ready && return
    have rustup || install_rustup
    say "installing Rust $(rust_channel) for $(id -un) from the Rust project's download server"
    quietly rustup toolchain install "$(rust_channel)" --profile minimal --component clippy,rustfmt --no-self-update
    rust_is_ready || die "Rust $(rust_channel) was installed, but cargo does not answer with it in $root."
}

# Runs cargo in the clone, where rust-toolchain.toml counts; the caller's own folder stays as it is.
in_clone() { (cd "$root" && "$@" </dev/null >&2); }

target_dir() {
    case "${CARGO_TARGET_DIR:-target}" in
    /*) printf '%s' "$CARGO_TARGET_DIR" ;;
    *) printf '%s' "$root/${CARGO_TARGET_DIR:-target}" ;;
    esac
}

require_writable_clone() {
    local folder
    for folder in "$root" "$(target_dir)"; do
        if [ -e "$folder" ] && [ ! -w "$folder" ]; then
            die "$(id -un) may not write to $folder. Give it back first: sudo chown -R $(id -un) $folder"
        fi
    done
}

## The whole

# Everything that must be there before a build; `$@` are the script's own arguments, for the restart as the caller.
set_up() {
    prepare_environment
    find_engine
    install_parts
    ensure_engine
    continue_as_caller "$@"
    require_writable_clone
    ensure_rust
}

# Says what `set_up` would do. Changes nothing, asks for no password.
describe_setup() {
    local missing user
    prepare_environment
    find_engine
    user=$(calling_user)
    mapfile -t missing < <(missing_parts)
    if [ "${#missing[@]}" -gt 0 ]; then
        printf "would install, as root, from the distribution's package mirror: %s\n" \
            "$(packages_of "${missing[@]}" | xargs)"
        have apt-get || printf '  (there is no apt-get here: it would stop and ask you to install them)\n'
        [ "$EUID" -eq 0 ] || have sudo || printf '  (there is no sudo here: it would stop and ask for root)\n'
    else
        printf 'packages: all there\n'
    fi
    describe_engine "$user"
    if [ "$EUID" -eq 0 ] && [ "$user" != root ]; then
        printf 'would go on as %s for all that follows\n' "$user"
    elif rust_is_ready; then
        printf 'Rust: %s is there\n' "$(cd "$root" && cargo --version)"
    elif have rustup; then
        printf "would install Rust %s by the rustup that is there, from the Rust project's download server\n" \
            "$(rust_channel)"
    else
        printf "would install Rust %s for %s by rustup %s, from the Rust project's download server\n" \
            "$(rust_channel)" "$user" "$rustup_version"
    fi
}

describe_engine() {
    local user=$1
    if socket_is_closed; then
        printf 'engine: %s is closed to %s; root would ask whether an engine answers\n' "$docker_socket" "$user"
    elif engine_answers; then
        printf 'engine: one answers (%s)\n' "${DOCKER_HOST:-unix://$docker_socket}"
    elif [ -n "${DOCKER_HOST:-}" ]; then
        printf 'engine: none answers at DOCKER_HOST; it would stop there\n'
    elif [ -d /run/systemd/system ]; then
        printf 'would start the Docker engine: systemctl start docker\n'
    else
        printf 'would start the Docker engine in the background: log %s, pid file %s\n' "$dockerd_log" "$docker_pidfile"
    fi
    if [ -z "${DOCKER_HOST:-}" ] && [ "$user" != root ] && ! in_docker_group "$user"; then
        printf 'would add %s to the group docker (as good as root on this machine)\n' "$user"
    fi
}
