"""The shapes in which people keep rows, told row by row from the columns a row has, and what they mean for each kind.

    TRL       messages | prompt + completion | prompt + chosen + rejected, with the prompt apart or inside the answers;
              each a text or a list of messages
    others    ShareGPT (conversations of from and value) · Alpaca (instruction, input, output, system, history) · OpenAI
              (messages with parts, names, tool calls; tools) · UltraFeedback (a prompt that stands in the answers, too) ·
              transcripts (Human: ... Assistant: ...) · questions and answers under a dozen names

What a shape does not use stays in `metadata`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, cast

from engine.reader.cells import Unfit, boolean, brief, listed, missing, parse_json, plain, spelled, text
from engine.reader.messages import Message, messages, transcript
from engine.reader.sources import SPLITS

Row = dict[str, Any]

ASKED = ("prompt", "question", "instruction", "query", "problem", "input")
ANSWERED = ("completion", "response", "answer", "output", "solution", "target")
KNOWN_ANSWER = ("reference", "answer", "solution", "ground_truth", "target", "expected_answer")
TALK = ("messages", "conversations", "conversation", "dialog", "dialogue")
SYSTEM = ("system", "system_prompt")
BETTER_WORSE = (
    ("chosen", "rejected"), ("preferred_output", "non_preferred_output"), ("response_j", "response_k"),
    ("chosen_response", "rejected_response"),
)  # fmt: skip
NAMES = {
    *ASKED, *ANSWERED, *KNOWN_ANSWER, *TALK, *SYSTEM, *(name for pair in BETTER_WORSE for name in pair), "text", "content", "tools",
    "functions", "split", "label", "history", "ranks", "completions", "subject", "metric", "value", "margin",
}  # fmt: skip


@dataclass
class Shaped:
    """A row understood.

    Attributes:
        shape: what its shape is called.
        row: its columns by our names.
        used: which of its own were used for them.
        more: what else is to be kept, of a cell that was used in part.
    """

    shape: str
    row: Row
    used: set[str]
    more: Row


class _Columns:
    """A row whose columns are asked for by name; remembers which were."""

    def __init__(self, row: Row) -> None:
        self.row: Row = {}
        self.origin: dict[str, str] = {}
        for name, value in row.items():
            if not missing(value):
                # `Question` and `Known Answer` of a spreadsheet are the `question` and `known_answer` that are known here.
                spelt = name.strip().lower().replace(" ", "_")
                known = spelt if spelt in NAMES and spelt not in row else name
                self.row[known], self.origin[known] = value, name
        self.used: set[str] = set()
        self.more: Row = {}

    def has(self, *names: str) -> bool:
        return all(name in self.row for name in names)

    def first(self, names: tuple[str, ...]) -> str | None:
        """The first of these that the row has; one with an empty text only where no other has more."""
        there = [name for name in names if name in self.row]
        return next((name for name in there if self.row[name] != ""), next(iter(there), None))

    def take(self, name: str) -> Any:
        self.used.add(self.origin[name])
        return self.row[name]

    def say(self, name: str, role: str | None = None) -> list[Message]:
        """The messages in a column. What is not understood of one is kept, by the number of the message."""
        said = messages(self.take(name), name, role)
        if other := {str(i): turn.pop("other") for i, turn in enumerate(said) if "other" in turn}:
            self.more[f"{name}_fields"] = other
        return said


def understand(kind: str, row: Row) -> Shaped:
    """A row as one of this kind.

    Raises:
        Unfit: it is none; says what it has, or what is wrong in which column.
    """
    columns = _Columns(row)
    shape, made = BUILD[kind](columns)
    if kind in ("Document", "Verdict"):
        return Shaped(shape, made, columns.used, columns.more)
    if columns.has("tools") or columns.has("functions"):
        made["tools"] = _tools(columns)
    if columns.has("split") and (split := split_of(columns.row["split"])):
        columns.take("split")
        made["split"] = split
    if columns.has("label") and kind == "Candidate":
        made["label"] = boolean(columns.take("label"), "label")
    return Shaped(shape, made, columns.used, columns.more)


def kind_of(row: Row, accepts: tuple[str, ...]) -> str | None:
    """Which of these kinds a row is by its columns; None where it could be none of them."""
    columns = _Columns(row)
    answers = columns.first(ANSWERED) is not None and columns.first(ASKED) not in (None, columns.first(ANSWERED))
    natural: list[str] = []
    if any(columns.has(*pair) for pair in BETTER_WORSE):
        natural = ["Preference"]
    elif columns.has("ranks"):
        natural = ["Ranking"]
    elif columns.has("subject", "metric"):
        natural = ["Verdict"]
    elif columns.first(TALK):
        natural = ["Conversation", "Prompt"]
    elif columns.has("prompt", "completion"):
        natural = ["Candidate", "Conversation", "Prompt"]
    elif columns.first(KNOWN_ANSWER) and columns.first(ASKED):
        natural = ["Prompt", "Conversation", "Candidate"]
    elif answers:
        natural = ["Conversation", "Candidate", "Prompt"]
    elif columns.has("text"):
        natural = ["Document"]
    elif columns.first(ASKED):
        natural = ["Prompt"]
    elif columns.has("content"):
        natural = ["Document"]
    return next((kind for kind in natural if kind in accepts), None)


def split_of(told: Any) -> str | None:
    """What a cell says of its row's split, by its first word: `test` of `test_sft`; None for a fold or another name."""
    return SPLITS.get(re.split(r"[^a-z]+", str(told).strip().lower())[0])


def metadata(row: Row, used: set[str], more: Row) -> str:
    """What of a row was not used, with the row's own `metadata` (an object, or one as JSON text), as a JSON object."""
    row = {**row, **more}
    own = row.get("metadata")
    held: Row = {}
    if isinstance(own, str):
        try:
            read = parse_json(own)
        except (ValueError, RecursionError):
            read = None
        if isinstance(read, dict):
            held = cast(Row, read)
            if not any(name not in used and name != "metadata" and not missing(row[name]) for name in row):
                return own
        elif own:
            held = {"metadata": own}
    elif isinstance(own, dict):
        held = dict(cast(Row, own))
    elif not missing(own):
        held = {"metadata": own}
    rest = {
        name: value for name, value in row.items() if name not in used and name != "metadata" and not missing(value)
    }
    clash = {name for name in rest if name in held and held[name] != rest[name]}
    return json.dumps(plain({**({"metadata": held} if clash else held), **rest}), ensure_ascii=False)


# -- one function a kind: the name of the shape, and the columns that it makes ---------------------------------------------------


def _document(columns: _Columns) -> tuple[str, Row]:
    for name in ("text", "content"):
        if name in columns.row:
            if not (said := text(columns.take(name), name)) or said.isspace():
                raise Unfit("empty", name, "nothing but white space" if said else "an empty text")
            return "texts", {"text": said}
    raise _lacks("Document", columns, "a `text`")


def _prompt(columns: _Columns) -> tuple[str, Row]:
    if talk := columns.first(TALK):
        said = columns.say(talk)
        if len(said) > 1 and said[-1]["role"] == "assistant":
            columns.more["completion"] = said.pop()["content"]
        return "conversations, up to the last answer", _asked(columns, said)
    asked = columns.first(ASKED)
    if asked is None:
        raise _lacks("Prompt", columns, "a `prompt` (or `question`, `instruction`, `messages`)")
    answer = columns.first(KNOWN_ANSWER)
    made = _asked(columns, _question(columns, asked))
    if answer and made.get("reference") is None:
        made["reference"] = text(columns.take(answer), answer, structured=True)
    return ("questions with known answers" if answer else "prompts"), made


def _conversation(columns: _Columns) -> tuple[str, Row]:
    talk = columns.first(TALK)
    if talk:
        said = columns.say(talk)
        shape = "ShareGPT conversations" if _sharegpt(columns.row[talk]) else "conversations"
        return shape, {"messages": _told(columns, said), **_reference(columns)}
    asked, answered = columns.first(ASKED), columns.first(ANSWERED)
    if asked is None or answered is None or asked == answered:
        raise _lacks("Conversation", columns, "`messages`, or a `prompt` with a `completion`")
    shape = _pair_shape(columns, asked, answered)
    question = _told(columns, _question(columns, asked))
    said = [*question, *columns.say(answered, "assistant")]
    return shape, {"messages": said, **_reference(columns)}


def _candidate(columns: _Columns) -> tuple[str, Row]:
    asked = columns.first(ASKED)
    answered = columns.first(ANSWERED)
    if talk := columns.first(TALK) if answered is None else None:
        said = columns.say(talk)
        if said[-1]["role"] != "assistant" or len(said) < 2:
            raise Unfit("no_answer", talk, "expected a conversation that ends with what the assistant says")
        made: Row = {"prompt": _told(columns, said[:-1]), "completion": said[-1:]}
        return "conversations, the last answer apart", {**made, **_own(columns, "Candidate")}
    if asked is None or answered is None or asked == answered:
        raise _lacks("Candidate", columns, "a `prompt` and a `completion`")
    shape = _pair_shape(columns, asked, answered)
    prompt = _told(columns, _question(columns, asked))
    made = {"prompt": prompt, "completion": columns.say(answered, "assistant")}
    return shape, {**made, **_own(columns, "Candidate")}


def _preference(columns: _Columns) -> tuple[str, Row]:
    names = next((pair for pair in BETTER_WORSE if columns.has(*pair)), None)
    if names is None:
        for name, other in (("chosen", "rejected"), ("rejected", "chosen")):
            if columns.has(name):
                raise Unfit("missing_column", other, f"there is none beside `{name}`; a Preference has both")
        raise _lacks("Preference", columns, "`chosen` and `rejected`, and a `prompt` apart or in front of both")
    talk = columns.first(TALK)
    asked = columns.first(ASKED)
    if talk and asked is None:
        prompt, shape = columns.say(talk), "ShareGPT preferences"
    elif asked:
        prompt, shape = _question(columns, asked), "preferences"
    else:
        prompt, shape = [], "preferences with the prompt inside the answers"
        if all(isinstance(columns.row[name], str) for name in names):
            return shape, {**_implicit_text(columns, names), **_own(columns, "Preference")}
    chosen, rejected = (columns.say(name, "assistant" if prompt else None) for name in names)
    if prompt:
        apart = (chosen, rejected)
        prompt, chosen, rejected = _without_prompt(prompt, chosen, rejected, names)
        if len(chosen) < len(apart[0]):
            shape = "UltraFeedback preferences"
    else:
        shared = len(_shared(chosen, rejected))
        while shared and chosen[shared - 1]["role"] == "assistant":
            shared -= 1
        if not shared:
            raise Unfit(
                "no_prompt", names[0], "there is no `prompt`, and both answers don't begin with the same question"
            )
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    for name, said in zip(names, (chosen, rejected), strict=True):
        if not said or said[-1]["role"] != "assistant":
            raise Unfit("no_answer", name, "the last to speak is not the assistant")
    return shape, {
        "prompt": _told(columns, prompt),
        "chosen": chosen,
        "rejected": rejected,
        **_own(columns, "Preference"),
    }


def _ranking(columns: _Columns) -> tuple[str, Row]:
    asked = columns.first(ASKED)
    if asked is None:
        raise _lacks("Ranking", columns, "a `prompt`")
    made = {"prompt": _told(columns, _question(columns, asked)), **_own(columns, "Ranking")}
    if made.get("completions") is None and made.get("candidates") is None:
        raise Unfit("missing_column", "completions", "there are none; a Ranking has `completions` and their `ranks`")
    return "rankings", made


def _verdict(columns: _Columns) -> tuple[str, Row]:
    for name in ("subject", "metric"):
        if not columns.has(name):
            raise Unfit("missing_column", name, f"there is none; a Verdict needs one. Columns: {_listed(columns)}")
    return "verdicts", _own(columns, "Verdict")


BUILD: dict[str, Callable[[_Columns], tuple[str, Row]]] = {
    "Document": _document,
    "Prompt": _prompt,
    "Conversation": _conversation,
    "Candidate": _candidate,
    "Ranking": _ranking,
    "Preference": _preference,
    "Verdict": _verdict,
}

# -- what they share -------------------------------------------------------------------------------------------------------------


def _lacks(kind: str, columns: _Columns, needed: str) -> Unfit:
    return Unfit("missing_column", None, f"a {kind} needs {needed}; the columns are {_listed(columns) or 'none'}")


def _listed(columns: _Columns) -> str:
    return listed(f"`{name}`" for name in columns.row)


def _own(columns: _Columns, kind: str) -> Row:
    """The columns that the row has under the names of its kind's schema, but for those made here; typed by the caller."""
    from engine.store.schema import DATASETS, Messages

    made: Row = {}
    for field in DATASETS[kind]:
        if (
            field.type != Messages
            and field.name not in ("id", "parents", "metadata", "split")
            and columns.has(field.name)
        ):
            made[field.name] = columns.take(field.name)
    return made


def _reference(columns: _Columns) -> Row:
    return {"reference": columns.take("reference")} if columns.has("reference") else {}


def _question(columns: _Columns, asked: str) -> list[Message]:
    """What the user asks: messages, or a text, with Alpaca's `input` below it and `history` before it."""
    said = columns.say(asked, "user")
    if asked == "instruction" and columns.has("input"):
        more = text(columns.take("input"), "input")
        if more and more.strip():
            said = [*said[:-1], {**said[-1], "content": f"{said[-1]['content']}\n\n{more}"}]
    if columns.has("history"):
        said = [*_history(columns.take("history")), *said]
    return said


def _history(given: Any) -> list[Message]:
    """Earlier turns as `[[question, answer], ...]`."""
    turns: list[Message] = []
    for i, pair in enumerate(cast(list[Any], given) if isinstance(given, list) else [given]):
        if not isinstance(pair, list | tuple) or len(cast(list[Any], pair)) != 2:
            raise Unfit("bad_type", f"history[{i}]", f"expected a question and its answer, found {brief(pair)}")
        for role, said in zip(("user", "assistant"), cast(list[Any], pair), strict=True):
            turns += messages(said, f"history[{i}]", role)
    return turns


def _asked(columns: _Columns, said: list[Message]) -> Row:
    return {"prompt": _told(columns, said), **_reference(columns)}


def _told(columns: _Columns, said: list[Message]) -> list[Message]:
    """A conversation with the row's system message in front."""
    name = columns.first(SYSTEM)
    if name is None or not isinstance(columns.row[name], str) or not columns.row[name].strip():
        return said
    system = text(columns.take(name), name)
    if said and said[0]["role"] == "system":
        if said[0]["content"] == system:
            return said
        raise Unfit("two_systems", name, "the conversation has a system message of its own, and another")
    return [{"role": "system", "content": system}, *said]


def _tools(columns: _Columns) -> str:
    """The tools on offer, as JSON text of a list."""
    name = "tools" if columns.has("tools") else "functions"
    given = columns.take(name)
    if isinstance(given, str):
        try:
            given = parse_json(given)
        except (ValueError, RecursionError):
            raise Unfit("bad_type", name, f"expected a list of tools as JSON, found {brief(given)}") from None
    if not isinstance(given, list):
        raise Unfit("bad_type", name, f"expected a list of tools, found {brief(given)}")
    tools = [
        parse_json(tool) if isinstance(tool, str) and tool.lstrip().startswith("{") else tool
        for tool in cast(list[Any], given)
    ]
    return spelled([{"type": "function", "function": tool} for tool in tools] if name == "functions" else tools)


def _sharegpt(cell: Any) -> bool:
    turns = cast(list[Any], cell) if isinstance(cell, list) else []
    return bool(turns) and isinstance(turns[0], dict) and "from" in turns[0]


def _pair_shape(columns: _Columns, asked: str, answered: str) -> str:
    if asked == "instruction":
        return "Alpaca instructions"
    return "prompts with completions" if asked == "prompt" else f"{asked} and {answered}"


def _implicit_text(columns: _Columns, names: tuple[str, str]) -> Row:
    """Two texts that begin with the prompt: transcripts, or sentences whose common beginning is what is continued."""
    given = [str(columns.take(name)) for name in names]
    sides = [transcript(said) for said in given]
    if sides[0] and sides[1]:
        shared = len(_shared(sides[0], sides[1]))
        while shared and sides[0][shared - 1]["role"] == "assistant":
            shared -= 1
        chosen, rejected = sides[0][shared:], sides[1][shared:]
        if not shared or not chosen or not rejected:
            raise Unfit(
                "no_prompt", "chosen", "both transcripts don't begin with the same question and end with answers"
            )
        return {"prompt": _told(columns, sides[0][:shared]), "chosen": chosen, "rejected": rejected}
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*given, strict=False)))
    same = given[0].rfind(" ", 0, same + 1)  # never within a word
    if same <= 0 or not all(said[same:].strip() for said in given):
        raise Unfit("no_prompt", "chosen", "there is no `prompt`, and both answers don't begin with the same words")
    answers = [[{"role": "assistant", "content": text(said[same:], "chosen")}] for said in given]
    prompt = [{"role": "user", "content": text(given[0][:same], "chosen")}]
    return {"prompt": _told(columns, prompt), "chosen": answers[0], "rejected": answers[1]}


def _shared(a: list[Message], b: list[Message]) -> list[Message]:
    """What two conversations begin with in common."""
    return [x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))]


def _without_prompt(
    prompt: list[Message], chosen: list[Message], rejected: list[Message], names: tuple[str, str]
) -> tuple[list[Message], list[Message], list[Message]]:
    """The prompt, and both answers without it, where they repeat it.

    Raises:
        Unfit: an answer begins with turns that are not the prompt's.
    """
    answers: list[list[Message]] = []
    for name, said in zip(names, (chosen, rejected), strict=True):
        if said[: len(prompt)] == prompt:
            said = said[len(prompt) :]
        elif said[0]["role"] != "assistant":
            turns = _shared(chosen, rejected)
            while turns and turns[-1]["role"] == "assistant":
                turns = turns[:-1]
            asked = {str(turn["content"]).strip() for turn in turns if turn["role"] == "user"}
            if not turns or str(prompt[-1]["content"]).strip() not in asked:
                raise Unfit("other_prompt", name, "it begins with turns that are not the row's `prompt`")
            return turns, chosen[len(turns) :], rejected[len(turns) :]
        answers.append(said)
    return prompt, answers[0], answers[1]
