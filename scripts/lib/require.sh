# Sourced by the scripts: installs what is missing and reports it.

# A Rust toolchain is the one thing that must be there; a C compiler is installed if it is missing.
require_toolchain() {
    if ! command -v cargo >/dev/null; then
        if [ -x "$HOME/.cargo/bin/cargo" ]; then
            PATH=$HOME/.cargo/bin:$PATH
        else
            echo "Underpass needs a Rust toolchain (1.95 or newer); cargo was not found." >&2
            echo "Next step: install Rust with rustup as described on the Rust home page." >&2
            exit 1
        fi
    fi
    command -v cc >/dev/null || require_packages gcc libc6-dev
    command -v make >/dev/null || require_packages make
}

# require_component NAME: a part of the toolchain, such as rustfmt.
require_component() {
    cargo "${1/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$1"
}

# require_cargo_program NAME: a program that cargo installs, once, into its own folder.
require_cargo_program() {
    command -v "$1" >/dev/null && return
    echo "installing: $1 (with cargo, once; about five minutes on two cores)" >&2
    cargo install --locked --quiet "$1"
    PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
}

# require_programs PROGRAM=PACKAGE…: installs the Debian packages of the programs that are missing.
require_programs() {
    local missing=() each
    for each in "$@"; do
        command -v "${each%%=*}" >/dev/null || missing+=("${each#*=}")
    done
    [ "${#missing[@]}" = 0 ] || require_packages "${missing[@]}"
}

# require_packages PACKAGE…: installs Debian packages, or reports what to do.
require_packages() {
    if ! command -v apt-get >/dev/null; then
        echo "Missing: $*. Next step: install these with your package manager, then retry." >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "Missing: $*. Next step: run 'apt-get install $*' as root, then retry." >&2
        exit 1
    fi
    echo "installing: $*" >&2
    export DEBIAN_FRONTEND=noninteractive
    # Another apt may be running: wait for its lock instead of failing.
    local apt=(apt-get -qq -o DPkg::Lock::Timeout=300)
    "${apt[@]}" install -y --no-install-recommends "$@" >/dev/null 2>&1 || {
        "${apt[@]}" update >/dev/null
        "${apt[@]}" install -y --no-install-recommends "$@" >/dev/null
    }
}
