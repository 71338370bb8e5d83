"""What a model learns of answers: their token ids as its chat template renders them, and which of them it says itself.

Where the template's own `{% generation %}` tags mark that, they are followed. Otherwise the conversation is rendered up to each
answer, with the header that a prompt ends with, and through it: what came in between is what the model says itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import nodes

from engine.errors import UserError
from generators.text import thoughts
from generators.text.chat_template import (
    ANSWER,
    DAY,
    MARK,
    REFUSALS,
    ChatTemplate,
    Generation,
    Turn,
    Unusable,
    dense,
    refused,
    shared,
    syntax_tree,
)
from generators.text.thoughts import Reasoning
from generators.text.tools import missing


def marks_answers(template: str) -> bool:
    """Whether a `{% generation %}` tag marks what the assistant says.

    Raises:
        UserError: the template is no Jinja.
    """
    extensions = syntax_tree(template).find_all(nodes.ExtensionAttribute)
    return any(tag.identifier == Generation.identifier for tag in extensions)


def learning(tokenizer: Any) -> LearningTemplate:
    """The template that shows what is learnt: its own `{% generation %}` tags do, else the variant that TRL made of it for
    training (it keeps every turn as it was), else prefixes of a conversation.

    Raises:
        UserError: a model can't learn from it what to answer, or where to stop.
    """
    own = LearningTemplate(tokenizer)
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
    shown = LearningTemplate(tokenizer, variant) if variant else own
    if shown.fault:
        raise UserError(f"the model's chat template {shown.fault}.")
    if not shown.closing:
        raise UserError(
            "the model's chat template writes no token of the tokenizer after what the assistant says: the model would "
            "never learn to stop. Let chat_template.jinja end a turn with one, such as `eos_token`."
        )
    return shown


class LearningTemplate(ChatTemplate):
    """A chat template that shows what a model learns of a conversation.

    Attributes:
        marked: its own tags tell what is learnt. Otherwise prefixes of a conversation do.

    Args:
        template: rendered instead of the tokenizer's own.

    Raises:
        UserError: the template is no Jinja, or there are several and none is the default.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        super().__init__(tokenizer, template)
        self.marked = template is None and self.template is not None and marks_answers(self.template)

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
            raise refused(error) from error
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
        rendered, whole = [turn.message for turn in turns], dense(text)
        for i, turn in enumerate(turns):
            if dense(turn.thought) not in whole:
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
            closing = "".join(tokens if last else shared(tokens, self._tokens(text[len(said) :])) or tokens[:1])
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
            if dense(part) not in dense(own):
                raise Unusable("rewritten_turn", f"the chat template leaves out {what} of message {i}")
        return start, len(closed)

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
