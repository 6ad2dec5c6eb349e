"""What the test runs: the router, servers behind it, and a Prometheus that scrapes it every second."""

import http.client
import http.server
import json
import os
import pathlib
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

GRAFANA = pathlib.Path(__file__).resolve().parents[2] / "grafana"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def eventually(what, seconds, attempt):
    """Again and again until it gives something true."""
    end = time.monotonic() + seconds
    last = None
    while time.monotonic() < end:
        try:
            found = attempt()
            if found:
                return found
        except (OSError, KeyError, AssertionError) as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what} ({last})")


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes spans and keeps none."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Stack:
    def __init__(self, binary, work):
        self.binary, self.work = binary, work
        self.processes = []
        self.port = free_port()
        self.prometheus_port = free_port()
        self.instance = f"127.0.0.1:{self.port}"
        collector = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        self.collector = f"http://127.0.0.1:{collector.server_port}"
        self.data = work / "data"

    def start(self, name, *command, **more):
        log = open(self.work / f"{name}.log", "ab")
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.work, **more)
        log.close()
        self.processes.append(process)
        return process

    def upstream(self, name, port, *options):
        return self.start(name, self.binary, "demo-upstream", "http", "--port", str(port), *options)

    def stop_all(self):
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def cli(self, *arguments, check=True):
        command = [self.binary, "--data-dir", str(self.data), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=self.work)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(arguments)}: {done.returncode} {done.stdout}{done.stderr}")
        return done.stdout

    def start_router(self, config):
        self.config = self.work / "switchyard.yaml"
        self.config.write_text(config)
        self.router = self.start("router", self.binary, "--config", str(self.config), "serve")
        eventually("the router is ready", 20, lambda: self.get("/readyz", raw=True) == "ready\n")

    def get(self, path, raw=False, headers=None):
        request = urllib.request.Request(f"http://{self.instance}{path}", headers=headers or {})
        with urllib.request.urlopen(request, timeout=20) as answer:
            text = answer.read().decode()
        return text if raw else json.loads(text)

    def export(self):
        """Every call in the ledger, with its attempts."""
        lines = self.get("/mcp/audit/export?format=jsonl", raw=True).splitlines()
        return [json.loads(line) for line in lines]

    # Prometheus

    def start_prometheus(self, key):
        """With the configuration that is shipped, but for addresses, paths and intervals."""
        key_file = self.work / "metrics.key"
        key_file.write_text(key + "\n")  # as `keys create` prints it
        config = (GRAFANA / "prometheus.yml").read_text()
        for shipped, here in (
            ("router:8300", self.instance),
            ("15s", "1s"),
            ("/etc/prometheus/alerts.yaml", str(GRAFANA / "alerts.yaml")),
            ("/etc/prometheus/secrets/metrics.key", str(key_file)),
        ):
            if shipped not in config:
                raise AssertionError(f"prometheus.yml does not say {shipped}")
            config = config.replace(shipped, here)
        path = self.work / "prometheus.yml"
        path.write_text(config)
        subprocess.run(["promtool", "check", "config", str(path)], check=True, capture_output=True)
        self.start(
            "prometheus", "prometheus", f"--config.file={path}", f"--storage.tsdb.path={self.work / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.prometheus_port}", "--log.level=warn",
        )
        eventually("Prometheus has scraped the router", 30,
                   lambda: self.instant(f'up{{instance="{self.instance}"}} == 1'))

    def ask(self, path, **parameters):
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                found = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()[:500]}") from error
        if found["status"] != "success" or found.get("warnings"):
            raise AssertionError(f"{parameters}: {found}")
        return found["data"]

    def instant(self, expression, at=None):
        """Series as (labels, value)."""
        data = self.ask("query", query=expression, time=at or time.time())
        if data["resultType"] == "scalar":
            return [({}, float(data["result"][1]))]
        return [(one["metric"], float(one["value"][1])) for one in data["result"]]

    def over_time(self, expression, start, end, step=1):
        """Series as (labels, [(time, value)])."""
        data = self.ask("query_range", query=expression, start=start, end=end, step=step)
        return [(one["metric"], [(at, float(value)) for at, value in one["values"]]) for one in data["result"]]


class Client:
    """A connection of its own to the router, for one thread."""

    def __init__(self, stack, headers=None):
        host, port = stack.instance.split(":")
        self.host, self.port = host, int(port)
        self.headers = {"content-type": "application/json",
                        "accept": "application/json, text/event-stream", **(headers or {})}
        self.connection = None

    def post(self, path, body, **headers):
        """(status, answer, headers)"""
        body = json.dumps(body)
        for attempt in (1, 2):
            if self.connection is None:
                self.connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
            try:
                self.connection.request("POST", path, body, {**self.headers, **headers})
                answer = self.connection.getresponse()
                text = answer.read().decode()
                return answer.status, json.loads(text) if text else None, answer.headers
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # An idle connection that was closed meanwhile; nothing was taken from it.
                self.connection = None
                if attempt == 2:
                    raise
        return None

    def call(self, tool, timeout=None, **arguments):
        body = {"tool_name": tool, "arguments": arguments}
        if timeout:
            body["timeout"] = timeout
        return self.post("/mcp/call", body)[1]


def ends(pid):
    """Whether the process with this id is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False
