"""`index`: documents -> passages that can be searched, by full text and, with an embedding model, by meaning.

    flywheel stage index --from handbook/ --set embedding=static

Passages follow the documents' structure; each knows its document, headings and offsets. The artifact's rows are the passages, its files the
index (`engine.retrieval`): one a segment, with the same bytes for the same documents.

With an earlier index as `index` only what is new is cut, counted and embedded, and what is gone is taken out. What is found is the same as
with an index built at once, to the last digit that counts; the order of rows in the artifact is not.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, field_validator

from engine.errors import UserError, nearest
from engine.stage.preflight import Preflight
from engine.stage.stage import NotIdentity, Port, Stage, port


class Index(Stage):
    """Cut documents into passages along their structure, and make them searchable."""

    takes: ClassVar[dict[str, Port]] = {
        "documents": port("Document", many=True),
        "index": port("Passage", optional=True),
    }
    gives: ClassVar[str] = "Passage"
    phase: ClassVar[str] = "curation"
    work: ClassVar[str] = "pipelines.index.work:index"

    words: int = Field(
        120, ge=1, description="Words of a passage at most, by white space; of a script without spaces, letters."
    )
    language: str = Field(
        "english", description="Whose endings don't count in full text: one of Snowball's languages, or `none`."
    )
    embedding: Annotated[str | None, NotIdentity] = Field(
        None,
        description="A model for vectors: `static` (a table, in the extra `embeddings`), a folder in the Hugging Face layout, `hub:NAME`, "
        "or a server as `URL#MODEL`. Without one the index is of full text alone.",
    )

    @field_validator("language")
    @classmethod
    def _known_language(cls, name: str) -> str:
        from engine.retrieval.terms import languages

        if name not in languages():
            raise ValueError(f"`{name}` is none of Snowball's languages.{nearest(name, languages())}")
        return name

    def sources(self, base: str) -> dict[str, str]:
        if self.embedding is None:
            return {}
        from engine.retrieval.embedding import digest_of_model

        return {"embedding": digest_of_model(self.embedding, base)}

    def check(self, known: Preflight) -> None:
        if self.embedding and "://" in self.embedding and "#" not in self.embedding:
            raise UserError(f"`embedding: {self.embedding}` names no model; expected `URL#MODEL`.")

    def asks(self) -> bool:
        return self.embedding is not None and "://" in self.embedding
