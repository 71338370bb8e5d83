"""The phases of deduplication: each is spread over processes, and leaves files for the next (`pipelines.dedup.shuffle`).

    sign        groups of files     digests, signatures, band keys
    bucket      ranges of hashes    exact copies; who shares a bucket with whom
    connect     one task            components, packed into batches
    make sets   groups of files     shingles of candidates
    resolve     batches             who stays in whose place, verified
    name        groups of files     ids of those that stay in another's place
    write       groups of files     rows that stay and rows that don't

Groups, batches and the parts that are written depend on the inputs alone; how many ranges there are changes no result. So the rows are
the same wherever tasks are done, and in whatever order. Whoever gives out the tasks knows a few numbers of each.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.execution.threads import cores
from engine.stage.job import Job
from pipelines.dedup.buckets import BUCKETS, Bucketing
from pipelines.dedup.components import Connecting
from pipelines.dedup.groups import Group, cut
from pipelines.dedup.minhash import Banding, choose_banding
from pipelines.dedup.names import LARGEST, Naming
from pipelines.dedup.near import RESOLVED, Resolving
from pipelines.dedup.saved_index import save_index
from pipelines.dedup.sets import SetMaking
from pipelines.dedup.shuffle import Shuffle
from pipelines.dedup.signatures import Signed, Signer
from pipelines.dedup.stage import Dedup
from pipelines.dedup.writing import INDEXED, Writing
from pipelines.texts.columns import Array
from pipelines.texts.documents import Documents, trim
from pipelines.texts.kept_texts import KeptTexts

TEXTS = 0.6  # of the memory: for texts, which else are read for each pass anew
SORTED = 40  # bytes that a band's key takes while a range is sorted
HASHED = 80  # bytes of a document while a range's exact copies are looked for
BATCH_BYTES = 8 << 20  # of the sets and signatures of candidates that are resolved together
LEAST_RANGES = 8  # so that there is something to spread where there are so many groups


def share(stage: Dedup, job: Job) -> int:
    """Bytes for what a process does beside keeping texts; processes of other machines have their own memory."""
    return max(int((1 - TEXTS) * stage.memory_gb * 1e9) // min(job.executor.width, cores()), 1)


@dataclass
class Phases:
    """
    Attributes:
        folder: of the exchange; another where files are cut in another way.
        groups: of files of the index, then of the documents.
        ranges: of hashes.
        signed: what signing told of each group.
        begins: (groups + 1,) the number of the first document of each group.
        fixed: documents before this one are those of an index.
    """

    stage: Dedup
    job: Job
    kept: KeptTexts
    folder: str
    banding: Banding | None
    groups: list[Group]
    ranges: int
    most: int
    signed: list[Signed]
    begins: Array
    fixed: int

    @staticmethod
    def begin(stage: Dedup, job: Job, kept: KeptTexts) -> Phases:
        """Sign all documents."""
        banding = None
        if stage.method == "minhash":
            banding = choose_banding(stage.threshold, stage.recall, stage.permutations)
            chances = ", ".join(f"{chance:.1%} at {like:g}" for like, chance in banding.curve()[8::2])
            job.say(f"{banding.bands} bands of {banding.rows} rows; a pair is compared with probability {chances}.")
        groups = cut(job, "index", "documents")
        rows = job.rows("index") + job.rows("documents")
        size = rows * max(HASHED, SORTED * (banding.bands if banding else 0))
        ranges = max(-(-size // share(stage, job)), min(len(groups), LEAST_RANGES))
        most = max(min(BATCH_BYTES, int(stage.memory_gb * 1e9) // 2), 1)
        folder = f"phases-{ranges}-{most}"
        signed: list[Signed] = []
        done = 0
        for told in job.spread(Signer, groups, stage, folder, banding, ranges, kept):
            signed.append(told)
            done += sum(told.rows)
            job.progress(done, rows, "rows", doing="signatures")
        begins = np.append(0, np.cumsum([sum(told.rows) for told in signed], dtype=np.int64))
        fixed = int(begins[sum(group.port == "index" for group in groups)])
        return Phases(stage, job, kept, folder, banding, groups, ranges, most, signed, begins, fixed)

    @property
    def buckets(self) -> list[str]:
        return [f"{BUCKETS}/{index:06d}" for index in range(self.ranges)]

    def bucket(self) -> int:
        """Find exact copies, and edges between near-duplicates: how many copies there are."""
        trim()
        exact = 0
        near = self.banding is not None
        told = self.job.spread(Bucketing, range(self.ranges), self.folder, self.begins, self.fixed, near)
        for index, facts in enumerate(told):
            exact += facts["exact"]
            self.job.progress(index + 1, self.ranges, "ranges", doing="bucketing")
        return exact

    def near(self, facts: dict[str, Any]) -> list[str]:
        """Find near-duplicates: the files that tell them. Counts go to `facts`."""
        assert self.banding is not None
        trim()
        connecting = (self.folder, self.begins, self.ranges, self.banding.permutations, self.banding.bands, self.most)
        (connected,) = self.job.spread(Connecting, [0], *connecting)
        batches = connected["batches"]  # as many as memory asks for, so nothing of it goes into the summary
        facts |= {"candidates": connected["candidates"], "pairs_met": 0, "pairs_verified": 0, "near": 0}
        if not batches:
            return []
        trim()
        done = 0
        tasks = ((group, signed.places) for group, signed in zip(self.groups, self.signed, strict=True))
        for rows in self.job.spread(SetMaking, tasks, self.folder, self.begins, batches, self.stage.ngram, self.kept):
            done += rows
            self.job.progress(done, int(self.begins[-1]), "rows", doing="verifying")
        trim()
        resolving = (self.stage, self.folder, self.banding, self.begins, self.fixed)
        for index, told in enumerate(self.job.spread(Resolving, range(batches), *resolving)):
            for name, count in told.items():
                facts[name] += count
            self.job.progress(index + 1, batches, "batches", doing="comparing")
        return [f"{RESOLVED}/{index:06d}" for index in range(batches)]

    def write(self, facts: dict[str, Any], copies: list[str], near: list[str]) -> None:
        """Write what stays and what doesn't, and the summary."""
        job = self.job
        trim()
        clusters, largest = 0, list[int]()
        for told in job.spread(Naming, self.groups, self.folder, self.begins, copies, near):
            clusters += told["clusters"]
            largest = heapq.nlargest(LARGEST, largest + told["largest"])
        trim()
        total, done, stay = int(self.begins[-1]) - self.fixed, 0, 0
        writing = (self.stage, self.folder, self.begins, copies, near, self.kept)
        for rows, stays in job.spread(Writing, self._parts(), *writing):
            done, stay = done + rows, stay + stays
            job.progress(done, total, "rows", doing="writing")
        if self.stage.save_index and self.banding:
            shuffle = Shuffle(job, self.folder)
            parts = (shuffle.part(f"{INDEXED}/{g.name}", "rows") for g in self.groups if g.port == "documents")
            save_index(job.output / "index", self.stage.ngram, self.banding, parts)
        job.summary(documents=total, kept=stay, clusters=clusters, largest_clusters=largest, **facts)

    def _parts(self) -> list[Any]:
        """The tasks of writing. A group has at most as many parts as batches: so its first one's place is known beforehand."""
        documents = Documents(self.job.all("documents"), [])
        own = [(g, s) for g, s in zip(self.groups, self.signed, strict=True) if g.port == "documents"]
        ends = np.cumsum([documents.batch_count(group.files, signed.rows) for group, signed in own]).tolist()
        digits = max(5, len(str(ends[-1] if ends else 0)))
        return [(g, s.places, first, digits) for (g, s), first in zip(own, [0, *ends], strict=False)]
