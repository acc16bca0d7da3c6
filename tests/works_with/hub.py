"""A stand-in for the Hub's server on this machine: it keeps what is pushed, serves it, and notes every call.

It shows what is sent, that those bytes load by repository id and revision, and what a client does when the server
fails. It does not show the real Hub's authentication, xet storage or checks.
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
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


TOKEN = "hf_stand_in"
BREAK = "break"  # a fault: the connection is closed when half of the request has been read


@dataclass
class Repo:
    """Attributes: commits, name -> path -> bytes, in order; branches, name -> its last commit; sdk, of a Space."""

    private: bool
    kind: str = "model"
    sdk: str | None = None
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {})  # the Hub's repositories start with a commit of their own

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        parent = self.branches.get(branch, "")
        files = self.commits.get(parent, {}) | files
        name = hashlib.sha1(repr((parent, branch, sorted(files.items()))).encode()).hexdigest()
        self.commits[name] = files
        self.branches[branch] = name
        return name


class Hub(ThreadingHTTPServer):
    """Repositories in memory. Writing, and reading what is private, takes the token.

    Attributes:
        repos: repository id -> Repo.
        commits: (repository id, paths of that commit), in order.
        calls: "METHOD what" of every request, in order.
        refused: those of them that were answered with 401.
        faults: "METHOD what" -> iterator of what its next requests meet: a status of HTTP, BREAK, or None for nothing.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.commits: list[tuple[str, list[str]]] = []
        self.calls: list[str] = []
        self.refused: list[str] = []
        self.faults: dict[str, Iterator[int | str | None]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def files(self) -> dict[str, dict[str, bytes]]:
        """Repository id -> path -> bytes, of the branch main."""
        return {name: repo.commits[repo.branches["main"]] for name, repo in self.repos.items()}

    def environment(self, home: Any, token: str | None = TOKEN) -> dict[str, str]:
        """Variables with which a process takes this for the Hub; `home` is an empty folder for its cache."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k != "PYTHONPATH"}
        own = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        return kept | own | ({"HF_TOKEN": token} if token else {})


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

    def _handle(self) -> None:
        what, answer, values = self._route()
        call = f"{self.command} {what}"
        known, kind = self.server.repos.get(values.get("repo")), values.pop("type", None)
        if known and kind and kind != known.kind + "s":  # models and spaces are apart
            answer, values = _Handler._unknown, {}
        self.server.calls.append(call)
        fault = next(self.server.faults.get(call, iter(())), None)
        if fault == BREAK:
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            return
        body = self._body()
        if fault is not None:
            self._json({"error": f"made to fail with {fault}"}, fault)
        elif self._is_locked(values.get("repo")) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.server.refused.append(call)
            self._send(401, b"", {"X-Error-Message": "Invalid username or password."})
        else:
            answer(self, body, **values)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _route(self) -> tuple[str, Any, dict[str, Any]]:
        """What is asked for, the method that answers, and its arguments."""
        path = urlsplit(self.path).path
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, what, answer in _ROUTES:
            if wanted == method and (match := re.fullmatch(pattern, path)):
                values = {name: value and unquote(value) for name, value in match.groupdict().items()}
                return what.format_map(values).removesuffix(" to main"), answer, values
        return path, _Handler._unknown, {}

    def _is_locked(self, repo: str | None) -> bool:
        if self.command == "POST":
            return repo is not None or self.path == "/api/repos/create"
        return repo in self.server.repos and self.server.repos[repo].private

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
        known = repo in self.server.repos
        if not known:
            private = asked.get("visibility") == "private" or asked.get("private") is True
            self.server.repos[repo] = Repo(private, asked.get("type") or "model", asked.get("sdk"))
        self._json({"url": f"{self.server.url}/{self._path(repo)}", "name": repo}, 409 if known else 200)

    def _validate_yaml(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes, repo: str, revision: str) -> None:
        files = [
            {"path": f["path"], "shouldIgnore": False}
            | {"uploadMode": "lfs" if f["path"].endswith((".safetensors", ".bin")) else "regular"}
            for f in json.loads(body)["files"]
        ]
        self._json({"files": files})

    def _lfs_batch(self, body: bytes, repo: str) -> None:
        objects = [
            {"oid": o["oid"], "size": o["size"]}
            | {"actions": {a: {"href": f"{self.server.url}/{a}/{o['oid']}"} for a in ("upload", "verify")}}
            for o in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_file(self, body: bytes, oid: str) -> None:
        whole = hashlib.sha256(body).hexdigest() == oid
        if whole:
            self.server.blobs[oid] = body
        self._send(200 if whole else 400, b"")

    def _verify(self, body: bytes) -> None:
        self._json({}, 200 if json.loads(body)["oid"] in self.server.blobs else 404)

    def _branch(self, body: bytes, repo: str, revision: str) -> None:
        branches = self.server.repos[repo].branches
        known = revision in branches
        branches.setdefault(revision, branches["main"])
        self._json({}, 409 if known else 200)

    def _commit(self, body: bytes, repo: str, revision: str) -> None:
        lines = [(line["key"], line["value"]) for line in map(json.loads, body.splitlines())]
        sent = {v["path"]: base64.b64decode(v["content"]) for key, v in lines if key == "file"}
        sent |= {v["path"]: self.server.blobs[v["oid"]] for key, v in lines if key == "lfsFile"}
        if revision not in self.server.repos[repo].branches:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        name = self.server.repos[repo].commit(revision, sent)
        self.server.commits.append((repo, sorted(sent)))
        self._json(
            {"success": True, "commitOid": name, "commitUrl": f"{self.server.url}/{self._path(repo)}/commit/{name}"}
        )

    def _resolve(self, body: bytes, repo: str, revision: str, path: str) -> None:
        if (commit := self._find(repo, revision)) is None:
            return
        content = self.server.repos[repo].commits[commit].get(path)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
        else:
            self._send(200, content, headers | {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    def _info(self, body: bytes, repo: str, kind: str | None, revision: str | None) -> None:
        if (commit := self._find(repo, revision or "main")) is None:
            return
        files = self.server.repos[repo].commits[commit]
        tree = [
            {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()} for p, c in files.items()
        ]
        info = {"id": repo, "sha": commit, "siblings": [{"rfilename": p} for p in files], "tags": []}
        info["private"] = self.server.repos[repo].private
        self._json(tree if kind == "tree" else info)

    def _unknown(self, body: bytes) -> None:
        self._send(404, b"", {"X-Error-Code": "EntryNotFound" if "/tree/" in self.path else "RepoNotFound"})

    def _path(self, repo: str) -> str:
        return f"spaces/{repo}" if self.server.repos[repo].kind == "space" else repo

    def _find(self, repo: str, revision: str) -> str | None:
        """The commit that a revision names; where there is none, None, and that has been answered."""
        known = self.server.repos.get(repo)
        commit = known.branches.get(revision, revision) if known else ""
        if known and commit in known.commits:
            return commit
        self._send(404, b"", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})
        return None

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
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        if os.environ.get("HUB_LOG"):
            print(format % args, file=sys.stderr)


_REPO = "(?P<repo>[^/]+/[^/]+)"
_REVISION = "(?P<revision>[^/]+)"
_TYPE = "(?P<type>models|spaces)"
# method, path, what the call is noted as, answer
_ROUTES: list[tuple[str, str, str, Any]] = [
    ("POST", "/api/repos/create", "create", _Handler._create),
    ("POST", "/api/validate-yaml", "validate-yaml", _Handler._validate_yaml),
    ("POST", f"/api/{_TYPE}/{_REPO}/preupload/{_REVISION}", "preupload", _Handler._preupload),
    ("POST", f"/{_REPO}[.]git/info/lfs/objects/batch", "LFS batch", _Handler._lfs_batch),
    ("PUT", "/upload/(?P<oid>.+)", "LFS file", _Handler._lfs_file),
    ("POST", "/verify/.+", "verify", _Handler._verify),
    ("POST", f"/api/{_TYPE}/{_REPO}/branch/{_REVISION}", "branch", _Handler._branch),
    ("POST", f"/api/{_TYPE}/{_REPO}/commit/{_REVISION}", "commit to {revision}", _Handler._commit),
    ("GET", f"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", "{path}", _Handler._resolve),
    ("GET", f"/api/{_TYPE}/{_REPO}(/(?P<kind>tree|revision)/{_REVISION})?", "model {kind}", _Handler._info),
]
