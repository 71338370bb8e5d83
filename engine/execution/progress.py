"""What a person sees while a recipe runs: a line a stage, a bar with rate and time left for each under way; or JSON lines for machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from engine.execution.throughput import Throughput
from engine.plan.plan import Planned
from engine.text.visible import visible
from engine.view.console import PlainConsole, styled
from engine.view.efforts import counted
from engine.view.output import put_json
from engine.view.spending import Spending, in_words


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.4g}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 60 else f"{int(value // 60)} min {int(value % 60):02d} s"


class Lines:
    """One JSON object an event on standard output (`--json`)."""

    def start(self, plan: list[Planned]) -> None:
        stages = [{"name": p.name, "kind": p.step.kind, "artifact": p.folder, "cached": p.cached} for p in plan]
        self._put({"event": "plan", "stages": stages})

    def event(self, stage: Planned, event: dict[str, Any]) -> None:
        self._put({"stage": stage.name, **event})

    def stop(self) -> None: ...

    def total(self, spent: Spending) -> None:
        """What all stages of the run took together, if they asked anybody."""
        if spent:
            self._put({"event": "total", "spent": spent})

    def _put(self, told: dict[str, Any]) -> None:
        put_json(told, indent=None, flush=True)


@dataclass
class Bar:
    """What is known of one stage under way.

    Attributes:
        facts: its latest metrics.
        tokens: when they were first told of, and how many there were.
        parts: partitions that it has committed.
        workers: processes that work on it, and where.
        told, every: when a line told of it last, and how many seconds go by until the next; where there is no terminal.
        where, spoken: how far it is and what its numbers are, as such a line has them.
    """

    task: TaskID
    facts: dict[str, float] = field(default_factory=lambda: {})
    tokens: tuple[float, int, int] | None = None
    pace: Throughput = field(default_factory=Throughput)
    parts: int = 0
    workers: str = ""
    begun: bool = False
    told: float = 0.0
    every: float = 0.0
    where: str = ""
    spoken: str = ""

    def told_metrics(self, event: dict[str, Any]) -> str:
        self.facts |= {k: v for k, v in event.items() if k not in ("event", "step") and isinstance(v, int | float)}
        return "  ".join(f"{k} {_number(v)}" for k, v in list(self.facts.items())[:4])

    def told_tokens(self, event: dict[str, Any]) -> str:
        """What was read and written so far, how fast, and at what cost."""
        now = time.monotonic()
        if self.tokens is None:
            self.tokens = (now, event["in"], event["out"])
        began, first_in, first_out = self.tokens
        seconds = max(now - began, 1e-9)
        told = f"{event['in']:,} tokens in, {event['out']:,} out"
        if event["out"] > first_out:
            rates = (event["in"] - first_in) / seconds, (event["out"] - first_out) / seconds
            told += f" ({rates[0]:,.0f} and {rates[1]:,.0f}/s)"
        return told + (f"  cost {event['cost']:,.2f}" if "cost" in event else "")

    def told_progress(self, event: dict[str, Any]) -> str:
        """How far, and how long it may take."""
        of = f" of {event['total']:,}" if event["total"] else ""
        left = f", {_seconds(self.pace.left_s)} left" if self.pace.left_s is not None else ""
        return f"{event['done']:,}{of} {event['unit']}{left}"

    def told_work(self) -> str:
        """How fast, in how many partitions, by whom."""
        rate = f"{_number(self.pace.rate)}/s" if self.pace.rate else ""
        parts = counted(self.parts, "partition") if self.parts else ""
        return "  ".join(filter(None, [rate, parts, self.workers]))


FIRST_S, LONGEST_S = 10.0, 300.0


class Bars:
    """A bar for each stage under way on a terminal. Where output is none: a line when a stage begins and when it is done, and in between
    one after ten seconds, then after twenty more, forty, up to five minutes, so that a log of a day is not all progress.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.console = PlainConsole(stderr=True)
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<14}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[facts]} {task.fields[work]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not self.console.is_terminal,
        )
        self.under_way: dict[str, Bar] = {}
        self.width = 12

    def start(self, plan: list[Planned]) -> None:
        self.width = max((len(p.name) for p in plan), default=12)
        self.bars.start()

    def event(self, stage: Planned, event: dict[str, Any]) -> None:
        if event["event"] in ("cached", "done", "failed", "waiting"):
            self._end(stage, event)
            return
        bar = self.under_way.get(stage.name)
        if bar is None:
            bar = Bar(self.bars.add_task(visible(stage.name), total=None, unit="", facts="", work=""))
            self.under_way[stage.name] = bar
            bar.told, bar.every = self.clock(), FIRST_S
        if not bar.begun and event["event"] != "say":  # something may be said of a stage that is cached
            bar.begun = True
            if not self.console.is_terminal:
                self._print(stage, "▸", f"{stage.step.kind:<12} begins", "dim")
        match event["event"]:
            case "progress":
                bar.pace.tell(event["done"], event["total"])
                bar.where = bar.told_progress(event)
                self.bars.update(
                    bar.task, completed=event["done"], total=event["total"], unit=visible(event["unit"]),
                    work=bar.told_work(),
                )  # fmt: skip
            case "metric":
                bar.spoken = bar.told_metrics(event)
                self.bars.update(bar.task, facts=visible(bar.spoken))
            case "tokens":
                bar.spoken = bar.told_tokens(event)
                self.bars.update(bar.task, facts=bar.spoken)
            case "commit":
                bar.parts += 1
                self.bars.update(bar.task, work=bar.told_work())
            case "workers":
                on = f" on {counted(event['nodes'], 'node')}" if event["nodes"] > 1 else ""
                bar.workers = counted(event["workers"], "process") + on
                self.bars.update(bar.task, work=bar.told_work())
                if event["workers"] == 1 and "dashboard" in event:
                    self._print(stage, "·", f"Ray's dashboard: {event['dashboard']}", "dim")
            case "say":
                self._print(stage, "·", event["text"], "dim")
            case _:
                pass
        if not self.console.is_terminal and self.clock() - bar.told >= bar.every:
            bar.told, bar.every = self.clock(), min(2 * bar.every, LONGEST_S)
            if told := "  ".join(filter(None, [bar.where, bar.spoken, bar.told_work()])):
                self._print(stage, "▸", f"{stage.step.kind:<12} {told}", "dim")

    def _end(self, stage: Planned, event: dict[str, Any]) -> None:
        if bar := self.under_way.pop(stage.name, None):
            self.bars.remove_task(bar.task)
        match event["event"]:
            case "cached":
                self._print(stage, "=", f"{stage.step.kind:<12} cached{self._rows(event['rows'])}", "dim")
            case "done":
                told = f"{stage.step.kind:<12} {_seconds(event['seconds'])}{self._rows(event['rows'])}"
                told += f", {in_words(event['spent'])}" if "spent" in event else ""
                self._print(stage, "✓", told, "green")
            case _ if self.under_way:  # it is told in the end, when the others have come to theirs
                state = "failed" if event["event"] == "failed" else "waits for people"
                names = ", ".join(self.under_way)
                self._print(stage, "✗", f"{stage.step.kind:<12} {state}; still under way: {names}", "dim")
            case _:
                pass

    def stop(self) -> None:
        self.bars.stop()

    def total(self, spent: Spending) -> None:
        """What all stages of the run took together, if they asked anybody."""
        if spent:
            self.console.print(f"All stages together took {in_words(spent)}.")

    def _rows(self, rows: int) -> str:
        return f", {rows:,} rows" if rows else ""

    def _print(self, stage: Planned, mark: str, text: str, style: str) -> None:
        self.console.print(styled((mark, style), f" {stage.name:<{self.width}}  ", text), soft_wrap=True)
