"""Which faults are injected into what, and how often."""

from __future__ import annotations

import random
import shutil
import signal
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial

from tests.faults import bits, clocks, crowds, deaths, disks, garbles, services, shortages, two_writers
from tests.faults.ground import Ground
from tests.faults.outcome import Outcome

Fault = Callable[[], Outcome]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENGINES = ("sampled", "ppo", "grpo", "results")  # their answers are sampled by vLLM
# Of the stages of one kind, one is enough.
TWINS = {"crowd", "sifted", "exam", "facts", "programs", "questions", "valued"}
WRITERS = 100  # rounds of two that write one artifact
QUICK = 6.0  # CPU seconds: what is quicker is struck by everything


def _stages(ground: Ground) -> list[str]:
    return [stage for stage in ground.folder_of if stage not in TWINS]


def _quick(ground: Ground) -> list[str]:
    return [stage for stage in _stages(ground) if ground.cpu_of[stage] < QUICK and ground.kind_of[stage] != "label"]


def _bits(ground: Ground, seed: int) -> list[Fault]:
    """Each file of one copy is damaged in turn and put back, so they come one after the other."""
    draw, drawn = random.Random(seed), list[Fault]()
    store = ground.folder / "bits"
    shutil.rmtree(store, ignore_errors=True)
    ground.fill(store, "", gone=False)
    by_folder = defaultdict[str, list[str]](list)
    for name in bits.files_of(store):
        by_folder[name.split("/")[1]].append(name)
    for names in by_folder.values():
        for how in bits.HARMS:
            drawn.append(partial(bits.damage, store, draw.choice(names), how, random.Random(draw.random())))
    return drawn


def _repairs(ground: Ground, seed: int) -> list[Fault]:
    stages = sorted(_stages(ground), key=lambda stage: ground.cpu_of[stage])
    quick = [partial(bits.repair, ground, stage, _draw(seed, stage)) for stage in stages if stage not in ENGINES]
    left = ("answers", "asked", "cited", "compared", "talks", "statements", "base", "sft", "reward", "dpo", "kto")
    return [
        *quick,
        *(
            partial(bits.unfinished, ground, s, _draw(seed, s, n))
            for n in range(2)
            for s in left
            if s in ground.folder_of
        ),
    ]


def _deaths(ground: Ground, seed: int) -> list[Fault]:
    def drawn() -> Iterator[Fault]:
        quick, stages = _quick(ground), sorted(_stages(ground), key=lambda stage: ground.cpu_of[stage])
        for victim in deaths.VICTIMS:  # each stage once before any a second time
            for stage in stages:
                if stage in quick or victim in ("worker", "command"):
                    yield partial(deaths.kill, ground, stage, victim, _draw(seed, stage, victim))
        for stage in ENGINES:
            if stage in ground.folder_of:
                yield partial(deaths.kill_engine, ground, stage, seed)
        if "sifted" in ground.folder_of:
            for number in range(8):
                yield partial(deaths.kill_of_pool, ground, "sifted", seed + number)
        for at, which in enumerate(SIGNALS):
            for number, stage in enumerate(stages):
                if stage in quick or number % 3 == at:
                    yield partial(deaths.stop, ground, stage, which, _draw(seed, stage, at))

    return list(drawn())


def _crowds(ground: Ground, seed: int) -> list[Fault]:
    few = [s for s in ("clean", "unique", "statements", "asked", "compared", "best") if s in ground.folder_of]
    return [partial(crowds.together, ground, stage, runs) for stage in few for runs in (2, 3)]


def _disks(ground: Ground, seed: int) -> list[Fault]:
    if not disks.possible():
        return []
    full = [partial(disks.full, ground, stage, when) for stage in _quick(ground)[::2] for when in disks.FREE]
    return [*full, *(partial(disks.read_only, ground, stage) for stage in _quick(ground)[::3])]


def _shortages(ground: Ground, seed: int) -> list[Fault]:
    few = [s for s in ("clean", "unique", "chats", "asked") if s in ground.folder_of]
    return [
        partial(shortages.short, ground, stage, what, amount)
        for stage in few
        for what, (_, amounts) in shortages.SHORT.items()
        for amount in amounts
    ]


def _clocks(ground: Ground, seed: int) -> list[Fault]:
    if clocks.library() is None:
        return []
    few = [s for s in ("raw", "unique", "shards", "asked", "compared", "preferences") if s in ground.folder_of]
    return [
        partial(clocks.jump, ground, stage, which, _draw(seed, stage, which)) for stage in few for which in clocks.JUMPS
    ]


def _servers(ground: Ground, seed: int) -> list[Fault]:
    asking = [stage for stage in garbles.FIELDS if stage in ground.folder_of]
    return [
        *(partial(garbles.garble, ground, stage, share) for stage in asking for share in (0.4, 0.8)),
    ]


def _services(ground: Ground, seed: int) -> list[Fault]:
    """One after the other: they shut the gate that all share."""
    asking = [stage for stage in garbles.FIELDS if stage in ground.folder_of]
    faults: list[Fault] = [partial(services.server_away, ground, stage, 4, _draw(seed, stage)) for stage in asking]
    if "rankings" in ground.folder_of:
        for n, which in enumerate(("server", "redis", "supervisor", "server")):
            faults.append(partial(services.argilla_away, ground, "rankings", which, seed + n))
    return faults


def _buckets(ground: Ground, seed: int) -> list[Fault]:
    few = [s for s in ("raw", "unique", "statements", "asked", "shards") if s in ground.folder_of]
    gate, access = ground.opened.enter_context(services.bucket())
    return [
        partial(services.bucket_away, ground, stage, gate, access, _draw(seed, stage, n))
        for n in range(2)
        for stage in few
    ]


def _writers(ground: Ground, seed: int) -> list[Fault]:
    """A hundred rounds on one S3 server."""
    round_of = ground.opened.enter_context(two_writers.opened(seed))

    def writers(number: int) -> Outcome:
        wrong = round_of(number).wrong
        return Outcome(two_writers.FAULT, "a stage on S3", "wrong" if wrong else "same", "; ".join(wrong))

    return [partial(writers, number) for number in range(WRITERS)]


def name_of(fault: Fault, number: int) -> str:
    """What tells a fault from the others of its family, whatever other stages there are."""
    if not isinstance(fault, partial):
        return str(number)
    told = [one for one in fault.args if isinstance(one, (str, int, float))]
    return " ".join([fault.func.__name__, *map(str, told)])


def _draw(seed: int, *of: object) -> int:
    return zlib.crc32(repr((seed, *of)).encode())


# Family -> whether its faults are injected one after the other, its share of the time, and what gives them.
FAMILIES: dict[str, tuple[bool, float, Callable[[Ground, int], list[Fault]]]] = {
    "bits": (True, 2, _bits),
    "writers": (False, 8, _writers),
    "repairs": (False, 10, _repairs),
    "crowds": (True, 4, _crowds),
    "disks": (False, 5, _disks),
    "shortages": (False, 4, _shortages),
    "clocks": (False, 5, _clocks),
    "servers": (False, 5, _servers),
    "services": (True, 10, _services),
    "buckets": (True, 6, _buckets),
    "deaths": (False, 40, _deaths),
}
