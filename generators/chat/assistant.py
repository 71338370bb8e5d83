"""Answers from documents: passages are looked up, a model is shown them with the question, and what it says is held against them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

from engine.errors import UserError
from engine.retrieval.retrieval_index import Hit, Method, RetrievalIndex
from engine.text.scripts import scripts
from generators.chat.citing import Citation, citations
from generators.chat.conversant import Conversant
from generators.grounded.refusal import declines
from generators.text.chat_template import Unusable
from generators.text.templates import template

FEW_TERMS = 3  # a question of fewer is looked up with the one before it
NO_WORD = "The documents don't hold it: no passage has a word of the question."
OTHER_SCRIPT = (
    "The documents don't hold it: the question is written in {asked}, and no passage is. Ask in the language of the documents, or "
    "make the index with an embedding model that knows both."
)
DECLINED = "The documents don't hold it, says the model, which read the passages that fit best."
UNSUPPORTED = "Nothing of this answer stands in the passages that fit best: take it for the model's own."


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        text: what the model said; empty where it was not asked.
        hits: the passages that were shown, [1] first.
        left_out: those that the model can't be shown, since they hold the marks of its chat template.
        unsupported: statements that stand in none of them.
        lacking: a sentence that says that, and why, the documents don't hold the answer; None if they do.
    """

    text: str
    hits: list[Hit]
    left_out: list[Hit] = field(default_factory=lambda: list[Hit]())
    citations: list[Citation] = field(default_factory=lambda: list[Citation]())
    unsupported: list[str] = field(default_factory=lambda: list[str]())
    lacking: str | None = None


@dataclass
class Assistant:
    """A model with documents to look things up in; without a model, the passages themselves.

    Attributes:
        k: passages looked up for a question.
        where: as for `RetrievalIndex.search`.
    """

    index: RetrievalIndex
    conversant: Conversant | None
    k: int = 4
    method: Method | None = None
    where: Mapping[str, str] | None = None

    def ask(
        self,
        question: str,
        temperature: float = 0.0,
        max_tokens: int = 256,
        show: Callable[[str], object] = lambda piece: None,
    ) -> Reply:
        """Answer in the light of what was said before.

        Args:
            show: gets the answer piece by piece, as it comes.

        Raises:
            Unusable: the model can't be shown the question. UserError: a server or an embedding model fails, or the model has no room.
        """
        hits = self._found(question)
        if not hits or not self._related(question, hits):
            return Reply("", hits, lacking=self._nothing(question))
        if self.conversant is None:
            return Reply("", hits)
        left_out = [hit for hit in hits if not self._showable(hit, max_tokens)]
        hits = [hit for hit in hits if hit not in left_out]
        used = template("grounded")

        def content(shown: list[Hit]) -> str:
            texts = [f"({hit.heading}) {hit.text}" if hit.heading else hit.text for hit in shown]
            return used.render({"question": question, "passages": texts})

        while len(hits) > 1 and not self.conversant.fits(content(hits), max_tokens):
            hits = hits[:-1]
        if hits and not self.conversant.fits(content(hits), max_tokens):
            raise UserError(
                f"{self.conversant.name} has no room for one passage and an answer of {max_tokens:,} tokens. Let it answer in fewer "
                "(--max-tokens), take a model with a longer context, or make an index of shorter passages (`words`)."
            )
        said = self.conversant.answer(question, temperature, max_tokens, show, shown=content(hits)).strip()
        if declines(said):
            return Reply(said, hits, left_out, lacking=DECLINED)
        found, unsupported = citations(said, hits, self.index, question)
        return Reply(said, hits, left_out, found, unsupported, None if found else UNSUPPORTED)

    def _showable(self, hit: Hit, max_tokens: int) -> bool:
        """Whether a model can be shown a passage: not one that holds the marks of its own chat template."""
        try:
            if self.conversant:
                self.conversant.fits(hit.text, max_tokens)
        except Unusable:
            return False
        return True

    def forget(self) -> None:
        """Begin a conversation anew."""
        if self.conversant:
            self.conversant.messages.clear()

    def _found(self, question: str) -> list[Hit]:
        """The passages that fit best. For a question that says little by itself ("And abroad?") those that fit it, and those that fit it
        together with the one before, in turn."""
        hits = self.index.search(question, self.k, self.method, self.where)
        asked = (
            [turn["content"] for turn in self.conversant.messages if turn["role"] == "user"] if self.conversant else []
        )
        if not asked or len(self.index.terms(question)) >= FEW_TERMS:
            return hits
        both = self.index.search(f"{asked[-1]} {question}", self.k, self.method, self.where)
        in_turn = [hit for pair in zip_longest(hits, both) for hit in pair if hit is not None]
        return list({hit.id: hit for hit in in_turn}.values())[: self.k]

    def _related(self, question: str, hits: list[Hit]) -> bool:
        """Whether the passages may be about the question at all: vectors find something for everything."""
        texts = [f"{hit.heading} {hit.text}" for hit in hits]
        return self.index.coverage(question, texts) > 0 or not self._foreign(question)

    def _foreign(self, question: str) -> bool:
        """Whether the question is in another script than the documents."""
        asked = scripts(question)
        return bool(asked) and not asked & self.index.scripts and not self.index.across_languages

    def _nothing(self, question: str) -> str:
        return (
            OTHER_SCRIPT.format(asked=", ".join(sorted(scripts(question))).title())
            if self._foreign(question)
            else NO_WORD
        )
