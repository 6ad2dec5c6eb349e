"""The figures in Prometheus and those of the ledger are the same ones."""

import bisect
from collections import Counter

SERVED = "mcp_server_operation_duration_seconds"
TRIED = "mcp_client_operation_duration_seconds"
CALL = 'mcp_method_name="tools/call"'
BUCKETS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300]
# Fewer calls give a quantile that a single one moves.
ENOUGH = 30


def counted(stack, expression, *labels):
    """What Prometheus has, without zeros: {(value of each label): count}."""
    found = Counter()
    for series, value in stack.instant(expression):
        if value:
            found[tuple(series.get(label, "") for label in labels)] += round(value)
    return found


def same(what, prometheus, ledger):
    """One line for each difference."""
    ledger = Counter({key: count for key, count in ledger.items() if count})
    if not ledger:
        yield f"{what}: nothing happened that could be compared"
    for key in sorted(set(prometheus) | set(ledger), key=str):
        if prometheus[key] != ledger[key]:
            yield f"{what} {key}: {prometheus[key]} in Prometheus, {ledger[key]} in the ledger"


def error_type(row):
    return {"ok": "", "tool_error": "tool_error"}.get(row["outcome"], row["error_code"])


def caller_class(row):
    if row["caller"] not in ("anonymous", "unauthenticated"):
        return "key"
    return "client" if row["client_name"] else "anonymous"


def differences(stack, rows, turned_away):
    """One line for each figure that is not the ledger's."""
    outcomes = Counter((row["outcome"],) for row in rows)
    yield from same("rows by outcome",
                    counted(stack, "sum by (outcome) (switchyard_audit_events_total)", "outcome"), outcomes)
    yield from same("calls by class of caller and outcome",
                    counted(stack, "switchyard_calls_total", "caller_class", "outcome"),
                    Counter((caller_class(row), row["outcome"]) for row in rows))
    yield from same("calls by tool and error type",
                    counted(stack, f"sum by (gen_ai_tool_name, error_type) ({SERVED}_count{{{CALL}}})",
                            "gen_ai_tool_name", "error_type"),
                    Counter((row["tool"] if row["upstream_tool"] else "_other", error_type(row))
                            for row in rows))
    yield from same("calls by view and outcome",
                    counted(stack, "switchyard_view_calls_total", "view", "outcome"),
                    Counter((row["view"], row["outcome"]) for row in rows if row["view"]))
    yield from attempts(stack, rows)
    yield from transitions(stack)
    yield from definitions(stack)
    yield from same("requests turned away",
                    counted(stack, "switchyard_auth_failures_total", "reason"),
                    Counter({(reason,): count for reason, count in turned_away.items()}))
    yield from sums(stack, rows)
    yield from quantiles(stack)


def attempts(stack, rows):
    tried, repeated = Counter(), Counter()
    for row in rows:
        before = None
        for one in row["attempt_list"]:
            outcome = one["outcome"]
            tried[row["server"], "" if outcome == "ok" else outcome] += 1
            if before is not None:
                repeated[row["server"], before] += 1
            before = one["failure"]
    yield from same("attempts by server and result",
                    counted(stack, f"sum by (server, error_type) ({TRIED}_count{{{CALL}}})", "server", "error_type"), tried)
    yield from same("retries by server and reason",
                    counted(stack, "switchyard_retries_total", "server", "reason"), repeated)


def transitions(stack):
    found, before = Counter(), None
    while True:
        page = stack.get("/mcp/circuit-breakers/history?limit=1000" + (f"&before={before}" if before else ""))
        for one in page["transitions"]:
            found[one["server"], one["from"], one["to"], one["reason"]] += 1
        before = page["next_before"]
        if before is None:
            break
    yield from same("transitions of breakers",
                    counted(stack, "switchyard_breaker_transitions_total", "server", "from", "to", "reason"), found)


def definitions(stack):
    found = Counter()
    for tool in stack.get("/mcp/tools")["tools"]:
        history = stack.get(f"/mcp/tools/{tool['name']}/history")["history"]
        found[tool["server_name"], "changed"] += sum(one["kind"] == "changed" for one in history)
    yield from same("definitions that changed",
                    counted(stack, 'switchyard_tool_definition_changes_total{kind="changed"}', "server", "kind"), found)


def sums(stack, rows):
    """What `audit stats` sums, by tool."""
    by_tool = stack.get("/mcp/audit/stats?by=tool")["rows"]
    stats = Counter({(row["name"],): row["calls"] for row in by_tool if row["name"]})
    errors = Counter({(row["name"],): row["errors"] for row in by_tool if row["name"]})
    # A tool of a server that was never reached has a name in the ledger alone.
    away = Counter((row["tool"],) for row in rows if row["outcome"] == "unavailable" and not row["upstream_tool"])
    stats, errors = stats - away, errors - away
    by_metric = f"sum by (gen_ai_tool_name) ({SERVED}_count{{{CALL},gen_ai_tool_name!=\"_other\"%s}})"
    yield from same("calls by tool, in audit stats", counted(stack, by_metric % "", "gen_ai_tool_name"), stats)
    yield from same("errors by tool, in audit stats",
                    counted(stack, by_metric % ',error_type!=""', "gen_ai_tool_name"), errors)
    everything = sum(row["calls"] for row in stack.get("/mcp/audit/stats")["rows"])
    if everything != len(rows):
        yield f"audit stats sums {everything} calls, the export has {len(rows)}"


def bucket(seconds):
    return bisect.bisect_left(BUCKETS, seconds)


def quantiles(stack):
    """Prometheus knows buckets, the ledger 5 %: they may differ by one bucket."""
    compared = 0
    for row in stack.get("/mcp/audit/stats?by=tool&outcome=ok")["rows"]:
        if not row["name"] or row["calls"] < ENOUGH:
            continue
        for q, member in ((0.5, "p50_ms"), (0.95, "p95_ms")):
            series = f'{SERVED}_bucket{{{CALL},gen_ai_tool_name="{row["name"]}",error_type=""}}'
            [(_, value)] = stack.instant(f"histogram_quantile({q}, sum by (le) ({series}))")
            known = row[member] / 1000
            compared += 1
            if abs(bucket(value) - bucket(known)) > 1:
                yield f"p{q * 100:.0f} of {row['name']}: {value:.4f} s in Prometheus, {known:.4f} s in the ledger"
    if compared < 10:
        yield f"only {compared} quantiles could be compared"
