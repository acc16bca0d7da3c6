"""A stand-in for the Hub's server on this machine: it keeps what is pushed, serves it, and notes every call.

It shows what is sent and that those bytes load by repository id. It does not show the real Hub's authentication, xet
storage or checks.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Hub(ThreadingHTTPServer):
    """Files of repositories in memory.

    Attributes:
        files: repository id -> path -> bytes, of all its commits; there is one branch, whatever its name.
        commits: (repository id, paths of that commit), in order.
        calls: "METHOD what" of every request, in order.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.commits: list[tuple[str, list[str]]] = []
        self.calls: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def environment(self, home: Any) -> dict[str, str]:
        """Variables with which a process takes this for the Hub; `home` is an empty folder for its cache."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "PYTHONPATH"}
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_stand_in",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "OMP_NUM_THREADS": "1",
        }


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_POST(self) -> None:
        body = self._body()
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            self._note("create")
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.files.setdefault(repo, {})
            self._json({"url": f"{self.server.url}/{repo}", "name": repo})
        elif path == "/api/validate-yaml":
            self._note("validate-yaml")
            self._json({"errors": [], "warnings": []})
        elif match := re.fullmatch("/api/models/(.+)/preupload/(.+)", path):
            self._note("preupload")
            files = [
                {"path": f["path"], "shouldIgnore": False}
                | {"uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]
            self._json({"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            self._note("LFS batch")
            objects = [
                {"oid": o["oid"], "size": o["size"]}
                | {"actions": {a: {"href": f"{self.server.url}/{a}/{o['oid']}"} for a in ("upload", "verify")}}
                for o in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif path.startswith("/verify/"):
            self._note("verify")
            known = json.loads(body)["oid"] in self.server.blobs
            self._json({}, 200 if known else 404)
        elif "/branch/" in path:
            self._note("branch")
            self._json({})
        elif match := re.fullmatch("/api/models/(.+)/commit/(.+)", path):
            self._note("commit" if match[2] == "main" else f"commit to {match[2]}")
            self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._note(path)
            self._send(404, b"")

    def do_PUT(self) -> None:
        self._note("LFS file")
        content = self._body()
        oid = hashlib.sha256(content).hexdigest()
        self.server.blobs[oid] = content
        self._send(200 if self.path.endswith(oid) else 400, b"")

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if match := re.fullmatch("/(.+/.+)/resolve/[^/]+/(.+)", path):
            self._note(match[2])
            content = self.server.files.get(match[1], {}).get(match[2])
            if content is None:
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            else:
                self._send(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})
        elif (match := re.fullmatch("/api/models/(.+?/.+?)(/(tree|revision)/[^/]+)?", path)) and match[
            1
        ] in self.server.files:
            self._note(f"model {match[3] or 'info'}")
            files = self.server.files[match[1]]
            tree = [{"type": "file", "path": p, "size": len(c), "oid": _commit_of(files)} for p, c in files.items()]
            info = {"id": match[1], "sha": _commit_of(files), "siblings": [{"rfilename": p} for p in files], "tags": []}
            self._json(tree if match[3] == "tree" else info)
        else:
            self._note(path)
            self._send(404, b"", {"X-Error-Code": "EntryNotFound" if "/tree/" in path else "RepoNotFound"})

    do_HEAD = do_GET

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        sent = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"])
            if line["key"] == "file"
            else self.server.blobs[line["value"]["oid"]]
            for line in lines
            if line["key"] in ("file", "lfsFile")
        }
        files = self.server.files[repo]
        files |= sent
        self.server.commits.append((repo, sorted(sent)))
        oid = _commit_of(files)
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo}/commit/{oid}"})

    def _note(self, what: str) -> None:
        self.server.calls.append(f"{self.command} {what}")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        repo = "/".join(self.path.split("/")[1:3])
        commit = {"X-Repo-Commit": _commit_of(self.server.files.get(repo, {}))}
        for name, value in (commit | {"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        if os.environ.get("HUB_LOG"):
            print(format % args, file=sys.stderr)


def _commit_of(files: dict[str, bytes]) -> str:
    """A commit's name: of its content."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
