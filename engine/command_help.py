"""What commands say of themselves beyond their options, what TAB offers, and commands that a room brings."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from engine.errors import nearest

HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class CommandTable(TyperGroup):
    """The commands of `flywheel`; a room's are imported when one of them is called, or completed."""

    def resolve_command(self, ctx: Any, args: Any) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.loaded() if isinstance(command, RoomCommand) else command, rest


class RoomCommand(TyperCommand):
    """Stands in the table for the command, or the group of them, of a room."""

    target = ""

    def loaded(self) -> Any:
        module, _, attribute = self.target.partition(":")
        loaded = typer.main.get_command(getattr(import_module(module), attribute))
        loaded.name = self.name
        return loaded


def room_command(target: str) -> type[RoomCommand]:
    """
    Args:
        target: `module:app`, a typer application.
    """
    return type("RoomCommand", (RoomCommand,), {"target": target})


class SwitchedCommand(TyperCommand):
    """A command on a recipe. Its help also tells the options that stages declare (`Stage.switches`)."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        from engine.stage.stage import kinds, load

        super().format_options(ctx, formatter)
        switches = {n: s.help for kind in kinds() for n, s in load(kind).switches.items()}
        with formatter.section("Options that stages of the recipe bring"):
            formatter.write_dl([(f"--{name}", text) for name, text in switches.items()])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """An option that nobody has must not be taken for the recipe's name, which it precedes."""
        known = {name for one in self.get_params(ctx) for name in getattr(one, "opts", [])}
        first = args[0].partition("=")[0] if args else ""
        if first.startswith("--") and first not in known and not _switch(first):
            ctx.fail(f"there is no option `{first}`.{nearest(first, known)}")
        return super().parse_args(ctx, args)


def _switch(option: str) -> bool:
    from engine.stage.stage import kinds, load

    return any(option.removeprefix("--") in load(kind).switches for kind in kinds())


class KindCommand(TyperCommand):
    """`flywheel stage KIND --help` tells the kind's fields, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        ctx.meta["flywheel.words"] = list(args)
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from engine.view.kinds import describe_kind

        kind = next((word for word in ctx.meta.get("flywheel.words", []) if not word.startswith("-")), None)
        if kind is None:
            formatter.write(
                "\n`flywheel stage KIND --help` tells the fields of a kind; `flywheel stages` lists the kinds.\n"
            )
        else:
            formatter.write(f"\n{kind}: {describe_kind(kind)}\n")


# -- what TAB offers: nothing may be printed, nothing may fail, and nothing heavy is imported ---------------------------


def complete_kind(incomplete: str) -> list[str]:
    from engine.stage.stage import kinds

    return [kind for kind in kinds() if kind.startswith(incomplete)]


def complete_recipe(incomplete: str) -> list[str]:
    found = sorted(Path().glob(f"{incomplete}*")) if not incomplete.startswith("/") else []
    return [
        f"{one}/" if one.is_dir() else str(one)
        for one in found
        if (one.is_dir() and not one.name.startswith(".")) or one.suffix in (".yaml", ".yml")
    ]


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    return [name for name in _records(ctx) if name.startswith(incomplete)]


def complete_artifact(ctx: typer.Context, incomplete: str) -> list[str]:
    told = [f"{run}/{stage}" for run, record in _records(ctx).items() for stage in record.get("stages", {})]
    return [name for name in told if name.startswith(incomplete)]


def _records(ctx: typer.Context) -> dict[str, Any]:
    from engine.store import run_records
    from engine.store.files import StoreFiles

    try:
        store = StoreFiles(ctx.params.get("store"))
        return {name: run_records.read(store, name) or {} for name in run_records.names(store)} if store.local else {}
    except Exception:  # whoever presses TAB wants no message in the line
        return {}
