"""A local server that speaks the API of the Hugging Face hub, as far as huggingface_hub uses it for one model."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_test"
"""The only token that may write, or read private repositories."""


class HubServer(ThreadingHTTPServer):
    """Repositories in memory. ``requests`` lists (method, path) of every request.

    Attributes:
        commits: repository -> its versions, each a dict of name -> content.
        private: names of private repositories.
        down: answer everything with 503.
        cut: close the next download after so many bytes.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.private: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str | None] = []
        self.down = False
        self.cut: int | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def oid(self, repository: str, number: int) -> str:
        """The id of a version."""
        return hashlib.sha1(f"{repository} {number}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_POST(self) -> None:  # the name is fixed by http.server
        body = self._body()
        path = self._begin()
        if path is None:
            return
        if not self._may_write():
            return self._answer(401, {"error": "Invalid username or password."})
        if path == "/api/validate-yaml":
            front = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
            return self._answer(200, {"errors": [] if front else [{"message": "no metadata"}], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.commits:
                return self._answer(
                    409, {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"}
                )
            self.server.commits[name] = []
            if asked.get("visibility") == "private" or asked.get("private"):
                self.server.private.add(name)
            return self._answer(200, {"url": f"{self.server.address}/{name}", "name": name, "id": "1"})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.address}/blobs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self._answer(200, {"transfer": "basic", "objects": objects})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/([^/]+)", path)
        if found is None or found[1] not in self.server.commits:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if found[2] == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                for one in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": [{**one, "shouldIgnore": False, "oid": None} for one in files]})
        return self._commit(found[1], body)

    def do_PUT(self) -> None:
        body = self._body()
        path = self._begin()
        if path is not None:
            self.server.blobs[path.rpartition("/")[2]] = body
            self._answer(200, {})

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        self._file()

    def _commit(self, repository: str, body: bytes) -> None:
        versions = self.server.commits[repository]
        files = dict(versions[-1]) if versions else {}
        for row in map(json.loads, body.splitlines()):
            value: dict[str, Any] = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
        versions.append(files)
        oid = self.server.oid(repository, len(versions) - 1)
        self._answer(200, {"commitUrl": f"{self.server.address}/{repository}/commit/{oid}", "commitOid": oid})

    def _file(self) -> None:
        path = self._begin()
        if path is None:
            return
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository = found[1] if found else ""
        versions = self.server.commits.get(repository, [])
        hidden = repository in self.server.private and not self._may_write()
        if found is None or not versions or hidden:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        oids = [self.server.oid(repository, number) for number in range(len(versions))]
        wanted = oids[-1] if found[2] == "main" else found[2]
        if wanted not in oids:
            return self._answer(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        headers = {"X-Repo-Commit": wanted}
        content = versions[oids.index(wanted)].get(found[3])
        if content is None:
            return self._answer(404, {"error": "Entry not found"}, {**headers, "X-Error-Code": "EntryNotFound"})
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        start, status = 0, 200
        asked = self.headers.get("Range")
        if self.command == "GET":
            self.server.ranges.append(asked)
        if asked:
            start, status = int(re.sub(r"bytes=(\d+)-.*", r"\1", asked)), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, content[start:], headers)

    def _begin(self) -> str | None:
        """The path without its query; None after an answer that the server is down."""
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path))
        if self.server.down:
            self._answer(503, {"error": "down"})
            return None
        return path

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, status: int, value: object, headers: dict[str, str] | None = None) -> None:
        extra = {"X-Error-Message": str(value["error"])} if isinstance(value, dict) and "error" in value else {}
        content = json.dumps(value).encode()
        self._send(status, content, {"Content-Type": "application/json", **extra, **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut, self.server.cut = (self.server.cut, None) if self.command == "GET" else (None, self.server.cut)
        with contextlib.suppress(OSError):
            self.wfile.write(content[:cut])
        self.close_connection = self.close_connection or cut is not None
