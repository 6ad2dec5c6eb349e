# shellcheck shell=bash disable=SC2154 # `work` is set by run.sh
# Sourced by run.sh: steps that are counted, processes that are ended, small checks.

passed=0
failed=0
skipped=0
started=()
beside=()
gathered=0

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

# meanwhile NAME COMMAND...: a step that may run beside others. `gather` waits for them all.
meanwhile() {
    local log=$work/meanwhile.$((${#beside[@]} + 1)).log
    (
        set -euo pipefail
        shift
        "$@"
    ) >"$log" 2>&1 </dev/null &
    beside+=("$! $log $1")
    # More at a time are no faster, and stretch the waits of each.
    if [ $((${#beside[@]} - gathered)) -ge "${SWITCHYARD_TEST_JOBS:-4}" ]; then
        gather_next
    fi
}

gather_next() {
    local pid log name code=0
    read -r pid log name <<<"${beside[$gathered]}"
    gathered=$((gathered + 1))
    wait "$pid" || code=$?
    if [ $code = 0 ]; then
        passed=$((passed + 1))
        echo "ok    $name"
    else
        failed=$((failed + 1))
        echo "FAIL  $name"
        tail -n 60 "$log" | sed 's/^/      /'
    fi
}

gather() {
    while [ "$gathered" -lt "${#beside[@]}" ]; do
        gather_next
    done
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
    while [ "$gathered" -lt "${#beside[@]}" ]; do
        pid=${beside[$gathered]%% *}
        kill "$pid" 2>/dev/null || true
        gathered=$((gathered + 1))
    done
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
    local log=$work/eventually.$BASHPID.log
    until "$@" >"$log" 2>&1; do
        if [ $SECONDS -ge $limit ]; then
            cat "$log"
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
