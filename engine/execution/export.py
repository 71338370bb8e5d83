"""Artifacts out of the store, with a card, to a folder or a hub: as they are, or a model in the format of another program.

A room that writes such a format adds an entry point under `flywheel.exporters`. Its name is the format's; it is called as
`write(folder, file, name, dtype)` on the model's folder, and returns facts.
"""

from __future__ import annotations

import json
import shutil
from importlib.metadata import entry_points
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.errors import UserError, nearest
from engine.execution.hub_push import HUB, open_repository
from engine.redaction import exposed
from engine.stage.job import SUMMARY
from engine.store.artifact import Artifact
from engine.store.schema import MODELS
from engine.store.store import Store
from engine.store.writer import CARD
from engine.view.card import card

ADAPTER = "adapter_config.json"
TEMPLATES = "additional_chat_templates/"  # the only folder in the Hugging Face layout of a model


def export_artifact(
    artifact: Artifact, to: str, format: str | None = None, dtype: str = "auto", public: bool = False
) -> str:
    """Copy an artifact to a folder or URL, or into a repository of a hub (`hub://OWNER/NAME`), with a README.md card. Of a model that is the
    model alone: rows it was trained on, or not, stay behind. Rows with a `split` go into files of their split, as
    `datasets.load_dataset` reads them.

    Args:
        format: of another program (`gguf`), for a model.
        dtype: of the weights in that format.
        public: all may read the repository; else it is private.

    Returns:
        where it went.

    Raises:
        UserError: there is nothing to copy, the format has no place for it, or the hub refuses it. Damaged: a file is not what was
            recorded of it.
    """
    if told := exposed(to):
        raise UserError(
            f"`--to` holds {told}. Give it by the environment (AWS_ACCESS_KEY_ID, ...), or by fsspec's own files."
        )
    if public and not to.startswith(HUB):
        raise UserError("`--public` goes with a repository of a hub: `--to hub://OWNER/NAME`.")
    if to.startswith(HUB):
        return _push(artifact, to, format, dtype, public)
    fs, root = fsspec.core.url_to_fs(to)  # pyright: ignore
    root = str(root).rstrip("/")
    store = Store(artifact.store.url)
    if artifact.manifest.get("hub"):
        raise UserError(f"{artifact.name} is a model on a hub: there are no files of it in this store.")
    artifact.check_complete()
    fs.makedirs(root, exist_ok=True)
    if format is not None:
        _write_as(format, dtype, artifact, store.title(artifact), fs, root)
    elif artifact.kind in MODELS:
        for name in _model_files(artifact):
            with (artifact.path / name).open("rb") as source:
                _put(source, fs, f"{root}/{name}")
        _name_base(artifact, store, fs, root)
    else:
        _copy_rows(artifact, fs, root)
    told = card(store, artifact.id, artifact.manifest, format)
    fs.pipe_file(f"{root}/{CARD}", told.encode())
    return to


def _push(artifact: Artifact, to: str, format: str | None, dtype: str, public: bool) -> str:
    repository = open_repository(to, "model" if artifact.kind in MODELS else "dataset", public)
    with TemporaryDirectory() as folder:
        export_artifact(artifact, folder, format, dtype)
        title = Store(artifact.store.url).title(artifact)
        return repository.push(Path(folder), f"{title}, {artifact.manifest['digest'][:12]}, by Flywheel")


def _put(source: Any, fs: Any, target: str) -> None:
    fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
    with fs.open(target, "wb") as opened:
        shutil.copyfileobj(source, opened, 1 << 22)


def _model_files(artifact: Artifact) -> list[str]:
    """What `from_pretrained` reads, and nothing that lies beside it."""
    names = artifact.files() or [
        file.relative_to(artifact.path).as_posix() for file in sorted(artifact.path.rglob("*")) if file.is_file()
    ]
    return [n for n in names if n not in (SUMMARY, CARD) and ("/" not in n or n.startswith(TEMPLATES))]


def _name_base(artifact: Artifact, store: Store, fs: Any, root: str) -> None:
    """Have an adapter on a model of the hub name that by its repository: only this store knows the artifact's id."""
    if artifact.kind != "Adapter" or not (artifact.path / ADAPTER).exists():
        return
    config: dict[str, Any] = json.loads((artifact.path / ADAPTER).read_text())
    base = store.get(str(config.get("base_model_name_or_path")))
    if base is not None and "hub" in base.manifest:
        fs.pipe_file(
            f"{root}/{ADAPTER}", json.dumps({**config, "base_model_name_or_path": base.name}, indent=2).encode()
        )


def _write_as(format: str, dtype: str, artifact: Artifact, title: str, fs: Any, root: str) -> None:
    table = {entry.name: entry for entry in entry_points(group="flywheel.exporters")}
    if format not in table:
        raise UserError(f"there is no format `{format}`.{nearest(format, table)} Formats: {', '.join(sorted(table))}.")
    if artifact.kind not in MODELS:
        raise UserError(f"{title} is a dataset ({artifact.kind}); `--format {format}` writes models.")
    name = title.rpartition("/")[2]
    with TemporaryDirectory(dir=root if Path(root).is_dir() else None) as temporary:
        made = Path(temporary) / f"{name}.{format}"
        table[format].load()(artifact.path, made, title, dtype)
        if Path(root).is_dir():
            made.replace(Path(root) / made.name)
        else:
            fs.put_file(str(made), f"{root}/{made.name}")


def _copy_rows(artifact: Artifact, fs: Any, root: str) -> None:
    splits = artifact.splits()
    for name in artifact.files():
        if not (splits and name.startswith("data/")):
            with artifact.opened(name) as source:
                _put(source, fs, f"{root}/{name}")
    if not splits:
        return
    fs.makedirs(f"{root}/data", exist_ok=True)
    for split in splits:
        holding = [name for name in artifact.parts() if splits[split].get(name)]
        for index, name in enumerate(holding):
            table: pa.Table = artifact.read_table(name)
            rows = table.filter(pc.field("split") == split)
            with fs.open(f"{root}/data/{split}-{index:05d}-of-{len(holding):05d}.parquet", "wb") as opened:
                pq.write_table(rows, opened, write_page_checksum=True)
