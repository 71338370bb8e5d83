"""Inputs that no stage made: a model by folder or hub name, a dataset from files in any format and shape that people use.

They are identified by content (a hub model by its name), so moving a file changes nothing. Datasets are read into the store as
rows of a kind (`engine.reader`); models stay where they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from engine.errors import Damaged, UserError, nearest
from engine.plan.identity import folder_of
from engine.plan.importers import bring_in, importer_of
from engine.plan.model_folder import check_model_folder, json_object
from engine.store import schema
from engine.store.artifact import Artifact
from engine.store.digest import digest_file, digest_folder, digest_json
from engine.store.store import Store
from engine.store.writer import ArtifactWriter

if TYPE_CHECKING:
    from engine.reader.sources import SourceFile
    from engine.reader.typed_rows import Reading

Say = Callable[[str], None]
ROW_KINDS = tuple(kind for kind in schema.DATASETS if kind not in ("TokenBlock", "Passage"))  # made by stages alone
OPTIONS = ("columns", "format", "encoding", "split", "as", "max_bytes", "max_file_bytes")
BOUNDS = ("max_bytes", "max_file_bytes")
SPLITS = ("train", "validation", "test")


def silent(text: str) -> None:
    """Says nothing."""


@dataclass(frozen=True)
class PlainInput:
    """An input as a recipe writes it where a path alone does not say enough:

        from: {pairs: {path: ./pairs.csv, columns: {prompt: question, chosen: "{{ best.text }}"}, split: train}}

    Attributes:
        path: a file, a folder, a glob or `hub:NAME`.
        columns: our names for its columns, as `engine.reader.mapping` has them.
        format, encoding, split, bounds (`max_bytes`, `max_file_bytes`): as `engine.reader.typed_rows.Reading` has them.
        kind: what its rows are (`as`); else told by what the stage takes.
    """

    path: str
    columns: Mapping[str, str | None] = field(default_factory=lambda: {})
    format: str = "auto"
    encoding: str = "utf-8"
    split: str | None = None
    kind: str | None = None
    bounds: Mapping[str, int] = field(default_factory=lambda: {})

    def __str__(self) -> str:
        return self.path


def parse_input(given: Mapping[str, Any]) -> PlainInput:
    """A mapping with `path` as an input.

    Raises:
        UserError: a key or a value that it can't have.
    """
    for key in given:
        if key != "path" and key not in OPTIONS:
            raise UserError(f"an input has no `{key}`.{nearest(key, OPTIONS)} It has `path` and {', '.join(OPTIONS)}.")
    for key, value in given.items():
        if key in BOUNDS:
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**63:
                raise UserError(f"`{key}` of an input should be a number of bytes, found {value!r}.")
        elif key != "columns" and not isinstance(value, str):
            raise UserError(f"`{key}` of an input should be a text, found {value!r}.")
    columns = given.get("columns", {})
    if not isinstance(columns, dict) or not all(
        isinstance(k, str) and (v is None or isinstance(v, str)) for k, v in cast(dict[Any, Any], columns).items()
    ):
        raise UserError(f"`columns` maps our names to columns, templates or null, found {columns!r}.")
    split, kind = given.get("split"), given.get("as")
    if split is not None and split not in SPLITS:
        raise UserError(f"`split` is {', '.join(SPLITS)}, found `{split}`.{nearest(split, SPLITS)}")
    if kind is not None and kind not in ROW_KINDS:
        raise UserError(
            f"`as` is a kind of rows, found `{kind}`.{nearest(kind, ROW_KINDS)} Kinds: {', '.join(ROW_KINDS)}."
        )
    from engine.reader.encodings import codec
    from engine.reader.sources import FORMATS

    formats = ("auto", *sorted(set(FORMATS.values())))
    if (form := given.get("format", "auto")) not in formats:
        raise UserError(f"`format` is {', '.join(formats)}, found `{form}`.{nearest(form, formats)}")
    try:
        codec(given.get("encoding", "utf-8"))
    except ValueError as error:
        raise UserError(f"`encoding` of an input: {error}.") from None
    plain = {key: given[key] for key in ("format", "encoding") if key in given}
    bounds = {key: given[key] for key in BOUNDS if key in given}
    return PlainInput(
        given["path"], cast(dict[str, str | None], columns), split=split, kind=kind, bounds=bounds, **plain
    )


@dataclass(frozen=True)
class External:
    """An input no stage of the recipe makes: its `kind` and `key`, its `folder` in the store once adopted.

    Attributes:
        place: where a model's files are, or the one file it is imported from.
        files: of a dataset, with how they are `read`.
        digests: of the files, as the key was made of them.
        importer: what makes a model of that file (`engine.plan.importers`).
        origin: how the recipe wrote it, and the folder that this is relative to, so that it can be read again.
    """

    name: str
    kind: str
    key: str
    folder: str
    place: Path | None = None
    files: tuple[SourceFile, ...] = ()
    reading: Reading | None = None
    digests: tuple[str, ...] = ()
    importer: str | None = None
    origin: Mapping[str, Any] = field(default_factory=lambda: {})

    def there(self, store: Store) -> tuple[Artifact | None, str | None]:
        """Its artifact if it is in the store, whole; else what is wrong with what is there, if anything is.

        Raises:
            Damaged: something is, and it can't be read anew from where it came.
        """
        found = store.get(self.folder)
        lack = found.incomplete() if found else store.damage.get(self.folder)
        if lack and self.name.startswith("store:"):
            raise Damaged(f"{self.folder} is damaged: {lack}. `flywheel repair {self.folder}` makes it anew.")
        return (None, lack) if lack else (found, None)

    def adopt(self, store: Store, say: Say = silent) -> Artifact:
        """Bring it into the store (once) and return it as an artifact.

        Args:
            say: is told what was read, where something was.

        Raises:
            UserError: none of its rows can be understood.
        """
        if (found := store.get(self.folder)) and not self._moved(found):
            return found
        writer = ArtifactWriter(store, self.folder)
        if self.folder in store.damage:
            writer.discard()
        if self.importer:
            return self._import(writer, self.importer, say)
        if self.reading is None:
            where = {"hub": self.name.removeprefix("hub:")} if self.place is None else {"external": str(self.place)}
            if self.place is not None and digest_json(digest_folder(self.place)) != self.key:
                raise _changed(str(self.place))
            return self._seal(writer, {"kind": "model", "rows": 0, "files": {}, **where})
        from engine.reader.typed_rows import Findings, tables

        findings = Findings()
        return self._fill(writer, tables(list(self.files), self.reading, findings), findings, say)

    def _moved(self, found: Artifact) -> bool:
        """Whether a model outside the store is at another place now, and gone from where it was."""
        return "external" in found.manifest and self.place is not None and not found.place.is_dir()

    def _import(self, writer: ArtifactWriter, importer: str, say: Say) -> Artifact:
        """Make a model of a file in another program's format, in the layout that all models here have."""
        assert self.place is not None
        scratch = writer.store.scratch(self.folder)
        with TemporaryDirectory(dir=scratch) as temporary:
            facts = bring_in(importer, self.place, Path(temporary))
            if digest_json(["import", importer, digest_file(self.place)]) != self.key:
                raise _changed(str(self.place))
            for file in sorted(path for path in Path(temporary).rglob("*") if path.is_file()):
                writer.put_file(file, file.relative_to(temporary).as_posix())
        told = ", ".join(f"{key} {value}" for key, value in facts.items() if key != "kind" and value)
        say(f"{self.name}: a model made from {self.place.name}: {told}")
        contents = writer.contents()
        made = {"kind": "model", "rows": 0, "files": contents.files, "digest": contents.digest, "schema": facts["kind"]}
        shutil.rmtree(scratch, ignore_errors=True)
        return self._seal(writer, {**made, "summary": {k: v for k, v in facts.items() if k != "kind"}})

    def keep(self, store: Store, rows: Sequence[Mapping[str, Any]], reading: Reading) -> Artifact:
        """Put rows that a program brings into the store, once."""
        if found := store.get(self.folder):
            return found
        from engine.reader.typed_rows import Findings, table

        findings = Findings()
        part = table(rows, self.name, reading, findings)
        if findings.reasons:
            raise UserError(f"{findings.first}.")
        return self._fill(ArtifactWriter(store, self.folder), [part], findings, silent)

    def _fill(self, writer: ArtifactWriter, parts: Any, findings: Any, say: Say) -> Artifact:
        from engine.reader.typed_rows import level_parts

        names: list[str] = []
        for index, (good, bad) in enumerate(parts):
            if len(bad):
                writer.put_rejected(f"{index:05d}", bad)
            if len(good):
                writer.put_part(f"{index:05d}", good, self.kind)
                names.append(f"{index:05d}")
        if not names:
            raise UserError(f"no row of {self.name} can be read as {self.kind}: {findings.first or 'there are none'}.")
        changed = [file.name for file, was in zip(self.files, self.digests, strict=True) if file.digest() != was]
        if changed:
            writer.discard()
            raise _changed(", ".join(changed[:3]))
        for name in writer.parts() - set(names):  # of an earlier try that was killed, on other bytes
            writer.drop_part(name)
        level_parts(names, writer.read_part, lambda name, part: writer.put_part(name, part, self.kind), self.kind)
        rest = f" (all of them: flywheel show {self.folder} --rejected)" if findings.reasons else ""
        say(f"{self.name}: {findings}{rest}")
        contents = writer.contents()
        facts = {"kind": "dataset", "rows": contents.rows, "files": contents.files}
        return self._seal(writer, {**facts, "rejected": dict(contents.reasons), "failed": contents.failed})

    def _seal(self, writer: ArtifactWriter, facts: dict[str, Any]) -> Artifact:
        common: dict[str, Any] = {
            "key": self.key,
            "digest": self.key,
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
            **({"origin": dict(self.origin)} if self.origin else {}),
        }
        return writer.seal(common | facts)


def _changed(names: str) -> UserError:
    return UserError(
        f"{names} changed after this run was planned, or while it was read. Nothing was kept of it; run again to read what is there "
        "now."
    )


def from_rows(rows: Sequence[Mapping[str, Any]], kind: str = "Document", *, store: str | None = None) -> Artifact:
    """Bring rows into the store as an artifact: the same rows are the same artifact. Stages take it by `store:ID`.

    Args:
        rows: columns in any shape that files may have (`engine.reader.shapes`): `text`; `prompt` and `reference`; `messages`;
            `prompt`, `chosen` and `rejected`. Texts stand for messages. `id` and `parents` are added where they are missing, other
            columns go into `metadata`.
        kind: of dataset: Document, Prompt, Conversation, Candidate, Ranking, Preference, Verdict.
        store: URL of the store; else the default one.

    Raises:
        UserError: there is no such kind, or a row lacks what its kind needs.
    """
    from engine.reader.cells import plain
    from engine.reader.typed_rows import VERSION, Reading

    if kind not in ROW_KINDS:
        raise UserError(f"rows can't be a `{kind}`.{nearest(kind, ROW_KINDS)} Kinds: {', '.join(ROW_KINDS)}.")
    given = [dict(row) for row in rows]
    if not given:
        raise UserError("there are no rows.")
    key = digest_json(["rows", kind, VERSION, plain(given)])
    return External("rows", kind, key, folder_of("external", key)).keep(Store(store), given, Reading(kind))


def resolve(given: str | PlainInput, base: Path, accepts: tuple[str, ...], store: Store, say: Say = silent) -> External:
    """Look at an external input and tell its kind and key, without writing anything.

    Args:
        accepts: the kinds the port takes; with the first rows they decide how files are read.
        say: is told what of a folder is left out.

    Raises:
        UserError: nothing is there, or it is nothing the port takes.
    """
    wanted = PlainInput(given) if isinstance(given, str) else given
    return replace(_look(wanted, base, accepts, store, say), origin={**asdict(wanted), "base": str(base.resolve())})


def _look(wanted: PlainInput, base: Path, accepts: tuple[str, ...], store: Store, say: Say) -> External:
    name = wanted.path
    if name.startswith("store:"):
        artifact = store.find(name.removeprefix("store:"))
        return External(name, artifact.kind, artifact.key, artifact.id)
    datasets = tuple(kind for kind in accepts if kind in ROW_KINDS)
    models = tuple(kind for kind in accepts if kind in schema.MODELS)
    if name.startswith("hub:") and models and "?" not in name and not wanted.columns:
        key = digest_json(["hub", name])
        return External(name, models[0], key, folder_of("external", key))
    if "://" in name or name.startswith("hub:"):
        if not datasets:
            raise UserError(
                f"`{name}` is no model: the stage takes {' or '.join(accepts)}, a folder with config.json or `hub:NAME`."
            )
        return _dataset(wanted, base, datasets, say)
    path = Path(name).expanduser()
    path = path if path.is_absolute() else base / path
    if path.is_dir() and ((path / "config.json").exists() or (path / "adapter_config.json").exists()):
        path = path.resolve()
        check_model_folder(path)
        key = digest_json(digest_folder(path))
        return External(name, _model_kind(path), key, folder_of("external", key), path)
    if models and path.is_file() and (importer := importer_of(path)):
        key = digest_json(["import", importer, digest_file(path)])
        return External(name, "Model", key, folder_of("external", key), path.resolve(), importer=importer)
    if not path.exists() and not any(mark in name for mark in "*?["):
        there = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no file or folder {path}.{nearest(path.name, there)}")
    if not datasets:
        raise UserError(
            f"{path} is no model folder (config.json), and the stage takes {' or '.join(accepts)}."
            if path.is_dir()
            else f"{path} is no model: the stage takes {' or '.join(accepts)}, a folder with config.json or `hub:NAME`."
        )
    return _dataset(wanted, base, datasets, say)


def _dataset(wanted: PlainInput, base: Path, datasets: tuple[str, ...], say: Say) -> External:
    from engine.reader.sources import find
    from engine.reader.typed_rows import VERSION, Reading, first_kind, form_of

    files = find([wanted.path], base, say=say)
    if wanted.kind and wanted.kind not in datasets:
        raise UserError(f"{wanted.path} is read `as: {wanted.kind}`, and the stage takes {' or '.join(datasets)}.")
    reading = Reading("", wanted.columns, wanted.format, wanted.encoding, wanted.split, **wanted.bounds)
    for file in files:
        form_of(file, wanted.format)
    kind = wanted.kind or (datasets[0] if len(datasets) == 1 else first_kind(files, reading, datasets) or datasets[0])
    reading = replace(reading, kind=kind)
    bounds = [sorted(wanted.bounds.items())] if wanted.bounds else []
    options = [sorted(wanted.columns.items()), wanted.format, wanted.encoding, wanted.split, *bounds]
    default = [[], "auto", "utf-8", None]
    digests = tuple(file.digest() for file in files)
    named = [[file.name, digest] for file, digest in zip(files, digests, strict=True)]
    key = digest_json(["rows", kind, VERSION, named, *([options] if options != default else [])])
    folder = folder_of("external", key)
    return External(wanted.path, kind, key, folder, files=tuple(files), reading=reading, digests=digests)


def _model_kind(folder: Path) -> str:
    if (folder / "adapter_config.json").exists():
        return "Adapter"
    architectures = json_object(folder / "config.json").get("architectures") or [""]
    return "RewardModel" if str(architectures[0]).endswith("ForSequenceClassification") else "Model"
