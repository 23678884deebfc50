# Sourced by the scripts that get programs for the tests. They set $folder, where programs go, and
# $work, a scratch folder.

# unpack TO PACKAGE PATH…: puts these files of a Debian package into a folder, unless the last one
# is there.
unpack() {
    local to=$folder/$1 package=$2
    shift 2
    [ ! -e "$to/$(basename "${!#}")" ] || return 0
    echo "fetching: $package" >&2
    rm -rf "$work/$package" && mkdir "$work/$package" && (
        cd "$work/$package"
        apt-get download -qq "$package" 2>/dev/null || {
            apt-get update -qq && apt-get download -qq "$package"
        }
        dpkg -x ./*.deb . && mv "$@" "$to"
    ) >/dev/null 2>&1
}
