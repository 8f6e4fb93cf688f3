"""A hub on loopback: as much of its protocol as an upload of small files takes."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

TOKEN = "hf_of_the_owner"


class Hub:
    """Repositories by their names, and what was requested."""

    def __init__(self) -> None:
        self.address = ""
        self.repositories: dict[str, dict[str, Any]] = {}
        self.requests: list[str] = []

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, dict[str, Any], str]:
        """Return the status, the content and the code of an error."""
        self.requests.append(f"{method} {path}")
        if token != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}, ""
        parts = path.strip("/").split("/")[1:]  # behind /api
        if method == "POST" and parts == ["repos", "create"]:
            return self.create(json.loads(body))
        if parts == ["validate-yaml"]:
            return 200, {"errors": [], "warnings": []}, ""
        name = "/".join(parts[1:3])
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}, "RepoNotFound"
        repository = self.repositories[name]
        if method == "GET":
            return 200, {"id": name, "private": repository["private"], "sha": "0" * 40}, ""
        if parts[3] == "preupload":
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": files}, ""
        return self.commit(name, repository, body)

    def create(self, wanted: dict[str, Any]) -> tuple[int, dict[str, Any], str]:
        name = "/".join(filter(None, [wanted.get("organization", "owner"), wanted["name"]]))
        if name.startswith("others/"):
            return 403, {"error": "You don't have the rights to create a model under the namespace others"}, ""
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}, ""
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.repositories[name] = {"private": private, "files": {}}
        return 200, {"url": f"{self.address}/{name}", "name": name}, ""

    def commit(self, name: str, repository: dict[str, Any], body: bytes) -> tuple[int, dict[str, Any], str]:
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                repository["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "header":
                repository["message"] = line["value"]["summary"]
        oid = "1" * 40
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.address}/{name}/commit/{oid}"}, ""


@contextmanager
def serve() -> Iterator[Hub]:
    """Serve a hub until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else self.chunks()
            path = urlsplit(self.path).path
            status, content, code = hub.answer(self.command, path, body, self.headers.get("Authorization"))
            encoded = json.dumps(content).encode()
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            elif "error" in content:
                self.send_header("X-Error-Message", content["error"])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        do_POST = do_PUT = do_GET

        def chunks(self) -> bytes:
            """Read a body that comes in chunks."""
            if self.headers.get("Transfer-Encoding") != "chunked":
                return b""
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
