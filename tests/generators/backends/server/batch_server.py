"""A local server that speaks the batch part of the OpenAI protocol: files, batches, and what they come to."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, UploadFile
from fastapi.responses import JSONResponse, PlainTextResponse

from tests.generators.faulty_server import said


class BatchServer:
    """Use as a context manager; `url` is its base URL.

    Args:
        looks: times a batch is looked at before it has ended.
        fails: the first this many times that a request is in a batch, it ends in an error.
        garble: the lines of an output, changed before they are given.
    """

    def __init__(
        self, looks: int = 2, fails: int = 0, garble: Callable[[list[str]], list[str]] = lambda lines: lines
    ) -> None:
        self.looks, self.fails, self.garble = looks, fails, garble
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.served: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._looked: Counter[str] = Counter()
        self.url = ""

    def __enter__(self) -> BatchServer:
        app = FastAPI()

        @app.post("/v1/files")
        async def upload(file: UploadFile) -> Any:  # pyright: ignore
            return self._file((await file.read()).decode())

        @app.get("/v1/files/{name}/content")
        def content(name: str) -> Any:  # pyright: ignore
            return PlainTextResponse(self.files[name])

        @app.post("/v1/batches")
        async def create(request: Request) -> Any:  # pyright: ignore
            body = await request.json()
            if body["input_file_id"] not in self.files:
                return JSONResponse({"error": {"message": "no such file"}}, 400)
            batch = {
                "id": f"batch-{len(self.batches)}", "object": "batch", "status": "in_progress", "created_at": 0, **body,
            }  # fmt: skip
            self.batches[batch["id"]] = batch
            return batch

        @app.get("/v1/batches")
        def every() -> Any:  # pyright: ignore
            return {"object": "list", "data": list(self.batches.values())[::-1], "has_more": False}

        @app.get("/v1/batches/{name}")
        def look(name: str) -> Any:  # pyright: ignore
            batch = self.batches[name]
            self._looked[name] += 1
            if batch["status"] == "in_progress" and self._looked[name] >= self.looks:
                self._carry_out(batch)
            return batch

        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            pass
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def _file(self, text: str) -> dict[str, Any]:
        name = f"file-{len(self.files)}"
        self.files[name] = text
        return {
            "id": name, "object": "file", "bytes": len(text), "created_at": 0, "filename": "f", "purpose": "batch",
            "status": "processed",
        }  # fmt: skip

    def _carry_out(self, batch: dict[str, Any]) -> None:
        out, errors = list[str](), list[str]()
        for line in reversed(self.files[batch["input_file_id"]].splitlines()):  # the order is not promised
            entry = json.loads(line)
            body, name = entry["body"], entry["custom_id"]
            self._asked[name] += 1
            if body["messages"][-1]["content"] == "refuse me":
                answer: dict[str, Any] = {"status_code": 400, "body": {"error": {"message": "no"}}}
            elif self._asked[name] <= self.fails:
                answer = {"status_code": 500, "body": {"error": {"message": "later"}}}
            else:
                self.served[name] += 1
                answer = {"status_code": 200, "body": {
                    "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": "stop", "message": {
                        "role": "assistant", "content": said(body["messages"], body["seed"])}}],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
                }}  # fmt: skip
            told = json.dumps({"id": f"r{name}", "custom_id": name, "response": answer, "error": None})
            (out if answer["status_code"] == 200 else errors).append(told)
        batch["status"] = "completed"
        batch["output_file_id"] = self._file("\n".join(self.garble(out)))["id"] if out else None
        batch["error_file_id"] = self._file("\n".join(errors))["id"] if errors else None
