"""What a chat template makes of messages: the one place that asks it.

    ChatTemplate(tokenizer)       for all who show a model a prompt: its ids, the end of a turn, control tokens, roles
    learning(tokenizer)           for all who train one on answers: the same, in the variant that shows what is learnt

A template is a program, so it is asked, never searched for words: Jinja's parser tells whether it has `{% generation %}`
tags and which roles it compares with; what it writes around a turn, where it takes a thought, and whether it can render a
call of a tool are seen by rendering one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import takewhile
from typing import Any, cast

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from engine.errors import UserError
from generators.text import thoughts
from generators.text.prompts import Message
from generators.text.thoughts import Reasoning
from generators.text.tools import Malformed, as_text, calls_of, holds, missing, tools_of

ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))
MARK, THOUGHT = "\u2042", "\u2051"  # stand for an answer and a thought in a template; no template has them
USER, ANSWER = {"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}
FIELDS = ("reasoning_content", "thinking", "reasoning")  # where templates look for a thought
TOOL = {
    "name": "tool_name",
    "description": "a tool",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "tool_name", "arguments": {"q": MARK}}}
# Today, for templates that write it (Llama 3's, gpt-oss's): a conversation has the same tokens on every day.
DAY = date(2024, 7, 26)
# Whatever a template raises is its refusal: it is a program of somebody else's.
REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Unusable(Exception):
    """Messages that a model can't be shown, or learn from: a `reason` and a sentence of `detail`, for a rejected row."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class _Generation(Extension):
    """`{% generation %}` as a tag for the parser; nothing is rendered here."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("said"), [], [], body).set_lineno(line)


def _tree(template: str) -> nodes.Template:
    """A template as Jinja's parser has it.

    Raises:
        UserError: it is no Jinja.
    """
    try:
        return Environment(extensions=[_Generation, loopcontrols]).parse(template)
    except TemplateError as error:
        raise UserError(f"the model's chat template can't be read: {error}. Mend chat_template.jinja.") from error


def marks_answers(template: str) -> bool:
    """Whether a `{% generation %}` tag marks what the assistant says.

    Raises:
        UserError: the template is no Jinja.
    """
    extensions = _tree(template).find_all(nodes.ExtensionAttribute)
    return any(tag.identifier == _Generation.identifier for tag in extensions)


@dataclass(frozen=True)
class Turn:
    """A message, taken apart.

    Attributes:
        said: the content without its thought.
        message: as the template takes it.
    """

    role: str
    said: str
    thought: str
    calls: list[dict[str, Any]]
    message: Message


class ChatTemplate:
    """A tokenizer's chat template, and what rendering a few turns with it shows.

    A tokenizer without one belongs to a base model, which has never seen a turn: a prompt is the contents as plain text, one
    a line, the answer goes on on a new line, and `eos_token` ends it.

    Attributes:
        template: its Jinja; None if there is none.
        marked: its own tags tell what is learnt. Otherwise prefixes of a conversation do.
        fault: why it can't be used for plain conversations; empty if it can.
        end: the token that ends the assistant's turn; empty if there is none.
        control: tokens that would be read as the end of a text, or as a turn, if they stood in it.

    Args:
        template: rendered instead of the tokenizer's own.

    Raises:
        UserError: the template is no Jinja, or there are several and none is the default.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self._variant = template
        self.template = template or _own(tokenizer)
        self.fault = self.opening = self.tail = self.closing = self.closing_amid = self.unsaid = self.preface = ""
        self.end = str(tokenizer.eos_token or "")
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.control = list(dict.fromkeys([*map(str, tokenizer.all_special_tokens), *special]))
        self.marked, self.roles = False, ROLES
        if self.template is not None:
            tree = _tree(self.template)
            self.marked = template is None and marks_answers(self.template)
            compared = [const.value for node in tree.find_all(nodes.Compare) for const in node.find_all(nodes.Const)]
            self.roles = ROLES | {value for value in compared if isinstance(value, str)}
            try:
                self._look()
            except REFUSALS as error:
                self.fault = f"refuses a question and an answer: {_words(error)}. Mend chat_template.jinja"
            if self.fault and MARK in self._attempt([_parts(USER), _parts(ANSWER)]):
                self.fault = (
                    "wants what is said as a list of parts, as templates of models that see images do. Start from a model of "
                    "text alone"
                )
        any_of = "|".join(map(re.escape, sorted(filter(None, self.control), key=len, reverse=True)))
        self._controls = re.compile(any_of or r"(?!)")

    def _look(self) -> None:
        """Render a question and an answer, alone and before another question: what is the same ends the turn."""
        single = self.render([USER, ANSWER])
        longer = self.render([USER, ANSWER, USER])
        prompt = self.render([USER], prompt=True)
        before, mark, self.tail = single.partition(MARK)
        follows = longer.partition(MARK)[2]
        if not mark:
            self.fault = "leaves out what the assistant says. Mend chat_template.jinja"
        header = "".join(_shared(before, prompt))
        # `<think>` at the end of a prompt, say, where answers without a thought are rendered without it; and an empty
        # thought that the model has to write itself before it answers.
        self.unsaid, self.preface = prompt[len(header) :], before[len(header) :]
        begins = [found.start() for found in re.finditer(self._any_added, header)]
        self.opening = header[begins[-1] :] if begins else ""
        last, amid = self._tokens(self.tail), self._tokens(follows)
        same = _shared(last, amid)
        self.closing = "".join(same or last[:1])
        self.closing_amid = "".join(same or amid[:1])
        # Some end no turn but with the header of the next: a model that was trained on them stops by that.
        self.end = (same or last[:1] or amid[:1] or [""])[-1].strip()
        around = header + self.closing + follows.partition(USER["content"])[0]
        self.control += [t for t in self._added if t in around and t not in self.control and not t.isalnum()]

    @cached_property
    def _added(self) -> list[str]:
        """Tokens that are one whatever stands beside them, the longest first; not those of white space, which Gemma has."""
        added = {*self.tokenizer.get_added_vocab(), *map(str, self.tokenizer.all_special_tokens)}
        return sorted((token for token in added if token.strip()), key=lambda token: (-len(token), token))

    @cached_property
    def _any_added(self) -> str:
        return "|".join(map(re.escape, self._added)) or "(?!)"

    def _tokens(self, text: str) -> list[str]:
        """The added tokens that a text begins with, each with the white space before it."""
        found = re.match(rf"(?:\s*(?:{self._any_added}))*", text)
        return re.findall(rf"\s*(?:{self._any_added})", found[0]) if found else []

    # -- what it can render ----------------------------------------------------------------------------------------------

    @cached_property
    def thought_field(self) -> str:
        """The field of a message in which the template looks for a thought; empty where it has to stand in the content."""
        return next((name for name in FIELDS if THOUGHT in self._attempt([USER, {**ANSWER, name: THOUGHT}])), "")

    @cached_property
    def thought_marks(self) -> tuple[str, str, bool]:
        """What opens a thought and what closes it, and whether the prompt has opened it already."""
        opening, closing, prompt = thoughts.OPENING, thoughts.CLOSING, self._attempt([USER], prompt=True)
        if self.thought_field:
            before, _, rest = self._attempt([USER, {**ANSWER, self.thought_field: THOUGHT}]).partition(THOUGHT)
            own = before[len("".join(_shared(before, prompt))) :].strip()
            opening, closing = own or opening, rest.partition(MARK)[0].strip() or closing
        return opening, closing, prompt.rstrip().endswith(opening)

    @cached_property
    def arguments(self) -> str:
        """How the template takes the arguments of a call: as an `object`, as `text`, or not at all (empty)."""
        for form, call in (("object", CALL), ("text", as_text([CALL])[0])):
            text = self._attempt([USER, _calling(call)], [TOOL])
            if MARK in text and TOOL["name"] in text.rpartition(USER["content"])[2]:
                return form
        return ""

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the template shows a model the tools that it may call."""
        return TOOL["name"] in self._attempt([USER], [TOOL], prompt=True)

    @cached_property
    def _call_end(self) -> str:
        """The token that ends a turn that calls a tool; empty if there is none."""
        call = CALL if self.arguments == "object" else as_text([CALL])[0]
        closing = self._tokens(self._trailing(self._attempt([USER, _calling(call)], [TOOL]))) if self.arguments else []
        return closing[-1].strip() if closing else ""

    def stop_ids(self, tools: bool = False) -> tuple[int, ...]:
        """The ids that end what the model says; with `tools`, a call as well."""
        ends = {self.end, self._call_end if tools else ""} - {""}
        ids = (self.tokenizer.convert_tokens_to_ids(end) for end in sorted(ends))
        return tuple(sorted(int(i) for i in ids if i is not None))

    def _attempt(
        self, messages: Sequence[Message], functions: Sequence[dict[str, Any]] = (), prompt: bool = False
    ) -> str:
        """A rendering, or nothing where the template refuses."""
        try:
            return self.render(messages, [{"type": "function", "function": one} for one in functions], prompt)
        except REFUSALS:
            return ""

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), prompt: bool = False) -> str:
        """The conversation as text; with `prompt`, up to where the assistant's next answer begins."""
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=self._variant,
                tokenize=False,
                add_generation_prompt=prompt,
                strftime_now=DAY.strftime,
            )
        )

    # -- prompts ---------------------------------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: str | None = None) -> list[int]:
        """The token ids after which the model's answer starts.

        Args:
            messages: as rows hold them, or as `spoken` gives them.
            tools: JSON text of the tools that it may call.

        Raises:
            Unusable: the template refuses the messages or leaves some of them out, or a control token stands in them.
        """
        turns, functions = self._turns(messages, "learn"), self._functions(tools)
        if self.template is None:
            text = "\n".join(turn.message["content"] for turn in turns) + "\n"
            ids = cast(list[int], self.tokenizer(text)["input_ids"])
            # Some tokenizers close every text with EOS; a prompt is not closed.
            return ids[:-1] if ids and ids[-1] == self.tokenizer.eos_token_id else ids
        try:
            text = self.render([turn.message for turn in turns], functions, prompt=True)
        except REFUSALS as error:
            raise _refused(error) from error
        self._whole(turns, text)
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def between(self, last: Sequence[int], user: str) -> list[int]:
        """The ids between an answer, as it was sampled, and the next: its end, what the user says, the assistant's header.

        Args:
            last: the id that the answer ends with; where that is the end of the turn already, it is not said twice.

        Raises:
            UserError: the chat template leaves out earlier answers.
            Unusable: a control token stands in what the user says.
        """
        said = self._turns([{"role": "user", "content": user}], "learn")[0].message
        if self.template is None:
            return [int(i) for i in self.tokenizer(f"\n{user}\n", add_special_tokens=False)["input_ids"]]
        _, found, rest = self.render([USER, ANSWER, said], prompt=True).partition(MARK)
        if not found:
            raise UserError(
                "the chat template leaves out the assistant's earlier answers, so no conversation can go on."
            )
        ids = [int(i) for i in self.tokenizer(rest, add_special_tokens=False)["input_ids"]]
        return ids[1:] if ids[:1] == list(last) else ids

    def apart(self, ids: Sequence[int], text: str) -> tuple[str, str]:
        """The thought that a sampled answer begins with, and the answer without it.

        Args:
            text: the ids without special tokens.
        """
        opening, closing, begun = self.thought_marks
        if not self._controls.search(opening + closing + self.preface):
            return thoughts.sampled_apart(text, opening, closing, begun)
        written = str(self.tokenizer.decode(list(ids))).lstrip().removeprefix(self.preface.lstrip())
        thought, answer = thoughts.sampled_apart(written, opening, closing, begun)
        return self._controls.sub("", thought).strip(), self._controls.sub("", answer).strip()

    # -- answers ---------------------------------------------------------------------------------------------------------

    def encode(
        self, messages: Sequence[Mapping[str, Any]], tools: str | None = None, reasoning: Reasoning = "learn"
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation, and which of them the assistant says, the end of each turn included.

        Args:
            reasoning: whether thoughts are learnt, rendered and not learnt (`keep`), or left out (`drop`).

        Raises:
            Unusable: the template refuses the conversation, leaves a part of it out, or renders a turn otherwise once more
                is said; a control token stands in it; calls of tools can't be rendered.
        """
        return self._encode(messages, tools, reasoning)[:2]

    def answer(
        self,
        prompt: Sequence[Mapping[str, Any]],
        completion: Sequence[Mapping[str, Any]],
        tools: str | None = None,
        reasoning: Reasoning = "learn",
    ) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and of the answer to it: its last message, and the end of the turn. `encode` learns the same.

        Raises:
            Unusable: as `encode` does.
        """
        messages = [*prompt, *completion]
        if not messages or messages[-1]["role"] != "assistant":
            raise Unusable("no_assistant_turn", "an answer is what the assistant says last")
        if self.template is None:
            last = self._turns(messages[-1:], reasoning)[0]
            said = self.tokenizer.encode(last.message["content"], add_special_tokens=False)
            return self.prompt(messages[:-1]), [*said, *self.stop_ids()]
        ids, mask, at = self._encode(messages, tools, reasoning)
        stop = max((i + 1 for i, learnt in enumerate(mask) if learnt), default=at)
        return ids[:at], ids[at:stop]

    def _encode(
        self, messages: Sequence[Mapping[str, Any]], tools: str | None, reasoning: Reasoning
    ) -> tuple[list[int], list[bool], int]:
        """Ids, mask, and where in the ids the last answer begins."""
        turns, functions = self._turns(messages, reasoning), self._functions(tools)
        rendered = [turn.message for turn in turns]
        try:
            text = self.render(rendered, functions)
            if self.marked:
                self._whole(turns, text)
                return self._marked(turns, functions, text, reasoning)
            spans = [self._span(turns, functions, i, text) for i, turn in enumerate(turns) if turn.role == "assistant"]
        except REFUSALS as error:
            raise _refused(error) from error
        self._whole(turns, text)
        ids, offsets = self._cut(text, [start for start, _ in spans])
        learnt = spans
        if reasoning == "keep":
            said = [turn for turn in turns if turn.role == "assistant"]
            learnt = [(_after_thought(turn, text, *span), span[1]) for turn, span in zip(said, spans, strict=True)]
        mask = [any(start <= a < end for start, end in learnt) and a < b for a, b in offsets]
        begins = spans[-1][0] if spans else 0
        return ids, mask, next((i for i, (a, b) in enumerate(offsets) if a >= begins and a < b), len(ids))

    def _marked(
        self, turns: list[Turn], functions: list[dict[str, Any]], text: str, reasoning: Reasoning
    ) -> tuple[list[int], list[bool], int]:
        """As the template's own tags have it, without the white space that some take in after the end of a turn."""
        rendered, dense = [turn.message for turn in turns], _dense(text)
        for i, turn in enumerate(turns):
            if _dense(turn.thought) not in dense:
                raise Unusable("rewritten_turn", f"the chat template leaves out the thought of message {i}")
        given = self.tokenizer.apply_chat_template(
            rendered, tools=functions or None, tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
            strftime_now=DAY.strftime,
        )  # fmt: skip
        ids, mask = list(given["input_ids"]), [bool(m) for m in given["assistant_masks"]]
        starts = [i for i in range(len(mask)) if mask[i] and not (i and mask[i - 1])]
        added = set(self.tokenizer.convert_tokens_to_ids(self._added))
        for start in starts:
            stop = next((i for i in range(start, len(mask)) if not mask[i]), len(mask))
            end = max((i + 1 for i in range(start, stop) if ids[i] in added), default=stop)
            if not self.tokenizer.decode(ids[end:stop]).strip():
                mask[end:stop] = [False] * (stop - end)
        if reasoning == "keep" and any(turn.thought for turn in turns):
            offsets, at = self._pieces(text, [])[1], 0
            for turn in turns:
                if turn.role == "assistant" and turn.thought:
                    at = _after_thought(turn, text, at, len(text))
                    place = next(i for i, (a, _) in enumerate(offsets) if a >= at)
                    start = max((i for i in starts if i < place), default=place)
                    mask[start:place] = [False] * (place - start)
        prompt = self.tokenizer(self.render(rendered[:-1], functions, prompt=True), add_special_tokens=False)["input_ids"] \
            if len(turns) > 1 else []  # fmt: skip
        if prompt and ids[: len(prompt)] == list(prompt):
            return ids, mask, len(prompt)
        return ids, mask, starts[-1] if starts else len(ids)

    def _span(self, turns: list[Turn], functions: list[dict[str, Any]], i: int, text: str) -> tuple[int, int]:
        """Where in the text the answer `turns[i]` begins, and where its end-of-turn token ends."""
        messages, last, turn = [one.message for one in turns], i == len(turns) - 1, turns[i]
        prompt = self.render(messages[:i], functions, prompt=True) if i else self.render([ANSWER]).partition(MARK)[0]
        header = prompt.removesuffix(self.unsaid if i else self.preface)
        start = len(prompt) if i and text.startswith(prompt) else len(header)
        if self.opening and text.startswith(
            self.opening, start
        ):  # a header that no prompt ends with, after a tool's answer
            start += len(self.opening)
        through = text if last else self.render(messages[: i + 1], functions)
        tail = self._trailing(through) if turn.calls else self.tail
        said = through.removesuffix(tail)
        closing = self.closing if last else self.closing_amid
        if turn.calls:  # which ends otherwise than an answer, in some templates
            tokens = self._tokens(tail)
            closing = "".join(tokens if last else _shared(tokens, self._tokens(text[len(said) :])) or tokens[:1])
        closed = said + closing
        kept = text.startswith(header) and text.startswith(closed)
        if not (kept and through.endswith(tail) and start <= len(said)):
            raise Unusable(
                "rewritten_turn",
                f"the chat template renders message {i} otherwise in the whole conversation than when it was said, "
                "so what is learnt can't be told",
            )
        own = said[len(header) :]
        if lost := missing(turn.calls, own):
            raise Unusable("tool_calls", f"the chat template leaves out `{lost}` of the calls in message {i}")
        if turn.calls and not closing:
            raise Unusable("tool_calls", f"the chat template ends the calls in message {i} with no token")
        thought = turn.thought if self.thought_field else ""
        for part, what in ((thought, "the thought"), (turn.message["content"], "a part")):
            if _dense(part) not in _dense(own):
                raise Unusable("rewritten_turn", f"the chat template leaves out {what} of message {i}")
        return start, len(closed)

    def _trailing(self, text: str) -> str:
        """The added tokens and the white space that a text ends with."""
        found = re.search(rf"(?:\s*(?:{self._any_added}))*\s*$", text)
        return found[0] if found else ""

    def _cut(self, text: str, starts: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and where in it each stands.

        Where the end of a header and the beginning of an answer would become one token, the text is cut there: a model
        that is sampled from is given the header's tokens, and says the answer's.
        """
        ids, offsets = self._pieces(text, [])
        cuts = [start for start in starts if any(a < start < b for a, b in offsets)]
        return self._pieces(text, cuts) if cuts else (ids, offsets)

    def _pieces(self, text: str, cuts: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text that is cut at these places, and where in it each token stands."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for at, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
            piece = self.tokenizer(text[at:stop], add_special_tokens=False, return_offsets_mapping=True)
            ids += piece["input_ids"]
            offsets += [(at + a, at + b) for a, b in piece["offset_mapping"]]
        return ids, offsets

    # -- messages --------------------------------------------------------------------------------------------------------

    def _turns(self, messages: Sequence[Mapping[str, Any]], reasoning: Reasoning) -> list[Turn]:
        """Messages as this template takes them.

        Raises:
            Unusable: a role is unknown, a turn has no content, a control token stands in one, or calls can't be rendered.
        """
        return [self._turn(message, i, reasoning) for i, message in enumerate(messages)]

    def _turn(self, message: Mapping[str, Any], i: int, reasoning: Reasoning) -> Turn:
        role, content = message["role"], message["content"]
        if role not in self.roles:
            known = ", ".join(sorted(ROLES))
            raise Unusable("unknown_role", f"role `{role}` in message {i}; the chat template knows {known}")
        try:
            calls = calls_of(message)
        except Malformed as error:
            raise Unusable("tool_calls", f"message {i}: {error}") from error
        if not isinstance(content, str):
            if not calls:
                raise Unusable("no_content", f"message {i}, of the {role}, has no content")
            content = ""
        thought, said = str(message.get("reasoning_content") or "").strip(), content
        within = "" if thought or role != "assistant" else content
        if within:
            thought, said = thoughts.apart(within)
        for text in (content, thought, *(str(call["function"]) for call in calls), str(message.get("name") or "")):
            self._plain(text, f"message {i}, of the {role},")
        if reasoning == "drop":
            thought = within = ""
        shown: Message = {"role": role, "content": said}
        if thought and self.thought_field:
            shown[self.thought_field] = thought
        elif thought:
            shown["content"] = within or thoughts.block(thought, said)
        if calls:
            if not self.arguments:
                raise Unusable("tool_calls", f"the chat template can't render the calls in message {i}")
            shown["tool_calls"] = calls if self.arguments == "object" else as_text(calls)
        shown |= {name: message[name] for name in ("tool_call_id", "name") if message.get(name) is not None}
        return Turn(role, said, thought, calls, shown)

    def _plain(self, text: str, where: str) -> None:
        if found := self._controls.search(text):
            raise Unusable("control_token", f"{where} has {found[0]} in it, which would be read as a control token")

    def _functions(self, tools: str | None) -> list[dict[str, Any]]:
        try:
            functions = tools_of(tools)
        except Malformed as error:
            raise Unusable("tool_calls", str(error)) from error
        if functions and not self.takes_tools:
            raise Unusable("tool_calls", "the chat template doesn't show the model its tools")
        for function in functions:
            self._plain(str(function), "a tool")
        return functions

    def _whole(self, turns: list[Turn], text: str) -> None:
        """Check that what was said stands in a rendering."""
        dense = _dense(text)
        for i, turn in enumerate(turns):
            if turn.role == "tool":
                if not holds(text, turn.said):
                    raise Unusable("tool_calls", f"the chat template leaves out message {i}, what a tool gave back")
            elif _dense(turn.said) not in dense:
                raise Unusable(
                    "rewritten_turn", f"the chat template leaves out a part of message {i}, of the {turn.role}"
                )
            if lost := missing(turn.calls, text):
                raise Unusable("tool_calls", f"the chat template leaves out `{lost}` of the calls in message {i}")


def learning(tokenizer: Any) -> ChatTemplate:
    """The template that shows what is learnt: its own `{% generation %}` tags do, else the variant that TRL made of it for
    training (it keeps every turn as it was), else prefixes of a conversation.

    Raises:
        UserError: a model can't learn from it what to answer, or where to stop.
    """
    own = ChatTemplate(tokenizer)
    if own.template is None:
        if not own.end:
            raise UserError(
                "the model's tokenizer has no `eos_token`: nothing ends an answer. Set one before training."
            )
        return own
    if own.marked:
        from trl.chat_template_utils import is_chat_template_stop_token_trained

        if not is_chat_template_stop_token_trained(tokenizer):
            raise UserError(
                "the model's chat template leaves the token that ends a turn outside {% generation %}: the model would "
                "never learn to stop. Move it inside in chat_template.jinja."
            )
        return own
    variant = _training_variant(tokenizer)
    shown = ChatTemplate(tokenizer, variant) if variant else own
    if shown.fault:
        raise UserError(f"the model's chat template {shown.fault}.")
    if not shown.closing:
        raise UserError(
            "the model's chat template writes no token of the tokenizer after what the assistant says: the model would "
            "never learn to stop. Let chat_template.jinja end a turn with one, such as `eos_token`."
        )
    return shown


def _own(tokenizer: Any) -> str | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise UserError(f"the model's chat template can't be used: {str(error).splitlines()[0]}") from error


def _training_variant(tokenizer: Any) -> str | None:
    """The template that TRL made of this one for training, if it did."""
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except REFUSALS:
        return None


def _after_thought(turn: Turn, text: str, start: int, end: int) -> int:
    """Where the answer begins that a thought stands before."""
    if not turn.thought:
        return start
    found = text.find(turn.thought, start, end)
    at = found + len(turn.thought) if found >= 0 else start
    if said := turn.said.strip():
        return max(text.find(said, at, end), at)
    closing = re.compile(rf"\s*(?:{thoughts.CLOSING})?\s*").match(text, at, end)
    return closing.end() if closing else at


def _parts(message: Message) -> Message:
    return {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}


def _calling(call: dict[str, Any]) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _shared(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """What two sequences begin with in common."""
    return [x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))]


def _refused(error: Exception) -> Unusable:
    return Unusable("template_refused", f"the chat template says: {_words(error)}")


def _words(error: Exception) -> str:
    return str(getattr(error, "message", None) or error).strip().rstrip(".")


def _dense(text: str) -> str:
    return "".join(text.split())
