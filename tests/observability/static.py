"""What can be said of dashboards and alerts without a router: `static.py` prints every fault.

Layout, descriptions, units and thresholds of panels; that each metric that is used is one that the router has,
and each that it has is used; that error types are judged alike everywhere; that each alert has a
section of its own in the runbook.
"""

import pathlib
import re
import sys

import dashboards
import promql

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "grafana"))

from boards.parts import FAULTS  # noqa: E402

# Metrics that no dashboard and no alert shows, on purpose.
UNUSED = {
    "process_threads": "says nothing that memory and processor time do not",
    "process_virtual_memory_bytes": "address space is not memory",
    "switchyard_config_reloads_total": "the alert goes by the state that the last reload left",
    "switchyard_config_last_reload_success_timestamp_seconds": "the same; the time is for people with a question",
}
# Of the client library, as the snapshot of /metrics has them.
PROCESS = {
    "process_cpu_seconds_total", "process_max_fds", "process_open_fds", "process_resident_memory_bytes",
    "process_start_time_seconds", "process_threads", "process_virtual_memory_bytes",
}


def layout(board):
    seen, taken = set(), {}
    for panel in dashboards.panels(board):
        where = f"{board['uid']}, panel {panel['id']} “{panel['title']}”"
        if panel["id"] in seen:
            yield f"{where}: the id is taken"
        seen.add(panel["id"])
        at = panel["gridPos"]
        if at["x"] < 0 or at["x"] + at["w"] > 24 or min(at["w"], at["h"]) < 1:
            yield f"{where}: outside of the grid: {at}"
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                if (x, y) in taken:
                    yield f"{where}: lies over panel {taken[x, y]}"
                taken[x, y] = panel["id"]
        # A row is a heading, and Grafana knows no more of it.
        if panel["type"] == "row":
            continue
        if not panel.get("description"):
            yield f"{where}: no description"
        defaults = panel.get("fieldConfig", {}).get("defaults", {})
        if not defaults.get("unit"):
            yield f"{where}: no unit"
        if not defaults.get("thresholds", {}).get("steps"):
            yield f"{where}: no thresholds"
        if panel["type"] != "text" and "Bad:" not in panel["description"]:
            yield f"{where}: the description does not say what is bad"
        for target in panel.get("targets", []):
            if target["datasource"]["uid"] != "${datasource}":
                yield f"{where}: a data source of its own"


def whole(board):
    if not re.fullmatch(r"switchyard-[a-z]+", board["uid"]):
        yield f"{board['uid']}: not a uid of ours"
    names = [one["name"] for one in board["templating"]["list"]]
    if names[:2] != ["datasource", "instance"] or "server" not in names:
        yield f"{board['uid']}: variables are {names}"
    if not any("switchyard" in link["tags"] for link in board["links"]) or "switchyard" not in board["tags"]:
        yield f"{board['uid']}: not linked with the others"


def alerts():
    text = (ROOT / "grafana/alerts.yaml").read_text()
    return text, re.findall(r"- alert: (\w+)\n(.*?)(?=\n\n|\n      - alert|\Z)", text, re.DOTALL)


def expressions():
    """Everything that names a metric, without descriptions."""
    for name in dashboards.NAMES:
        board = dashboards.load(name)
        for query in [*dashboards.queries(board), *dashboards.annotations(board)]:
            yield query.where, query.expression
        for where, series, _ in dashboards.variables(board):
            yield where, series
    text, _ = alerts()
    for number, block in enumerate(re.findall(r"expr:(.*?)(?=\n {8}(?:for|labels|record|expr)|\n {6}- |\n\n|\Z)",
                                              text, re.DOTALL)):
        yield f"alerts.yaml, expression {number + 1}", block


def metrics():
    known = set(PROCESS)
    for path in (ROOT / "src/metrics").glob("*.rs"):
        known |= set(re.findall(r'"((?:switchyard|mcp)_[a-z_]+)"', path.read_text()))
    known -= promql.LABELS
    text, _ = alerts()
    recorded = set(re.findall(r"- record: (\S+)", text))
    used = set()
    for where, expression in expressions():
        for name in promql.metrics(expression):
            name = promql.family(name, known)
            used.add(name)
            if name not in known | recorded | {"up"}:
                yield f"{where}: there is no metric {name}"
    for name in sorted(known - used - set(UNUSED)):
        yield f"{name} is on no dashboard and in no alert; show it, or say in static.py why not"
    for name in sorted(used & set(UNUSED)):
        yield f"{name} is used, and static.py says that it is not"
    for name in sorted(recorded - used):
        yield f"{name} is recorded and not used"


def error_types():
    """Every error type is a fault of the router or a server, or it is not; everywhere alike."""
    source = (ROOT / "src/error.rs").read_text()
    names = dict(re.findall(r'Self::(\w+) => "(\w+Error)"', source))
    codes = set(names.values())
    faults = set(FAULTS.split("|"))
    judged = re.search(r"fn is_fault\(.*?match self \{(.*?)=> true", source, re.DOTALL)
    if {names[name] for name in re.findall(r"Self::(\w+)", judged.group(1))} != faults:
        yield "parts.py counts other error types than ErrorCode::is_fault"
    text, _ = alerts()
    for found in re.findall(r'error_type=~"([^"]+)"', text):
        if set(found.split("|")) != faults:
            yield f"alerts.yaml counts other error types than the dashboards: {found}"
    head = text.split("groups:")[0]
    table = (ROOT / "docs/observability.md").read_text()
    for code in sorted(codes - {"MCPToolError"}):  # `tool_error` in metrics
        for name, said in (("alerts.yaml", head), ("docs/observability.md", table)):
            if not re.search(rf"\b{code}\b", said):
                yield f"{name} does not say whose failure {code} is"
    if not faults <= codes:
        yield f"error types that are none: {faults - codes}"
    ours = [line for line in table.splitlines() if re.match(r"\|.*\| yes \|$", line)]
    if set(re.findall(r"\w+Error", " ".join(ours))) != faults:
        yield "docs/observability.md counts other error types than the dashboards"
    for block in re.findall(r"#   router or server(.*?)#   caller", head, re.DOTALL):
        if set(re.findall(r"\w+Error", block)) != faults:
            yield "the list at the top of alerts.yaml is another than the one in its expressions"


def runbook():
    sections = re.findall(r"^## (.+)$", (ROOT / "docs/runbook.md").read_text(), re.MULTILINE)
    text, found = alerts()
    # That of `switchyard slo --prometheus`.
    written = re.findall(r"- alert: (\w+)", (ROOT / "src/metrics/rules.rs").read_text())
    if sorted(sections) != sorted({name for name, _ in found} | set(written)):
        yield f"sections of docs/runbook.md and alerts differ: {set(sections) ^ ({name for name, _ in found} | set(written))}"
    tests = (ROOT / "grafana/alerts_test.yaml").read_text()
    for name, body in found:
        for wanted in ("severity:", "summary:", "description:", "runbook_url:"):
            if wanted not in body:
                yield f"{name} has no {wanted}"
        anchor = re.search(r"runbook_url: docs/runbook\.md#(\S+)", body)
        if not anchor or anchor.group(1) != name.lower():
            yield f"{name}: runbook_url leads to another section"
        cases = re.findall(rf"alertname: {name}\n\s+exp_alerts:( \[\])?", tests)
        if "" not in cases or " []" not in cases:
            yield f"{name} needs a case in which it fires and one in which it does not"
    if len(found) != text.count("- alert:"):
        yield "static.py does not see every alert"


def main():
    faults = []
    for name in dashboards.NAMES:
        board = dashboards.load(name)
        faults += [*layout(board), *whole(board)]
    faults += [*metrics(), *error_types(), *runbook()]
    print("\n".join(faults) or "dashboards and alerts are in order")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
