#!/usr/bin/env bash
# The tests.
#
#     tests/run.sh                           everything; installs what is absent
#     SWITCHYARD_TEST=core tests/run.sh      what needs only Rust and a C compiler
#
# SWITCHYARD_BIN names another binary for the third parties to meet; else it is the one that the
# tests were run with.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
level=${SWITCHYARD_TEST:-full}
target=${CARGO_TARGET_DIR:-$root/target}

case $level in
core | full) ;;
*)
    echo "SWITCHYARD_TEST is \`$level\`; it can be core or full" >&2
    exit 2
    ;;
esac

echo "== cargo test"
cargo test --quiet

if [ "$level" = core ]; then
    echo "skipped, because SWITCHYARD_TEST=core: real servers and clients from npm and PyPI, Prometheus, the conformance suite"
    exit 0
fi

echo "== real servers and clients"
tests/interop/prepare.sh "$target/interop"
binary=${SWITCHYARD_BIN:-}
if [ -z "$binary" ]; then
    cargo build --quiet
    binary=$target/debug/switchyard
fi
PATH=$PATH:/usr/sbin tests/interop/run.sh "$binary" "$target/interop"

echo "== dashboards and alerts, before a real Prometheus"
tests/observability/run.sh "$binary" "$target/observability"

echo "== the official conformance suite"
tests/conformance.sh "$binary" "$target/conformance"
