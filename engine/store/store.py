"""The store: a folder or bucket of artifacts, each named by what made it. None is changed; one may be replaced, whole
(`engine.execution.again`).

artifacts/<stage kind>-<key>/   manifest.json (written last: no manifest, no artifact), data/*.parquet, rejected/*.parquet,
                                model files, logs/ (timings, metrics: not part of the digest)
runs/<recipe>.json              what each stage of the last run was, so that names resolve and `plan --why` can compare
work/<stage kind>-<key>/        scratch of stages under way: checkpoints, output not yet complete (local disk)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.errors import Damaged, UserError, nearest
from engine.store.artifact import MANIFEST, Artifact
from engine.store.files import StoreFiles
from engine.store.sealed_json import unsealed

KEY_LENGTH = 16  # hexadecimal digits of the key that appear in a folder's name


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

    def __init__(self, url: str | None = None) -> None:
        super().__init__(url)
        self.damage: dict[
            str, str
        ] = {}  # why what was asked for can't be used: an artifact's folder, or `runs/NAME.json`

    def get(self, artifact: str) -> Artifact | None:
        """The finished artifact in this folder, or None: no manifest, or one that is damaged, is no artifact."""
        manifest = self._sealed(artifact, "artifacts", artifact, MANIFEST)
        return Artifact(self, artifact, manifest) if manifest else None

    def _sealed(self, name: str, *parts: str) -> dict[str, Any] | None:
        try:
            return unsealed(self.read(*parts), "/".join(parts[1:]))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Damaged as error:
            self.damage[name] = str(error)
            return None

    def folders(self) -> list[str]:
        """Names of all artifacts, those under way too."""
        return [name for name in self.list("artifacts") if "-" in name and not name.startswith(".")]

    def begun(self, artifact: str) -> bool:
        """Whether anything of this artifact is there."""
        return self.exists("artifacts", artifact)

    def artifacts(self) -> Iterator[Artifact]:
        for name in self.folders():
            if artifact := self.get(name):
                yield artifact

    def run(self, name: str) -> dict[str, Any] | None:
        """The record of a recipe's last run: `{"stages": {name: {"artifact": ..., ...}}}`."""
        return self._sealed(f"runs/{name}.json", "runs", f"{name}.json")

    def runs(self) -> list[str]:
        """Names of the recipes that have run here."""
        return [name.removesuffix(".json") for name in self.list("runs") if name.endswith(".json") and name[0] != "."]

    def title(self, artifact: Artifact) -> str:
        """What people call an artifact: RUN/STAGE where a run has it, else its own name."""
        for run in self.runs():
            for stage, entry in (self.run(run) or {"stages": {}})["stages"].items():
                if entry["artifact"] == artifact.id:
                    return f"{run}/{stage}"
        return artifact.name

    def find(self, name: str) -> Artifact:
        """Open by `RUN/STAGE`, by stage name if one run has it, by folder name or the start of a key.

        Raises:
            UserError: nothing fits, or several do.
        """
        run, _, stage = name.rpartition("/")
        known: list[str] = []
        found: set[str] = set()
        for record_name in [run] if run else self.runs():
            for stage_name, entry in (self.run(record_name) or {"stages": {}})["stages"].items():
                known += [stage_name, f"{record_name}/{stage_name}"]
                if stage_name == stage and self.get(entry["artifact"]):
                    found.add(entry["artifact"])
        if not found and not run:
            folders = self.folders()
            known += folders
            found = {f for f in folders if f == name or f.rpartition("-")[2].startswith(name)}
        finished = [artifact for folder in sorted(found) if (artifact := self.get(folder))]
        if len(finished) == 1:
            return finished[0]
        if finished:
            raise UserError(f"`{name}` fits several artifacts: {', '.join(a.id for a in finished)}. Name one of them.")
        raise UserError(
            f"no finished artifact `{name}` in the store {self.url}.{nearest(name, known)} "
            "`flywheel status` lists what there is."
        )
