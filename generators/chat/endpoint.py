"""An OpenAI-compatible endpoint with documents behind it: /v1/chat/completions, whole or streamed, and /v1/models.

An answer has `citations` and `lacking` beside what OpenAI's has; a stream has them in its last piece. What rests on no passage is said at the end
of the answer itself, since most clients show nothing else.
"""

from __future__ import annotations

import hmac
import json
import secrets
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from engine.errors import FlywheelError, UserError
from generators.chat.assistant import Assistant, Reply
from generators.chat.showing import as_json, place
from generators.text.chat_template import Unusable

LONGEST = 4 << 20  # bytes of a request
LOCAL = ("127.0.0.1", "localhost", "::1")
ROLES = ("system", "developer", "user", "assistant")


class BadRequest(Exception):
    """A request that can't be answered: a status and a sentence."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Endpoint(ThreadingHTTPServer):
    """Answers one request after the other: a model on this machine has one conversation at a time.

    Args:
        key: that clients have to send; None: none.

    Raises:
        UserError: the port is taken, or others than this machine could ask without a key.
    """

    daemon_threads = True

    def __init__(self, assistant: Assistant, documents: str, host: str, port: int, key: str | None) -> None:
        if host not in LOCAL and not key:
            raise UserError(f"--host {host} lets others ask: set $FLYWHEEL_API_KEY to the key that they have to send.")
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise UserError(
                f"{host}:{port} can't be listened on: {error.strerror or error}. Choose another --port."
            ) from None
        self.assistant, self.documents, self.key = assistant, documents, key
        self.host = host
        self.turn = threading.Lock()

    @property
    def model(self) -> str:
        return self.assistant.conversant.name if self.assistant.conversant else "passages"

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def log_message(self, format: str, *args: Any) -> None: ...

    def _answered(self, answer: Any) -> None:
        try:
            self._check_caller()
            answer()
        except BadRequest as fault:
            self._fault(fault.status, str(fault))
        except Unusable as fault:
            self._fault(HTTPStatus.BAD_REQUEST, fault.detail)
        except FlywheelError as error:
            self._fault(HTTPStatus.BAD_GATEWAY, str(error))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _check_caller(self) -> None:
        """Raises BadRequest: the key is not ours; or, where there is none, a page from elsewhere asks by a name of its own for this machine."""
        if self.server.key:
            given = self.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.server.key.encode()):
                raise BadRequest(
                    HTTPStatus.UNAUTHORIZED, "expected `Authorization: Bearer KEY` with the key in $FLYWHEEL_API_KEY"
                )
        elif self.headers.get("host", "").rpartition(":")[0].strip("[]") not in LOCAL or self.headers.get("origin"):
            raise BadRequest(
                HTTPStatus.FORBIDDEN, "without a key only programs on this machine are answered, no web pages"
            )

    def _get(self) -> None:
        if self.path == "/health":
            self._send({"status": "ok"})
        elif self.path == "/v1/models":
            self._send(
                {"object": "list", "data": [{"id": self.server.model, "object": "model", "owned_by": "flywheel"}]}
            )
        else:
            raise BadRequest(
                HTTPStatus.NOT_FOUND,
                f"there is no {self.path[:100]}; there are /v1/chat/completions, /v1/models and /health",
            )

    def _post(self) -> None:
        if self.path != "/v1/chat/completions":
            raise BadRequest(HTTPStatus.NOT_FOUND, f"there is no {self.path[:100]}; expected /v1/chat/completions")
        request = self._request()
        *before, last = _messages(request)
        temperature, most = _number(request, "temperature", 0.0, 0, 10), _number(request, "max_tokens", 256, 1, 1 << 20)
        most = _number(request, "max_completion_tokens", most, 1, 1 << 20)
        about = {"id": f"chatcmpl-{secrets.token_hex(8)}", "created": int(time.time()), "model": self.server.model}
        with self.server.turn:
            assistant = self.server.assistant
            if assistant.conversant:
                assistant.conversant.messages = before
            if request.get("stream"):
                self._stream(about, last, temperature, int(most))
                return
            reply = assistant.ask(last, temperature, int(most))
        message = {"role": "assistant", "content": reply.text + _after(reply, self.server.documents)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._send({**about, "object": "chat.completion", "choices": [choice], **_facts(reply, self.server.documents)})

    def _stream(self, about: dict[str, Any], question: str, temperature: float, most: int) -> None:
        begun = False

        def begin() -> None:
            nonlocal begun
            if not begun:
                begun = True
                self.send_response(HTTPStatus.OK)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                self.close_connection = True

        def send(delta: dict[str, Any], end: str | None = None, **more: Any) -> None:
            begin()
            choice = {"index": 0, "delta": delta, "finish_reason": end}
            event = {**about, "object": "chat.completion.chunk", "choices": [choice], **more}
            self.wfile.write(f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode())
            self.wfile.flush()

        try:
            reply = self.server.assistant.ask(question, temperature, most, lambda piece: send({"content": piece}))
        except (FlywheelError, Unusable) as error:
            if not begun:
                raise
            send({}, "stop", error={"message": str(error)})
        else:
            if after := _after(reply, self.server.documents):
                send({"content": after})
            send({}, "stop", **_facts(reply, self.server.documents))
        self.wfile.write(b"data: [DONE]\n\n")

    def _request(self) -> dict[str, Any]:
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > LONGEST:
            self.close_connection = True
            raise BadRequest(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a body of at most {LONGEST:,} bytes, with its length"
            )
        try:
            request = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the body is no JSON") from None
        if not isinstance(request, dict):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "the body should be a JSON object")
        return request  # pyright: ignore[reportUnknownVariableType]

    def _fault(self, status: HTTPStatus, message: str) -> None:
        self._send({"error": {"message": message, "type": status.phrase}}, status)

    def _send(self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        body = json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _messages(request: dict[str, Any]) -> list[Any]:
    """The conversation before, and what the user says last.

    Raises:
        BadRequest: there is none.
    """
    given = request.get("messages")
    turns: list[Any] = []
    for turn in given if isinstance(given, list) else []:  # pyright: ignore[reportUnknownVariableType]
        said = turn.get("content") if isinstance(turn, dict) else None  # pyright: ignore[reportUnknownVariableType]
        if isinstance(said, list):  # parts, of which the texts are read
            said = "".join(str(part.get("text", "")) for part in said if isinstance(part, dict))  # pyright: ignore
        if not isinstance(said, str) or turn.get("role") not in ROLES:
            raise BadRequest(
                HTTPStatus.BAD_REQUEST, f"`messages` should be texts of {', '.join(ROLES)}, found {str(turn)[:100]}"
            )
        turns.append({"role": turn["role"], "content": said})
    if not turns or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise BadRequest(HTTPStatus.BAD_REQUEST, "`messages` should end with a question of the user's")
    return [*turns[:-1], turns[-1]["content"]]


def _number(request: dict[str, Any], name: str, usual: float, low: float, high: float) -> float:
    value = request.get(name)
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(
            HTTPStatus.BAD_REQUEST, f"`{name}` should be a number from {low:g} to {high:g}, found {str(value)[:40]}"
        )
    return value


def _after(reply: Reply, documents: str) -> str:
    """What an answer ends with, for clients that show its text alone."""
    cited = "\n".join(f"[{one.number}] {place(one.hit, documents)} “{one.quote}”" for one in reply.citations)
    told = "\n\n".join(part for part in (reply.lacking or "", cited) if part)
    return f"\n\n{told}" if told and reply.text else told


def _facts(reply: Reply, documents: str) -> dict[str, Any]:
    told = as_json(reply, documents)
    return {name: told[name] for name in ("citations", "unsupported", "lacking")}
