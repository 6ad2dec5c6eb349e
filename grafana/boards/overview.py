"""All servers on one page: is it well, and if not, whose fault is it."""

from .parts import (
    AT_SERVER, BREAKER, CALL, FAULTS, HERE, SERVED, TRIED, Board, bad_from, breaker_state, datasource,
    good_from, grown_or_new, quantile, query, quiet, rate, router, server, share, steps, total, values,
)

TO_SERVER = "/d/switchyard-server?var-server=${__value.raw}&${datasource:queryparam}&${instance:queryparam}&${__url_time_range}"

FAULTY = f',error_type=~"{FAULTS}"'
EXCUSED = f',error_type!="",error_type!~"{FAULTS}"'


def board():
    made = Board(
        "switchyard-overview", "Switchyard: overview",
        "The router and all MCP servers behind it: calls, failures, time, breakers, saturation, ledger.",
        [datasource(), router(), server()],
    )
    glance(made)
    inward(made)
    servers(made)
    resilience(made)
    saturation(made)
    overhead(made)
    catalogue(made)
    ledger(made)
    return made


def glance(made):
    made.row("At a glance")
    made.stat("Calls", "Tool calls a second, as clients make them, refused ones included. Bad: a fall to "
              "nothing at a time when there is always traffic.", "reqps", quiet(rate(SERVED + "_count", CALL)))
    made.stat("Served", "Share of tool calls that neither the router nor a server failed. What the tool "
              "or the caller got wrong does not count. Bad: below 99 %, the objective of the alerts.",
              "percentunit",
              f'1 - ({rate(SERVED + "_count", CALL + FAULTY)} or vector(0))'
              f' / {rate(SERVED + "_count", CALL)}',
              good_from(0.95, 0.99), min=0, max=1, decimals=2, noValue="no calls")
    made.stat("p95", "95 % of tool calls are answered within this time, retries and waiting included. "
              "Bad: near the time limits of clients.", "s", quantile(0.95, SERVED, CALL), bad_from(5, 30),
              noValue="no calls")
    made.stat("Servers down", "Enabled servers whose last contact failed. Bad: any.", "none",
              f"count(switchyard_upstream_up{{{AT_SERVER}}} == 0 and switchyard_upstream_enabled{{{AT_SERVER}}} == 1) or vector(0)",
              bad_from(1, 1), graph="none")
    made.stat("Breakers not closed", "Servers, and single tools of others, to which no calls or only probes go now, by "
              "themselves or by an operator's word. Bad: any for longer than a few minutes.", "none",
              f'sum(switchyard_breaker_state{{{AT_SERVER},state=~"open|half_open|forced_open"}})'
              f" + sum(switchyard_breaker_tools_open{{{AT_SERVER}}})",
              bad_from(1, 1), graph="none")
    made.stat("Ledger rows lost", "Calls in the time shown that will never be in the ledger, because it "
              "could not be written in time. Bad: any.", "none",
              grown_or_new("switchyard_audit_dropped_total", HERE, window="$__range"), bad_from(1, 1), graph="none",
              decimals=0)
    made.stat("Last reload", "Whether the configuration file was taken over when it was last read. Bad: "
              "failed; the router then runs with what it had before.", "none",
              f"min(switchyard_config_last_reload_successful{{{HERE}}})",
              mappings=values((1, "loaded", "green"), (0, "failed", "red")), graph="none")
    made.stat("Alerts", "Alerts of Switchyard that fire now, of every severity. Bad: any; the runbook has a "
              "section for each.", "none",
              'count(ALERTS{alertname=~"Switchyard.*",alertstate="firing"}) or vector(0)',
              bad_from(1, 1), graph="none")


def inward(made):
    made.row("Calls as clients see them")
    made.lines("Requests by method", "MCP operations a second by method. Bad: many `initialize` or "
               "`tools/list` beside few calls; clients then begin anew all the time.", "reqps",
               query(rate(SERVED + "_count", HERE, "mcp_method_name"), "{{mcp_method_name}}"))
    made.lines("Failed calls by type", "Tool calls a second that did not end well, by error type. "
               "MCPTimeoutError, MCPConnectionError and MCPCircuitOpenError point to a server; tool_error and "
               "MCPToolNotFoundError to callers. Bad: anything that stays.", "reqps",
               query(quiet(rate(SERVED + "_count", CALL + ',error_type!=""', "error_type"), "error_type"),
                     "{{error_type}}"), stacked=True)
    made.lines("Share of failed calls", "Whose failures they are, as shares of all tool calls: of the router "
               "and the servers (counted against the objective), or of callers, operators and the tools "
               "themselves. Bad: the first above 1 %.", "percentunit",
               query(f'({rate(SERVED + "_count", CALL + FAULTY)} or vector(0)) / {rate(SERVED + "_count", CALL)}',
                     "router and servers"),
               query(f'({rate(SERVED + "_count", CALL + EXCUSED)} or vector(0)) / {rate(SERVED + "_count", CALL)}',
                     "callers and tools"),
               thresholds=steps((None, "green"), (0.01, "red")))
    made.lines("Duration of calls", "Time from a tool call's arrival to its answer, retries and waiting "
               "included. Bad: p99 far above p50 for long, or p50 on the rise.", "s",
               query(quantile(0.5, SERVED, CALL), "p50"), query(quantile(0.95, SERVED, CALL), "p95"),
               query(quantile(0.99, SERVED, CALL), "p99"), width=12, log=10)
    made.heatmap("Calls by duration", "How many tool calls took how long. Bad: a second band far above the "
                 "first one, as of timeouts.", SERVED, CALL, width=12)


def servers(made):
    made.row("Servers")
    window = "$__range"
    errors = f'sum by (server) (increase({TRIED}_count{{{AT_SERVER},error_type!=""}}[{window}]))'
    everything = f"sum by (server) (increase({TRIED}_count{{{AT_SERVER}}}[{window}]))"
    made.table(
        "Every server", "Attempts in the time shown, their failures and times, and how each server stands now. "
        "The worst is on top; other columns sort by a click, and a name leads to the server. Bad: failures, a "
        "breaker that is not closed, calls that wait, a last answer long ago.",
        [
            ("Attempts", everything, "short", {"decimals": 0}),
            ("Failed", f"({errors} or 0 * {everything}) / ({everything} > 0)", "percentunit",
             share(0.01, 0.05)),
            ("p50", quantile(0.5, TRIED, AT_SERVER, "server", window), "s", {}),
            ("p95", quantile(0.95, TRIED, AT_SERVER, "server", window), "s",
             {"thresholds": bad_from(5, 30), "custom__cellOptions": {"type": "color-text"}}),
            ("In flight", total(f"switchyard_upstream_inflight{{{AT_SERVER}}}", "server"), "short", {}),
            ("Waiting", total(f"switchyard_upstream_queue_depth{{{AT_SERVER}}}", "server"), "short",
             {"thresholds": bad_from(1, 64), "custom__cellOptions": {"type": "color-text"}}),
            ("Breaker", breaker_state(AT_SERVER), "none", {"mappings": BREAKER, "custom__cellOptions": {"type": "color-background", "mode": "basic"}}),
            ("Tools", total(f'switchyard_upstream_tools{{{AT_SERVER},status=~"active|stale"}}', "server"),
             "short", {}),
            ("Last answer", f"time() - max by (server) (switchyard_upstream_last_success_timestamp_seconds{{{AT_SERVER}}} > 0)",
             "s", {"thresholds": bad_from(120, 900), "custom__cellOptions": {"type": "color-text"}}),
        ],
        sort="Failed", keys=[("server", "Server")], link=("server", "This server in depth", TO_SERVER),
    )
    made.timeline("Circuit breakers", "The state of each server's breaker. Bad: open (calls are refused) for "
                  "long, or open and half open in turn; forced states are an operator's.",
                  breaker_state(AT_SERVER), "{{server}}", BREAKER, width=24, height=7)


def resilience(made):
    made.row("Failures that were met")
    repeated = rate("switchyard_retries_total", AT_SERVER, "server")
    tried = rate(TRIED + "_count", AT_SERVER + ',mcp_method_name="tools/call"', "server")
    made.lines("Attempts per call", "How often a call that reached a server was sent to it: 1 without retries. "
               "Bad: above 1.2, where the retry budget begins to hold back.", "short",
               query(f"{tried} / ({tried} - {repeated})", "{{server}}"), width=6, min=1,
               thresholds=steps((None, "green"), (1.2, "red")))
    made.lines("Retries", "Attempts a second that repeated a failed one, by what was known of that. Bad: a "
               "level that stays; callers wait for each of them.", "reqps",
               query(rate("switchyard_retries_total", AT_SERVER, "reason"), "{{reason}}"), width=6, stacked=True)
    made.lines("Retries not made", "Failures a second of a kind that can be repeated and were not, by why. "
               "`unsafe`: the tool may have run and is not declared safe to repeat; `budget`: too many retries "
               "already; `breaker`: it opened. Bad: `budget` and `overload`.", "reqps",
               query(rate("switchyard_retries_suppressed_total", AT_SERVER, "why"), "{{why}}"),
               width=6, stacked=True)
    made.lines("Refused by breakers", "Attempts a second that a breaker refused; nothing was sent. Bad: any for "
               "long; callers get an error at once.", "reqps",
               query(rate("switchyard_breaker_rejections_total", AT_SERVER, "server"), "{{server}}"),
               width=6, stacked=True)


def saturation(made):
    made.row("Saturation")
    made.lines("Calls at servers", "Calls that are being answered by each server. Bad: at the server's "
               "max_concurrency (64 unless set), where others wait.", "short",
               query(total(f"switchyard_upstream_inflight{{{AT_SERVER}}}", "server"), "{{server}}"), width=6)
    made.lines("Calls that wait for a place", "Calls in each server's waiting room, of 256 places; after a "
               "second they fail as overloaded. Bad: any for long.", "short",
               query(total(f"switchyard_upstream_queue_depth{{{AT_SERVER}}}", "server"), "{{server}}"), width=6)
    made.lines("At the front door", "Requests that are being answered, and open sessions of clients with a "
               "handshake. Bad: sessions at limits.sessions (20,000 unless set): the oldest end then.", "short",
               query(f"sum(switchyard_inflight_requests{{{HERE}}})", "requests"),
               query(f"sum(switchyard_sessions{{{HERE}}})", "sessions"), width=6)
    made.lines("Processor time", "Processors that the router uses. Bad: near the number that it has.", "short",
               query(rate("process_cpu_seconds_total", HERE, "instance"), "{{instance}}"), width=6)
    made.lines("Memory of the router", "Resident memory. Bad: growth that does not end.", "bytes",
               query(f"process_resident_memory_bytes{{{HERE}}}", "{{instance}}"), width=6)
    made.lines("File descriptors", "Share of the allowed descriptors in use. Bad: above 80 %; connections "
               "fail at 100 %.", "percentunit",
               query(f"process_open_fds{{{HERE}}} / process_max_fds{{{HERE}}}", "{{instance}}"), width=6, max=1,
               thresholds=steps((None, "green"), (0.8, "red")))
    made.lines("Child processes", "Processes of servers that the router starts, descendants included. Bad: "
               "growth that does not end.", "short",
               query(quiet(total(f"switchyard_child_processes{{{AT_SERVER}}}", "server"), "server"), "{{server}}"), width=6)
    made.lines("Memory of child processes", "Resident memory of these processes; shared memory counts for each. "
               "Bad: growth that does not end.", "bytes",
               query(quiet(total(f"switchyard_child_resident_bytes{{{AT_SERVER}}}", "server"), "server"), "{{server}}"),
               width=6)


def overhead(made):
    made.row("What the router adds")
    calls = CALL + ',error_type=""'
    outside, inside = quantile(0.95, SERVED, calls), quantile(0.95, TRIED, calls)
    made.lines("p95 with and without the router", "p95 of calls that ended well, as clients see them and as "
               "servers answered, and the difference. Both come from buckets, so the difference is coarse and "
               "can be below zero. Bad: the first far above the second; calls then wait or are repeated.", "s",
               query(outside, "clients"), query(inside, "servers"),
               query(f"{outside} - {inside}", "difference"), width=12, min=None)
    made.lines("Mean time in the router", "Time of all tool calls less the time of all attempts, for each call: "
               "routing, waiting for a place and between retries, and in strict durability the ledger's "
               "commit. Exact, unlike the difference of quantiles. Bad: above some milliseconds without "
               "retries.", "s",
               query(f"({rate(SERVED + '_sum', CALL)} - {rate(TRIED + '_sum', CALL)})"
                     f" / {rate(SERVED + '_count', CALL)}", "mean"), width=12)


def catalogue(made):
    made.row("Catalogue")
    made.lines("Tools by status", "Tools that servers have: active; stale (known, but the server could not be "
               "asked); held (changed, and not callable until approved); gone. Bad: held or stale for long.",
               "short",
               query(total(f"switchyard_upstream_tools{{{AT_SERVER}}}", "status"), "{{status}}"), stacked=True)
    made.lines("Changes of definitions", "Tools that were added, changed or removed after a server's first "
               "discovery. Bad: `changed` without an upgrade of the server; a model reads these texts.", "short",
               query(grown_or_new("switchyard_tool_definition_changes_total", AT_SERVER, "server, kind"),
                     "{{server}} {{kind}}"), bars=True, stacked=True)
    made.lines("Size of definitions", "Tokens, estimated, that all definitions of a server take in a model's "
               "context. Bad: one server far above the others; give agents a view of what they need.", "short",
               query(total(f"switchyard_tool_definition_tokens{{{AT_SERVER}}}", "server"), "{{server}}"),
               stacked=True)


def ledger(made):
    made.row("Ledger")
    made.lines("Rows by outcome", "Calls committed to the ledger, a second. Bad: fewer than calls came in.",
               "reqps",
               query(rate("switchyard_audit_events_total", HERE, "outcome"), "{{outcome}}"), width=6, stacked=True)
    made.lines("Queue", "Share of the ledger's queue that is taken: of its places, by calls under way and finished ones "
               "that wait to be committed, and of its bytes, by what waits. Bad: either above 70 %; when one is full, "
               "callers wait and then get 503.", "percentunit",
               query(f"switchyard_audit_queue_places{{{HERE}}} / switchyard_audit_queue_limit{{{HERE}}}",
                     "{{instance}} places"),
               query(f"switchyard_audit_queue_bytes{{{HERE}}} / switchyard_audit_queue_limit_bytes{{{HERE}}}",
                     "{{instance}} bytes"),
               width=6, max=1, thresholds=steps((None, "green"), (0.7, "red")))
    made.lines("Time of a commit", "Time to commit one batch, sync included. Bad: above 100 ms for long; the disk "
               "is slow or another program holds the database.", "s",
               query(quantile(0.5, "switchyard_audit_commit_duration_seconds", HERE), "p50"),
               query(quantile(0.99, "switchyard_audit_commit_duration_seconds", HERE), "p99"), width=6, log=10)
    made.lines("Size of the files", "Size of the databases, and the limit of the ledger. Bad: the ledger at its "
               "limit; the oldest calls then go before audit.retention.", "bytes",
               query(f"switchyard_store_size_bytes{{{HERE}}}", "{{file}}"),
               query(f"switchyard_store_limit_bytes{{{HERE}}} > 0", "limit of {{file}}"), width=6, log=2)
