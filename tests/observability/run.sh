#!/usr/bin/env bash
# Dashboards and alerts against the real router, a real Prometheus and Grafana's own types.
#
#     run.sh BINARY PLACE      PLACE is a folder for what is installed
#
# Prometheus comes from Debian (as root only). Without it, or without node, this fails; with
# SWITCHYARD_TEST=core the steps that need them are skipped.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
grafana=$(cd -- "$here/../../grafana" && pwd)
binary=$(realpath -- "$1")
mkdir -p "$2"
place=$(realpath -- "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONDONTWRITEBYTECODE=1
failed=0

step() {
    local name=$1
    shift
    if "$@" >"$work/step.log" 2>&1; then
        echo "ok    $name"
    else
        failed=$((failed + 1))
        echo "FAIL  $name"
        sed 's/^/      /' "$work/step.log"
    fi
}

# missing STEPS WHAT: is a failure, unless no more was asked for than what is always there.
missing() {
    if [ "${SWITCHYARD_TEST:-full}" = core ]; then
        echo "skip  $1: $2"
    else
        failed=$((failed + 1))
        echo "FAIL  $1: $2"
    fi
}

quietly() {
    "$@" >"$work/install.log" 2>&1 || {
        echo "could not run: $*" >&2
        tail -n 30 "$work/install.log" >&2
        return 1
    }
}

need_prometheus() {
    command -v prometheus >/dev/null && command -v promtool >/dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        return 1
    fi
    echo "installing prometheus"
    export DEBIAN_FRONTEND=noninteractive
    quietly apt-get install -y --no-install-recommends prometheus || {
        quietly apt-get update
        quietly apt-get install -y --no-install-recommends prometheus
    }
}

need_node_packages() {
    command -v node >/dev/null && command -v npm >/dev/null || return 1
    local stamp
    stamp=$(cksum <"$here/package.json")
    if [ ! -f "$place/stamp" ] || [ "$(cat "$place/stamp")" != "$stamp" ]; then
        rm -rf "$place/node_modules" "$place/stamp"
        cp "$here/package.json" "$place/package.json"
        echo "installing Grafana's types from npm"
        (cd "$place" && quietly npm install --no-audit --no-fund --no-package-lock --ignore-scripts)
        echo "$stamp" >"$place/stamp"
    fi
    cp "$here/schema.mjs" "$place/schema.mjs"
}

step "the dashboards are what generate.py writes" "$grafana/generate.py" --check
step "panels, metrics, error types and runbook are in order" python3 "$here/static.py"
if need_node_packages; then
    step "dashboards and compose.yaml fit their schemas" node "$place/schema.mjs" "$grafana"
else
    missing "schemas" "node, npm or the packages could not be had"
fi
if need_prometheus; then
    step "promtool check rules" promtool check rules "$grafana/alerts.yaml"
    step "promtool test rules" promtool test rules "$grafana/alerts_test.yaml"
    mkdir "$work/stack"
    # Shows each check itself.
    if ! timeout 120 python3 "$here/live.py" "$binary" "$work/stack"; then
        failed=$((failed + 1))
        echo "FAIL  the router before Prometheus; the end of its log:"
        tail -n 20 "$work/stack/router.log" | cut -c1-300 | sed 's/^/      /' || true
    fi
else
    missing "the router before Prometheus, alerts" "the Debian package prometheus could not be had"
fi
[ "$failed" = 0 ] || exit 1
