"""What dashboards are made of: panels, queries, variables, annotations, links.

A `Board` places panels from left to right and numbers them. Every panel has a title, a description (of
figures: what they show, what is bad), a unit and thresholds; `tests/observability` checks that.
"""

SCHEMA_VERSION = 42
PLUGIN_VERSION = "13.2.1"
WIDTH = 24

SOURCE = {"type": "prometheus", "uid": "${datasource}"}

# Failures of tool calls that are the router's or the server's; all others are the caller's, the
# operator's, or an answer of the tool. The list is that of `ErrorCode::is_fault`, and stands in alerts.yaml
# and docs/observability.md, too.
FAULTS = "|".join([
    "MCPRpcError", "MCPTimeoutError", "MCPConnectionError", "MCPCircuitOpenError", "MCPOverloadedError",
    "MCPResponseTooLargeError", "MCPProtocolError", "MCPAuditUnavailableError",
    "MCPShuttingDownError", "MCPLimitReachedError", "UnexpectedError",
])

SERVED = "mcp_server_operation_duration_seconds"
TRIED = "mcp_client_operation_duration_seconds"
HERE = 'instance=~"$instance"'
CALL = HERE + ',mcp_method_name="tools/call"'
AT_SERVER = HERE + ',server=~"$server"'
# Calls to tools that are in no catalogue have no server: All of them match that, too.
CALL_AT = CALL + ',server=~"$server"'

# As the breaker panels number the states.
STATES = ["closed", "half_open", "open", "forced_open", "forced_closed"]
STATE_COLORS = ["green", "yellow", "red", "purple", "blue"]


def rate(metric, labels, by=None, window="$__rate_interval"):
    return total(f"rate({metric}{{{labels}}}[{window}])", by)


def grown(metric, labels, by=None, window="$__rate_interval"):
    return total(f"increase({metric}{{{labels}}}[{window}])", by)


def grown_or_new(metric, labels, by=None, window="$__rate_interval"):
    """Also what a series came up with: a counter that is made with its first count does not grow by it."""
    series = f"{metric}{{{labels}}}"
    return total(f"({series} unless {series} offset {window}) or increase({series}[{window}])", by)


def quiet(expression, label=None, text="none"):
    """With a zero where there is nothing to count yet; `label` is what the legend shows, and `text` its value."""
    zero = f'label_replace(vector(0), "{label}", "{text}", "", "")' if label else "vector(0)"
    return f"{expression} or on() {zero}"


def total(expression, by=None):
    return f"sum by ({by}) ({expression})" if by else f"sum({expression})"


def quantile(q, histogram, labels, by=None, window="$__rate_interval"):
    groups = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, {rate(histogram + '_bucket', labels, groups, window)})"


def breaker_state(labels):
    """One number for each server, by `STATES`."""
    terms = [f'{number} * sum by (instance, server) (switchyard_breaker_state{{{labels},state="{state}"}})'
             for number, state in enumerate(STATES) if number > 0]
    return f"max by (server) ({' + '.join(terms)})"


def query(expression, legend="", **more):
    return {"expr": expression, "legendFormat": legend or "__auto", **more}


def steps(*values):
    """Thresholds: (None, COLOR) is the base."""
    return {"mode": "absolute", "steps": [{"value": at, "color": color} for at, color in values]}


GREEN = steps((None, "green"))
PLAIN = steps((None, "text"))


def bad_from(warning, critical):
    return steps((None, "green"), (warning, "orange"), (critical, "red"))


def share(warning, critical):
    """Of a cell that is filled: nothing where all is well, so that the rest stands out."""
    return {"thresholds": steps((None, "transparent"), (warning, "orange"), (critical, "red")), "decimals": 1,
            "custom__cellOptions": {"type": "color-background", "mode": "basic"}}


def good_from(critical, fine):
    return steps((None, "red"), (critical, "orange"), (fine, "green"))


def values(*pairs):
    """Value mappings: (VALUE, TEXT, COLOR)."""
    options = {str(value): {"text": text, "color": color, "index": at}
               for at, (value, text, color) in enumerate(pairs)}
    return [{"type": "value", "options": options}]


BREAKER = values(*((number, state.replace("_", " "), STATE_COLORS[number])
                   for number, state in enumerate(STATES)))


def override(name, **properties):
    """Of one column or series; `custom__x` stands for `custom.x`."""
    return {"matcher": {"id": "byName", "options": name},
            "properties": [{"id": key.replace("__", "."), "value": value}
                           for key, value in properties.items()]}


class Board:
    def __init__(self, uid, title, description, variables):
        self.panels = []
        self.next_id = 1
        self.x = self.y = self.row_height = 0
        self.head = {"uid": uid, "title": title, "description": description}
        self.variables = variables

    def row(self, title):
        self._break()
        self._place({"type": "row", "title": title, "collapsed": False, "panels": []}, WIDTH, 1)
        self._break()

    def _break(self):
        self.y += self.row_height
        self.x = self.row_height = 0

    def _place(self, panel, width, height):
        if self.x + width > WIDTH:
            self._break()
        position = {"h": height, "w": width, "x": self.x, "y": self.y}
        self.panels.append({"id": self.next_id, "gridPos": position, **panel})
        self.next_id += 1
        self.x += width
        self.row_height = max(self.row_height, height)

    def _figures(self, kind, title, description, unit, queries, width, height, options, defaults,
                 overrides=(), transformations=(), **more):
        instant = kind in ("table", "bargauge")
        targets = []
        for number, one in enumerate(queries):
            one = query(one) if isinstance(one, str) else one
            targets.append({
                "refId": chr(ord("A") + number), "datasource": SOURCE, "editorMode": "code",
                "range": not instant, "instant": instant, "exemplar": False,
                "format": "table" if kind == "table" else "heatmap" if kind == "heatmap" else "time_series",
                **one,
            })
        self._place({
            "type": kind, "title": title, "description": description, "datasource": SOURCE,
            "pluginVersion": PLUGIN_VERSION, "targets": targets,
            "fieldConfig": {"defaults": {"unit": unit, **defaults}, "overrides": list(overrides)},
            "options": options,
            **({"transformations": list(transformations)} if transformations else {}),
            **more,
        }, width, height)

    def stat(self, title, description, unit, expression, thresholds=GREEN, width=3, height=4,
             mappings=(), graph="area", **more):
        options = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "background" if mappings else "value", "graphMode": graph,
            "justifyMode": "auto", "orientation": "auto", "textMode": "auto", "wideLayout": True,
            "percentChangeColorMode": "standard", "showPercentChange": False,
        }
        defaults = {"color": {"mode": "thresholds"}, "thresholds": thresholds,
                    "mappings": list(mappings), **more}
        self._figures("stat", title, description, unit, [expression], width, height, options, defaults)

    def lines(self, title, description, unit, *queries, width=8, height=8, stacked=False, bars=False,
              thresholds=None, overrides=(), legend="list", log=None, **more):
        custom = {
            "drawStyle": "bars" if bars else "line", "lineInterpolation": "linear", "lineWidth": 1,
            "fillOpacity": 60 if bars else 25 if stacked else 8, "gradientMode": "none",
            "showPoints": "never", "pointSize": 5, "spanNulls": False, "barAlignment": 0,
            "axisPlacement": "auto", "axisLabel": "", "axisColorMode": "text",
            "scaleDistribution": {"type": "log", "log": log} if log else {"type": "linear"},
            "axisCenteredZero": False,
            "hideFrom": {"legend": False, "tooltip": False, "viz": False},
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if thresholds else "off"},
        }
        defaults = {"color": {"mode": "palette-classic"}, "thresholds": thresholds or GREEN,
                    "custom": custom, "min": None if log else 0, **more}
        defaults = {key: value for key, value in defaults.items() if value is not None}
        options = {
            "legend": {"displayMode": legend, "placement": "bottom", "showLegend": True,
                       "calcs": ["lastNotNull", "max"] if legend == "table" else []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
        self._figures("timeseries", title, description, unit, queries, width, height, options,
                      defaults, overrides)

    def heatmap(self, title, description, histogram, labels, width=8, height=8):
        options = {
            "calculate": False, "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "scale": "exponential", "exponent": 0.5,
                      "fill": "dark-orange", "reverse": False, "steps": 64},
            "exemplars": {"color": "rgba(255,0,255,0.7)"}, "filterValues": {"le": 1e-9},
            "legend": {"show": True}, "rowsFrame": {"layout": "auto"}, "showValue": "never",
            "tooltip": {"mode": "single", "showColorScale": False, "yHistogram": True},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": "s"},
        }
        custom = {"hideFrom": {"legend": False, "tooltip": False, "viz": False},
                  "scaleDistribution": {"type": "linear"}}
        self._figures("heatmap", title, description, "s",
                      [query(grown(histogram + "_bucket", labels, "le"), "{{le}}")],
                      width, height, options,
                      {"custom": custom, "thresholds": bad_from(5, 30), "noValue": "no calls"})

    def timeline(self, title, description, expression, legend, mappings, width=24, height=7, unit="none"):
        custom = {"fillOpacity": 80, "lineWidth": 0, "axisPlacement": "auto",
                  "hideFrom": {"legend": False, "tooltip": False, "viz": False}}
        options = {
            "alignValue": "left", "mergeValues": True, "rowHeight": 0.85, "showValue": "auto",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "single", "sort": "none"},
        }
        defaults = {"color": {"mode": "thresholds"}, "thresholds": PLAIN, "custom": custom,
                    "mappings": mappings}
        self._figures("state-timeline", title, description, unit, [query(expression, legend)],
                      width, height, options, defaults)

    def table(self, title, description, columns, sort, width=24, height=8, keys=(), link=None):
        """`columns`: (NAME, expression, unit, properties). `keys`: labels and their headings."""
        overrides = [override(name, unit=unit, **properties) for name, _, unit, properties in columns]
        for label, heading in keys:
            shown = {"unit": "string"}
            if link and link[0] == label:
                shown["links"] = [{"title": link[1], "url": link[2], "targetBlank": False}]
            overrides.append(override(heading, **shown))
        renamed = {f"Value #{chr(ord('A') + number)}": column[0] for number, column in enumerate(columns)}
        if len(columns) == 1:
            renamed = {"Value": columns[0][0]}
        renamed.update({label: heading for label, heading in keys})
        transformations = [
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": {},
                                           "renameByName": renamed}},
        ]
        options = {"showHeader": True, "cellHeight": "sm", "frameIndex": 0,
                   "sortBy": [{"displayName": sort, "desc": True}]}
        defaults = {"color": {"mode": "thresholds"}, "thresholds": PLAIN,
                    "custom": {"align": "auto", "inspect": False, "cellOptions": {"type": "auto"}}}
        self._figures("table", title, description, "short", [column[1] for column in columns],
                      width, height, options, defaults, overrides, transformations)

    def text(self, title, description, content, width=24, height=4):
        self._place({"type": "text", "title": title, "description": description, "pluginVersion": PLUGIN_VERSION,
                     "fieldConfig": {"defaults": {"unit": "none", "thresholds": PLAIN}, "overrides": []},
                     "options": {"mode": "markdown", "content": content}}, width, height)

    def json(self):
        return {
            **self.head, "schemaVersion": SCHEMA_VERSION, "version": 1, "id": None,
            "tags": ["switchyard"], "editable": True, "graphTooltip": 1, "timezone": "browser",
            "time": {"from": "now-1h", "to": "now"}, "refresh": "30s", "fiscalYearStartMonth": 0,
            "timepicker": {}, "annotations": {"list": annotations(self.variables)},
            "templating": {"list": self.variables}, "links": LINKS, "panels": self.panels,
        }


LINKS = [{
    "type": "dashboards", "title": "Switchyard", "tags": ["switchyard"], "asDropdown": False,
    "includeVars": True, "keepTime": True, "targetBlank": False, "icon": "external link",
    "tooltip": "The other dashboards of Switchyard, with the same variables and time",
}]


def annotations(variables):
    of = AT_SERVER if any(one["name"] == "server" for one in variables) else HERE
    return [
        event("Breaker transitions", "red", "switchyard_breaker_transitions_total", of,
              "server, from, to, reason", "{{server}}: {{from}} → {{to}}", "{{reason}}", "server,reason"),
        event("Definition changes", "blue", "switchyard_tool_definition_changes_total", of,
              "server, kind", "{{server}}: tools {{kind}}",
              "switchyard tools history TOOL shows what changed", "server,kind"),
    ]


def event(name, color, counter, labels, by, title, text, tags):
    """Marks where a counter grew, or came up with its first count."""
    series = f"{counter}{{{labels}}}"
    expression = (f"sum by ({by}) (changes({series}[$__rate_interval])) > 0"
                  f" or sum by ({by}) ({series} unless {series} offset $__rate_interval) > 0")
    return {
        "name": name, "enable": True, "hide": False, "iconColor": color, "datasource": SOURCE,
        "target": {"refId": "Anno", "expr": expression, "interval": ""},
        "titleFormat": title, "textFormat": text, "tagKeys": tags, "useValueForTime": False,
    }


def datasource():
    return {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus",
            "refresh": 1, "regex": "", "hide": 0, "includeAll": False, "multi": False, "options": [],
            "skipUrlSync": False,
            "description": "The Prometheus that scrapes the routers"}


def variable(name, label, description, metric, of_label, every=True, all_value=None):
    all_of = {"text": ["All"], "value": ["$__all"]}
    return {
        "type": "query", "name": name, "label": label, "description": description,
        "datasource": SOURCE, "hide": 0, "includeAll": every, "multi": every, "refresh": 2,
        "regex": "", "skipUrlSync": False, "sort": 1, "options": [],
        "query": {"qryType": 1, "query": f"label_values({metric}, {of_label})",
                  "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        **({"current": all_of} if every else {}), **({"allValue": all_value} if all_value else {}),
    }


def router():
    return variable("instance", "Router", "Which routers", "switchyard_build_info", "instance",
                    all_value=".*")


def server(every=True):
    return variable("server", "Server", "Which MCP servers behind the router",
                    f"switchyard_upstream_up{{{HERE}}}", "server", every,
                    all_value=".*" if every else None)


def tool():
    """From the calls as clients see them: also tools that were only refused, and `_other` where all servers
    are chosen. All is `.*`, so that it holds what comes up later, too."""
    return variable("tool", "Tool", "Which tools, of those of the chosen servers that were called",
                    f"{SERVED}_count{{{CALL_AT}}}", "gen_ai_tool_name", all_value=".*")
