"""A small MCP server of 2025-11-25 whose tool is described otherwise after each POST /change.

    changing.py PORT
"""

import http.server
import json
import sys

VERSION = "2025-11-25"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    description = "Greets."
    changes = 0

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/change":
            Handler.changes += 1
            Handler.description = f"Greets, and number {Handler.changes} of its descriptions."
            return self.answer(200, {"changes": Handler.changes})
        try:
            message = json.loads(body)
        except ValueError:
            return self.answer(400, {"error": "not JSON"})
        if "id" not in message:
            return self.answer(202, None)
        result = self.result(message["method"])
        reply = {"jsonrpc": "2.0", "id": message["id"]}
        if result is None:
            return self.answer(200, {**reply, "error": {"code": -32601, "message": "no such method"}})
        return self.answer(200, {**reply, "result": result})

    def result(self, method):
        if method == "initialize":
            return {"protocolVersion": VERSION, "capabilities": {"tools": {}},
                    "serverInfo": {"name": "changing", "version": "1"}}
        if method == "tools/list":
            return {"tools": [{"name": "greet", "description": Handler.description,
                               "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}}]}
        if method == "tools/call":
            return {"content": [{"type": "text", "text": "hello"}]}
        return {} if method == "ping" else None

    def answer(self, status, body):
        text = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        if text:
            self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.answer(405, {"error": "no stream here"})

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
