"""The part of `benchmarks.labeling` that needs an Argilla server: speed, kills, a browser, contracts, bad input.

A server of its own is started in a temporary folder and stopped at the end; the installed environment is used as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.parts.claims import claim
from benchmarks.parts.engine_contract import engine_contract
from labeling.argilla import server
from labeling.argilla.client import Argilla, connect
from labeling.label.scripted import ScriptedAnnotator, annotate, rank
from labeling.tool.task import Dataset, RankingRecord, RankingTask, Submission

STATES = {"failure", "error", "skipped"}
Claim = tuple[str, Any, str, bool]
ROOT = Path(__file__).parents[1]
TESTS = (
    "server/test_argilla_search",
    "test_record_files",
    "test_argilla_rankings",
    "test_argilla_questions",
    "test_argilla_browser",
)
PROMPT = [{"role": "user", "content": "Which of these is the best, and why?"}]
# Tests of the bad input, by the names of test functions.
BAD_INPUT = {
    "wrong key": "test_wrong_key",
    "server down": "test_server_down",
    "half-made dataset": "test_a_half_made_dataset_is_finished",
    "other questions": "test_a_dataset_that_asks_something_else_is_refused_and_left_alone",
    "megabyte and broken records": "test_a_bad_record_stops_the_push_before_anything_is_sent",
    "1,000-character user names": "test_impossible_user_names",
    "HTML and script": "test_html_reaches_the_page_as_text",
    "dataset deleted": "test_a_dataset_that_somebody_deleted",
}


def served(quick: bool, only: Sequence[str] = ()) -> tuple[dict[str, Any], list[Claim]]:
    """What was found, and the claims; `only` names parts: speed, kills, search, tests, sdk, contract."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a benchmark that is stopped leaves no server behind
    with tempfile.TemporaryDirectory(prefix="flywheel-bench-argilla-") as folder:
        home = Path(folder) / "home"
        started = time.monotonic()
        running = server.up(home)
        found: dict[str, Any] = {"argilla": running.version, "seconds_to_start": round(time.monotonic() - started, 1)}
        parts: dict[str, Callable[[], list[Claim]]] = {
            "speed": lambda: speed(home, found, 2_000 if quick else 20_000),
            "kills": lambda: killed(home, found, 200 if quick else 2_000),
            "search": lambda: searched(home, found, 2_400 if quick else 24_000),
            "tests": lambda: tested(home, found),
            "sdk": lambda: [] if quick else sdk_tests(home, found),
            "contract": lambda: [] if quick else engine_contract(found),
        }
        try:
            claims = [one for name, part in parts.items() if name in (only or parts) for one in part()]
        finally:
            server.down(home)
    return found, claims


def speed(home: Path, found: dict[str, Any], count: int) -> list[Claim]:
    """Push records of four answers of some 300 characters, and pull what four annotators' worth of them got."""
    client = connect(home=home)
    rng = random.Random(0)
    words = ["model", "answer", "because", "the", "of", "people", "sea", "light", "every", "number", "Lima", "is"]
    records = [
        RankingRecord(f"r{i}", PROMPT, [" ".join(rng.choices(words, k=50)) for _ in range(4)]) for i in range(count)
    ]
    dataset = client.ensure_dataset(RankingTask("bench-speed", 4, workspace="bench"))
    started = time.monotonic()
    client.push(dataset, records)
    push = time.monotonic() - started
    started = time.monotonic()
    again = client.push(dataset, records[: count // 10])
    repeat = time.monotonic() - started
    (user,) = client.ensure_users(["bench"], "bench")
    started = time.monotonic()
    client.as_user(user).pending(dataset, 10)
    page = time.monotonic() - started
    started = time.monotonic()
    assert not list(client.pull(dataset))
    pull = time.monotonic() - started
    found["speed"] = {
        "records": count,
        "push_s": round(push, 2),
        "pull_s": round(pull, 2),
        "next_page_s": round(page, 3),
        "push_again_tenth_s": round(repeat, 2),
    }
    return [
        ("push", round(push, 2), f"seconds for {count:,} records of four answers, < {60 * count / 20_000:g}", push < 60 * count / 20_000),
        ("push_again_adds_nothing", again.new, "0 new", again.new == 0),
    ]  # fmt: skip


def searched(home: Path, found: dict[str, Any], count: int) -> list[Claim]:
    """All hits of a query that every record answers, page by page: the first reading makes the index, the second has it.

    Beside it the same without a query, which is what Argilla itself needs to give out the records.
    """
    client = connect(home=home)
    rng = random.Random(1)
    words = ["model", "answer", "because", "the", "of", "people", "sea", "light", "every", "number", "Lima", "is"]
    seconds: dict[str, float] = {}
    for name, records in (("half", count // 2), ("all", count)):
        dataset = client.ensure_dataset(RankingTask(f"bench-search-{name}", 4, workspace="bench"))
        texts = [[" ".join(rng.choices(words, k=50)) for _ in range(4)] for _ in range(records)]
        client.push(dataset, [RankingRecord(f"s{i}", PROMPT, answers) for i, answers in enumerate(texts)])
        for reading in ("unasked", "first", "again"):
            started, ids, total = time.monotonic(), set[str](), records
            while len(ids) < total:
                page = {"offset": len(ids), "limit": 1000}
                query = {} if reading == "unasked" else {"query": {"text": {"q": "which best"}}}
                hits = client.call("POST", f"datasets/{dataset.id}/records/search", json=query, params=page)
                total = hits["total"]
                ids |= {hit["record"]["id"] for hit in hits["items"]}
            assert len(ids) == records
            seconds[f"{name}_{reading}"] = round(time.monotonic() - started, 2)
    found["search"] = {"records": count, **seconds}
    bar = 8 * count / 24_000
    growth = round(seconds["all_again"] / seconds["half_again"], 2)
    return [
        ("search_reads_all", seconds["all_first"], f"seconds for {count:,} records by a query, < {bar:g}",
         seconds["all_first"] < bar),
        ("search_is_linear", growth, "times the seconds for twice the records, < 3", growth < 3),
    ]  # fmt: skip


def sdk_tests(home: Path, found: dict[str, Any]) -> list[Claim]:
    """Argilla's own integration tests (of its SDK's source release) against this server; those that need a hub skip."""
    running = server.up(home)
    with tempfile.TemporaryDirectory(prefix="flywheel-argilla-sdk-") as name:
        folder, report = Path(name), Path(name) / "report.xml"
        pin = f"argilla=={version('argilla')}"
        fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "argilla", pin, "-d", name]
        if subprocess.run(fetch, capture_output=True).returncode:
            return [("sdk_tests", None, "114 passed: the source release could not be had", False)]
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
        # What newer releases of huggingface_hub call otherwise.
        (folder / "sitecustomize.py").write_text(
            "import sys, huggingface_hub.errors as errors\nsys.modules['huggingface_hub.utils._errors'] = errors\n"
        )
        tests = next(folder.glob("argilla-*/tests/integration"))
        environment = {**os.environ, "ARGILLA_API_URL": running.url, "ARGILLA_API_KEY": running.api_key}
        command = [sys.executable, "-m", "pytest", "-q", str(tests), "-c", os.devnull, "--rootdir", name]
        subprocess.run(
            [*command, f"--junitxml={report}"], env={**environment, "PYTHONPATH": name}, cwd=folder, capture_output=True
        )
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    states = Counter(next((child.tag for child in case if child.tag in STATES), "passed") for case in cases)
    found["sdk_tests"] = dict(states)
    whole = states["passed"] >= 114 and not states["failure"] and not states["error"]
    return [("sdk_tests", dict(states), "114 passed, none failed (those that need a hub skip)", whole)]


def killed(home: Path, found: dict[str, Any], records: int, kills: int = 5) -> list[Claim]:
    """Eight annotators at once, three judgements a record, the server killed (-9) five times meanwhile."""
    client = connect(home=home, patience=300)
    dataset = client.ensure_dataset(RankingTask("bench-kills", 3, workspace="bench", min_submitted=3))
    texts = ["first", "second", "third"]
    pushed = [RankingRecord(f"k{i}", PROMPT, texts[i % 3 :] + texts[: i % 3]) for i in range(records)]
    client.push(dataset, pushed)
    worth = {"first": 2.0, "second": 1.0, "third": 0.0}
    annotators = [ScriptedAnnotator(f"bench-{i}", worth, noise=1.0, tie_margin=0.2, seed=i) for i in range(8)]
    accepted: list[tuple[str, tuple[int | None, ...]]] = []
    original = Argilla.submit
    lock, down = threading.Lock(), list[float]()

    def recorded(self: Argilla, dataset: Dataset, submissions: Sequence[Submission]) -> None:
        original(self, dataset, submissions)
        with lock:
            accepted.extend((s.record_id, tuple(s.ranks)) for s in submissions)
            while len(down) < kills and len(accepted) >= (len(down) + 1) * 3 * records // (kills + 1):
                running = server.status(home)
                assert running is not None
                os.kill(running.pids["server"], signal.SIGKILL)  # under the other annotators' requests
                since = time.monotonic()
                connect(home=home, patience=300).close()
                down.append(round(time.monotonic() - since, 1))

    Argilla.submit = recorded
    started = time.monotonic()
    try:
        submitted = annotate(client, dataset, annotators)
    finally:
        Argilla.submit = original
    seconds = time.monotonic() - started
    pulled = list(client.pull(dataset))
    by_name = {a.username: a for a in annotators}
    shown = {record.external_id: record.answers for record in pushed}
    got = Counter((response.record_id, response.ranks) for response in pulled)
    lost = sum((Counter(accepted) - got).values())
    extra = sum((got - Counter(accepted)).values())
    twice = len(pulled) - len({(r.record_id, r.user) for r in pulled})
    wrong = sum(r.ranks != rank(by_name[r.user], "", shown[r.external_id], r.external_id) for r in pulled)
    found["kills"] = {
        "annotators": 8,
        "records": records,
        "judgements_a_record": 3,
        "accepted": submitted,
        "pulled": len(pulled),
        "lost": lost,
        "not_accepted_but_there": extra,
        "twice": twice,
        "wrong_ranks": wrong,
        "kills": len(down),
        "seconds": round(seconds, 1),
        "seconds_without_a_server": down,
    }
    whole = submitted == len(pulled) == 3 * records and not (lost or extra or twice or wrong) and len(down) == kills
    return [
        (
            "killed_five_times",
            {"accepted": submitted, "pulled": len(pulled), "lost": lost, "twice": twice, "wrong": wrong, "kills": len(down)},
            f"{3 * records:,} accepted by 8 annotators, each pulled exactly once and as it was, {kills} kills",
            whole,
        )
    ]  # fmt: skip


def tested(home: Path, found: dict[str, Any]) -> list[Claim]:
    """The contract tests against this server by its address, as if it were a remote one; the browser's and bad input's."""
    running = server.up(home)
    report = home.parent / "tests.xml"
    environment = {**os.environ, "ARGILLA_API_URL": running.url, "ARGILLA_API_KEY": running.api_key}
    files = [f"tests/labeling/argilla/{name}.py" for name in TESTS]
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", *files, f"--junitxml={report}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    outcomes: dict[str, str] = {}
    module: dict[str, str] = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        states = {child.tag for child in case}
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        outcomes[name] = "failed" if states & {"failure", "error"} else "skipped" if "skipped" in states else "passed"
        module[name] = str(case.get("classname"))
    contract = Counter(o for name, o in outcomes.items() if not module[name].endswith("browser"))
    browser = [o for name, o in outcomes.items() if module[name].endswith("browser")]
    bad = {
        what: sorted({o for name, o in outcomes.items() if name.partition("::")[2].partition("[")[0] == test})
        for what, test in BAD_INPUT.items()
    }
    found["tests"] = {
        "seconds": round(time.monotonic() - started, 1),
        "contract": dict(contract),
        "browser": browser,
        "bad_input": bad,
        "failed": [name for name, o in outcomes.items() if o == "failed"],
        "tail": done.stdout.strip().splitlines()[-1:],
    }
    seen = shutil.which("chromium") is not None
    return [
        ("browser", "passed" if browser == ["passed"] else None if not seen else browser,
         "Chromium ranks with a tie by keyboard, corrects, submits; the pull holds just that", browser == ["passed"]),
        ("remote_contract", dict(contract), "all contract tests pass by ARGILLA_API_URL, none skipped",
         contract["passed"] > 0 and set(contract) == {"passed"}),
        ("bad_input", bad, "a clear error for each, nothing lost, nothing executed", all(o == ["passed"] for o in bad.values())),
    ]  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="fewer records, and not Argilla's own tests")
    options.add_argument("--only", nargs="*", default=(), help="parts: speed, kills, search, tests, sdk, contract")
    options.add_argument("--json", action="store_true", help="the last line is one JSON object")
    given = options.parse_args()
    found, claims = served(given.quick, given.only)
    stated = [claim(*one) for one in claims]
    if given.json:
        sys.stdout.write(json.dumps({**found, "claims": stated}) + "\n")
        return
    for one in stated:
        sys.stdout.write(f"{'holds' if one['holds'] else 'FAILS'}  {one['id']}: {one['value']} ({one['bar']})\n")


if __name__ == "__main__":
    main()
