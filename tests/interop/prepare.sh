#!/usr/bin/env bash
# Installs the third parties below the target folder, nothing globally but Debian packages (and
# those only as root). Does nothing when all is there.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
place=$1
mkdir -p "$place"

quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        echo "could not run: $*" >&2
        tail -n 30 "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# A program and the Debian package that brings it. Without root: the step that needs it is skipped.
need() {
    local program=$1 package=$2
    PATH=$PATH:/usr/sbin command -v "$program" >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "$program is not installed (Debian package $package)" >&2
        return
    fi
    echo "installing $package"
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get install -y --no-install-recommends "$package" || {
        quietly apt-get update
        quietly apt-get install -y --no-install-recommends "$package"
    }
}

need nginx nginx-light
need promtool prometheus
need curl curl
need pgrep procps
need node nodejs
need npm npm
need python3 python3
python3 -c 'import venv, ensurepip' 2>/dev/null || need pyvenv python3-venv

stamp=$(cat "$here"/requirements*.txt "$here/package.json" | cksum)
if [ ! -f "$place/stamp" ] || [ "$(cat "$place/stamp")" != "$stamp" ]; then
    rm -rf "$place/venv" "$place/venv-old" "$place/stamp"
    echo "installing the Python packages"
    quietly python3 -m venv "$place/venv"
    quietly "$place/venv/bin/pip" install --disable-pip-version-check -r "$here/requirements.txt"
    quietly python3 -m venv "$place/venv-old"
    quietly "$place/venv-old/bin/pip" install --disable-pip-version-check \
        -r "$here/requirements-old.txt"
    echo "installing the npm packages"
    mkdir -p "$place/node"
    cp "$here/package.json" "$place/node/package.json"
    # Their install scripts only serve desktops; the inspector asks for a newer Node, which it gets.
    (cd "$place/node" && quietly npm install --no-audit --no-fund --no-package-lock --ignore-scripts)
    echo "$stamp" >"$place/stamp"
fi
# Beside node_modules, where its imports are found.
cp "$here/scenes.mjs" "$place/node/scenes.mjs"
