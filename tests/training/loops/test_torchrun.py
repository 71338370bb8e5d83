"""Two nodes on this machine, each with a `torchrun` of its own; what they tell each other; and files of a node that the other doesn't see."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from pydantic import ValidationError

from engine.errors import UserError
from engine.execution.worker import carry_out
from engine.stage.stage import load
from engine.store.artifact import Artifact
from engine.store.store import Store
from tests.engine.running import until
from tests.training import killed, tiny
from tests.training.processes import alone
from training.loops import distributed, lead_files
from training.loops.launch import KEPT, Launch, launch, take_launch
from training.loops.roster import Roster

__all__ = ["alone"]  # applies to every test here

SCRIPT = Path(__file__).parents[3] / "examples" / "cluster" / "slurm_train.sh"
RECIPE = """\
name: nodes
seed: 3
stages:
  texts: {kind: read, paths: [texts.jsonl]}
  shards: {kind: tokenize, from: texts, vocab_size: 300, block: 16}
  base: {kind: pretrain, from: shards, size: {depth: 1, width: 32, heads: 1}, steps: 150, batch: 4, lr: 0.01, dtype: float32,
         checkpoint_every: 10, log_every: 1, processes: 2, sharding: shard}
  further: {kind: pretrain, from: {tokens: shards, model: base}, steps: 4, batch: 4, lr: 0.001, dtype: float32, processes: 2}
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# Stand-ins for Slurm's own commands: the nodes are both this machine. The first one's end is the step's.
SCONTROL = "#!/bin/bash\nfor node in $SLURM_JOB_NODELIST; do echo $node; done\n"
SRUN = """\
#!/bin/bash
for node in 1 0; do
    SLURM_NODEID=$node "$@" > "node$node.log" 2>&1 & echo $! > "node$node.partial"; mv "node$node.partial" "node$node.pid"
done
wait $! && first=0 || first=$?
wait "$(cat node1.pid)" && exit $first
"""


class Nodes:
    """The form that Slurm starts training in, with a `torchrun` on each of two nodes."""

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder = folder
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        env = {
            **os.environ, "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
            "FLYWHEEL_STORE": str(folder / "store"), "MASTER_PORT": str(free_port()), "SLURM_NNODES": "2",
            "SLURM_JOB_NODELIST": "127.0.0.1 127.0.0.1",
        }  # fmt: skip
        self.script = subprocess.Popen([SCRIPT, recipe], cwd=folder, env=env)

    def below(self, node: int) -> dict[int, bytes]:
        """The processes of a node, by their command."""
        first = int((self.folder / f"node{node}.pid").read_text())
        return {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in [first, *below(first)]}

    def end(self) -> int:
        try:
            return self.script.wait(200)
        finally:
            for pid in below(self.script.pid) if self.script.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
            self.script.kill()

    def said(self, node: int) -> str:
        return (self.folder / f"node{node}.log").read_text()


def below(pid: int) -> list[int]:
    children = [int(p) for task in Path(f"/proc/{pid}/task").iterdir() for p in (task / "children").read_text().split()]
    return [*children, *(lower for child in children for lower in below(child))]


@pytest.mark.slow
def test_two_nodes_train_what_two_processes_do_and_go_on_when_one_is_lost(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": tiny.TEXT * (i % 5 + 1)}) + "\n" for i in range(40))
    )
    (tmp_path / "nodes.yaml").write_text(RECIPE)
    nodes = Nodes(tmp_path, "nodes.yaml")

    def steps() -> int:
        return max(
            (len(file.read_text().splitlines()) for file in tmp_path.glob("store/work/pretrain-*/metrics.jsonl")),
            default=0,
        )

    try:
        until(lambda: steps() > 12 or nodes.script.poll() is not None, 150)
        (part,) = [pid for pid, command in nodes.below(1).items() if b"training.loops.torchrun" in command]
        os.kill(part, signal.SIGKILL)
    finally:
        code = nodes.end()
    assert code == 1
    words = f"process 1 of 2, on {socket.gethostname()}, is gone: it was killed by SIGKILL. What is done is kept"
    assert f"flywheel: stage `base` (pretrain): {words}" in nodes.said(0)
    assert not [line for line in nodes.said(0).splitlines() if "RuntimeError" in line]

    nodes = Nodes(tmp_path, "nodes.yaml")
    assert nodes.end() == 0, nodes.said(0) + nodes.said(1)
    assert "from step " in nodes.said(0)
    assert "4 stages done" in nodes.said(0) and "stages done" not in nodes.said(1)

    killed.ready()
    store, other = (Store(str(tmp_path / name)) for name in ("store", "other"))
    tokens, made = store.find("nodes/shards"), dict[str, Artifact]()
    for name in ("base", "further"):  # the same by two processes of one machine
        ours = store.find(f"nodes/{name}")
        stage = load("pretrain").model_validate(ours.manifest["stage"]["config"])
        made[name] = carry_out(
            other, "pretrain", stage, {"tokens": {"shards": tokens}, **({"model": made} if made else {})}
        )
        assert (made[name].key, made[name].digest) == (ours.key, ours.digest)


def test_a_recipe_that_wants_another_number_than_torchrun_started_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        KEPT, json.dumps({"rank": 0, "world": 4, "gpu": 0, "beside": 2, "address": "a", "port": 1, "attempt": 0})
    )
    for kind in ("pretrain", "sft", "ppo"):
        with pytest.raises(
            ValidationError, match=r"`processes` is 2, and torchrun has started 4 .* have it start as many, or leave"
        ):
            load(kind).model_validate({"processes": 2})
        for count in (1, 4, None):
            load(kind).model_validate({"processes": count})


def test_torchruns_variables_are_hidden_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEPT, "")
    told = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1", "MASTER_ADDR": "node0",
            "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}  # fmt: skip
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert take_launch() == launch() == Launch(3, 4, 1, 2, "node0", 29500, 1)
    assert not told.keys() & os.environ.keys()
    monkeypatch.delenv(KEPT)
    assert take_launch() is None and launch() is None


def test_who_is_lost_is_told_in_words() -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True)
    lead, one, two = (Roster(Launch(rank, 3, 0, 1, "127.0.0.1", server.port, 0)) for rank in range(3))
    assert one.count(1) is None
    number = lead.announce(3, b"order")
    assert (number, one.count(number), one.order(number)) == (1, 3, b"order")
    assert lead.lost(number, 3) == ""
    for roster in (one, two):
        with roster.alive():
            assert lead.lost(number, 3) == ""
    assert lead.lost(number, 3, silence_s=-1).startswith("process 1 of 3, on ")
    two.lose(number, "has failed: the disk is full")
    two.lose(number, "has failed: and so on")
    assert (
        lead.lost(number, 3, silence_s=-1) == f"process 2 of 3, on {socket.gethostname()}, has failed: the disk is full"
    )
    assert lead.lost(number, 2) == "" and lead.lost(number + 1, 3) == ""
    assert one.ended() is None
    for roster in (one, two):
        roster.leave()
    lead.dismiss(3)
    assert one.ended() == 3


# -- files of a node that the other doesn't see --------------------------------------------------------------------------


def _job(place: Path, local: bool) -> Any:
    return SimpleNamespace(
        store=SimpleNamespace(local=local, url="there", workplace=lambda: place),
        artifact="a",
        scratch=_made(place / "a"),
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _node(number: int, places: list[Path], address: str, local: bool, answer: Path) -> None:
    """A process of a test: what it makes of its own scratch folder and rank 0's."""
    distributed.join(number, len(places), 0, address)
    job = _job(places[number], local)
    try:
        lead_files.meet(job)
        found = lead_files.from_lead_file(lambda: job.scratch / "checkpoints", job.scratch)
        one = lead_files.from_lead_file(lambda: job.scratch / "examples", job.scratch)
        none = lead_files.from_lead_file(lambda: None, job.scratch)
        assert found and one and none is None
        files = {
            f.relative_to(places[number]).as_posix(): f.read_text()
            for f in sorted(job.scratch.rglob("*"))
            if f.is_file()
        }
        answer.write_text(json.dumps([str(found), str(one), files]))
    except UserError as error:
        answer.write_text(json.dumps(str(error)))
    distributed.leave()


def _meet(tmp_path: Path, places: list[Path], local: bool) -> list[Any]:
    """What each process found."""
    scratch = _made(places[0] / "a")
    for name, text in {
        "checkpoints/step-1/state": "s" * 100,
        "checkpoints/step-1/seal": "",
        "examples": "e" * 50,
    }.items():
        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / name).write_text(text)
    context, address = killed.ready([__name__]), f"tcp://127.0.0.1:{free_port()}"
    answers = [tmp_path / f"answer{number}" for number in range(len(places))]
    started = [
        context.Process(target=_node, args=(n, places, address, local, answer)) for n, answer in enumerate(answers)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * len(places)
    return [json.loads(answer.read_text()) for answer in answers]


def test_a_node_that_does_not_see_the_leads_files_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / "lead", tmp_path / "node", tmp_path / "node", tmp_path / "lead"]
    (_made(tmp_path / "node" / "a") / "of-another-time").touch()
    found = _meet(tmp_path, places, local=False)
    for place, (checkpoints, examples, files) in zip(places, found, strict=True):
        assert (checkpoints, examples) == (str(place / "a/checkpoints"), str(place / "a/examples"))
        assert files == {
            "a/checkpoints/step-1/seal": "",
            "a/checkpoints/step-1/state": "s" * 100,
            "a/examples": "e" * 50,
        }


def test_a_folder_that_is_not_the_same_on_all_nodes_is_no_store_for_them(tmp_path: Path) -> None:
    for words in _meet(tmp_path, [tmp_path / "lead", tmp_path / "node"], local=True):
        host = socket.gethostname()
        assert words.startswith(
            f"the store there of the run, which process 0 on {host} leads, is not what {host} has there"
        )
