#!/usr/bin/env bash
# The official conformance suite against the router, with a server of the official SDK behind it,
# and the suite's own servers behind the router.
#
#     tests/conformance.sh [--leg LEG]... [BINARY [PLACE]]
#
#     modern        the suite of 2026-07-28, a server of that era
#     legacy        the suite of 2025-11-25, a server of that era, sessions kept apart
#     over-legacy   the suite of 2026-07-28, a server of the older era
#     over-modern   the suite of 2025-11-25, a server of the newer era
#     client        the router as client of the suite's servers
#     fixture       no router: what the server behind it can do
#
# All but `fixture` run if no leg is named. PLACE is where prepare.sh installs the suite; what the
# suite says is left in PLACE/results. CARGO names another cargo.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
here=$root/tests/conformance
target=${CARGO_TARGET_DIR:-$root/target}

all_legs=(modern legacy over-legacy over-modern client)
legs=()
while [ "${1:-}" = --leg ]; do
    case ${2:-} in
    modern | legacy | over-legacy | over-modern | client | fixture) legs+=("$2") ;;
    *)
        echo "\`${2:-}\` is no leg; there are: ${all_legs[*]} fixture" >&2
        exit 2
        ;;
    esac
    shift 2
done
[ ${#legs[@]} != 0 ] || legs=("${all_legs[@]}")

build=(--example conformance-server)
[ -n "${1:-}" ] || build+=(--bin switchyard)
(cd "$root" && "${CARGO:-cargo}" build --quiet "${build[@]}")
binary=$(realpath -- "${1:-$target/debug/switchyard}")
fixture=$target/debug/examples/conformance-server
place=$(realpath -m -- "${2:-$target/conformance}")
"$here/prepare.sh" "$place"
suite=$place/conformance
node=$place/node
results=$place/results

work=$(mktemp -d)
# shellcheck source=tests/interop/lib.sh
. "$root/tests/interop/lib.sh"
trap 'stop_all; rm -rf "$work"' EXIT

# Longer than any scenario takes, the suite included.
limit=300
modern=2026-07-28
legacy=2025-11-25

listens() {
    grep -q '^listening on ' "$1"
}

start_fixture() {
    local log=$1/fixture.log
    start "$log" "$fixture" --port 0 --era "$2"
    fixture_pid=$last
    eventually 10 listens "$log"
    fixture_url=$(sed -n 's/^listening on //p' "$log")
}

# Without this first, a scenario could come before the router knows its tools.
has_tools() {
    curl -sf -m 5 "$1/mcp/servers" | holds 'it["servers"][0]["state"] == "up" and it["servers"][0]["tools"] > 0'
}

start_router() {
    local out=$1 sessions=$2 port
    port=$(free_port)
    cat >"$out/switchyard.yaml" <<YAML
listen: 127.0.0.1:$port
data_dir: $work/data-$port
naming: bare
mcp_servers:
  fixture:
    transport: http
    url: $fixture_url
    sessions: $sessions
YAML
    start "$out/router.log" "$binary" --config "$out/switchyard.yaml" serve
    router_pid=$last
    eventually 20 has_tools "http://127.0.0.1:$port" || {
        echo "the router did not get the server's tools; it said:"
        tail -n 20 "$out/router.log"
        return 1
    }
    router_url=http://127.0.0.1:$port/mcp
}

# run_required NAME VERSION URL [EXPECTED]: runs what VERSION requires and judges it.
run_required() {
    local name=$1 version=$2 url=$3 expected=${4:-}
    local out=$results/$name code=0
    timeout $limit "$suite" server --url "$url" --requirements "$version" -o "$out/checks" \
        >"$out/suite.log" 2>&1 || code=$?
    judge "$name" --exit "$code" --required "$version" ${expected:+--expected "$expected"}
}

# One line of the table, and what failed; remembers that something did.
judge() {
    local name=$1
    shift
    "$node" "$here/judge.mjs" "$results/$name" \
        --suite "$place/node_modules/@modelcontextprotocol/conformance" "$@" || failed=$((failed + 1))
}

# server_leg NAME VERSION ERA SESSIONS [EXPECTED]
server_leg() {
    local out=$results/$1
    rm -rf "$out"
    mkdir -p "$out"
    start_fixture "$out" "$3"
    start_router "$out" "$4"
    run_required "$1" "$2" "$router_url" "${5:-}"
    stop "$router_pid"
    stop "$fixture_pid"
}

fixture_leg() {
    local era version out
    for era in modern legacy both; do
        for version in $modern $legacy; do
            case $era-$version in "modern-$legacy" | "legacy-$modern") continue ;; esac
            out=$results/fixture-$era-$version
            rm -rf "$out"
            mkdir -p "$out"
            start_fixture "$out" "$era"
            run_required "fixture-$era-$version" "$version" "$fixture_url"
            stop "$fixture_pid"
        done
    done
}

# What concerns a router among the scenarios for clients, and in which era.
client_scenarios=(
    "initialize $legacy"
    "tools_call $legacy"
    "sse-retry $legacy"
    "json-schema-2020-12-preservation $legacy"
    "tools_call $modern"
    "request-metadata $modern"
    "http-standard-headers $modern"
    "http-custom-headers $modern"
    "http-invalid-tool-headers $modern"
    "json-schema-ref-no-deref $modern"
    "json-schema-2020-12-preservation $modern"
    "sep-2322-client-request-state $modern"
)

client_leg() {
    local pair scenario version out code
    for version in $legacy $modern; do
        out=$results/client-$version
        local names=() worst=0
        rm -rf "$out"
        mkdir -p "$out"
        for pair in "${client_scenarios[@]}"; do
            scenario=${pair% *}
            [ "${pair#* }" = "$version" ] || continue
            names+=("$scenario")
            code=0
            SWITCHYARD_BIN=$binary CONFORMANCE_NODE=$node CONFORMANCE_LOGS=$out \
                timeout $limit "$suite" client --command "$here/drive-router.sh" \
                --scenario "$scenario" --spec-version "$version" -o "$out/checks" \
                >>"$out/suite.log" 2>&1 || code=$?
            [ $code = 0 ] || worst=$code
        done
        judge "client-$version" --exit "$worst" --scenarios "$(IFS=,; echo "${names[*]}")"
    done
}

printf '%-30s %7s %7s %7s %7s %9s\n' leg passed failed warned skipped expected
for leg in "${legs[@]}"; do
    case $leg in
    modern) server_leg modern $modern modern shared ;;
    legacy) server_leg legacy $legacy legacy isolated ;;
    over-legacy) server_leg over-legacy $modern legacy shared "$here/cross-era-$modern.yaml" ;;
    over-modern) server_leg over-modern $legacy modern shared "$here/cross-era-$legacy.yaml" ;;
    client) client_leg ;;
    fixture) fixture_leg ;;
    esac
done
[ "$failed" = 0 ] || {
    echo "$failed legs failed; what the suite said is in $results"
    exit 1
}
