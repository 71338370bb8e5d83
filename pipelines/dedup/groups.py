"""How a stage's inputs are cut into tasks: groups of consecutive files, by what their manifests say alone.

So whoever works on them, and however many there are, the groups are the same, and so are the parts that are made of each.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.stage.job import Job
from engine.store.artifact import Artifact

GROUP_BYTES = 24 << 20  # as they are on disk; a fifth to a third of their texts
LEAST_BYTES, GROUPS = (
    4 << 20,
    64,
)  # of a group, where that gives fewer groups than this: so many there should be to spread
GROUP_ROWS = 100_000


@dataclass(frozen=True)
class Group:
    """Consecutive files of the artifacts of a port.

    Attributes:
        index: of all groups.
        files: the number of the artifact in its port, and the file's name.
        share: its bytes on disk, as a part of those of its port.
    """

    index: int
    port: str
    files: tuple[tuple[int, str], ...]
    share: float

    @property
    def name(self) -> str:
        return f"{self.index:06d}"


def cut(job: Job, *ports: str, size: int | None = None) -> list[Group]:
    """The groups of these ports, in order: `size` bytes on disk (up to `GROUP_BYTES`, by how much there is) or about `GROUP_ROWS` rows each, a file
    at least. A group has files of one port only.
    """
    groups: list[Group] = []
    everything = sum(file_bytes(artifact) for port in ports for artifact in job.all(port))
    most = size or min(max(everything // GROUPS, LEAST_BYTES), GROUP_BYTES)
    for port in ports:
        artifacts = job.all(port)
        total = sum(file_bytes(artifact) for artifact in artifacts)
        files: list[tuple[int, str]] = []
        weight = held = 0.0
        for number, artifact in enumerate(artifacts):
            packed = max(file_bytes(artifact), 1)
            unit = max(1 / most, artifact.rows / packed / GROUP_ROWS)
            for name in artifact.parts() if artifact.rows else []:
                bytes_ = artifact.manifest["files"][name]["bytes"]
                if files and weight + bytes_ * unit > 1:
                    groups.append(Group(len(groups), port, tuple(files), held / total))
                    files, weight, held = [], 0.0, 0.0
                files.append((number, name))
                weight, held = weight + bytes_ * unit, held + bytes_
        if files:
            groups.append(Group(len(groups), port, tuple(files), held / max(total, 1)))
    return groups


def file_bytes(artifact: Artifact) -> int:
    """Bytes of an artifact's data files."""
    return sum(artifact.manifest["files"][name]["bytes"] for name in artifact.parts())
