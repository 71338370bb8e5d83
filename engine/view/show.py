"""An artifact in words: what made it, its numbers, what did not make it. What `show` prints."""

from __future__ import annotations

import json
import time
from typing import Any

import pyarrow as pa
from rich.table import Table

from engine.redaction import redacted, redacted_json
from engine.store.artifact import Artifact
from engine.store.schema import DATASETS
from engine.view.console import PlainConsole, styled
from engine.view.removed import examples, largest_clusters, rows_seen
from engine.view.rows import print_row, quote, shorten
from engine.view.spending import by_answerer, in_words


def as_json(artifact: Artifact, rows: int, rejected: bool = False) -> dict[str, Any]:
    """The manifest and the first rows (or rejected rows)."""
    artifact.check_complete()
    table = (artifact.rejected() if rejected else None) if rejected else _head(artifact, rows)
    return {
        "manifest": redacted_json({key: value for key, value in artifact.manifest.items() if key != "files"}),
        "path": str(artifact.place),
        "rows": table.slice(0, rows).to_pylist() if table is not None else [],
    }


def _head(artifact: Artifact, rows: int) -> Any:
    if artifact.kind not in DATASETS or artifact.kind == "TokenBlock":
        return None
    batch = next(artifact.batches(rows=max(rows, 1)), None)
    return pa.Table.from_batches([batch]) if batch is not None else None


def print_artifact(artifact: Artifact, rows: int, rejected: bool) -> None:
    """Print what made an artifact, its numbers and some rows."""
    artifact.check_complete()
    console = PlainConsole(soft_wrap=True)
    manifest = artifact.manifest
    rows_of = f", {artifact.rows:,} rows" if artifact.rows else ""
    console.print(styled((artifact.id, "bold"), f"  {artifact.kind}{rows_of}"))
    console.print(str(artifact.place), style="dim")
    if unfinished := manifest.get("unfinished"):
        _print_unfinished(console, unfinished)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for port, given in manifest["inputs"].items():
        facts.add_row(port, styled(", ".join(f"{e['name']} ({e['artifact']})" for e in given), one_line=True))
    config = {k: v for k, v in manifest["stage"]["config"].items() if v not in (None, [], {})}
    for key, value in {**config, **manifest["summary"]}.items():
        text = redacted(json.dumps(value, ensure_ascii=False, default=str))
        facts.add_row(styled(key, one_line=True), text if len(text) < 300 else text[:299] + "…")
    timings = manifest["timings"]
    if timings.keys() >= {"wall_s", "cpu_s", "peak_rss_mb"}:
        facts.add_row(
            "took", f"{timings['wall_s']:.1f} s, {timings['cpu_s']:.1f} CPU s, {timings['peak_rss_mb']:.0f} MB"
        )
    for who, spent in by_answerer(artifact).items():
        facts.add_row("spent", styled(f"{in_words(spent)} ({who})", one_line=True))
    console.print(facts)
    lost = sum(manifest["rejected"].values())
    if lost:
        seen = rows_seen(artifact)
        share = f"{lost / seen:.1%} of {seen:,}, " if seen else ""
        what = "1 row" if lost == 1 else f"{lost:,} rows"
        console.print(
            styled("\n", (f"{what} did not make it", "bold"), f" ({share}{manifest['failed']:,} of them failed):")
        )
        _print_removed(console, artifact, seen)
    table = artifact.rejected() if rejected else _head(artifact, rows)
    if table is None:
        return
    console.print()
    for row in table.slice(0, rows).to_pylist():
        if rejected:
            detail = f" ({row['detail']})" if row["detail"] else ""
            console.print(styled((row["reason"], "yellow"), f"{detail}  {quote(row, 200)}", one_line=True))
        else:
            print_row(console, artifact.kind, row)


def _print_unfinished(console: PlainConsole, unfinished: dict[str, Any]) -> None:
    """That a stage failed or is not done, in its own words, and where to look on."""
    if "error" in unfinished:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(unfinished["at"]))
        console.print(styled(("failed", "bold red"), f" {when}: {redacted(unfinished['error'])}"))
    else:
        console.print(styled(("not finished", "yellow"), ": under way, or it was stopped"))
    console.print(f"log  {unfinished['log']}")


def _print_removed(console: PlainConsole, artifact: Artifact, seen: int | None) -> None:
    """Each reason with its count, and examples of it beside what they are held against."""
    for reason, shown in examples(artifact).items():
        count = artifact.manifest["rejected"][reason]
        share = f"  {count / seen:.1%}" if seen else ""
        console.print(styled(f"  {count:>9,}  ", (reason, "yellow"), (share, "dim"), one_line=True))
        for example in shown:
            detail = f"({example.row['detail']}) " if example.row.get("detail") else ""
            console.print(f"             {detail}{quote(example.row, 110)}")
            evidence = example.row.get("evidence")
            if evidence:
                console.print(f"               in common: {shorten(str(evidence), 110)}")
            if example.other is not None:
                console.print(f"               {example.against}: {quote(example.other, 110)}")
    for cluster in largest_clusters(artifact, count=3, each=1):
        if cluster.size > 2:
            console.print(f"  {cluster.size:>9,}  alike, one kept: {quote(cluster.kept, 90)}")
