"""What a chat template does with a conversation: what the assistant says in it, and which token ends a turn.

A template is a program, so it is asked, never searched for words: Jinja's parser tells whether it has `{% generation %}`
tags, and what it writes around a turn is seen by rendering one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, cast

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from engine.errors import UserError

Message = dict[str, str]

MARK = "\u2042"  # stands for an answer in a template; no template has it
USER, ANSWER = {"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}


class Unlearnable(Exception):
    """A conversation in which what the assistant says can't be told: a `reason` and a sentence of `detail`."""

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


def marks_answers(template: str) -> bool:
    """Whether a `{% generation %}` tag marks what the assistant says.

    Raises:
        UserError: the template is no Jinja.
    """
    try:
        tree = Environment(extensions=[_Generation, loopcontrols]).parse(template)
    except TemplateError as error:
        raise UserError(f"the model's chat template can't be read: {error}. Mend chat_template.jinja.") from error
    return any(tag.identifier == _Generation.identifier for tag in tree.find_all(nodes.ExtensionAttribute))


class ChatTemplate:
    """A tokenizer's chat template, and what rendering a few turns with it shows.

    Attributes:
        marked: its own tags tell what is learnt. Otherwise prefixes of a conversation do, rendered with the template that
            TRL made of this one for training (it keeps every turn as it was), or with the template itself.
        end: the token that ends the assistant's turn; empty if there is none.
        control: tokens that would open or end a turn if they stood in a text.

    Raises:
        UserError: there is no template for plain conversations, or it leaves out what the assistant says.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        try:
            own = cast(str, tokenizer.get_chat_template())
        except ValueError as error:
            raise UserError(f"the model's chat template can't be used: {str(error).splitlines()[0]}") from error
        self.marked = marks_answers(own)
        self.template = own if self.marked else _training_template(tokenizer) or own
        try:
            self._look()
        except (TemplateError, TypeError) as error:
            if not self.marked:
                raise UserError(
                    f"the model's chat template refuses a question and an answer: {_words(error)}. "
                    "Mend chat_template.jinja."
                ) from error
            self.end, self.control = "", self._control("")

    def _look(self) -> None:
        """Render a question and an answer, alone and before another question: what is the same ends the turn."""
        single = self.render([USER, ANSWER])
        longer = self.render([USER, ANSWER, USER])
        prompt = self.render([USER], prompt=True)
        before, mark, self.tail = single.partition(MARK)
        follows = longer.partition(MARK)[2]
        if not mark and not self.marked:
            raise UserError(
                "the model's chat template leaves out what the assistant says if that is a text: it wants a list of parts, "
                "as templates of models that see images do. Start from a model of text alone."
            )
        header = "".join(_shared(before, prompt))
        # `<think>` at the end of a prompt, say, where answers without a thought are rendered without it; and an empty
        # thought that the model has to write itself before it answers.
        self.unsaid, self.preface = prompt[len(header) :], before[len(header) :]
        last, amid = self._tokens(self.tail), self._tokens(follows)
        same = _shared(last, amid)
        self.closing = "".join(same or last[:1])
        self.closing_amid = "".join(same or amid[:1])
        self.end = (same or last[:1] or [""])[-1].strip()
        self.control = self._control(longer + prompt)

    def _tokens(self, text: str) -> list[str]:
        """The added tokens that a text begins with, each with the white space before it."""
        added = {*self.tokenizer.get_added_vocab(), *self.tokenizer.all_special_tokens}
        any_of = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
        found = re.match(rf"(?:\s*(?:{any_of}))*", text) if added else None
        return re.findall(rf"\s*(?:{any_of})", found[0]) if found else []

    def _control(self, written: str) -> list[str]:
        found = [token for token in self.tokenizer.get_added_vocab() if token.startswith("<|")]
        if not self.marked:
            special = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
            found += [token for token in special if token in written and token not in found]
        return found

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The conversation as text; with `prompt`, up to where the assistant's next answer begins."""
        return str(
            self.tokenizer.apply_chat_template(
                list(messages), chat_template=self.template, tokenize=False, add_generation_prompt=prompt
            )
        )

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation, and which of them the assistant says, the end of each turn included.

        Raises:
            Unlearnable: the template refuses the conversation, or renders a turn otherwise once more is said.
        """
        try:
            if self.marked:
                given = self.tokenizer.apply_chat_template(
                    list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
                )
                return list(given["input_ids"]), [bool(m) for m in given["assistant_masks"]]
            text = self.render(messages)
            spans = [self._span(messages, i, text) for i, m in enumerate(messages) if m["role"] == "assistant"]
        except (TemplateError, TypeError) as error:
            raise Unlearnable("template_refused", f"the chat template says: {_words(error)}") from error
        return self._mask(text, spans)

    def _span(self, messages: Sequence[Message], i: int, text: str) -> tuple[int, int]:
        """Where in the text the answer `messages[i]` begins, and where its end-of-turn token ends."""
        last = i == len(messages) - 1
        prompt = self.render(messages[:i], prompt=True) if i else self.render([ANSWER]).partition(MARK)[0]
        header = prompt.removesuffix(self.unsaid if i else self.preface)
        start = len(prompt) if i and text.startswith(prompt) else len(header)
        through = text if last else self.render(messages[: i + 1])
        said = through.removesuffix(self.tail)
        closed = said + (self.closing if last else self.closing_amid)
        kept = text.startswith(header) and text.startswith(closed)
        if not (kept and through.endswith(self.tail) and start <= len(said)):
            raise Unlearnable(
                "rewritten_turn",
                f"the chat template renders message {i} otherwise in the whole conversation than when it was said, "
                "so what is learnt can't be told",
            )
        if _dense(messages[i]["content"]) not in _dense(said[len(header) :]):
            raise Unlearnable("rewritten_turn", f"the chat template leaves out a part of message {i}")
        return start, len(closed)

    def _mask(self, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """Token ids of a text, and which of them begin in a span.

        Where the end of a header and the beginning of an answer would become one token, the text is cut there: a model
        that is sampled from is given the header's tokens, and says the answer's.
        """
        ids, offsets = self._pieces(text, [])
        cuts = [start for start, _ in spans if any(a < start < b for a, b in offsets)]
        if cuts:
            ids, offsets = self._pieces(text, cuts)
        return ids, [any(start <= a < end for start, end in spans) and a < b for a, b in offsets]

    def _pieces(self, text: str, cuts: list[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text that is cut at these places, and where in it each token stands."""
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for at, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
            piece = self.tokenizer(text[at:stop], add_special_tokens=False, return_offsets_mapping=True)
            ids += piece["input_ids"]
            offsets += [(at + a, at + b) for a, b in piece["offset_mapping"]]
        return ids, offsets


def _training_template(tokenizer: Any) -> str | None:
    """The template that TRL made of this one for training, if it did."""
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer)
    except (ValueError, TemplateError, TypeError):
        return None


def _shared(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """What two sequences begin with in common."""
    return [x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))]


def _words(error: Exception) -> str:
    return str(getattr(error, "message", None) or error).strip().rstrip(".")


def _dense(text: str) -> str:
    return "".join(text.split())
