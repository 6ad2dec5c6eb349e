"""The dashboards as they are shipped: their queries, with Grafana's variables filled in."""

import json
import pathlib
import re
from dataclasses import dataclass

GRAFANA = pathlib.Path(__file__).resolve().parents[2] / "grafana"
NAMES = ("overview", "server", "audit")
LABEL_VALUES = re.compile(r"^label_values\((.*),\s*([A-Za-z_]+)\)$")


@dataclass
class Query:
    where: str
    expression: str
    instant: bool = False


def load(name):
    return json.loads((GRAFANA / f"{name}.json").read_text())


def panels(board):
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", [])


def queries(board):
    for panel in panels(board):
        for target in panel.get("targets", []):
            where = f"{board['uid']}, panel {panel['id']} “{panel['title']}” {target['refId']}"
            yield Query(where, target["expr"], target["instant"])


def annotations(board):
    for one in board["annotations"]["list"]:
        yield Query(f"{board['uid']}, annotation “{one['name']}”", one["target"]["expr"])


def variables(board):
    """(where, series, label) of each variable that is asked of Prometheus."""
    for one in board["templating"]["list"]:
        if one["type"] == "query":
            series, label = LABEL_VALUES.match(one["query"]["query"]).groups()
            yield f"{board['uid']}, variable {one['name']}", series, label


def filled(expression, values):
    """With `$name` replaced; whatever is left of them is a mistake."""
    for name in sorted(values, key=len, reverse=True):
        expression = expression.replace("$" + name, values[name])
    if "$" in expression:
        raise ValueError(f"a variable that nobody fills in: {expression}")
    return expression
