"""A hub of models on this machine, that answers as the Hugging Face hub does, as far as models are asked for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

COMMIT = "0123456789" * 4
"""The only one that a repository here has."""
Files = Mapping[str, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A repository."""

    files: Files
    gated: bool = False


@contextmanager
def serving(repositories: Mapping[str, Served]) -> Iterator[str]:
    """Gives the address of a hub that has these and no others."""
    handler = type("Handler", (_Handler,), {"repositories": repositories})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    repositories: ClassVar[Mapping[str, Served]]

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> bytes:
        """Sends the head of `/api/models/ORG/NAME/revision/REVISION` or of `/ORG/NAME/resolve/REVISION/FILE`; gives what follows it."""
        words = self.path.strip("/").split("/")
        asks = words[:2] == ["api", "models"]
        organisation, name, _, revision, *file = words[2:] if asks else words
        found = self.repositories.get(f"{organisation}/{name}")
        if found is None:
            return self._refuse(404, "RepoNotFound")
        if revision not in {"main", COMMIT}:
            return self._refuse(404, "RevisionNotFound")
        if asks:
            listed = {"id": f"{organisation}/{name}", "sha": COMMIT, "siblings": [{"rfilename": name} for name in found.files]}
            return self._give(json.dumps(listed).encode())
        return self._refuse(403, "GatedRepo") if found.gated else self._give(found.files["/".join(file)])

    def _refuse(self, status: int, code: str) -> bytes:
        self._head(status, {"X-Error-Code": code, "Content-Length": "0"})
        return b""

    def _give(self, content: bytes) -> bytes:
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._head(200, {"Content-Length": str(len(content)), "ETag": etag, "X-Repo-Commit": COMMIT})
        return content

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_) -> None:
        """Nothing."""
