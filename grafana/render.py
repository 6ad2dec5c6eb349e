#!/usr/bin/env python3
"""Draws a dashboard of a running Prometheus without Grafana.

    pip install matplotlib
    grafana/render.py --prometheus http://127.0.0.1:9090 --last 1h overview docs/overview.png

Panels are drawn at their places with their titles, queries, units, colours, thresholds and legends, as
Grafana would show them, roughly. It is for pictures in documents; the dashboards are made for Grafana.
"""

import argparse
import io
import json
import math
import pathlib
import re
import time
import urllib.parse
import urllib.request

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plot  # noqa: E402
from matplotlib.colors import LinearSegmentedColormap, PowerNorm  # noqa: E402
from matplotlib.patches import FancyBboxPatch  # noqa: E402
from PIL import Image  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
COLUMN, ROW, GAP, DPI = 62, 38, 8, 100
PALETTE = ["#73BF69", "#F2CC0C", "#5794F2", "#FF780A", "#F2495C", "#B877D9", "#37872D", "#8AB8FF", "#C4162A",
           "#E0B400", "#1F60C4", "#FA6400", "#8F3BB8", "#96D98D", "#FFB357"]
COLORS = {"green": "#2E9E44", "orange": "#E8731A", "red": "#D9263F", "yellow": "#E5B400", "purple": "#9B51C9",
          "blue": "#3271E0", "text": "#24292E", "transparent": None}
INK, FAINT, LINE, PAPER = "#24292E", "#6A737D", "#DDE1E6", "#F4F5F7"


# Numbers as people read them

def scaled(value, base, names, digits=3):
    size = 0
    while abs(value) >= base and size < len(names) - 1:
        value /= base
        size += 1
    return f"{digit(value, digits)}{names[size]}"


def digit(value, digits=3):
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(places, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def shown(value, unit, decimals=None):
    if value is None or math.isnan(value):
        return "–"
    if unit == "percentunit":
        return f"{value * 100:.{decimals}f}%" if decimals is not None else f"{digit(value * 100)}%"
    if unit == "s":
        for limit, factor, name in ((1e-3, 1e6, " µs"), (1, 1e3, " ms"), (120, 1, " s"), (7200, 1 / 60, " min"),
                                    (172800, 1 / 3600, " h")):
            if abs(value) < limit:
                return "0 s" if value == 0 else digit(value * factor) + name
        return digit(value / 86400) + " d"
    if unit in ("bytes", "Bps"):
        return scaled(value, 1024, [" B", " KiB", " MiB", " GiB", " TiB"]) + ("/s" if unit == "Bps" else "")
    if unit == "reqps":
        return scaled(value, 1000, [" req/s", "K req/s"])
    if decimals is not None:
        return f"{value:.{decimals}f}"
    return scaled(value, 1000, ["", "K", "M", "G"])


def threshold(defaults, value):
    color = "text"
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step["value"] is None or value >= step["value"]:
            color = step["color"]
    return COLORS[color]


def mapped(mappings, value):
    for mapping in mappings or []:
        found = mapping["options"].get(str(round(value)))
        if found:
            return found["text"], COLORS[found["color"]]
    return None


class Binary(plot.Locator):
    """Ticks at round numbers of KiB, MiB, GiB."""

    def __call__(self):
        low, high = self.axis.get_view_interval()
        step = 2.0 ** math.ceil(math.log2(max(high - low, 1) / 5))
        return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


class Source:
    def __init__(self, options):
        self.base = options.prometheus.rstrip("/")
        self.end = options.until or time.time()
        self.start = self.end - options.last
        self.scrape = options.scrape
        self.values = {"instance": options.instance, "server": options.server, "datasource": "",
                       "__range": f"{round(options.last)}s"}
        self.values["tool"] = self.tools_of(options.server)

    def ask(self, path, expression, width, **parameters):
        step = max(self.scrape, math.ceil((self.end - self.start) / width))
        values = {**self.values, "__interval": f"{step}s",
                  "__rate_interval": f"{max(step + self.scrape, 4 * self.scrape)}s"}
        for name in sorted(values, key=len, reverse=True):
            expression = expression.replace("$" + name, values[name])
        if path == "query_range":
            parameters["step"] = step
        query = urllib.parse.urlencode({"query": expression, **parameters})
        with urllib.request.urlopen(f"{self.base}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]["result"]

    def series(self, target, width):
        """(name, times, values), in which what is not there is NaN."""
        found = self.ask("query_range", target["expr"], width, start=self.start, end=self.end)
        return [(legend(target, one["metric"]), [point[0] for point in one["values"]],
                 [float(point[1]) for point in one["values"]]) for one in found]

    def tools_of(self, server):
        """What the variable `tool` holds when all are chosen."""
        query = urllib.parse.urlencode(
            {"match[]": f'mcp_client_operation_duration_seconds_count{{server=~"{server}"}}'})
        with urllib.request.urlopen(f"{self.base}/api/v1/label/gen_ai_tool_name/values?{query}", timeout=30) as answer:
            return "|".join(json.load(answer)["data"])

    def rows(self, target):
        found = self.ask("query", target["expr"], 100, time=self.end)
        return [(one["metric"], float(one["value"][1])) for one in found]


def legend(target, labels):
    form = target["legendFormat"]
    if form == "__auto":
        return " ".join(f"{value}" for key, value in labels.items() if key != "__name__")
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match.group(1), ""), form).strip()


class Picture:
    def __init__(self, board, source):
        self.board, self.source = board, source
        self.width = 24 * COLUMN + 2 * GAP
        self.head = 56
        self.height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"]) * ROW + self.head + GAP
        self.figure = plot.figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor=PAPER)
        plot.rcParams["font.family"] = ["DejaVu Sans"]
        self.marks = [(one["iconColor"], self.source.series({**one["target"], "legendFormat": ""}, 400))
                      for one in board["annotations"]["list"]]

    def place(self, x, y, w, h):
        """Pixels from the top left, as the figure wants them."""
        return [x / self.width, 1 - (y + h) / self.height, w / self.width, h / self.height]

    def write(self, x, y, text, size=9, color=INK, **more):
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, color=color, **more)

    def box(self, x, y, w, h, face="white", edge=LINE):
        left, bottom, width, height = self.place(x, y, w, h)
        self.figure.add_artist(FancyBboxPatch(
            (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.0015",
            mutation_aspect=self.width / self.height, facecolor=face, edgecolor=edge, linewidth=0.8, zorder=-1))

    def draw(self):
        self.write(GAP + 6, 26, self.board["title"], 16, weight="bold", va="center")
        span = round(self.source.end - self.source.start)
        self.write(self.width - GAP - 6, 26, f"last {span // 60} min {span % 60} s, UTC", 9.5, FAINT, ha="right", va="center")
        kinds = {"stat": self.stat, "timeseries": self.lines, "heatmap": self.heatmap,
                 "state-timeline": self.timeline, "table": self.table, "text": self.text}
        for panel in self.board["panels"]:
            at = panel["gridPos"]
            x, y = GAP + at["x"] * COLUMN, self.head + at["y"] * ROW
            w, h = at["w"] * COLUMN - GAP, at["h"] * ROW - GAP
            title = panel["title"].replace("$server", self.source.values["server"])
            if panel["type"] == "row":
                self.write(x + 4, y + h / 2 + 2, f"⌄  {title}", 11.5, weight="bold", va="center")
                continue
            self.box(x, y, w, h)
            self.write(x + 10, y + 17, title, 9.5, weight="bold", va="center")
            kinds[panel["type"]](panel, x, y + 30, w, h - 30)

    def save(self, path):
        if path.suffix != ".png":
            self.figure.savefig(path, facecolor=PAPER)
            return
        kept = io.BytesIO()
        self.figure.savefig(kept, format="png", facecolor=PAPER)
        Image.open(kept).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(path, optimize=True)

    # Panels; each gets the place below its title

    def text(self, panel, x, y, w, h):
        content = panel["options"]["content"].strip()
        self.write(x + 12, y + 6, "\n".join(content.split("\n")), 8.5, va="top", family="DejaVu Sans Mono", wrap=True)

    def stat(self, panel, x, y, w, h):
        defaults = panel["fieldConfig"]["defaults"]
        found = self.source.series(panel["targets"][0], w)
        values = [value for value in (found[0][2] if found else []) if not math.isnan(value)]
        last = values[-1] if values else math.nan
        known = mapped(defaults.get("mappings"), last) if values else None
        if known:
            self.box(x + 1, y - 29, w - 2, h + 28, known[1], known[1])
            self.write(x + 10, y - 13, panel["title"], 9.5, "white", weight="bold", va="center")
            self.write(x + w / 2, y + h / 2 - 6, known[0], 20, "white", weight="bold", ha="center", va="center")
            return
        color = threshold(defaults, last) if values else FAINT
        graph = panel["options"]["graphMode"] == "area" and len(values) > 2
        if graph:
            axes = self.figure.add_axes(self.place(x + 1, y + h * 0.55, w - 2, h * 0.45 - 1))
            axes.axis("off")
            axes.plot(values, color=color, linewidth=1)
            axes.fill_between(range(len(values)), values, min(0, *values), color=color, alpha=0.18, linewidth=0)
            axes.margins(x=0)
        text = shown(last, defaults["unit"], defaults.get("decimals"))
        self.write(x + w / 2, y + h * (0.32 if graph else 0.42), text, 20, color, weight="bold", ha="center", va="center")

    def axes(self, x, y, w, h, unit=None, below=34):
        left = 62
        axes = self.figure.add_axes(self.place(x + left, y + 2, w - left - 12, h - below - 18))
        axes.set_facecolor("none")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(LINE)
        axes.tick_params(length=0, labelsize=7.5, labelcolor=FAINT, pad=3)
        axes.grid(axis="y", color="#ECEEF1", linewidth=0.8)
        axes.set_axisbelow(True)
        span = self.source.end - self.source.start
        axes.set_xlim(self.source.start, self.source.end)
        count = max(2, int((w - left) / 80))
        step = next((one for one in (5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400) if span / one <= count), 86400)
        ticks = [at for at in range(int(self.source.start // step * step), int(self.source.end) + 1, step) if at >= self.source.start]
        axes.set_xticks(ticks, [time.strftime("%H:%M:%S" if step < 60 else "%H:%M", time.gmtime(at)) for at in ticks])
        if unit:
            binary = unit in ("bytes", "Bps")
            axes.yaxis.set_major_locator(Binary() if binary else plot.MaxNLocator(4 if h > 150 else 3))
            axes.yaxis.set_major_formatter(plot.FuncFormatter(lambda value, _: shown(value, unit)))
        return axes

    def mark(self, axes):
        for color, found in self.marks:
            for _, times, values in found:
                before = None
                for at, value in zip(times, values):
                    if value > 0 and (before is None or at - before > 2 * self.source.scrape + 3):
                        axes.axvline(at, color=COLORS[color], linewidth=0.7, linestyle=(0, (4, 3)), alpha=0.55, zorder=0)
                    before = at

    def lines(self, panel, x, y, w, h):
        defaults = panel["fieldConfig"]["defaults"]
        custom = defaults["custom"]
        found = [one for target in panel["targets"] for one in self.source.series(target, w)]
        found = [one for one in found if any(not math.isnan(value) for value in one[2])]
        # Of many series, those that are anything but zero; Grafana scrolls its legend.
        busy = [one for one in found if any(value for value in one[2] if not math.isnan(value))]
        found = busy or found[:1]
        names = [name or "value" for name, _, _ in found]
        lines = self.legend_lines(names, w)
        below = 8 + 15 * len(lines)
        axes = self.axes(x, y, w, h, defaults["unit"], below)
        stacked = custom["stacking"]["mode"] == "normal"
        bars = custom["drawStyle"] == "bars"
        grid = sorted({at for _, times, _ in found for at in times})
        base = [0.0] * len(grid)
        width = max(self.source.scrape, (self.source.end - self.source.start) / 120)
        for number, (_, times, values) in enumerate(found):
            color = PALETTE[number % len(PALETTE)]
            known = dict(zip(times, values))
            ys = [known.get(at, math.nan) for at in grid]
            if bars:
                filled = [0 if math.isnan(value) else value for value in ys]
                axes.bar(grid, filled, width, bottom=base if stacked else None, color=color, alpha=0.85, linewidth=0)
                base = [low + value for low, value in zip(base, filled)]
            elif stacked:
                top = [low + (0 if math.isnan(value) else value) for low, value in zip(base, ys)]
                axes.fill_between(grid, base, top, color=color, alpha=0.30, linewidth=0)
                axes.plot(grid, top, color=color, linewidth=1)
                base = top
            else:
                axes.plot(grid, ys, color=color, linewidth=1.2)
                if len(found) == 1:
                    axes.fill_between(grid, ys, 0, color=color, alpha=0.10, linewidth=0)
        self.mark(axes)
        low, high = axes.get_ylim()
        low = defaults.get("min", low if any(v < 0 for _, _, vs in found for v in vs if not math.isnan(v)) else 0)
        high = max(high, defaults.get("max", high)) if defaults.get("max") else high
        if high <= low or not busy:
            high = low + 1
        if custom["scaleDistribution"]["type"] == "log" and busy:
            positive = [value for _, _, values in found for value in values if value > 0]
            axes.set_yscale("log")
            base = 10 if custom["scaleDistribution"]["log"] == 10 else 32  # 1 KiB, 32 KiB, 1 MiB
            axes.yaxis.set_major_locator(plot.LogLocator(base, numticks=8))
            axes.yaxis.set_minor_locator(plot.NullLocator())
            axes.yaxis.set_major_formatter(plot.FuncFormatter(lambda value, _: shown(value, defaults["unit"])))
            low, high = base ** math.floor(math.log(min(positive), base)), 1.6 * max(positive)
        axes.set_ylim(low, high)
        for step in defaults["thresholds"]["steps"] if custom["thresholdsStyle"]["mode"] != "off" else []:
            if step["value"] is not None and step["value"] <= high:
                axes.axhline(step["value"], color=COLORS[step["color"]], linewidth=1, linestyle=(0, (5, 3)))
        self.draw_legend(lines, names, x, y + h - 15 * len(lines) - 3)
        if not found:
            self.write(x + w / 2, y + h / 2 - 10, defaults.get("noValue", "no data"), 10, FAINT, ha="center", va="center")

    @staticmethod
    def legend_lines(names, w):
        """Which names stand in which line, and where; three lines at most."""
        lines, place = [[]], 0
        for number, name in enumerate(names):
            need = 26 + 6.1 * len(name)
            if place + need > w - 24 and lines[-1]:
                lines.append([])
                place = 0
            lines[-1].append((number, place))
            place += need
        return lines[:3]

    def draw_legend(self, lines, names, x, y):
        for at, line in enumerate(lines):
            for number, place in line:
                color, left, top = PALETTE[number % len(PALETTE)], x + 14 + place, y + 15 * at + 7
                self.write(left, top, "━", 8, color, va="center", weight="bold")
                self.write(left + 14, top, names[number], 7.8, INK, va="center")

    def heatmap(self, panel, x, y, w, h):
        found = [(float(one[0]), one[1], one[2]) for one in self.source.series(panel["targets"][0], 110)]
        found.sort()
        axes = self.axes(x, y, w, h, None, below=6)
        if not found:
            return
        grid = sorted({at for _, times, _ in found for at in times})
        rows, before = [], [0.0] * len(grid)
        for _, times, values in found:
            known = dict(zip(times, values))
            now = [known.get(at, 0.0) for at in grid]
            now = [0 if math.isnan(value) else value for value in now]
            rows.append([max(0.0, value - low) for value, low in zip(now, before)])
            before = now
        used = [number for number, row in enumerate(rows) if any(value > 0.3 for value in row)]
        low, high = max(0, min(used, default=0) - 1), min(len(rows), max(used, default=1) + 2)
        rows, bounds = rows[low:high], [le for le, _, _ in found][low:high]
        cells = [[value if value > 0.3 else math.nan for value in row] for row in rows]
        colors = LinearSegmentedColormap.from_list("oranges", ["#FDEBD7", "#FDB97D", "#F47C2A", "#B63E02", "#7A2704"])
        top = max((value for row in rows for value in row), default=1)
        step = grid[1] - grid[0] if len(grid) > 1 else 1
        edges = [at - step for at in grid] + [grid[-1]]
        axes.pcolormesh(edges, range(len(rows) + 1), cells, cmap=colors, norm=PowerNorm(0.5, 0, top), linewidth=0)
        axes.grid(False)
        axes.set_yticks(range(1, len(rows) + 1), [shown(le, "s") if math.isfinite(le) else "more" for le in bounds])
        self.mark(axes)

    def timeline(self, panel, x, y, w, h):
        mappings = panel["fieldConfig"]["defaults"]["mappings"]
        found = self.source.series(panel["targets"][0], w)
        axes = self.axes(x + 18, y, w - 18, h, None, below=24)
        axes.grid(False)
        axes.set_ylim(len(found), 0)
        axes.set_yticks([number + 0.5 for number in range(len(found))], [name for name, _, _ in found])
        axes.tick_params(axis="y", labelsize=8.5, labelcolor=INK)
        for number, (_, times, values) in enumerate(found):
            begin = 0
            for at in range(1, len(values) + 1):
                if at == len(values) or values[at] != values[begin]:
                    end = times[at] if at < len(values) else times[-1]
                    name, color = mapped(mappings, values[begin]) or ("", FAINT)
                    axes.broken_barh([(times[begin], end - times[begin])], (number + 0.1, 0.8), color=color, alpha=0.8, linewidth=0)
                    if (end - times[begin]) / (self.source.end - self.source.start) > 0.06:
                        axes.text(times[begin], number + 0.52, f" {name}", fontsize=7.5, color="white", va="center", clip_on=True)
                    begin = at
        names = [one["text"] for one in mappings[0]["options"].values()]
        lines = self.legend_lines(names, w)
        for number, place in lines[0]:
            color = COLORS[list(mappings[0]["options"].values())[number]["color"]]
            self.write(x + 14 + place, y + h - 11, "■", 9, color, va="center")
            self.write(x + 28 + place, y + h - 11, names[number], 7.8, INK, va="center")

    def table(self, panel, x, y, w, h):
        renamed = panel["transformations"][1]["options"]["renameByName"]
        keys = [(label, name) for label, name in renamed.items() if not label.startswith("Value")]
        look = {one["matcher"]["options"]: {p["id"]: p["value"] for p in one["properties"]}
                for one in panel["fieldConfig"]["overrides"]}
        columns = [name for label, name in renamed.items() if label.startswith("Value")]
        rows = {}
        for name, target in zip(columns, panel["targets"]):
            for labels, value in self.source.rows(target):
                rows.setdefault(tuple(labels.get(label, "") for label, _ in keys), {})[name] = value
        sort = panel["options"]["sortBy"][0]["displayName"]
        def rank(item):
            value = item[1].get(sort, math.nan)
            return -math.inf if math.isnan(value) else value
        ordered = sorted(rows.items(), key=rank, reverse=True)
        width = (w - 24) / (len(keys) + len(columns))
        height = max(19.0, min(26.0, (h - 26) / max(1, len(ordered))))
        for number, name in enumerate([name for _, name in keys] + columns):
            left = x + 12 + number * width
            self.write(left + (0 if number < len(keys) else width - 14), y + 10, name + (" ↓" if name == sort else ""), 8.5, FAINT,
                       weight="bold", va="center", ha="left" if number < len(keys) else "right")
        for line, (key, cells) in enumerate(ordered[: int((h - 22) // height)]):
            top = y + 24 + line * height
            for number, text in enumerate(key):
                self.write(x + 12 + number * width, top + height / 2, text, 8.8, COLORS["blue"], va="center")
            for number, name in enumerate(columns, len(key)):
                self.cell(look[name], cells.get(name), x + 12 + number * width, top, width, height)

    def cell(self, look, value, left, top, width, height):
        if value is None or math.isnan(value):
            return
        text, color, kind = shown(value, look["unit"], look.get("decimals")), INK, look.get("custom.cellOptions", {}).get("type")
        known = mapped(look.get("mappings"), value)
        if known:
            text, color = known
        elif "thresholds" in look:
            color = threshold(look, value)
        if color is None:
            color = INK
        elif kind == "color-background":
            self.box(left + 6, top + 2, width - 12, height - 4, color, color)
            color = "white"
        self.write(left + width - 14, top + height / 2, text, 8.8, color, va="center", ha="right")


def seconds(text):
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    return float(text[:-1]) * units[text[-1]] if text[-1] in units else float(text)


def main():
    parser = argparse.ArgumentParser(description="Draws a dashboard of a running Prometheus without Grafana.")
    parser.add_argument("board", choices=["overview", "server", "audit"])
    parser.add_argument("out", type=pathlib.Path, help="a PNG or SVG")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", metavar="URL")
    parser.add_argument("--last", type=seconds, default=3600, help="how much time, as in 15m (default: 1h)")
    parser.add_argument("--until", type=float, help="the end, in seconds since 1970 (default: now)")
    parser.add_argument("--scrape", type=int, default=15, help="seconds between two scrapes (default: 15)")
    parser.add_argument("--instance", default=".*", help="which router")
    parser.add_argument("--server", default=".*", help="which server; one for the dashboard `server`")
    options = parser.parse_args()
    board = json.loads((HERE / f"{options.board}.json").read_text())
    picture = Picture(board, Source(options))
    picture.draw()
    picture.save(options.out)


if __name__ == "__main__":
    main()
