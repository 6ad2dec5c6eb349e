# shellcheck shell=bash disable=SC2154 # `work` is set by run.sh
# Sourced by run.sh: steps that are counted, processes that are ended, small checks.

passed=0
failed=0
skipped=0
started=()

# step NAME COMMAND...: runs it, says one line, shows the output of a failure.
step() {
    local name=$1 log=$work/step.log
    shift
    # A subshell with -e of its own: inside `if`, bash would ignore failures in functions.
    set +e
    (set -euo pipefail && "$@") >"$log" 2>&1
    local code=$?
    set -e
    if [ $code = 0 ]; then
        passed=$((passed + 1))
        echo "ok    $name"
    else
        failed=$((failed + 1))
        echo "FAIL  $name"
        tail -n 40 "$log" | sed 's/^/      /'
    fi
}

skip() {
    skipped=$((skipped + 1))
    echo "skip  $1: $2"
}

# start LOG COMMAND...: in the background; ended with the script. Its id is in $last.
start() {
    local log=$1
    shift
    "$@" >>"$log" 2>&1 </dev/null &
    last=$!
    started+=("$last")
}

# stop PID [SIGNAL]: and waits until it is gone.
stop() {
    kill "-${2:-TERM}" "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

stop_all() {
    local pid
    for pid in "${started[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    for pid in "${started[@]}"; do
        timeout 5 tail --pid="$pid" -f /dev/null 2>/dev/null || kill -KILL "$pid" 2>/dev/null || true
    done
}

free_port() {
    python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}

# eventually SECONDS COMMAND...: again and again until it succeeds; shows the last output if not.
eventually() {
    local limit=$((SECONDS + $1))
    shift
    until "$@" >"$work/eventually.log" 2>&1; do
        if [ $SECONDS -ge $limit ]; then
            cat "$work/eventually.log"
            return 1
        fi
        sleep 0.05
    done
}

# holds EXPRESSION: reads JSON from stdin as `it` and wants the Python expression to be true.
holds() {
    python3 -c '
import json, sys
text = sys.stdin.read()
it = json.loads(text)
if not eval(sys.argv[1]):
    sys.exit(f"not true: {sys.argv[1]}\nof: {text[:2000]}")' "$1"
}

# says TEXT FILE
says() {
    grep -qF -- "$1" "$2" || {
        echo "\`$1\` is missing in:"
        cat "$2"
        return 1
    }
}
