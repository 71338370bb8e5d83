"""Where a row or a model comes from and what came of it, as boxes of a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.store.artifact import Artifact
from engine.store.store import Store
from engine.view.efforts import counted
from engine.view.graph_picture import Box
from engine.view.lineage import inputs_of, trace_back, trace_row, trace_row_forward
from engine.view.rows import line_of

MOST = 80  # boxes; what a model was made of may be many more rows
FILE, ROW, HERE, MODEL, DATA = "#5c6b22", "#2a63c8", "#b03a6b", "#6d4fc7", "#1f7a6e"

Link = Callable[[str, str], str]  # artifact, row's id or "" -> address


def boxes_of_row(store: Store, artifact: Artifact, row: dict[str, Any], link: Link) -> list[Box]:
    """What a row was made from, above it; what was made of it, below."""
    boxes: dict[str, Box] = {}
    _add_row(boxes, store, trace_row(store, artifact, row), link, here=True)
    touched: dict[str, str] = {artifact.id: row["id"]}
    for entry in trace_row_forward(store, artifact, row)["touched"]:
        made = store.get(entry["artifact"])
        above = [touched[one] for one in (inputs_of(made) if made else []) if one in touched]
        name = entry["artifact"]
        touched[name] = name
        first = entry["ids"][0] if entry.get("ids") else ""
        if "trained_on" in entry:
            told = "learnt from it"
        elif entry["ids"] == [row["id"]]:
            told = "holds it"
        else:
            told = f"{counted(entry['rows'], 'row')} of it" if entry["rows"] else "by way of a model"
        _add(
            boxes,
            Box(
                name,
                stage_title(store, name),
                (entry["kind"], told),
                tuple(above),
                MODEL if "trained_on" in entry else DATA,
                link(name, first),
            ),
        )
    return list(boxes.values())


def boxes_of_artifact(store: Store, artifact: Artifact, link: Link) -> list[Box]:
    """All that an artifact was made from, down to files."""
    boxes: dict[str, Box] = {}
    _add_artifact(boxes, store, trace_back(store, artifact.id), link, here=True)
    return list(boxes.values())


def stage_title(store: Store, name: str) -> str:
    """What people call an artifact, by its folder: its stage's name, without the run's."""
    found = store.get(name)
    return store.title(found).rpartition("/")[2] if found else name


def _add(boxes: dict[str, Box], box: Box) -> str:
    if box.key not in boxes and len(boxes) < MOST:
        boxes[box.key] = box
    return box.key


def _add_row(boxes: dict[str, Box], store: Store, node: dict[str, Any], link: Link, here: bool = False) -> str:
    """Boxes of a row's parents first, then its own."""
    above = [_add_row(boxes, store, parent, link) for parent in node["from"]]
    if "made_by" in node:
        maker = node["made_by"]
        above.append(
            _add(
                boxes,
                Box(
                    maker["artifact"],
                    stage_title(store, maker["artifact"]),
                    (maker["kind"], "sampled it"),
                    (),
                    MODEL,
                    link(maker["artifact"], ""),
                ),
            )
        )
    if "file" in node:
        source, offset = node["file"]["source"], node["file"]["offset"]
        file = Box(f"file {source} {offset}", str(source), (f"file, at {offset:,}" if offset else "file",), (), FILE)
        above.append(_add(boxes, file))
    above += [_add(boxes, Box(lost, lost[:12], ("not in this store any more",))) for lost in node.get("lost", [])]
    told = line_of(node["kind"], node["row"], 60)
    return _add(
        boxes,
        Box(
            node["id"],
            f"{node['kind']} {node['id'][:8]}",
            (node["stage"], told),
            tuple(above),
            HERE if here else ROW,
            link(node["artifact"], node["id"]),
        ),
    )


def _add_artifact(boxes: dict[str, Box], store: Store, node: dict[str, Any], link: Link, here: bool = False) -> str:
    name = node["artifact"]
    if name in boxes:
        return name
    above = [_add_artifact(boxes, store, parent, link) for parent in node["from"]]
    found = store.get(name)
    # A node tells each artifact once, where it comes first: what it was made from is told by its manifest.
    above += [one for one in (inputs_of(found) if found else []) if one not in above]
    if found and not inputs_of(found):
        config = found.manifest["stage"]["config"]
        paths = config.get("paths") or config.get("path") or found.manifest.get("external") or []
        licence = config.get("license") or found.manifest["summary"].get("license")
        for path in [paths] if isinstance(paths, str) else paths:
            note = f"file, {licence}" if licence else "file"
            above.append(_add(boxes, Box(f"file {path}", str(path), (note,), (), FILE)))
    rows = f"{node['rows']:,} rows" if node.get("rows") else node["kind"]
    colour = HERE if here else MODEL if not node.get("rows") else DATA
    return _add(boxes, Box(name, stage_title(store, name), (node["stage"], rows), tuple(above), colour, link(name, "")))
