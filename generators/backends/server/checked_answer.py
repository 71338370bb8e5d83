"""What a server sends, looked at before it counts: an answer as the API documents it, or `BadAnswer` in words.

Kept is any text that is text, control characters too. Refused are halves of surrogate pairs, which no file can hold, and NUL,
which no database takes. What an answer took is the server's `usage` where that can be; else it is counted here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, cast

from engine.redaction import redacted
from engine.text.visible import visible
from generators.backends.protocol import Answer, Failure
from generators.text.thoughts import sampled_apart

BYTES_A_TOKEN = 4  # where a server does not say how many tokens it was
LONGEST_TOKEN = 1000  # bytes; no vocabulary has a longer one
UNSEEN_IN, UNSEEN_OUT = (
    100_000,
    64,
)  # tokens that a server may count and we can't see: its own system prompt, ends of turns
MOST_REASONING = 1_000_000
ROUNDING = 1e-3  # log-probabilities may be positive by this much
STOPPED = ("stop", "tool_calls", "function_call", "eos", "eos_token", "end_turn", "stop_sequence", "tool_use")
CUT = ("length", "max_tokens", "model_length")
BROKEN = ("error", "abort", "aborted", "cancelled")

Notice = Callable[[str, str], None]  # what it is about, which is told once; the words


class BadAnswer(ValueError):
    """An answer that can't be used, in words, and what it took all the same, in tokens in and out."""

    spent: tuple[int, int] = (0, 0)


def in_words(error: object) -> str:
    """What a server or a client says, fit to be kept and shown: a server may send back the key, or anything else."""
    return visible(redacted(str(error)[:2000]), one_line=True)[:300]


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        BadAnswer: there is none.
    """
    try:
        value: Any = json.loads(body.decode("utf-8-sig"))
    except RecursionError:
        raise BadAnswer("it is nested too deeply") from None
    except ValueError as error:
        begin = body.lstrip()[:5].lower()
        what = "a stream, which was not asked for" if begin == b"data:" else "HTML" if begin[:1] == b"<" else "no JSON"
        raise BadAnswer(f"it is {what}: {in_words(error)}") from None
    if not isinstance(value, dict):
        raise BadAnswer(f"expected an object, found {_shown(value)}")
    return cast(dict[str, Any], value)


def answer_of(
    body: dict[str, Any], request: dict[str, Any], notice: Notice = lambda about, text: None
) -> Answer | Failure:
    """Read the answer to a chat request.

    A refusal is an answer. Nothing at all at `max_tokens` is none: the model was still thinking.

    Args:
        notice: told what is odd about a server.

    Raises:
        BadAnswer: it is not as the API documents it.
    """
    spent = spent_of(body, request, notice)
    try:
        return _answer(body, request, spent, notice)
    except BadAnswer as fault:
        fault.spent = spent
        raise


def _answer(body: dict[str, Any], request: dict[str, Any], spent: tuple[int, int], notice: Notice) -> Answer | Failure:
    choice = first_choice(body)
    message = choice.get("message")
    if not isinstance(message, dict):
        raise BadAnswer(f"`message` should be an object, found {_shown(message)}")
    given = cast(dict[str, Any], message)
    if given.get("role") not in (None, "assistant"):
        raise BadAnswer(f"the assistant was asked, and {_shown(given['role'])} answers")
    text, refusal = _text(given, "content"), _text(given, "refusal")
    ids, prompt_ids = token_ids(choice, "token_ids"), token_ids(body, "prompt_token_ids")
    thought, calls = _text(given, "reasoning_content") or "", called(given)
    ended = _ended(choice, spent[1], request, notice)
    if text and not thought:  # a server that doesn't tell them apart
        thought, text = sampled_apart(text)
    if refusal and not text:
        text, ended = refusal, "refusal"
    if ended == "length" and not (text or "").strip() and not ids and not calls:
        detail = f"nothing was said in {spent[1]:,} tokens, at which `max_tokens` cut it off: raise `max_tokens`"
        return Failure("empty_answer", detail, *spent)
    if text is None and (calls or ended == "content_filter"):
        text = ""
    if text is None:
        raise BadAnswer("`content` should be text, found None")
    logprobs = logprobs_of(choice, ids, spent[1])
    return Answer(
        text.strip(), ended, prompt_ids, ids, logprobs, *spent, thought, calls, model=_model(body, request, notice)
    )


def first_choice(body: dict[str, Any]) -> dict[str, Any]:
    """The one choice that was asked for: its `index` is 0.

    Raises:
        BadAnswer: it is not there, or there twice.
    """
    choices = body.get("choices")
    if choices is None and body.get("error"):
        raise BadAnswer(f"it is an error: {in_words(json.dumps(body['error'], ensure_ascii=False))}")
    if not isinstance(choices, list) or not all(isinstance(one, dict) for one in cast(list[Any], choices)):
        raise BadAnswer(f"`choices` should be a list of objects, found {_shown(choices)}")
    known = cast(list[dict[str, Any]], choices)
    alone = len(known) == 1
    indices = [one.get("index", 0 if alone else None) for one in known]
    first = [one for one, i in zip(known, indices, strict=True) if (type(i) is int and i == 0) or (alone and i is None)]
    if len(first) != 1:
        found = f"those with {', '.join(map(_shown, indices[:5]))}" if known else "none"
        raise BadAnswer(f"expected one choice with `index` 0, found {found}")
    return first[0]


def token_ids(holder: dict[str, Any], name: str) -> list[int] | None:
    """A list of token ids, if there is one.

    Raises:
        BadAnswer: it is something else.
    """
    ids = holder.get(name)
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 2**31 for i in cast(list[Any], ids)):
        raise BadAnswer(f"`{name}` should be a list of token ids, found {_shown(cast(Any, ids))}")
    return cast(list[int], ids)


def logprobs_of(choice: dict[str, Any], ids: list[int] | None, tokens_out: int) -> list[float] | None:
    """Log-probabilities of the tokens, if they are there.

    Raises:
        BadAnswer: one is no log-probability, or there are not as many as tokens.
    """
    holder = choice.get("logprobs")
    entries = cast(dict[str, Any], holder).get("content") if isinstance(holder, dict) else holder
    if entries is None:
        return None
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in cast(list[Any], entries)):
        raise BadAnswer(f"`logprobs.content` should be a list of objects, found {_shown(cast(Any, entries))}")
    values = [one.get("logprob") for one in cast(list[dict[str, Any]], entries)]
    return checked_logprobs(values, len(ids) if ids is not None else None, tokens_out)


def checked_logprobs(values: list[Any], tokens: int | None, most: int) -> list[float]:
    """Log-probabilities that are some: finite, not above 0 but by rounding, one a token.

    Args:
        tokens: how many there should be, where that is known; else there are `most` at most.

    Raises:
        BadAnswer: they are not.
    """
    for value in values:
        if type(value) not in (int, float) or not math.isfinite(value) or value > ROUNDING:
            raise BadAnswer(f"a log-probability should be a number up to 0, found {_shown(value)}")
    if len(values) != tokens if tokens is not None else len(values) > most:
        raise BadAnswer(f"{len(values)} log-probabilities for {most if tokens is None else tokens} tokens")
    return [float(value) if value <= 0 else 0.0 for value in values]


def called(message: dict[str, Any]) -> str:
    """The calls of tools in an answer, as JSON; empty if there are none.

    Raises:
        BadAnswer: they are none.
    """
    given = message.get("tool_calls")
    if given is None or given == []:
        return ""
    calls = list[dict[str, Any]]()
    for call in cast(list[Any], given) if isinstance(given, list) else [given]:
        function = cast(dict[str, Any], call).get("function") if isinstance(call, dict) else None
        name, arguments = (
            (cast(dict[str, Any], function).get(part) for part in ("name", "arguments"))
            if isinstance(function, dict)
            else (None, None)
        )
        arguments = json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments or ""
        if not isinstance(name, str) or not name or not isinstance(arguments, str):
            raise BadAnswer(f"a call of a tool should have a function's name and arguments, found {_shown(call)}")
        identity = cast(dict[str, Any], call).get("id")
        if identity is not None and not isinstance(identity, str):
            raise BadAnswer(f"the `id` of a call should be text, found {_shown(identity)}")
        calls.append({"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}})
    return _checked(json.dumps(calls, ensure_ascii=False), "`tool_calls`")


def _text(message: dict[str, Any], name: str) -> str | None:
    value = message.get(name)
    if value is not None and not isinstance(value, str):
        raise BadAnswer(f"`{name}` should be text, found {_shown(value)}")
    return None if value is None else _checked(value, f"`{name}`")


def _checked(text: str, what: str) -> str:
    if fault := text_fault(text):
        raise BadAnswer(f"{what} has {fault}")
    return text


def text_fault(text: str) -> str | None:
    """What is in a text that can't be kept; None if all of it can."""
    if "\0" in text:
        return f"a NUL at character {text.index(chr(0))}"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair at character {error.start}, which is no text"
    return None


def _ended(choice: dict[str, Any], tokens_out: int, request: dict[str, Any], notice: Notice) -> str:
    reason = choice.get("finish_reason")
    if reason in BROKEN:
        raise BadAnswer(f"it was broken off: `finish_reason` is {_shown(reason)}")
    if reason == "content_filter":
        return "content_filter"
    if reason in STOPPED or reason in CUT:
        return "length" if reason in CUT else "stop"
    ended = "length" if tokens_out >= int(request.get("max_tokens") or 1 << 60) else "stop"
    notice(
        "ends",
        f"the server ends answers with {_shown(reason)}: taken as their own end, or as cut off where they have `max_tokens`.",
    )
    return ended


def _model(body: dict[str, Any], request: dict[str, Any], notice: Notice) -> str:
    """The name that the answer comes under, where it is another than was asked."""
    asked, name = str(request.get("model", "")), body.get("model")
    if name is None or name in ("", asked):
        return ""
    if not isinstance(name, str) or text_fault(name) or len(name) > 1000:
        raise BadAnswer(f"`model` should be a name, found {_shown(name)}")
    if not akin(asked, name):
        notice(
            f"model {name}", f"asked for `{asked}`, the server answers as `{in_words(name)}`. Rows name what was asked."
        )
    return name


def akin(asked: str, name: str) -> bool:
    """Whether a server may call a model so that was asked for by another name: dated, with its maker, its file or a tag."""

    def core(text: str) -> str:
        return text.lower().rstrip("/").rpartition("/")[2].partition(":")[0].removesuffix(".gguf")

    return core(name).startswith(core(asked)) or core(asked).startswith(core(name)) if core(name) else False


def spent_of(body: dict[str, Any], request: dict[str, Any], notice: Notice) -> tuple[int, int]:
    """What an answer took, in tokens in and out: as the server says, unless that can't be."""
    usage = body.get("usage")
    given = cast(dict[str, Any], usage) if isinstance(usage, dict) else {}
    asked = len(
        json.dumps([request.get(part) for part in ("messages", "tools", "response_format")], ensure_ascii=False).encode(
            errors="replace"
        )
    )
    choices = body.get("choices")
    said = sum(_said(one) for one in cast(list[Any], choices)) if isinstance(choices, list) else 0
    details = given.get("completion_tokens_details")
    reasoning = cast(dict[str, Any], details).get("reasoning_tokens") if isinstance(details, dict) else 0
    hidden = reasoning if type(reasoning) is int and 0 <= reasoning <= MOST_REASONING else 0
    longest = max(int(request.get("max_tokens") or 0), said)
    tokens_in, tokens_out = given.get("prompt_tokens"), given.get("completion_tokens")
    fits_in = type(tokens_in) is int and max(1, asked // LONGEST_TOKEN) <= tokens_in <= asked + UNSEEN_IN
    fits_out = type(tokens_out) is int and -(-said // LONGEST_TOKEN) <= tokens_out <= longest + hidden + UNSEEN_OUT
    if fits_in and fits_out:
        return cast(int, tokens_in), cast(int, tokens_out)
    if not said and not given:
        return 0, 0  # nothing that could have been paid for
    what = f"says {_shown(tokens_in)} tokens in and {_shown(tokens_out)} out" if given else "does not say"
    notice("usage", f"what answers took the server {what}: it is counted here, a token for {BYTES_A_TOKEN} bytes.")
    return (
        cast(int, tokens_in) if fits_in else max(1, -(-asked // BYTES_A_TOKEN)),
        cast(int, tokens_out) if fits_out else -(-said // BYTES_A_TOKEN),
    )


def _said(value: Any, depth: int = 0) -> int:
    """Bytes of the texts in a choice, but for the names and the log-probabilities in it."""
    if isinstance(value, str):
        return len(value.encode(errors="replace"))
    if depth > 8:
        return 0
    if isinstance(value, dict):
        unsaid = ("role", "finish_reason", "logprobs", "id", "type")
        held = cast(dict[str, Any], value)
        return sum(_said(one, depth + 1) for name, one in held.items() if name not in unsaid)
    return sum(_said(one, depth + 1) for one in cast(list[Any], value)) if isinstance(value, list) else 0


def _shown(value: Any) -> str:
    """A value in a few words, whatever it is."""
    if isinstance(value, str | int | float | bool | None) and not (isinstance(value, int) and value.bit_length() > 128):
        return in_words(repr(value))[:80]
    return "a huge number" if isinstance(value, int) else f"{'an object' if isinstance(value, dict) else 'a list'}"
