"""What W&B's client needs of its server: it accepts runs, keeps them, and says what it has."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["SentRun", "WandbServer", "serving"]


@dataclass
class SentRun:
    """A run as the server has it."""

    about: dict[str, Any] = field(default_factory=dict)
    history: list[str] = field(default_factory=list)
    summary: str = "{}"
    exit_code: int | None = None

    @property
    def steps(self) -> list[int]:
        """The steps of its history."""
        return [json.loads(row)["_step"] for row in self.history]


@dataclass
class WandbServer:
    """The runs that were sent, by id, and the address."""

    address: str
    runs: dict[str, SentRun] = field(default_factory=dict)

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the data of a request of GraphQL."""
        named = re.search(r"(?:query|mutation)\s+(\w+)", query)
        kind, name = "" if named is None else named[1], str(variables.get("name"))
        project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
        if kind == "Viewer":
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}",
                               "teams": {"edges": []}}}  # fmt: skip
        if kind == "RunResumeStatus":
            known = self.runs.get(name)
            return {"model": {**project, "bucket": None if known is None else _known(name, known)}}
        if kind == "UpsertBucket":
            about = self.runs.setdefault(name, SentRun()).about
            about |= {key: value for key, value in variables.items() if value is not None}
            bucket = {"id": f"id-{name}", "name": name, "displayName": about.get("displayName")}
            bucket |= {"config": about.get("config"), "project": project, "historyLineCount": 0}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if kind == "CreateRunFiles":
            files = [{"name": own, "uploadUrl": f"{self.address}/{own}"}
                     for own in variables["files"]]  # fmt: skip
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        return {}

    def take(self, run: str, content: dict[str, Any]) -> None:
        """Keep a part of a run: lines replace those from their offset on."""
        own = self.runs[run]
        for name, part in content.get("files", {}).items():
            if name == "wandb-history.jsonl":
                own.history[part["offset"] :] = part["content"]
            elif name == "wandb-summary.json":
                own.summary = part["content"][-1]
        if content.get("complete"):
            own.exit_code = content.get("exitcode")


def _known(name: str, run: SentRun) -> dict[str, Any]:
    return {
        "name": name,
        "config": run.about.get("config"),
        "displayName": run.about.get("displayName"),
        "tags": run.about.get("tags"),
        "summaryMetrics": run.summary,
        "historyLineCount": len(run.history),
        "historyTail": json.dumps(run.history[-1:]),
        "eventsLineCount": 0,
        "eventsTail": "[]",
        "logLineCount": 0,
        "wandbConfig": json.dumps({"t": 1}),
    }


@contextlib.contextmanager
def serving() -> Iterator[WandbServer]:
    """Serve on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._reply({})

        def do_PUT(self) -> None:
            self._body()
            self._reply({})

        def do_POST(self) -> None:
            content = self._body()
            with lock:
                if self.path.endswith("/file_stream"):
                    server.take(self.path.split("/")[-2], content)
                    self._reply({})
                else:
                    variables = content.get("variables") or {}
                    data = server.answer(str(content.get("query", "")), variables)
                    self._reply({"data": data})

        def _body(self) -> dict[str, Any]:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            with contextlib.suppress(ValueError):
                found = json.loads(body)
                return found if isinstance(found, dict) else {}
            return {}

        def _reply(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    lock = threading.Lock()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.handle_error = lambda *_: None  # type: ignore[method-assign]
        server = WandbServer(f"http://127.0.0.1:{http.server_address[1]}")
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield server
        http.shutdown()
        thread.join()
