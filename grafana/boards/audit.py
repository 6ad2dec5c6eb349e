"""Who called what, what went wrong, and is the record of it complete."""

from .parts import (
    AT_SERVER, CALL, CALL_AT, HERE, SERVED, TRIED, Board, bad_from, datasource, good_from, grown, grown_or_new,
    quantile, query, quiet, rate, router, server, share, steps, tool, values,
)

ASKED = CALL_AT + ',gen_ai_tool_name=~"$tool"'
UNKNOWN = ',error_type=~"MCPToolNotFoundError|MCPServerNotFoundError"'
RANGE = "$__range"
CALLERS = "switchyard_calls_total"

WHO = """Metrics have classes of callers, never names: a key, a client that named itself, or neither. Who it was, with \
which arguments, is in the ledger, and its sums agree with the figures here:

    switchyard audit stats --by caller --since 1h        switchyard audit list --outcome timeout --since 1h
    switchyard audit list --error-code MCPToolNotFoundError        switchyard audit show ID        switchyard audit verify
"""


def board():
    made = Board(
        "switchyard-audit", "Switchyard: calls and ledger",
        "Who called what, what went wrong, and whether the ledger has all of it.",
        [datasource(), router(), server(), tool()],
    )
    callers(made)
    tools(made)
    record(made)
    size(made)
    return made


def callers(made):
    made.row("Who calls")
    made.text("From figures to calls", "Commands that lead from the figures here to the calls behind them.", WHO,
              height=5)
    made.lines("Calls by class of caller", "Calls a second by who made them: key (with a key), client (without, but it "
               "said its name), anonymous. Bad: anonymous ones where everybody should have a key.", "reqps",
               query(rate(CALLERS, HERE, "caller_class"), "{{caller_class}}"), stacked=True)
    made.lines("Failed calls by class of caller", "Calls a second that did not end well, by who made them and how they "
               "ended. Bad: one class that stands out; it holds a wrong key or an old list of tools.", "reqps",
               query(rate(CALLERS, HERE + ',outcome!="ok"', "caller_class, outcome"),
                     "{{caller_class}} {{outcome}}"), stacked=True)
    made.lines("Turned away at the door", "Requests a second that were not let in: no key, a wrong one, one without the "
               "scope, or a foreign Host or Origin. Bad: any that stay; somebody tries, or forgot to renew a key.",
               "reqps", query(rate("switchyard_auth_failures_total", HERE, "reason"), "{{reason}}"), stacked=True)
    every = grown(CALLERS, HERE, "caller_class", RANGE)
    failed = grown(CALLERS, HERE + ',outcome!="ok"', "caller_class", RANGE)
    made.table("Classes of callers", "Calls in the time shown and the share that did not end well. Bad: a share far above "
               "that of the others.",
               [
                   ("Calls", every, "short", {"decimals": 0}),
                   ("Failed", f"{failed} / ({every} > 0)", "percentunit",
                    share(0.05, 0.25)),
               ],
               sort="Calls", keys=[("caller_class", "Caller")], width=8, height=7)
    made.lines("Calls by view", "Calls a second that came in at each view, by how they ended. Bad: refused ones; an agent "
               "asks for tools that its view does not have.", "reqps",
               query(quiet(rate("switchyard_view_calls_total", HERE, "view, outcome"), "view", "no views"),
                     "{{view}} {{outcome}}"), stacked=True, height=7)
    made.lines("Calls by protocol", "Calls a second by the client's protocol version and transport; without a version "
               "they came over /mcp/call, and unix is the admin socket. Bad: nothing by itself.", "reqps",
               query(rate(SERVED + "_count", CALL, "mcp_protocol_version, network_transport"),
                     "{{mcp_protocol_version}} {{network_transport}}"), stacked=True, height=7)


def tools(made):
    made.row("What is called")
    every = grown(SERVED + "_count", ASKED, "gen_ai_tool_name", RANGE)
    failed = grown(SERVED + "_count", ASKED + ',error_type!=""', "gen_ai_tool_name", RANGE)
    made.table("Tools", "Calls to each tool in the time shown, as clients see them. Bad: a high share of failures beside "
               "many calls.",
               [
                   ("Calls", every, "short", {"decimals": 0}),
                   ("Failed", f"({failed} or 0 * {every}) / ({every} > 0)", "percentunit",
                    share(0.05, 0.25)),
                   ("p50", quantile(0.5, SERVED, ASKED, "gen_ai_tool_name", RANGE), "s", {}),
                   ("p95", quantile(0.95, SERVED, ASKED, "gen_ai_tool_name", RANGE), "s", {}),
               ],
               sort="Calls", keys=[("gen_ai_tool_name", "Tool")], width=14, height=9)
    made.table("Errors by tool", "Calls in the time shown that did not end well, by tool and error type. Bad: types other "
               "than tool_error; tool_error is what the tool itself said.",
               [("Errors", quiet(grown(SERVED + "_count", ASKED + NOT_OK, "gen_ai_tool_name, error_type", RANGE),
                                 "gen_ai_tool_name"), "short", {"decimals": 0})],
               sort="Errors", keys=[("gen_ai_tool_name", "Tool"), ("error_type", "Error")], width=10, height=9)
    made.lines("Busiest tools", "Calls a second to the ten tools that are called most. Bad: a tool that one would not "
               "expect here, such as one that an agent calls in a loop.", "reqps",
               query(f'topk(10, {rate(SERVED + "_count", ASKED, "gen_ai_tool_name")})', "{{gen_ai_tool_name}}"),
               width=12)
    made.lines("Calls to tools that are not there", "Calls a second that named no tool of any server, or none that the "
               "caller can see. Bad: any that stay; a client works with an old list or a model makes names up.",
               "reqps",
               query(quiet(rate(SERVED + "_count", CALL + ',gen_ai_tool_name="_other"' + UNKNOWN, "error_type"),
                           "error_type"),
                     "{{error_type}}"),
               width=12, stacked=True)
    made.lines("Attempts by server", "Attempts a second at each server, retries included. Bad: far more than calls came "
               "in.", "reqps", query(rate(TRIED + "_count", AT_SERVER, "server"), "{{server}}"), width=12,
               stacked=True)
    made.lines("Definitions that changed", "Tools whose definition was added, changed or removed while calls went on; the "
               "ledger keeps with each call which definition it was made with. Bad: `changed` without an upgrade.",
               "short", query(grown_or_new("switchyard_tool_definition_changes_total", AT_SERVER, "kind"), "{{kind}}"),
               width=12, bars=True, stacked=True)


NOT_OK = ',error_type!=""'


def record(made):
    made.row("Is the record complete")
    made.stat("Rows lost", "Calls in the time shown that will never be in the ledger, and entries beside calls; an entry "
              "audit.gap in the chain says how many and when. Bad: any.", "none",
              grown_or_new("switchyard_audit_dropped_total", HERE, window=RANGE) + " + "
              + grown_or_new("switchyard_audit_dropped_entries_total", HERE, window=RANGE),
              bad_from(1, 1), width=3, graph="none", decimals=0)
    made.stat("Rows written", "Calls committed in the time shown. Bad: 0 while calls come in.", "short",
              grown("switchyard_audit_events_total", HERE, window=RANGE), width=3, decimals=0, graph="none")
    made.stat("Rows removed", "Rows removed in the time shown because of age or size, or on demand. Bad: any that nobody "
              "expects.", "short", grown("switchyard_audit_pruned_total", HERE, window=RANGE), width=3, decimals=0,
              graph="none")
    made.stat("Waiting in the spool", "Bytes of rows that wait beside the database because it cannot be written. Bad: above "
              "zero for more than a minute.", "bytes", f"sum(switchyard_audit_spool_bytes{{{HERE}}})", bad_from(1, 1),
              width=3, graph="none")
    made.stat("Spool", "Whether there is a spool in which rows wait when the database cannot be written. Bad: none, where "
              "audit.spool names one.", "none", f"min(switchyard_audit_spool_open{{{HERE}}})", width=3,
              mappings=values((1, "open", "green"), (0, "none", "blue")), graph="none")
    made.stat("Rows put aside", "Rows of the spool that the database did not take, since the router started; they are in "
              "a file beside it. Bad: any.", "none", f"sum(switchyard_audit_rejected_total{{{HERE}}})", bad_from(1, 1),
              width=3, graph="none", decimals=0)
    made.stat("Index behind", "How old the newest rows are that the index does not have; lists and sums are complete all the "
              "same, but slower. Bad: minutes.", "s", f"max(switchyard_audit_index_lag_seconds{{{HERE}}})",
              bad_from(60, 300), width=3, graph="none")
    made.stat("Goes back", "Age of the oldest call in the ledger. Bad: less than audit.retention, once it has run for "
              "so long; the size limit then takes rows first.", "s",
              f"time() - min(switchyard_audit_oldest_timestamp_seconds{{{HERE}}} > 0)", width=3, graph="none")
    made.lines("Rows by outcome", "Calls committed to the ledger, a second, by how they ended. `interrupted` calls were "
               "under way when the router was cut off. Bad: interrupted ones without a crash that you know of.", "reqps",
               query(rate("switchyard_audit_events_total", HERE, "outcome"), "{{outcome}}"), stacked=True)
    made.lines("Queue", "Places that are taken, by calls under way and by finished ones that wait to be committed, and "
               "how many there are. Bad: taken ones near the limit; when it is reached callers wait for a quarter of a "
               "second and then get 503.", "short",
               query(f"sum(switchyard_audit_queue_depth{{{HERE}}})", "waiting"),
               query(f"sum(switchyard_audit_queue_places{{{HERE}}})", "taken"),
               query(f"sum(switchyard_audit_queue_limit{{{HERE}}})", "limit"))
    made.lines("Time of a commit", "Time to commit one batch, sync included. Bad: above 100 ms for long.", "s",
               query(quantile(0.5, "switchyard_audit_commit_duration_seconds", HERE), "p50"),
               query(quantile(0.95, "switchyard_audit_commit_duration_seconds", HERE), "p95"),
               query(quantile(0.99, "switchyard_audit_commit_duration_seconds", HERE), "p99"), log=10)
    made.lines("Rows in a commit", "Rows that one commit writes, on average. Bad: nothing by itself; few rows and slow "
               "commits together bound strict durability.", "short",
               query(f"{rate('switchyard_audit_events_total', HERE)}"
                     f" / {rate('switchyard_audit_commit_duration_seconds_count', HERE)}", "rows"))
    made.lines("Index lag", "How far the index follows behind the ledger, in time. Bad: growth that does not end.", "s",
               query(f"switchyard_audit_index_lag_seconds{{{HERE}}}", "{{instance}}"),
               thresholds=steps((None, "green"), (300, "red")))
    made.lines("Spans of traces", "Spans a second by what became of them, where otlp_endpoint is set. Bad: dropped or failed "
               "ones; the collector is away or too slow. The ledger has the calls all the same.", "ops",
               query(rate("switchyard_trace_spans_total", HERE, "result"), "{{result}}"), stacked=True)
    made.lines("Bytes in the queue", "Bytes of arguments and results that wait to be committed, and how many may. Bad: near "
               "the limit; calls are refused beyond it, as when no place is left.", "bytes",
               query(f"sum(switchyard_audit_queue_bytes{{{HERE}}})", "waiting"),
               query(f"sum(switchyard_audit_queue_limit_bytes{{{HERE}}})", "limit"))
    made.lines("Calls that waited for the ledger", "Calls a second that waited before they were sent, for a quarter of a "
               "second at most, because calls end faster than the ledger writes them; with durability batched. Bad: any "
               "for long; processors or disk are too slow for so many calls.", "reqps",
               query(rate("switchyard_audit_throttled_total", HERE), "calls"))
    made.lines("Series that found no place", "Series of tools that were not made because there are 20,000 already; what they "
               "would have counted is under the tool __overflow__. Bad: any; a server names its tools anew again and "
               "again.", "short", query(grown_or_new("switchyard_metrics_overflow_total", HERE), "series"),
               bars=True)


def size(made):
    made.row("How large it is")
    made.lines("Size of the files", "Size of each database, and the ledger's limit. Bad: at the limit; the oldest calls go "
               "before audit.retention then.", "bytes",
               query(f"switchyard_store_size_bytes{{{HERE}}}", "{{file}}"),
               query(f"switchyard_store_limit_bytes{{{HERE}}} > 0", "limit of {{file}}"), log=2)
    made.lines("Write-ahead logs", "What was written and is not yet in the database's file. Bad: far above 64 MiB without a "
               "backup; another program keeps a reader open.", "bytes",
               query(f"switchyard_store_wal_bytes{{{HERE}}}", "{{file}}"))
    made.lines("Growth", "How fast the files grow. Bad: free space divided by it is less than a day.", "Bps",
               query(f"sum by (file) (deriv(switchyard_store_size_bytes{{{HERE}}}[$__rate_interval]))", "{{file}}"),
               min=None)
    made.stat("Room in the ledger", "Share of the ledger's limit that is free. Bad: below 10 %.", "percentunit",
              f"min(1 - switchyard_store_size_bytes{{{HERE}}} / (switchyard_store_limit_bytes{{{HERE}}} > 0))",
              good_from(0.05, 0.1), width=6, decimals=1)
    made.stat("Room on the disk", "Free space of the data folder's file system. Bad: below 64 MiB strict durability refuses "
              "calls.", "bytes", f"min(switchyard_store_free_bytes{{{HERE}}})", good_from(256 << 20, 2 << 30), width=6)
    made.lines("Free space", "Free space of the data folder's file system over time. Bad: a straight way down.", "bytes",
               query(f"switchyard_store_free_bytes{{{HERE}}}", "{{instance}}"), width=12, height=4)
