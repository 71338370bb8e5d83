"""Whether a server is there, before a run: it is asked for its list of models, and no prompt is sent."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import httpx

from engine.errors import UserError, nearest
from generators.backends.server import bounded_http
from generators.backends.server.checked_answer import in_words, parsed
from generators.backends.server.settings import ServerSettings, client_of

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight

PATIENCE = 2.0  # seconds for the whole answer
LONGEST = 4_000_000  # bytes of a list of models
HERE = ("localhost", "127.0.0.1", "::1")  # servers that seldom want a key
OFFICIAL = "https://api.openai.com/v1"  # where the official client goes without a `url`


def check(server: ServerSettings, known: Preflight) -> None:
    """Ask a server whether it is there, takes the key and has the model.

    Raises:
        UserError: it does not answer, refuses the key, or has no such model.
    """
    key, url = client_of(server)
    url = (url or OFFICIAL).rstrip("/")
    try:
        place = shown(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise UserError(f"`url` is no URL: {error}. Expected e.g. http://127.0.0.1:8000/v1.") from None
    status, body = _get(f"{url}/models", key, place)
    if status in (401, 403):
        raise UserError(
            f"{place} refuses the key in ${server.key} ({status})."
            if key != "none"
            else f"{place} wants a key ({status}): set ${server.key}, or name the variable that holds it as `key`."
        )
    if status == 404 and not url.endswith("/v1") and _get(f"{url}/v1/models", key, place)[0] == 200:
        raise UserError(f"{place} has no `/models`, but `/v1/models`: write `url: {place}/v1`.")
    if key == "none" and httpx.URL(url).host not in HERE:
        known.say(f"${server.key} is not set: {place} is asked without a key.")
    if status != 200:
        known.say(
            f"{place} is there, but answers {status} when it is asked for its models: `{server.model}` is not checked."
        )
        return
    names = _names(body)
    if names is None:
        known.say(f"{place} is there, but its list of models can't be read: `{server.model}` is not checked.")
    elif not has(names, server.model):
        told = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise UserError(
            f"{place} has no model `{server.model}`.{nearest(server.model, names)} It has {told or 'none'}."
        )


def shown(url: str) -> str:
    """A URL to tell people: without user, password and query, which may be secrets."""
    parts = httpx.URL(url)
    return str(parts.copy_with(userinfo=b"", query=None))


def has(names: list[str], model: str) -> bool:
    """Whether a server with these models has this one: `llama3` is Ollama's `llama3:latest`, `name:provider` a router's `name`."""
    return model in names or f"{model}:latest" in names or model.partition(":")[0] in names


def _get(url: str, key: str, place: str) -> tuple[int, bytes]:
    """Status and body.

    Raises:
        UserError: nothing answers, or not in time, or another server is to be asked.
    """
    way_out = "Start it, correct `url`, or plan with `--offline`."
    headers = {"authorization": f"Bearer {key}", **bounded_http.HEADERS}

    def ask() -> None:
        bounded_http.expected.set(LONGEST)
        hooks: Any = bounded_http.WAITING
        try:
            with httpx.Client(timeout=PATIENCE, event_hooks=hooks, follow_redirects=True) as client:
                response = client.get(url, headers=headers)
                came.put((response.status_code, response.content))
        except Exception as error:
            came.put(error)

    # In a thread, since the client's own patience begins anew with every byte.
    came = SimpleQueue[tuple[int, bytes] | Exception]()
    threading.Thread(target=ask, daemon=True).start()
    try:
        result = came.get(timeout=PATIENCE)
        if isinstance(result, Exception):
            raise result
        return result
    except (httpx.TimeoutException, Empty):
        raise UserError(f"{place} does not answer within {PATIENCE:g} s. {way_out}") from None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        reason = str(error.__cause__ or error).partition("] ")[2] or str(error) or type(error).__name__
        raise UserError(f"nothing answers at {place}: {in_words(reason).lower()}. {way_out}") from None
    except bounded_http.UnreadableAnswer as error:
        raise UserError(f"{place} is no server of models: {error}. {way_out}") from None


def _names(body: bytes) -> list[str] | None:
    """The models in a list as the API documents it; None if it is no such list."""
    try:
        return [in_words(model["id"]) for model in parsed(body)["data"]]
    except (ValueError, LookupError, TypeError):
        return None
