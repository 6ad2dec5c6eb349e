"""One server in depth."""

from .parts import (
    BREAKER, CALL, HERE, SERVED, TRIED, Board, bad_from, breaker_state, datasource, grown, grown_or_new,
    quantile, query, quiet, rate, router, server, share, tool, total, values,
)

AT = HERE + ',server="$server"'
TOOLS = AT + ',mcp_method_name="tools/call",gen_ai_tool_name=~"$tool"'
ASKED = CALL + ',server="$server",gen_ai_tool_name=~"$tool"'
NO_CALLS = "no calls"


def named(expression, label="error_type", empty="ok"):
    """With a name for the series without an error, and a zero before the first."""
    return quiet(f'label_replace({expression}, "{label}", "{empty}", "{label}", "")', label, empty)


def child(expression):
    """Of a server that is no child process: nothing."""
    return f"{expression} or 0 * max(switchyard_upstream_up{{{AT}}})"


def ago(metric):
    """How long ago that was; at least since the router started, where it never was."""
    return f"time() - (max({metric}{{{AT}}} > 0) or max(process_start_time_seconds{{{HERE}}}))"


def board():
    made = Board(
        "switchyard-server", "Switchyard: one server",
        "One MCP server behind the router: what it was asked, how it answered, what the router did about it.",
        [datasource(), router(), server(every=False), tool()],
    )
    now(made)
    attempts(made)
    resilience(made)
    connection(made)
    inward(made)
    catalogue(made)
    return made


def now(made):
    made.row("$server now")
    made.stat("Contact", "Whether the last contact with the server succeeded. Bad: down.", "none",
              f"min(switchyard_upstream_up{{{AT}}})",
              mappings=values((1, "up", "green"), (0, "down", "red")), graph="none")
    made.stat("Enabled", "Whether calls are routed to it at all; an operator, or its absence from the "
              "configuration, can say no. Bad: disabled by mistake.", "none",
              f"min(switchyard_upstream_enabled{{{AT}}})",
              mappings=values((1, "enabled", "green"), (0, "disabled", "orange")), graph="none")
    made.stat("Credential", "Whether the server let the router in when it was last asked. Bad: refused (401 or "
              "403); its headers in the configuration are wrong or have expired.", "none",
              f"max(switchyard_upstream_unauthorised{{{AT}}})",
              mappings=values((0, "accepted", "green"), (1, "refused", "red")), graph="none")
    made.stat("Breaker", "The state of its circuit breaker. Bad: open.", "none", breaker_state(AT),
              mappings=BREAKER, graph="none")
    made.stat("Last answer", "How long ago the server last answered, calls and health checks alike. Bad: several "
              "times health_check_interval (30 s unless set). One that never answered: since the router started.", "s",
              ago("switchyard_upstream_last_success_timestamp_seconds"), bad_from(120, 900), graph="none", decimals=0)
    made.stat("Attempts", "Attempts at the server a second, retries included. Bad: nothing where there is always "
              "traffic.", "reqps", quiet(rate(TRIED + "_count", TOOLS)))
    made.stat("Failed attempts", "Share of attempts that did not end well in the time shown, errors of tools "
              "included. Bad: above some percent.", "percentunit",
              quiet(f'(sum(increase({TRIED}_count{{{TOOLS},error_type!=""}}[$__range])) or vector(0))'
                    f" / ({grown(TRIED + '_count', TOOLS, window='$__range')} > 0)"),
              bad_from(0.01, 0.05), decimals=1, graph="none")
    made.stat("p95", "95 % of attempts ended within this time. Bad: near the server's timeout (30 s unless set).",
              "s", quantile(0.95, TRIED, TOOLS), bad_from(5, 30), noValue=NO_CALLS)


def attempts(made):
    made.row("Attempts")
    made.lines("Attempts by result", "Attempts a second by how they ended. tool_error and rpc_error are answers; "
               "timeout and unavailable count for the breaker. Bad: these two.", "reqps",
               query(named(rate(TRIED + "_count", TOOLS, "error_type")), "{{error_type}}"), stacked=True)
    made.lines("Time of attempts", "Time from sending to the answer, of each attempt. Bad: p99 at the server's "
               "timeout.", "s",
               query(quantile(0.5, TRIED, TOOLS), "p50"), query(quantile(0.95, TRIED, TOOLS), "p95"),
               query(quantile(0.99, TRIED, TOOLS), "p99"), log=10, noValue=NO_CALLS)
    made.heatmap("Attempts by duration", "How many attempts took how long. Bad: a second band near the timeout.",
                 TRIED, TOOLS)
    window = "$__range"
    everything = grown(TRIED + "_count", TOOLS, "gen_ai_tool_name", window)
    errors = grown(TRIED + "_count", TOOLS + ',error_type!=""', "gen_ai_tool_name", window)
    made.table("By tool", "Attempts in the time shown, failures and times of each tool. Bad: one tool that fails or "
               "is slow beside others that do not; then it is the tool, not the server.",
               [
                   ("Attempts", quiet(everything, "gen_ai_tool_name"), "short", {"decimals": 0}),
                   ("Failed", quiet(f"({errors} or 0 * {everything}) / ({everything} > 0)", "gen_ai_tool_name"),
                    "percentunit", share(0.01, 0.05)),
                   ("p50", quantile(0.5, TRIED, TOOLS, "gen_ai_tool_name", window), "s", {}),
                   ("p95", quantile(0.95, TRIED, TOOLS, "gen_ai_tool_name", window), "s",
                    {"thresholds": bad_from(5, 30), "custom__cellOptions": {"type": "color-text"}}),
               ],
               sort="Attempts", keys=[("gen_ai_tool_name", "Tool")], width=14)
    made.lines("By protocol and transport", "Attempts a second by the protocol version that was spoken and the "
               "transport (tcp, or pipe for a child process). Bad: a version that changes to and fro.", "reqps",
               query(quiet(rate(TRIED + "_count", TOOLS, "mcp_protocol_version, network_transport"), "network_transport"),
                     "{{mcp_protocol_version}} {{network_transport}}"), width=10)


def resilience(made):
    made.row("Breaker and retries")
    made.timeline("Circuit breaker", "The state of the breaker. Bad: open for long, or open and half open in turn: "
                  "then every probe fails.", breaker_state(AT), "{{server}}", BREAKER, width=12, height=6)
    made.lines("Transitions", "Changes of the breaker's state and their reasons. Bad: the same ones again and "
               "again. `switchyard breakers history $server` has the errors.", "short",
               query(grown_or_new("switchyard_breaker_transitions_total", AT, "from, to, reason"),
                     "{{from}} → {{to}} ({{reason}})"), width=12, height=6, bars=True, stacked=True)
    made.lines("Refused by the breaker", "Attempts a second that were refused (nothing was sent), and results that "
               "came too late to count. Bad: refusals for long.", "reqps",
               query(rate("switchyard_breaker_rejections_total", AT), "refused"),
               query(rate("switchyard_breaker_stale_results_total", AT), "too late to count"), width=6)
    made.lines("Tools with an open breaker", "Tools whose own breakers are open or half open, where breaker_scope is tool; 0 "
               "where the server has one for all. Bad: any for long; `switchyard breakers` says which.", "short",
               query(f"sum(switchyard_breaker_tools_open{{{AT}}})", "tools"), width=6)
    made.lines("Retries", "Attempts a second that repeated a failed one, by what was known of that: not_sent, "
               "refused, ambiguous (only tools that are safe to repeat), timeout. Bad: a level that stays.", "reqps",
               query(rate("switchyard_retries_total", AT, "reason"), "{{reason}}"), width=6, stacked=True)
    made.lines("Retries not made", "Failures a second that were not repeated although their kind can be, by why. "
               "Bad: `budget` (too many retries already) and `overload`.", "reqps",
               query(rate("switchyard_retries_suppressed_total", AT, "why"), "{{why}}"), width=6, stacked=True)


def connection(made):
    made.row("Connection")
    made.timeline("Contact", "Whether the last contact succeeded, over time. Bad: down.",
                  f"min by (server) (switchyard_upstream_up{{{AT}}})", "{{server}}",
                  values((1, "up", "green"), (0, "down", "red")), width=6, height=7)
    made.lines("Connections opened again", "Connections that replaced another one: it was lost, or an operator asked "
               "for it. Bad: `lost` again and again; something between cuts connections, or the program ends.",
               "short", query(grown("switchyard_upstream_reconnects_total", AT, "reason"), "{{reason}}"),
               width=6, height=7, bars=True)
    made.lines("Calls there and waiting", "Calls in flight at the server, calls that wait for a place, isolated "
               "sessions. Bad: calls that wait for long.", "short",
               query(f"sum(switchyard_upstream_inflight{{{AT}}})", "in flight"),
               query(f"sum(switchyard_upstream_queue_depth{{{AT}}})", "waiting"),
               query(f"sum(switchyard_upstream_sessions{{{AT}}})", "isolated sessions"), width=6, height=7)
    made.lines("Breaker opens again in", "Time until the open breaker lets a probe through; 0 while it is not open, or "
               "when only a call is missing. Bad: nothing by itself; it says when the next attempt can be made.", "s",
               query(f"clamp_min(max(switchyard_breaker_open_until_timestamp_seconds{{{AT}}}) - time(), 0)",
                     "time left"), width=6, height=7)
    made.lines("Processes", "Processes of a server that the router starts, with all descendants, and how many such "
               "servers the configuration allows (more than one only with sessions: isolated). Bad: growth that does "
               "not end. 0 for a server that is reached over HTTP.", "short",
               query(child(f"sum(switchyard_child_processes{{{AT}}})"), "processes"),
               query(child(f"sum(switchyard_child_processes_limit{{{AT}}})"), "children allowed"))
    made.lines("Memory of its processes", "Resident memory; what processes share is counted for each. Bad: growth that "
               "does not end.", "bytes", query(child(f"sum(switchyard_child_resident_bytes{{{AT}}})"), "resident"))
    made.lines("Starts after an end", "How often the program was started again. Bad: any that nobody asked for; "
               "`switchyard servers show $server` has its exit code and last words.", "short",
               query(child(grown("switchyard_child_restarts_total", AT)), "starts"), bars=True)


def inward(made):
    made.row("As clients see its tools")
    made.lines("Calls by result", "Calls a second to the chosen tools, also those that were refused before an attempt. "
               "Bad: MCPCircuitOpenError, MCPTimeoutError, MCPConnectionError, MCPOverloadedError.", "reqps",
               query(named(rate(SERVED + "_count", ASKED, "error_type")), "{{error_type}}"), stacked=True)
    made.lines("Duration of calls", "Time from a call's arrival to its answer, retries and waiting included. Bad: p99 "
               "far above that of attempts; calls then wait or are repeated.", "s",
               query(quantile(0.5, SERVED, ASKED), "p50"), query(quantile(0.95, SERVED, ASKED), "p95"),
               query(quantile(0.99, SERVED, ASKED), "p99"), log=10, noValue=NO_CALLS)
    made.lines("Mean time in the router", "Time of these calls less the time of their attempts, for each call. Bad: above "
               "some milliseconds without retries.", "s",
               query(quiet(f"({rate(SERVED + '_sum', ASKED)} - ({rate(TRIED + '_sum', TOOLS)} or vector(0)))"
                           f" / ({rate(SERVED + '_count', ASKED)} > 0)"), "mean"))


def catalogue(made):
    made.row("Tools")
    made.lines("Tools by status", "Its tools: active, stale (the server could not be asked), held (changed, not callable "
               "until approved), gone. Bad: held or stale for long.", "short",
               query(total(f"switchyard_upstream_tools{{{AT}}}", "status"), "{{status}}"), width=6, stacked=True)
    made.lines("Age of the list", "How long ago its tools were last known to be as listed: the list could be had, or its word "
               "holds that it stays the same. Bad: above 15 minutes; it answers, and its list cannot be had.", "s",
               query(ago("switchyard_upstream_last_refresh_timestamp_seconds"), "age"), width=6,
               thresholds=bad_from(300, 900))
    made.lines("Changes of definitions", "Tools added, changed, removed. Bad: `changed` without an upgrade of the server. "
               "`switchyard tools history TOOL` shows what changed.", "short",
               query(grown_or_new("switchyard_tool_definition_changes_total", AT, "kind"), "{{kind}}"), width=6,
               bars=True, stacked=True)
    made.lines("Size of definitions", "Tokens, estimated, that its definitions take in a model's context. Bad: thousands; "
               "give agents a view of what they need.", "short",
               query(f"sum(switchyard_tool_definition_tokens{{{AT}}})", "tokens"), width=6)
