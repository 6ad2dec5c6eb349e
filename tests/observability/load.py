"""Mixed load, and what happens meanwhile: `LIVES` seconds in which everything goes wrong once.

The variable LIVES makes it last longer, for a picture; the test's own expectations are those of 32.
"""

import http.client
import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from stack import Client, ends, eventually, free_port

LIVES = float(os.environ.get("LIVES", "32"))
HERE = Path(__file__).resolve().parent

CONFIG = """\
listen: {instance}
data_dir: {data}
health_check_interval: 2
otlp_endpoint: {collector}
defaults:
  retry_attempts: 2
  retry_delay: 0.1
  circuit_breaker_threshold: 4
  circuit_breaker_timeout: 2s
views:
  support: {{ servers: [steady] }}
mcp_servers:
  steady: {{ url: "http://127.0.0.1:{steady}/mcp" }}
  flaky: {{ url: "http://127.0.0.1:{flaky}/mcp" }}
  slow: {{ url: "http://127.0.0.1:{slow}/mcp", timeout: 400ms }}
  outage: {{ url: "http://127.0.0.1:{outage}/mcp" }}
  locked: {{ url: "http://127.0.0.1:{locked}/mcp" }}
  changing: {{ url: "http://127.0.0.1:{changing}/mcp" }}
  crowded: {{ url: "http://127.0.0.1:{steady}/mcp", max_concurrency: 2 }}
  child: {{ command: "{binary}", args: [demo-upstream, stdio] }}
  apart: {{ command: "{binary}", args: [demo-upstream, stdio], sessions: isolated }}
  spare: {{ url: "http://127.0.0.1:{steady}/mcp" }}
  barred: {{ url: "http://127.0.0.1:{steady}/mcp" }}
  apiece: {{ url: "http://127.0.0.1:{steady}/mcp", breaker_scope: tool, timeout: 200ms, circuit_breaker_timeout: 5m }}
"""

ECHO = {"name": "steady__echo", "arguments": {"text": "x"}}
HIDDEN = {"name": "slow__echo", "arguments": {"text": "not in this view"}}


class Load:
    def __init__(self, stack):
        self.stack = stack
        self.over = threading.Event()
        self.failures = []
        self.turned_away = {"invalid_key": 0, "scope": 0, "origin": 0, "missing_key": 0}
        names = ("steady", "flaky", "slow", "outage", "locked", "changing")
        self.ports = {name: free_port() for name in names}

    def begin(self):
        stack, ports = self.stack, self.ports
        stack.upstream("steady", ports["steady"])
        stack.upstream("flaky", ports["flaky"], "--fault", "cut", "--fail-every", "5")
        stack.upstream("slow", ports["slow"])
        stack.upstream("locked", ports["locked"], "--fault", "http-status", "--status", "401", "--fault-on", "all")
        stack.start("changing", sys.executable, str(HERE / "changing.py"), str(ports["changing"]))
        self.outage = stack.upstream("outage", ports["outage"])
        self.good = CONFIG.format(instance=stack.instance, collector=stack.collector, data=stack.data,
                                  binary=stack.binary, **ports)
        stack.start_router(self.good)
        eventually("all servers but one have tools", 15, lambda: {
            one["name"] for one in stack.get("/mcp/servers")["servers"] if one["tools"]
        } >= {"steady", "flaky", "slow", "outage", "changing", "crowded", "child", "apart", "spare", "barred",
              "apiece"})
        # All that is ever asked of this one is refused.
        stack.cli("breakers", "open", "barred", "--reason", "to see what is only refused")
        self.keys = {scope: stack.cli("keys", "create", f"of-{scope}", "--scopes", scope).strip()
                     for scope in ("call", "metrics", "read")}

    # One thread each

    def again(self, every, do):
        """`do` with its number, at most once in `every` seconds, until the load is over."""
        number = 0
        try:
            while not self.over.is_set():
                began = time.monotonic()
                do(number)
                number += 1
                self.over.wait(max(0.0, every - (time.monotonic() - began)))
        except Exception as error:  # noqa: BLE001 - shown by the thread that waits
            self.failures.append(f"{do}: {error!r}")

    def run(self):
        threads = []

        def go(every, do):
            thread = threading.Thread(target=self.again, args=(every, do), daemon=True)
            thread.start()
            threads.append(thread)

        def calls(every, *wanted, **client):
            """Each of (tool, arguments) in turn."""
            mine = Client(self.stack, client)
            go(every, lambda number: mine.call(wanted[number % len(wanted)][0], **wanted[number % len(wanted)][1]))

        hi = {"text": "hi"}
        calls(0.03, ("steady__echo", hi), ("steady__sleep", {"ms": 4}), ("steady__sleep", {"ms": 30}))
        calls(0.05, ("steady__echo", hi), ("steady__add", {"a": 1, "b": 2}), ("steady__blob", {"bytes": 3000}))
        calls(0.2, ("steady__fail", {}), ("steady__rpc_error", {}), ("nowhere__tool", {}), ("steady__echo", {}))
        calls(0.08, ("flaky__echo", hi), ("flaky__counter", {}), ("flaky__now", {}))
        calls(0.15, ("slow__echo", hi), ("slow__sleep", {"ms": 40}), ("slow__sleep", {"ms": 2000}))
        calls(0.4, ("steady__sleep", {"ms": 400, "timeout": "100ms"}))
        for _ in range(2):
            calls(0.03, ("outage__echo", hi), ("outage__add", {"a": 1, "b": 1}))
        calls(0.5, ("locked__echo", hi))
        calls(0.5, ("barred__echo", hi))
        calls(0.3, ("apiece__echo", hi), ("apiece__sleep", {"ms": 2000}))
        calls(0.2, ("changing__greet", {}))
        calls(0.1, ("child__echo", hi), ("child__sleep", {"ms": 12}))
        calls(0.2, ("apart__counter", {}))
        calls(0.15, ("steady__now", {}), authorization=f"Bearer {self.keys['call']}")
        for _ in range(7):
            calls(0.05, ("crowded__sleep", {"ms": 150}))
        go(0.3, self.handshake("/mcp/v/support", ("tools/list", {}), ("tools/call", ECHO), ("tools/call", HIDDEN)))
        go(0.3, self.handshake("/mcp", ("tools/call", {"name": "apart__counter", "arguments": {}})))
        go(0.2, self.modern())
        go(0.5, self.turn_away)
        go(0.7, self.leave)
        self.happen()
        self.over.set()
        for thread in threads:
            thread.join(20)
            if thread.is_alive():
                self.failures.append("a thread does not end")
        if self.failures:
            raise AssertionError("\n".join(self.failures))

    def handshake(self, path, *wanted):
        """A client of 2025-11-25, with a session."""
        client = Client(self.stack)
        hello = {"protocolVersion": "2025-11-25", "capabilities": {},
                 "clientInfo": {"name": "load", "version": "1"}}
        _, _, headers = client.post(path, {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello})
        client.headers["mcp-session-id"] = headers["mcp-session-id"]
        client.headers["mcp-protocol-version"] = "2025-11-25"
        client.post(path, {"jsonrpc": "2.0", "method": "notifications/initialized"})

        def do(number):
            method, parameters = wanted[number % len(wanted)]
            client.post(path, {"jsonrpc": "2.0", "id": number + 1, "method": method, "params": parameters})
        return do

    def modern(self):
        """A client of 2026-07-28."""
        client = Client(self.stack, {"mcp-protocol-version": "2026-07-28"})

        def do(number):
            meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28",
                    "io.modelcontextprotocol/clientInfo": {"name": "load", "version": "2"},
                    "io.modelcontextprotocol/clientCapabilities": {}}
            body = {"jsonrpc": "2.0", "id": number, "method": "tools/call",
                    "params": {"name": "child__add", "arguments": {"a": number, "b": 1}, "_meta": meta}}
            client.post("/mcp", body, **{"mcp-method": "tools/call", "mcp-name": "child__add"})
        return do

    def turn_away(self, number):
        """Requests that the door does not let in; each reason in turn, and counted."""
        reason, headers = [
            ("invalid_key", {"authorization": "Bearer sy_wrong"}),
            ("scope", {"authorization": f"Bearer {self.keys['metrics']}"}),
            ("origin", {"host": "elsewhere.example"}),
        ][number % 3]
        body = {"tool_name": "steady__echo", "arguments": {"text": "hi"}}
        request = urllib.request.Request(f"http://{self.stack.instance}/mcp/call", json.dumps(body).encode(),
                                         {"content-type": "application/json", **headers})
        try:
            urllib.request.urlopen(request, timeout=10)
            raise AssertionError(f"let in: {reason}")
        except urllib.error.HTTPError as error:
            if error.code not in (401, 403):
                raise
        self.turned_away[reason] += 1

    def leave(self, _):
        """A caller that does not wait for the answer."""
        connection = http.client.HTTPConnection(self.stack.instance, timeout=5)
        connection.request("POST", "/mcp/call", json.dumps({"tool_name": "steady__sleep", "arguments": {"ms": 600}}),
                           {"content-type": "application/json"})
        time.sleep(0.1)
        connection.close()

    # What happens meanwhile

    def happen(self):
        stack = self.stack
        began = time.monotonic()

        def at(second):
            time.sleep(max(0.0, began + second * LIVES / 32 - time.monotonic()))

        at(3)
        self.outage.terminate()
        self.outage.wait()
        at(5)
        self.change_definition()
        at(6)
        stack.config.write_text(self.good + "nonsense: 1\n")
        stack.cli("reload", check=False)
        at(10)
        stack.config.write_text(self.good.replace("max_concurrency: 2", "max_concurrency: 3"))
        stack.cli("reload")
        at(11)
        self.outage = stack.upstream("outage", self.ports["outage"])
        at(13)
        self.kill_child()
        at(15)
        stack.cli("servers", "reconnect", "steady")
        at(17)
        stack.cli("breakers", "open", "crowded", "--reason", "to see it", "--for", f"{3 * LIVES / 32}s")
        at(19)
        stack.cli("servers", "disable", "spare")
        at(21)
        self.change_definition()
        at(32)

    def change_definition(self):
        url = f"http://127.0.0.1:{self.ports['changing']}/change"
        urllib.request.urlopen(urllib.request.Request(url, b"{}"), timeout=5).read()
        self.stack.cli("servers", "refresh", "changing")

    def kill_child(self):
        """The server itself, not its guard."""
        mine = [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()]
        for pid in mine:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])
            except OSError:
                continue
            # Its guard is the router's child and has another name.
            if command[:3] == [str(self.stack.binary).encode(), b"demo-upstream", b"stdio"] and self.below(parent):
                os.kill(pid, signal.SIGKILL)
                eventually("the child is gone", 5, lambda pid=pid: ends(pid))
                return
        raise AssertionError("there is no child process to kill")

    def below(self, parent):
        """Whether `parent` is a guard of our router."""
        try:
            stat = Path(f"/proc/{parent}/stat").read_text()
        except OSError:
            return False
        return int(stat.rsplit(") ", 1)[1].split()[1]) == self.stack.router.pid
