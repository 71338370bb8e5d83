"""`dedup`: documents -> the documents without copies of them. A removed row names the one kept and how like it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from engine.errors import UserError
from engine.stage.preflight import Preflight
from engine.stage.stage import NotIdentity, Port, Stage, port


class Dedup(Stage):
    """Remove documents that are copies, or nearly copies, of another one; or parts of documents that stand elsewhere, too.

    Texts are compared in their normal form (see `engine.text`). `exact`: the same text, however its white space is set; by
    `level`, the same paragraph or line, which is cut out. `minhash`: also texts whose sets of
    word n-grams have a Jaccard similarity of at least `threshold`; candidates come from MinHash signatures, and each
    removal is verified on the sets themselves against the very document that is kept. Texts of at most `ngram` words
    are compared as their whole sequence of words, texts without a word as in `exact`. `substring`: cut out what has
    `passage` words in a row that stand in a document before, too. `semantic`: texts whose embeddings by a model have a
    cosine of at least `threshold`.
    """

    takes: ClassVar[dict[str, Port]] = {
        "documents": port("Document", many=True),
        "index": port("Document", many=True, optional=True),
        "model": port("Model", optional=True),
    }
    gives: ClassVar[str] = "Document"
    phase: ClassVar[str] = "curation"
    work: ClassVar[str] = "pipelines.dedup.work:deduplicate"
    narrows: ClassVar[bool] = True
    version: ClassVar[int] = 6

    method: Literal["exact", "minhash", "substring", "semantic"] = Field(
        "minhash",
        description="What counts as a duplicate: the same text, nearly the same words, a long passage in common, or the same meaning.",
    )
    level: Literal["document", "paragraph", "line"] = Field(
        "document", description="With `method: exact`: what is compared, and removed."
    )
    threshold: float = Field(0.8, gt=0, le=1, description="Jaccard similarity (or cosine) that makes a duplicate.")
    ngram: int = Field(5, ge=1, description="Words of a shingle.")
    recall: float = Field(0.99, gt=0, lt=1, description="Share of pairs over the threshold that should be found.")
    permutations: int = Field(128, ge=1, le=1024, description="Values of a signature, at most.")
    passage: int = Field(50, ge=2, description="With `method: substring`: words in a row that make a repeat.")
    min_words: int = Field(3, ge=1, description="Paragraphs and lines of fewer words are left alone.")
    keep: Literal["longest", "first", "best"] = Field(
        "longest",
        description="Which of several copies stays: the longest in bytes, the first, or the one with the highest "
        "`quality`; of equals the first.",
    )
    quality: str | None = Field(
        None, description="With `keep: best`: the column, or field of `metadata`, with a number; without one is worst."
    )
    prefer: list[str] = Field(
        default_factory=lambda: [],
        description="Patterns of `source` (`wiki/*`), the most trusted first: they come before `keep`.",
    )
    transitive: bool = Field(
        False, description="Remove all but one of documents that a chain of verified pairs connects."
    )
    save_index: bool = Field(False, description="Keep signatures, so that a later `dedup` can take this as `index`.")
    model: Annotated[str | None, NotIdentity] = Field(
        None, description="With `method: semantic`: a folder in the Hugging Face layout, or a hub name."
    )
    memory_gb: Annotated[float, NotIdentity] = Field(
        1.0, gt=0, description="Memory for what grows with the text; beyond it, work is cut up and waits on disk."
    )

    @model_validator(mode="after")
    def _fields_fit(self) -> Dedup:
        if self.level != "document" and self.method != "exact":
            raise ValueError(f"`level: {self.level}` needs `method: exact`, found {self.method}.")
        if (self.keep == "best") != (self.quality is not None):
            raise ValueError("`keep: best` and `quality` need each other: `quality` names the column to compare.")
        if self.transitive and self.method != "minhash":
            raise ValueError(f"`transitive` needs `method: minhash`, found {self.method}.")
        if self.save_index and self.method != "minhash":
            raise ValueError(f"`save_index` needs `method: minhash`, found {self.method}.")
        return self

    def check(self, known: Preflight) -> None:
        if self.method != "minhash" and known.inputs.get("index"):
            raise UserError(f"the input `index` is for `method: minhash`, found {self.method}.")
        if self.method == "semantic" and self.model is None and not known.inputs.get("model"):
            raise UserError("`method: semantic` needs a model for embeddings: the `model` input, or `model: FOLDER`.")
        if self.quality is not None:
            from pipelines.texts.columns import numbers

            for documents in known.inputs.get("documents", []):
                if documents.rows is not None:
                    numbers(documents.rows, self.quality, "quality")

    def sieve(self) -> str | None:
        return (
            "documents" if self.level == "document" and self.method != "substring" else None
        )  # else pieces are cut out

    def sources(self, base: str) -> dict[str, str]:
        if self.model is None:
            return {}
        from engine.store.digest import digest_file

        folder = Path(base) / self.model
        if not folder.is_dir():
            return {"model": f"hub:{self.model}"}
        return {f"model/{f.name}": digest_file(f) for f in sorted(folder.iterdir()) if f.is_file()}
