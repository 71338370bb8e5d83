"""What a chat template makes of messages: the one place that asks it.

    ChatTemplate(tokenizer)       for all who show a model a prompt: its ids, the end of a turn, control tokens, roles
    learning(tokenizer)           for all who train one on answers (`learning_template.py`): the same, and what is learnt

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
from engine.text.bounded_template import LONGEST, Excessive
from generators.text import thoughts
from generators.text.patches import bound_chat_templates
from generators.text.prompts import Message
from generators.text.thoughts import Reasoning
from generators.text.tools import Malformed, as_text, calls_of, holds, missing, tools_of

ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))
MARK, THOUGHT = "\u2042", "\u2051"  # stand for an answer and a thought in a template; no template has them
USER, ANSWER = {"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}
FIELDS = ("reasoning_content", "thinking", "reasoning")  # where templates look for a thought
TOOL: dict[str, Any] = {
    "name": "tool_name",
    "description": "a tool",
    "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
}
CALL: dict[str, Any] = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "tool_name", "arguments": {"q": MARK}},
}
# Today, for templates that write it (Llama 3's, gpt-oss's): a conversation has the same tokens on every day.
DAY = date(2024, 7, 26)
# Whatever a template raises is its refusal: it is a program of somebody else's.
REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)


class Unusable(Exception):
    """Messages that a model can't be shown, or learn from: a `reason` and a sentence of `detail`, for a rejected row."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class Generation(Extension):
    """`{% generation %}` as a tag for the parser; nothing is rendered here."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("said"), [], [], body).set_lineno(line)


def syntax_tree(template: str) -> nodes.Template:
    """A template as Jinja's parser has it.

    Raises:
        UserError: it is no Jinja.
    """
    try:
        if len(template) > LONGEST:
            raise Excessive(f"it has {len(template):,} characters; a template has at most {LONGEST:,}")
        return Environment(extensions=[Generation, loopcontrols]).parse(template)
    except (TemplateError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"the model's chat template can't be read: {what}. Mend chat_template.jinja.") from error


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
        fault: why it can't be used for plain conversations; empty if it can.
        end: the token that ends the assistant's turn; empty if there is none.
        control: tokens that would be read as the end of a text, or as a turn, if they stood in it.

    Args:
        template: rendered instead of the tokenizer's own.

    Raises:
        UserError: the template is no Jinja, or there are several and none is the default.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        bound_chat_templates()
        self.tokenizer = tokenizer
        self._variant = template
        self.template = template or _own(tokenizer)
        self.fault = self.opening = self.tail = self.closing = self.closing_amid = self.unsaid = self.preface = ""
        self.end = str(tokenizer.eos_token or "")
        special = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        self.control = list(dict.fromkeys([*map(str, tokenizer.all_special_tokens), *special]))
        self.roles = ROLES
        self._excess = ""  # what takes seconds for a word takes no shorter for a conversation
        if self.template is not None:
            tree = syntax_tree(self.template)
            compared = [const.value for node in tree.find_all(nodes.Compare) for const in node.find_all(nodes.Const)]
            self.roles = ROLES | {value for value in compared if isinstance(value, str)}
            try:
                self._look()
            except REFUSALS as error:
                self.fault = f"refuses a question and an answer: {_words(error)}. Mend chat_template.jinja"
                self._excess = str(error) if isinstance(error, Excessive) else ""
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
        header = "".join(shared(before, prompt))
        # `<think>` at the end of a prompt, say, where answers without a thought are rendered without it; and an empty
        # thought that the model has to write itself before it answers.
        self.unsaid, self.preface = prompt[len(header) :], before[len(header) :]
        begins = [found.start() for found in re.finditer(self._any_added, header)]
        self.opening = header[begins[-1] :] if begins else ""
        last, amid = self._tokens(self.tail), self._tokens(follows)
        same = shared(last, amid)
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

    def _trailing(self, text: str) -> str:
        """The added tokens and the white space that a text ends with."""
        found = re.search(rf"(?:\s*(?:{self._any_added}))*\s*$", text)
        return found[0] if found else ""

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
            own = before[len("".join(shared(before, prompt))) :].strip()
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
        if self._excess:
            raise Excessive(self._excess)
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
            raise refused(error) from error
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
        whole = dense(text)
        for i, turn in enumerate(turns):
            if turn.role == "tool":
                if not holds(text, turn.said):
                    raise Unusable("tool_calls", f"the chat template leaves out message {i}, what a tool gave back")
            elif dense(turn.said) not in whole:
                raise Unusable(
                    "rewritten_turn", f"the chat template leaves out a part of message {i}, of the {turn.role}"
                )
            if lost := missing(turn.calls, text):
                raise Unusable("tool_calls", f"the chat template leaves out `{lost}` of the calls in message {i}")


def _own(tokenizer: Any) -> str | None:
    if not getattr(tokenizer, "chat_template", None):
        return None
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise UserError(f"the model's chat template can't be used: {str(error).splitlines()[0]}") from error


def _parts(message: Message) -> Message:
    return {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}


def _calling(call: dict[str, Any]) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def shared(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """What two sequences begin with in common."""
    return [x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))]


def refused(error: Exception) -> Unusable:
    return Unusable("template_refused", f"the chat template says: {_words(error)}")


def _words(error: Exception) -> str:
    return str(getattr(error, "message", None) or error).strip().rstrip(".")


def dense(text: str) -> str:
    return "".join(text.split())
