"""What a browser sees of a run that is under way, beside the finished quickstart in the same store; one of its rows is a script."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.parts.window.scene import RUN, Found, Scene
from engine.store.store import Store

COMMAND = [sys.executable, "-c", "from engine.cli import main; main()"]
NAME = "live"
OWN = "document.title='owned';window.owned=1"
HOSTILE = f'<script>{OWN}</script><img src=x onerror="{OWN}"><b hx-get="/" hx-trigger="load">x</b> {{{{ 7*7 }}}}'
RECIPE = """\
name: live
stages:
  pages: {kind: read, paths: [pages.jsonl]}
  shards: {kind: tokenize, from: pages, vocab_size: 300, block: 64}
  base: {kind: pretrain, from: {tokens: shards}, size: {depth: 2, width: 64}, steps: 500, batch: 16, log_every: 5}
  more: {kind: pretrain, from: {tokens: shards, model: base}, steps: 5, batch: 4}
"""


@contextmanager
def run(scene: Scene, folder: Path) -> Generator[subprocess.Popen[bytes]]:
    """The run, begun. Its text is another one each time, so that nothing of it is in the store yet."""
    folder.mkdir(exist_ok=True)
    times = len(Store(str(scene.store)).folders())
    texts = [HOSTILE, *(f"{times} wheels and {i} rivers turn for later use." for i in range(400))]
    (folder / "pages.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (folder / f"{NAME}.yaml").write_text(RECIPE)
    command = [*COMMAND, "run", f"{NAME}.yaml", "--store", str(scene.store)]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()  # a run ends all that it started
        process.wait(60)


def _shares(scene: Scene) -> list[float]:
    return [float(one.get_attribute("value")) for one in scene.walk.all("#live table progress")]


def _points(scene: Scene) -> int:
    """Corners of the line of the first curve."""
    found = [one.get_attribute("d") for one in scene.walk.all("#curves svg path[aria-roledescription='line mark']")]
    return found[0].count("L") if found else 0


def _moved(scene: Scene, points: int, share: float) -> tuple[int, float] | None:
    """How long the curve is and how much is done, once both are more than this."""
    now = _points(scene), next(iter(_shares(scene)), 0.0)
    return now if now[0] > points and now[1] > share else None


def curves_move_while_it_trains(scene: Scene) -> Found:
    """Without a click, the loss gets longer three times, and the share that is done grows with it."""
    walk = scene.walk
    walk.chrome.get(walk.home + "/")
    walk.wait(lambda: walk.links(NAME, "#runs"), 120)
    walk.click(NAME, "#runs")
    walk.wait(lambda: walk.texts("#live .state")[0] == "under way", 300)  # one of an earlier walk may stand there first
    walk.wait(lambda: _points(scene) > 1, 600)
    seen = [walk.wait(lambda: _moved(scene, 0, -1.0), 120)]
    while len(seen) < 4:
        seen.append(walk.wait(lambda: _moved(scene, *seen[-1]), 120))
        if len(seen) == 2:
            scene.picture("window-live")
    points, shares = zip(*seen, strict=True)
    return seen, list(points) == sorted(set(points)) and list(shares) == sorted(set(shares))


def what_is_done_under_way_and_to_come(scene: Scene) -> Found:
    """Each of the four stages in its state, while it trains."""
    states = _states(scene)
    return states, states == {"pages": "done", "shards": "done", "base": "under way", "more": "waiting"}


def _states(scene: Scene) -> dict[str, str]:
    def look() -> dict[str, str]:
        lines = [line.find_elements("css selector", "td") for line in scene.walk.all("#live table tr")[1:]]
        return {
            cells[0].find_element("css selector", "a").text: cells[1].find_element("css selector", ".state").text
            for cells in lines
        }

    return scene.walk.wait(look)


def it_comes_to_its_end_by_itself(scene: Scene) -> Found:
    """The page, left alone, says that all is done; the quickstart beside it is what it was."""
    walk = scene.walk
    _soon(lambda: walk.wait(lambda: walk.texts("#live .state")[0] == "done", 5), 600)
    walk.chrome.get(walk.home + "/")
    lines = [" ".join(line.split()) for line in walk.texts("#runs tr")[1:]]
    return lines, all(any(line.startswith(f"{run} done ") for line in lines) for run in (NAME, RUN))


def _soon(happens: Callable[[], Any], within_s: float) -> None:
    """A page that is asked again while a machine is busy may be late once or twice."""
    end = time.monotonic() + within_s
    while True:
        try:
            happens()
            return
        except AssertionError:
            if time.monotonic() > end:
                raise


def a_script_in_a_row_runs_nothing(scene: Scene) -> Found:
    """A row with a script, an image's handler and an attribute of htmx: shown as text in the table, in its own page, in its lineage."""
    walk = scene.walk
    record = Store(str(scene.store)).run(NAME) or {}
    place = f"{walk.home}/artifact/{record['stages']['pages']['artifact']}"
    seen: list[Any] = []
    walk.chrome.get(place)
    seen.append(HOSTILE in walk.all("table.rows")[0].text)
    walk.ask(q="onerror=")
    seen.append(len(walk.rows()) == 1)
    walk.chrome.get(f"{place}/row/0")
    scene.lineage()
    seen.append(walk.texts("pre")[0] == HOSTILE)
    alive = walk.chrome.execute_script("return [window.owned || null, document.title.includes('owned')]")
    return alive, all(seen) and alive == [None, False] and not walk.all("pre img, pre b, pre script, table.rows img")


def nothing_was_refused_or_failed(scene: Scene) -> Found:
    """The browser's console, after all of it, is empty: no script of ours failed, no file was missing, the policy had nothing to stop."""
    lines = [line["message"] for line in scene.walk.chrome.get_log("browser")]
    return lines, lines == []
