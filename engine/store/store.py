"""The store: a folder or bucket of artifacts, each named by what made it. None is changed; one may be replaced, whole
(`engine.execution.again`).

artifacts/<stage kind>-<key>/   manifest.json (written last: no manifest, no artifact), data/*.parquet, rejected/*.parquet,
                                model files, logs/ (timings, metrics: not part of the digest)
runs/<recipe>.json              what each stage of the last run was, so that names resolve and `plan --why` can compare; what a name stood for
                                before is <recipe>@1.json, ... (`engine.store.run_records`)
leases/<stage kind>-<key>.json  who makes an artifact right now, in a store that can't lock (`engine.store.lease`)
work/<stage kind>-<key>/        of stages under way: checkpoints, output not yet complete (on local disk), and what one phase leaves for
                                the next where the store is elsewhere (`engine.stage.exchange`)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from engine.errors import Damaged, UserError, nearest
from engine.store import cache, run_records
from engine.store.artifact import KEY_LENGTH, MANIFEST, Artifact, read_artifact
from engine.store.files import StoreFiles
from engine.store.known_digests import digest_of
from engine.store.leased_writes import put_file_leased, put_leased

FOLDER = re.compile(rf"[^.].*-[0-9a-f]{{{KEY_LENGTH}}}")


def open(name: str, store: str | None = None) -> Artifact:
    """Open an artifact by `RUN/STAGE`, stage name, key prefix or folder name.

    Args:
        store: URL of the store; else the default one.

    Raises:
        UserError: no such artifact, or the name fits several.
    """
    return Store(store).find(name)


class Store(StoreFiles):
    """Artifacts and runs, by name. `Store(None)` is the default store."""

    def get(self, artifact: str) -> Artifact | None:
        """The finished artifact in this folder, or None: no manifest, no artifact. A damaged manifest is none; `damage` says why."""
        self.damage.pop(artifact, None)
        try:
            return read_artifact(self, artifact)
        except Damaged as error:
            self.damage[artifact] = str(error)
            return None

    def folders(self) -> list[str]:
        """Names of all artifacts, those under way too. What else lies there is none of ours."""
        return [name for name in self.list("artifacts") if FOLDER.fullmatch(name)]

    def begun(self, artifact: str) -> bool:
        """Whether anything of this artifact is there."""
        return self.exists("artifacts", artifact)

    def artifacts(self) -> Iterator[Artifact]:
        for name in self.folders():
            if artifact := self.get(name):
                yield artifact

    def run(self, name: str) -> dict[str, Any] | None:
        """The record of a run by its name, or by a tag: `{"stages": {name: {"artifact": ..., ...}}}`; None if there is none that can be read."""
        record = run_records.read(self, name)
        if record is None and f"runs/{name}.json" not in self.damage and (known := run_records.tagged(self, name)):
            return run_records.read(self, known)
        return record

    def update_run(self, name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Change the record of a recipe's last run, without loss where others do so, too (`engine.store.run_records.update`)."""
        run_records.update(self, name, change)

    def runs(self) -> list[str]:
        """Names of what has run here; not of what they stood for earlier (`run_records.states`)."""
        return [name for name in run_records.names(self) if not run_records.is_state(name)]

    def put(self, data: bytes, *parts: str, sha256: str | None = None) -> str:
        """Write one file, whole or not at all, to last (`StoreFiles.put`). Returns its SHA-256.

        Raises:
            Superseded: of an artifact whose lease was lost.
        """
        if self.lease and not self.local and parts[:2] == ("artifacts", self.lease.artifact):
            sha256 = sha256 or hashlib.sha256(data).hexdigest()
            return put_leased(self, data, once=parts[2:] == (MANIFEST,), place=parts, sha256=sha256)
        return super().put(data, *parts, sha256=sha256)

    def put_file(self, source: Path, *parts: str, kept: bool = False) -> None:
        """Move a finished local file into the store, whole or not at all.

        Args:
            kept: it will be read here soon: it stays in the cache of a store elsewhere.

        Raises:
            Superseded: into an artifact whose lease was lost.
        """
        if self.lease and not self.local and parts[:2] == ("artifacts", self.lease.artifact):
            put_file_leased(self, source, *parts)
            if kept:
                cache.keep_file(digest_of(source), source)
            source.unlink(missing_ok=True)
        else:
            super().put_file(source, *parts)

    def title(self, artifact: Artifact) -> str:
        """What people call an artifact: RUN/STAGE where a run has it, or had it, else its own name."""
        for run in sorted(run_records.names(self), key=run_records.is_state):
            for stage, entry in (run_records.read(self, run) or {"stages": {}})["stages"].items():
                if entry["artifact"] == artifact.id:
                    return f"{run}/{stage}"
        return artifact.name

    def find(self, name: str) -> Artifact:
        """Open by `RUN/STAGE`, by stage name if one run has it, by folder name or the start of a key.

        Raises:
            UserError: nothing fits, or several do. Damaged: what fits has a manifest that can't be read.
        """
        run, _, stage = name.rpartition("/")
        known: list[str] = []
        found: set[str] = set()
        for record_name in [run] if run else self.runs():
            for stage_name, entry in (self.run(record_name) or {"stages": {}})["stages"].items():
                known += [stage_name, f"{record_name}/{stage_name}"]
                if stage_name == stage and (self.get(entry["artifact"]) or entry["artifact"] in self.damage):
                    found.add(entry["artifact"])
        if not found and not run:
            folders = self.folders()
            known += folders
            found = {f for f in folders if f == name or f.rpartition("-")[2].startswith(name)}
        finished = [artifact for folder in sorted(found) if (artifact := self.get(folder))]
        if len(finished) == 1:
            return finished[0]
        if finished:
            titles = ", ".join(a.id if (title := self.title(a)) == a.id else f"{a.id} ({title})" for a in finished)
            raise UserError(f"`{name}` fits several artifacts: {titles}. Name one of them.")
        if damaged := sorted(found & self.damage.keys()):
            raise Damaged(f"{self.damage[damaged[0]]} `flywheel repair {damaged[0]}` makes it anew.")
        raise UserError(
            f"no finished artifact `{name}` in the store {self.url}.{nearest(name, known)} "
            "`flywheel status` lists what there is."
        )
