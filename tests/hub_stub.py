"""A local server that speaks as much of the Hugging Face hub's API as uploading and downloading a model takes."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "0" * 39 + "1"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name -> {path: bytes}; ``requests`` keeps (method, path) of each call."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def _answer(self, content=b"", status: int = 200, **headers) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _path(self) -> list[str]:
        path = unquote(urlparse(self.path).path)
        self.server.requests.append((self.command, path))
        return path.strip("/").split("/")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = self._path()
        if self.headers.get("Authorization") != "Bearer hf_stub":
            return self._answer({"error": "Invalid credentials"}, 401, X_Error_Message="Invalid credentials")
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.repositories.setdefault(name, {})
            # older clients of the hub say private: true, newer ones visibility: private
            self.server.private[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
            return self._answer({"url": f"{self.server.url}/{name}", "id": name})
        name = "/".join(parts[2:4])
        if "preupload" in parts:
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self._answer({"files": [{"path": f["path"], **mode} for f in json.loads(body)["files"]]})
        if "commit" in parts:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    content = base64.b64decode(entry["value"]["content"])
                    self.server.repositories[name][entry["value"]["path"]] = content
            return self._answer({"commitUrl": f"{self.server.url}/{name}/commit/{COMMIT}", "commitOid": COMMIT,
                                 "success": True})
        return self._answer({}, 200)

    def do_GET(self) -> None:
        parts = self._path()
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if name not in self.server.repositories:
                return self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            files = self.server.repositories[name]
            if "tree" in parts:
                tree = [{"type": "file", "path": path, "size": len(x), "oid": hashlib.sha1(x).hexdigest()}
                        for path, x in files.items()]
                return self._answer(tree)
            return self._answer({"id": name, "sha": COMMIT, "siblings": [{"rfilename": path} for path in files],
                                 "private": False, "tags": [], "downloads": 0, "likes": 0})
        if "resolve" in parts:
            at = parts.index("resolve")
            content = self.server.repositories.get("/".join(parts[:at]), {}).get("/".join(parts[at + 2 :]))
            if content is None:
                return self._answer({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
            return self._answer(content, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        return self._answer({}, 404)

    do_HEAD = do_GET
