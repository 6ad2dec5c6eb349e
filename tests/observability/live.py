"""Runs the router under load before a Prometheus, and asks that for everything we ship.

    live.py BINARY WORK

Every query of every panel, variable and annotation gives data; every alert is evaluated, and what it
compares gives data; the figures are those of the ledger. `KEEP=SECONDS` keeps all running for so long
afterwards, for a look.
"""

import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import agree
import dashboards
import promql
from load import Load
from stack import Stack, eventually

# In the order in which they come up in load.py; each has to be seen by Prometheus.
SEEN = [
    ("SwitchyardReloadFailed", "pending"),
    ("SwitchyardBreakerOpen", "pending"),
    ("SwitchyardErrorBudgetFastBurn", "pending"),
    ("SwitchyardToolDefinitionChanged", "firing"),
    ("SwitchyardServerUnauthorised", "pending"),
]

# What does not happen here, or need not, so that these may be zero.
QUIET = {
    "switchyard_audit_dropped_total", "switchyard_audit_dropped_entries_total", "switchyard_audit_pruned_total",
    "switchyard_audit_throttled_total",
    "switchyard_audit_spool_bytes",
    "switchyard_audit_index_lag_seconds", "switchyard_audit_rejected_total", "switchyard_audit_spool_open",
    "switchyard_audit_queue_bytes", "switchyard_metrics_overflow_total",
}


class Report:
    def __init__(self):
        self.faults = []

    def take(self, what, faults):
        faults = list(faults)
        print(f"{'FAIL' if faults else 'ok  '}  {what}", flush=True)
        for fault in faults:
            print(f"      {fault}", flush=True)
        self.faults += faults


class Asked:
    """Prometheus, and the time of the test."""

    def __init__(self, stack, start, end):
        self.stack, self.start, self.end = stack, start, end
        self.count = 0
        self.servers = sorted(labels["server"] for labels, _ in stack.instant("switchyard_upstream_up"))
        self.everywhere = {
            "instance": ".*", "datasource": "", "__rate_interval": "5s", "__interval": "1s",
            "__range": f"{math.ceil(end - start)}s",
        }

    def data(self, query, **values):
        """The numbers that it gives."""
        expression = dashboards.filled(query.expression, {**self.everywhere, **values})
        self.count += 1
        if query.instant:
            # As Grafana asks it, at the end of the time shown; if it has an answer then, also at two moments when
            # something is the matter.
            found = [value for _, value in self.stack.instant(expression, self.end)]
            if not all(map(math.isnan, found)):
                moments = (self.start + 9, self.start + 18)
                found += [value for at in moments for _, value in self.stack.instant(expression, at)]
        else:
            series = self.stack.over_time(expression, self.start, self.end)
            found = [value for _, points in series for _, value in points]
        return [value for value in found if not math.isnan(value)]

    def filled_in(self, board):
        """The values to try: for a board of one server each of them, else all at once."""
        alone = board["uid"] == "switchyard-server"
        return [{"server": one, "tool": self.all_of(board, "tool", one)}
                for one in (self.servers if alone else [self.all_of(board, "server", "")])]

    def all_of(self, board, name, server):
        """What this variable of the board stands for when all are chosen, with this server."""
        [variable] = [one for one in board["templating"]["list"] if one["name"] == name] or [{}]
        return variable.get("allValue") or "|".join(self.choices(board, name, server))

    def choices(self, board, name, server):
        """What can be chosen of this variable of the board."""
        for where, series, label in dashboards.variables(board):
            if where.endswith(f"variable {name}"):
                match = dashboards.filled(series, {**self.everywhere, "server": server})
                self.count += 1
                return self.stack.ask(f"label/{label}/values", **{"match[]": match})
        return []

    def called(self, server):
        """Whether an attempt was made at it."""
        series = f'{agree.TRIED}_count{{server="{server}"}}'
        return server not in self.servers or bool(self.stack.instant(series, self.end))


def panels(asked):
    for name in dashboards.NAMES:
        board = dashboards.load(name)
        marks = {query.where for query in dashboards.annotations(board)}
        for query in [*dashboards.queries(board), *dashboards.annotations(board)]:
            numbers = []
            for values in asked.filled_in(board):
                found = asked.data(query, **values)
                numbers += found
                # A mark is for what happened, and without calls there is no time that they took.
                needs_calls = "_bucket" in query.expression
                if not found and query.where not in marks and (asked.called(values["server"]) or not needs_calls):
                    yield f"{query.where}: no data for {values}: {query.expression}"
            if not numbers:
                yield f"{query.where}: no data: {query.expression}"
            elif not any(numbers) and not promql.metrics(query.expression) & QUIET:
                yield f"{query.where}: nothing but zeros, though it happened: {query.expression}"


def variables(asked):
    for name in dashboards.NAMES:
        board = dashboards.load(name)
        for one in board["templating"]["list"]:
            if one["type"] == "query" and not asked.choices(board, one["name"], ".*"):
                yield f"{name}, variable {one['name']}: no values"
    # What was never attempted: a tool that was only refused, and one that is not there.
    for name, server, tool in (("server", "barred", "barred__echo"), ("audit", "barred", "barred__echo"),
                               ("audit", ".*", "_other")):
        if tool not in asked.choices(dashboards.load(name), "tool", server):
            yield f"{name}, variable tool: {tool} of {server} cannot be chosen"


def alerts(asked):
    alerts_seen = set()
    for group in asked.stack.ask("rules")["groups"]:
        for rule in group["rules"]:
            name, expression = rule["name"], rule["query"]
            if rule["health"] != "ok" or rule.get("lastError"):
                yield f"{name}: {rule['health']}: {rule.get('lastError')}"
            if rule["type"] == "alerting":
                alerts_seen.add(name)
                sides = promql.compared(expression) or [re.sub(r"^absent\((.*)\)$", r"\1", expression)]
            else:
                sides = [name]
            for side in sides:
                if not asked.data(dashboards.Query(name, side)):
                    yield f"{name}: no data: {side}"
    if len(alerts_seen) < 15:
        yield f"Prometheus has only these alerts: {sorted(alerts_seen)}"


def states(asked):
    for name, state in SEEN:
        query = dashboards.Query(name, f'ALERTS{{alertname="{name}",alertstate="{state}"}}')
        if not asked.data(query):
            yield f"{name} was not {state}"
    firing = asked.stack.instant('ALERTS{alertstate="firing"}')
    unexpected = {labels["alertname"] for labels, _ in firing} - {"SwitchyardToolDefinitionChanged"}
    if unexpected:
        yield f"alerts that should not fire: {sorted(unexpected)}"


def check_metrics(stack):
    text = stack.get("/metrics", raw=True)
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    if done.returncode or done.stdout or done.stderr:
        yield done.stdout + done.stderr


def settled(stack):
    """When Prometheus has scraped what was committed after the last call."""
    rows = stack.export()
    want = len(rows)
    eventually("Prometheus has the last calls", 10, lambda: sum(
        value for _, value in stack.instant("switchyard_audit_events_total")) == want)
    time.sleep(2.2)  # two scrapes more, for what is not counted with the rows
    return rows


def main():
    binary, work = pathlib.Path(sys.argv[1]).resolve(), pathlib.Path(sys.argv[2]).resolve()
    # So that nothing stays behind when `timeout` ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    stack, report = Stack(binary, work), Report()
    load = Load(stack)
    try:
        began = time.time()
        load.begin()
        stack.start_prometheus(load.keys["metrics"])
        start = time.time()
        load.run()
        rows = settled(stack)
        asked = Asked(stack, start, time.time())
        print(f"{len(rows)} calls in {time.time() - began:.0f} s", flush=True)
        report.take("promtool check metrics", check_metrics(stack))
        report.take("every query of a panel and an annotation gives data", panels(asked))
        report.take("every variable has values", variables(asked))
        report.take("every alert is evaluated, and what it compares is there", alerts(asked))
        report.take("alerts that must have come up did, and no others fire", states(asked))
        report.take("the figures are those of the ledger",
                    agree.differences(stack, rows, load.turned_away))
        print(f"{asked.count} queries, {time.time() - began:.0f} s")
        keep = float(os.environ.get("KEEP", "0"))
        if keep:
            print(f"router http://{stack.instance} Prometheus http://127.0.0.1:{stack.prometheus_port}", flush=True)
            time.sleep(keep)
    finally:
        stack.stop_all()
    sys.exit(bool(report.faults))


if __name__ == "__main__":
    main()
