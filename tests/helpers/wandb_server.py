"""As much of W&B's server as a client needs to open, fill and resume runs; keeps what it is sent."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server(ThreadingHTTPServer):
    """Runs in a thread; `runs` has history lines and names by run id. `stop` makes it unreachable."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, dict[str, Any]] = {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["content-length"])) or b"{}") if "otel" not in self.path else {}
        answer: dict[str, Any] = {}
        if self.path.endswith("/graphql"):
            answer = {"data": self._graphql(content)}
        elif "file_stream" in self.path:
            run = self.server.runs[self.path.split("/")[4]]
            for name, piece in (content.get("files") or {}).items():
                if name == "wandb-history.jsonl":
                    run["history"][piece["offset"] :] = [json.loads(line) for line in piece["content"]]
                elif name == "wandb-summary.json":
                    run["summary"] = json.loads(piece["content"][-1])
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _graphql(self, content: dict[str, Any]) -> dict[str, Any]:
        name, given = (re.findall(r"(?:query|mutation)\s+(\w+)", content["query"]) or [""])[0], content.get("variables") or {}
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "team"}}
        if name == "RunResumeStatus":
            return {"model": project | {"bucket": self._resume(given["name"])}}
        if name == "UpsertBucket":
            run = self.server.runs.setdefault(given["name"], {"history": [], "summary": {}, "name": given["displayName"]})
            bucket = {"id": "r", "name": given["name"], "displayName": run["name"], "config": "{}", "project": project}
            return {"upsertBucket": {"bucket": bucket | {"historyLineCount": len(run["history"])}, "inserted": True}}
        if name == "CreateRunFiles":
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": []}}
        return {}

    def _resume(self, run_id: str) -> dict[str, Any] | None:
        run = self.server.runs.get(run_id)
        if run is None:
            return None
        counts = {"historyLineCount": len(run["history"]), "eventsLineCount": 0, "logLineCount": 0}
        tail = json.dumps([json.dumps(line) for line in run["history"][-1:]])
        summary = json.dumps(run["summary"])
        return counts | {"name": run_id, "historyTail": tail, "eventsTail": "[]", "summaryMetrics": summary, "config": "{}"}

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""
