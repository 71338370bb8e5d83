"""A trace as a tree: what `trace` prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from engine.view.rows import line_of


def print_trace(node: dict[str, Any]) -> None:
    """Print a trace as a tree."""

    def label(n: dict[str, Any]) -> Text:
        if "id" in n:
            text = Text.assemble(
                (n["kind"], "bold cyan"), " ", (n["id"][:12], "dim"), "  ", line_of(n["kind"], n["row"])
            )
            if "file" in n:
                text.append(f"  ({n['file']['source']} at {n['file']['offset']})", "green")
            return text.append(f"  [{n['artifact']}]", "dim")
        more = f", {n['rows']:,} rows" if n.get("rows") else ""
        return Text.assemble((n["kind"], "bold magenta"), " ", n["artifact"], (more, "dim"))

    told: set[str] = set()

    def grow(tree: Tree, n: dict[str, Any]) -> None:
        for parent in [*([n["made_by"]] if "made_by" in n else []), *n.get("from", [])]:
            name = parent.get("id") or parent["artifact"]
            if name in told and (parent.get("from") or "made_by" in parent):
                tree.add(label(parent).append("  (as above)", "dim"))
                continue
            told.add(name)
            grow(tree.add(label(parent)), parent)
        for entry in n.get("touched", []):
            if "trained_on" in entry:
                what = f"trained on {', '.join(entry['trained_on'])}"
            else:
                what = f"{entry['rows']:,} rows" if entry["rows"] else "by way of a model"
            tree.add(Text.assemble((entry["kind"], "bold cyan"), " ", entry["artifact"], f"  {what}"))
        for lost in n.get("lost", []):
            tree.add(Text(f"{lost}: not in this store any more", "red"))

    root = Tree(label(node))
    grow(root, node)
    console = Console()
    console.print(root) if console.is_terminal else Console(width=240).print(root)
