# Sourced by the scripts: installs what is missing, and says so.

# A Rust toolchain is the one thing expected to be there; a C compiler is installed when it is missing.
require_toolchain() {
    if ! command -v cargo >/dev/null; then
        if [ -x "$HOME/.cargo/bin/cargo" ]; then
            PATH=$HOME/.cargo/bin:$PATH
        else
            echo "Underpass needs a Rust toolchain (1.95 or newer) and found no cargo." >&2
            echo "Next step: install Rust with rustup as described on the Rust home page, then run this again." >&2
            exit 1
        fi
    fi
    command -v cc >/dev/null || require_packages gcc libc6-dev
    command -v make >/dev/null || require_packages make
}

# Installs Debian packages; says what to do where that is not possible.
require_packages() {
    if ! command -v apt-get >/dev/null; then
        echo "Missing: $*. Next step: install these with your package manager, then run this again." >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "Missing: $*. Next step: run 'apt-get install $*' as root, then run this again." >&2
        exit 1
    fi
    echo "installing: $*" >&2
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 || {
        apt-get update -qq >/dev/null
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    }
}
