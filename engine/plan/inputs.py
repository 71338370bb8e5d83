"""Inputs that no stage made: a model by folder or hub name, a dataset from plain Parquet, JSONL, CSV or text files.

They are identified by content (a hub model by its name), so moving a file changes nothing. Datasets are copied into the
store with ids; models stay where they are.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine.errors import UserError, nearest
from engine.plan.identity import folder_of
from engine.store import schema
from engine.store.artifact import Artifact
from engine.store.digest import digest_file, digest_json
from engine.store.store import Store
from engine.store.writer import ArtifactWriter

if TYPE_CHECKING:
    import polars as pl

# Where a port takes several kinds, a column tells which one a file holds.
TELLING = (("messages", "Conversation"), ("text", "Document"), ("chosen", "Preference"), ("prompt", "Prompt"))
# Kinds whose rows stages group by `prompt_id`: a row without one gets its prompt's, so that answers to one prompt belong together.
GROUPED = ("Candidate", "Ranking")
NEEDED = {
    "Document": ("text",),
    "Conversation": ("messages",),
    "Candidate": ("prompt", "completion"),
    "Verdict": ("subject", "metric"),
}  # others need a `prompt`, where they have one
ROLES = (("prompt", "user"), ("completion", "assistant"), ("chosen", "assistant"), ("rejected", "assistant"))
READERS = (".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".txt", ".md")


@dataclass(frozen=True)
class External:
    """An input no stage of the recipe makes: its `kind` and `key`, its `folder` in the store once adopted, its place."""

    name: str
    kind: str
    key: str
    folder: str
    place: Path | None = None
    files: tuple[str, ...] = ()

    def adopt(self, store: Store) -> Artifact:
        """Bring it into the store (once) and return it as an artifact."""
        return self.keep(store, lambda: _table(self.kind, _read(self.files), str(self.place)))

    def keep(self, store: Store, rows: Callable[[], pa.Table]) -> Artifact:
        """Put it into the store, once; `rows` are those of a dataset."""
        if found := store.get(self.folder):
            return found
        facts: dict[str, Any] = {
            "format": 1,
            "key": self.key,
            "identity": {},
            "seed": None,
            "stage": {"kind": "external", "version": 1, "config": {"name": self.name}},
            "inputs": {},
            "packages": {},
            "schema": self.kind,
            "rejected": {},
            "failed": 0,
            "timings": {},
            "summary": {},
        }
        writer = ArtifactWriter(store, self.folder)
        if self.kind in schema.MODELS:
            where = {"hub": self.name.removeprefix("hub:")} if self.place is None else {"external": str(self.place)}
            facts |= {"kind": "model", "rows": 0, "files": {}, "digest": self.key, **where}
        else:
            table = rows()
            writer.put_part("00000", table, self.kind)
            facts |= {"kind": "dataset", "rows": len(table), "files": writer.contents().files, "digest": self.key}
        return writer.seal(facts)


def from_rows(rows: Sequence[Mapping[str, Any]], kind: str = "Document", *, store: str | None = None) -> Artifact:
    """Bring rows into the store as an artifact: the same rows are the same artifact. Stages take it by `store:ID`.

    Args:
        rows: columns as plain files have them: `text`; `prompt` and `reference`; `messages`; `prompt`, `chosen` and `rejected`.
            Texts stand for messages. `id` and `parents` are added where they are missing, other columns go into `metadata`.
        kind: of dataset: Document, Prompt, Conversation, Candidate, Ranking, Preference, Verdict.
        store: URL of the store; else the default one.

    Raises:
        UserError: there is no such kind, or a row lacks what its kind needs.
    """
    if kind not in schema.DATASETS or kind == "TokenBlock":
        known = [name for name in schema.DATASETS if name != "TokenBlock"]
        raise UserError(f"rows can't be a `{kind}`.{nearest(kind, known)} Kinds: {', '.join(known)}.")
    given = [dict(row) for row in rows]
    if not given:
        raise UserError("there are no rows.")
    key = digest_json(["rows", kind, json.loads(json.dumps(given, default=str))])
    external = External("rows", kind, key, folder_of("external", key))
    return external.keep(Store(store), lambda: _table(kind, [("rows", given)], "rows"))


def resolve(name: str, base: Path, accepts: tuple[str, ...], store: Store) -> External:
    """Look at an external input and tell its kind and key, without writing anything.

    Args:
        accepts: the kinds the port takes; decides how plain files are read.

    Raises:
        UserError: nothing is there, or it is nothing the port takes.
    """
    if name.startswith("store:"):
        artifact = store.find(name.removeprefix("store:"))
        return External(name, artifact.kind, artifact.key, artifact.id)
    if name.startswith("hub:"):
        kind = next((k for k in accepts if k in schema.MODELS), "Model")
        key = digest_json(["hub", name])
        return External(name, kind, key, folder_of("external", key))
    path = Path(name).expanduser()
    path = path if path.is_absolute() else base / path
    if not path.exists():
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no file or folder {path}.{nearest(path.name, there)}")
    path = path.resolve()
    if path.is_dir() and ((path / "config.json").exists() or (path / "adapter_config.json").exists()):
        key = digest_json(_digests(path))
        return External(name, _model_kind(path), key, folder_of("external", key), path)
    datasets = [kind for kind in accepts if kind in schema.DATASETS]
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in READERS)
    if not files or not datasets or any(p.suffix not in READERS for p in files):
        raise UserError(
            f"{path} is neither a model folder (config.json) nor data that can be read as {' or '.join(accepts)} "
            f"({', '.join(READERS)})."
        )
    kind = datasets[0]
    if len(datasets) > 1:
        there = _frame(files[0]).columns
        kind = next((k for column, k in TELLING if column in there and k in datasets), kind)
    digests = [[p.relative_to(path if path.is_dir() else path.parent).as_posix(), digest_file(p)] for p in files]
    derived = ["prompt_id"] if kind in GROUPED and any(map(_lacks_prompt_id, files)) else []
    key = digest_json([kind, digests, *derived])
    return External(name, kind, key, folder_of("external", key), path, tuple(str(p) for p in files))


def _digests(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): digest_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def _model_kind(folder: Path) -> str:
    if (folder / "adapter_config.json").exists():
        return "Adapter"
    architectures = json.loads((folder / "config.json").read_text()).get("architectures") or [""]
    return "RewardModel" if architectures[0].endswith("ForSequenceClassification") else "Model"


def _frame(file: Path) -> pl.DataFrame:
    import polars as pl

    try:
        match file.suffix:
            case ".parquet":
                return pl.read_parquet(file)
            case ".csv":
                return pl.read_csv(file)
            case ".json":
                return pl.read_json(file)
            case ".txt" | ".md":
                return pl.DataFrame({"text": [file.read_text(encoding="utf-8")]})
            case _:
                return pl.read_ndjson(file)
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file} can't be read as {file.suffix.removeprefix('.')}: {error}.") from error


def _lacks_prompt_id(file: Path) -> bool:
    frame = _frame(file)
    return "prompt_id" not in frame.columns or frame["prompt_id"].null_count() > 0


def _read(files: Iterable[str]) -> Iterator[tuple[str, Iterable[dict[str, Any]]]]:
    for file in files:
        yield file, _frame(Path(file)).iter_rows(named=True)


def _table(kind: str, sources: Iterable[tuple[str, Iterable[dict[str, Any]]]], place: str) -> pa.Table:
    """Rows as people have them, in the schema of their kind.

    Args:
        sources: the name of each file and its rows.
        place: what to call all of them in an error message.
    """
    rows = list[dict[str, Any]]()
    names = schema.DATASETS[kind].names
    answers: Counter[str] = Counter()
    for file, theirs in sources:
        for index, given in enumerate(theirs):
            row: dict[str, Any] = {name: given[name] for name in names if name in given}
            for column, role in ROLES:
                if isinstance(row.get(column), str):
                    row[column] = [{"role": role, "content": row[column]}]
            for needed in NEEDED.get(kind, ("prompt",)):
                if needed in names and row.get(needed) is None:
                    raise UserError(
                        f"{file}: row {index} has no `{needed}`; a {kind} needs one. Columns: {', '.join(given)}."
                    )
            if kind in GROUPED and row.get("prompt_id") is None:
                _group(row, kind, answers, f"{file}: row {index}")
            row.setdefault("id", schema.row_id(kind, Path(file).name, index, json.dumps(given, default=str)))
            row.setdefault("parents", [])
            if "source" in names:
                row.setdefault("source", Path(file).name)
                row.setdefault("offset", index)
            if "metadata" in names and not isinstance(row.get("metadata"), str):
                row["metadata"] = json.dumps({k: v for k, v in given.items() if k not in names}, default=str)
            rows.append(row)
    ids = [row["id"] for row in rows]
    if len(set(ids)) < len(ids):
        double = next(i for i in ids if ids.count(i) > 1)
        raise UserError(f"{place}: the id `{double}` stands on several rows; ids have to be unique.")
    arrow = {n: pa.array([row.get(n) for row in rows], schema.DATASETS[kind].field(n).type) for n in names}
    return pa.table(arrow, schema=schema.DATASETS[kind])


def _group(row: dict[str, Any], kind: str, answers: Counter[str], where: str) -> None:
    """Give a row the id of its prompt, by what the prompt says, and with it what tells the answers to it apart.

    Args:
        answers: how many answers to each prompt came before; counted on here.

    Raises:
        UserError: the prompt is no conversation.
    """
    try:
        prompt_id = schema.row_id("Prompt", schema.messages_digest(row["prompt"]))
    except (TypeError, KeyError):
        raise UserError(
            f"{where} has neither a `prompt_id` nor a `prompt` to tell it by: expected a text, or a list of messages with "
            f"`role` and `content`, found {str(row['prompt'])[:80]}."
        ) from None
    row["prompt_id"] = prompt_id
    if kind == "Candidate" and row.get("sample") is None:
        row["sample"] = answers[prompt_id]
    if kind == "Ranking" and row.get("candidates") is None and row.get("completions") is not None:
        row["candidates"] = [schema.row_id("Candidate", prompt_id, text) for text in row["completions"]]
    answers[prompt_id] += 1
