"""A trace as a tree: what `trace` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.tree import Tree

from engine.view.console import PlainConsole, styled
from engine.view.rows import line_of

if TYPE_CHECKING:
    from rich.text import Text


def print_trace(node: dict[str, Any]) -> None:
    """Print a trace as a tree."""

    def label(n: dict[str, Any], more: str = "") -> Text:
        if "id" in n:
            file = f"  ({n['file']['source']} at {n['file']['offset']})" if "file" in n else ""
            return styled(
                (n["kind"], "bold cyan"), " ", (n["id"][:12], "dim"), "  ", line_of(n["kind"], n["row"]),
                (file, "green"), (f"  [{n['artifact']}]{more}", "dim"), one_line=True,
            )  # fmt: skip
        rows = f", {n['rows']:,} rows" if n.get("rows") else ""
        return styled((n["kind"], "bold magenta"), " ", n["artifact"], (rows + more, "dim"), one_line=True)

    told: set[str] = set()

    def grow(tree: Tree, n: dict[str, Any]) -> None:
        for parent in [*([n["made_by"]] if "made_by" in n else []), *n.get("from", [])]:
            name = parent.get("id") or parent["artifact"]
            if name in told and (parent.get("from") or "made_by" in parent):
                tree.add(label(parent, "  (as above)"))
                continue
            told.add(name)
            grow(tree.add(label(parent)), parent)
        for entry in n.get("touched", []):
            if "trained_on" in entry:
                what = f"trained on {', '.join(entry['trained_on'])}"
            else:
                what = f"{entry['rows']:,} rows" if entry["rows"] else "by way of a model"
            tree.add(styled((entry["kind"], "bold cyan"), " ", entry["artifact"], f"  {what}", one_line=True))
        for lost in n.get("lost", []):
            tree.add(styled((f"{lost}: not in this store any more", "red"), one_line=True))

    root = Tree(label(node))
    grow(root, node)
    console = PlainConsole()
    console.print(root) if console.is_terminal else PlainConsole(width=240).print(root)
