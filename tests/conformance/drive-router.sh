#!/usr/bin/env bash
# What the suite calls as "the client": starts a router with the suite's server behind it, and does
# through the router what the scenario wants to see.
#
#     drive-router.sh URL
#
# The suite names the scenario in the environment; tests/conformance.sh names the binaries.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
url=$1
work=$(mktemp -d)
# shellcheck source=tests/interop/lib.sh
. "$here/../interop/lib.sh"
trap 'stop_all; rm -rf "$work"' EXIT

port=$(free_port)
cat >"$work/switchyard.yaml" <<YAML
listen: 127.0.0.1:$port
data_dir: $work/data
naming: bare
mcp_servers:
  suite:
    transport: http
    url: $url
YAML

# Some of the suite's servers have no tools, so it is enough that the server was reached.
reached() {
    curl -sf -m 5 "http://127.0.0.1:$port/mcp/servers" | holds 'it["servers"][0]["state"] == "up"'
}

log=$CONFORMANCE_LOGS/router-$MCP_CONFORMANCE_SCENARIO.log
: >"$log"
start "$log" "$SWITCHYARD_BIN" --config "$work/switchyard.yaml" serve
eventually 10 reached || cat "$log"
timeout 15 "$CONFORMANCE_NODE" "$here/drive.mjs" "http://127.0.0.1:$port/mcp"
