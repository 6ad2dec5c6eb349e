#!/usr/bin/env bash
# Installs the conformance suite below the target folder, with a Node.js of its own if the machine's
# is too old for it. Does nothing when all is there.
#
#     prepare.sh PLACE
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
place=$1
oldest_node=22
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

for program in npm node; do
    command -v "$program" >/dev/null || {
        echo "$program is not installed; tests/interop/prepare.sh installs it as root on Debian" >&2
        exit 1
    }
done

# The machine's own if it is new enough, else the one from npm for this processor.
node_that_runs_it() {
    local own
    own=$(command -v node)
    if [ "$("$own" -p 'process.versions.node.split(".")[0]')" -ge $oldest_node ]; then
        echo "$own"
    else
        echo "$place/node_modules/node-linux-$("$own" -p process.arch)/bin/node"
    fi
}

stamp=$(cksum <"$here/package.json")
if [ ! -f "$place/stamp" ] || [ "$(cat "$place/stamp")" != "$stamp" ]; then
    echo "installing the conformance suite"
    rm -rf "$place/node_modules" "$place/stamp"
    cp "$here/package.json" "$place/package.json"
    (cd "$place" && quietly npm install --no-audit --no-fund --no-package-lock)
    echo "$stamp" >"$place/stamp"
fi

node=$(node_that_runs_it)
"$node" --version >/dev/null
cat >"$place/conformance" <<SCRIPT
#!/bin/sh
exec "$node" "$place/node_modules/@modelcontextprotocol/conformance/dist/index.js" "\$@"
SCRIPT
chmod +x "$place/conformance"
ln -sfn "$node" "$place/node"
