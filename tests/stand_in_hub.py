"""A stand-in for the Hugging Face hub on localhost: the few endpoints a download needs, and its ways to fail.

Point HF_ENDPOINT at `StandInHub.url` (in a fresh process: huggingface_hub reads it on import) and set HF_HUB_DISABLE_XET.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(?:/(?P<kind>revision|tree)/(?P<revision>[^/?]+))?(?:\?.*)?")
_RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class Repo:
    """One model on the hub."""

    files: dict[str, bytes]
    required_token: str | None = None
    """Gated: files are for this token only, the listing is for everybody."""
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """Per file: after so many bytes the next connection breaks, then the one after it, and so on."""
    failing: set[str] = field(default_factory=set)
    """Files that are answered with a 500."""


@dataclass(frozen=True)
class SeenRequest:
    """A request for a file's content."""

    path: str
    range: str | None


class StandInHub:
    """Serves `repos` by id until the end of its `with` block."""

    def __init__(self, repos: dict[str, Repo]) -> None:
        self.repos = repos
        self.downloads: list[SeenRequest] = []
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> StandInHub:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        if match := _API.fullmatch(self.path):
            self._answer_api(match)
        elif match := _RESOLVE.fullmatch(self.path):
            self._answer_file(match, with_body=with_body)
        else:
            self._refuse(404, "EntryNotFound")

    def _repo(self, match: re.Match[str]) -> Repo | None:
        """The repository asked for; None where it, or the revision, does not exist and that was answered."""
        repo = self.server_hub.repos.get(match["repo"])
        if repo is None:
            self._refuse(404, "RepoNotFound")
        elif match["revision"] not in (None, "main", COMMIT):
            self._refuse(404, "RevisionNotFound")
            return None
        return repo

    def _answer_api(self, match: re.Match[str]) -> None:
        repo = self._repo(match)
        if repo is None:
            return
        if match["kind"] == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": _etag(content)}
                for path, content in repo.files.items()
            ]
            self._send(200, json.dumps(entries).encode())
        else:
            siblings = [{"rfilename": path} for path in repo.files]
            self._send(200, json.dumps({"id": match["repo"], "sha": COMMIT, "siblings": siblings}).encode())

    def _answer_file(self, match: re.Match[str], *, with_body: bool) -> None:
        repo, path = self._repo(match), match["path"]
        if repo is None:
            return None
        if repo.required_token is not None and self.headers["Authorization"] != f"Bearer {repo.required_token}":
            return self._refuse(403 if self.headers["Authorization"] else 401, "GatedRepo")
        if path not in repo.files:
            return self._refuse(404, "EntryNotFound")
        content = repo.files[path]
        headers = {
            "ETag": f'"{_etag(content)}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
        }
        if not with_body:
            return self._send(200, content, headers, with_body=False)
        asked = self.headers["Range"]
        self.server_hub.downloads.append(SeenRequest(path, asked))
        if path in repo.failing:
            return self._refuse(500, "Broken")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cuts = repo.cuts.get(path, [])
        return self._send(206 if start else 200, content[start:], headers, cut_after=cuts.pop(0) if cuts else None)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code}, with_body=self.command != "HEAD")

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        with_body: bool = True,
        cut_after: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body[:cut_after])
        self.close_connection = cut_after is not None


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
