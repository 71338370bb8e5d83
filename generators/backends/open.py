"""The one way to whoever answers.

    open_backend(job, server, engine)    for a stage: its server, or the model among its inputs
    open_model, open_server              one of the two
    open_engine("vllm", folder)          token ids in and out; in a process of its own, or with `apart=False` in this one

Each kind is imported when it is opened: a process that asks a server loads no torch, and one that has its tokens sampled
in another process no vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from engine.stage.stage import PREVIEW
from generators.backends import adapters
from generators.backends.answerer import check_answerer
from generators.backends.engines import load_engine
from generators.backends.local_model import Local
from generators.backends.process.lent_process import lender
from generators.backends.process.watched import WatchedEngine
from generators.backends.protocol import Answer, Backend, EngineName, Failure, Listener, Usage
from generators.backends.replica_bounds import ReplicaCount, bounds
from generators.backends.replicas import Replicas, devices_of
from generators.text.prompts import load_tokenizer

if TYPE_CHECKING:
    from engine.stage.job import Job
    from engine.store.artifact import Artifact
    from generators.backends.process.engine_process import EngineProcess, Spec
    from generators.backends.server.settings import ServerSettings
    from generators.backends.vllm.engine import VllmEngine


def open_backend(
    job: Job, server: ServerSettings | None, engine: EngineName = "vllm", **options: Any
) -> tuple[Backend, str]:
    """Who answers for a stage, and the name that goes into its rows.

    Args:
        server: answers if it is set; else the model in the stage's `model` port does, in a watched process.
        options: as for `open_model`.

    Raises:
        UserError: the recipe names both, or neither.
    """
    model = job.maybe("model")
    check_answerer(int(model is not None), int(server is not None))
    if server is not None:
        return open_server(job, server), server.model
    assert model is not None
    return open_model(job, model, engine, **options), model.name


def open_server(job: Job, server: ServerSettings, part: str = "") -> Backend:
    """A server as a backend, with the answers that it gave before.

    Args:
        part: what it plays, where a stage opens several: what each spends is noted apart.
    """
    answers = job.store.scratch("answers") / "answers.sqlite"
    name = f"{server.model} ({part})" if part else server.model
    payer, report = f"{job.artifact} {name}", partial(report_usage, job, name)
    if server.batch and not job.options.get(PREVIEW):  # nobody waits a day to look at five rows
        from generators.backends.server.batch import BatchBackend

        return BatchBackend(server, answers, payer, job.say, report)
    from generators.backends.server.chat_completions import ServerBackend

    return ServerBackend(server, answers, payer, report, job.say, listener(job, name))


def open_model(
    job: Job,
    model: Artifact,
    engine: EngineName = "vllm",
    replicas: ReplicaCount = 1,
    options: dict[str, Any] | None = None,
    part: str = "",
    **more: Any,
) -> Local:
    """A model of the store as a backend: in watched processes, or behind a `vllm serve` of its own.

    Args:
        part: as for `open_server`.
        model: a model, or an adapter, which is served unmerged on its base.
        replicas: engines that share the batches; on a machine with GPUs each gets its share of them, on a cluster those of a node.
        options: of the engine, as it calls them itself.
        more: of the engine, in our words (`dtype`, `max_model_len`); None is left to the engine.
    """  # fmt: skip
    settings = {**{name: value for name, value in more.items() if value is not None}, **(options or {})}
    location, adapter = adapters.located(model, job.store)
    settings |= adapter
    tokenizer = load_tokenizer(model.location)
    name = f"{model.name} ({part})" if part else model.name
    before = Usage(**job.spent[name]) if name in job.spent else None
    report, heard = partial(report_usage, job, name), listener(job, name)
    if engine == "serve":
        from generators.backends.vllm.server_process import ServedEngine

        return Local(ServedEngine(location, job.scratch, job.say, **settings), tokenizer, 4, report, before, heard)
    if engine == "vllm":
        settings.setdefault("gpu_memory_utilization", 0.9)  # nobody trains beside it
    least, most = bounds(replicas)
    if job.options.get("executor") == "ray":
        from engine.execution.executors.ray import RayExecutor
        from generators.backends.ray_engines import EngineStarter

        if isinstance(job.executor, RayExecutor):
            job.executor.rest()  # engines need places, too

        def on_a_node(_: int) -> WatchedEngine:
            start = EngineStarter(model, job.store, settings, job.efforts.append, job.say)
            return open_engine(engine, location, say=job.say, elsewhere=start, **settings)

        return Local(Replicas(on_a_node, least, most), tokenizer, 2 * most, report, before, heard)
    shares = devices_of(most)
    loaded = f"{model.digest} on {location}"  # an adapter knows by name what it was trained on

    def here(number: int) -> WatchedEngine:
        devices = shares[number]
        lent = lender(model.id, loaded, devices, job.efforts.append)
        return open_engine(engine, location, say=job.say, devices=devices, elsewhere=lent, **settings)

    return Local(here(0) if most == 1 else Replicas(here, least, most), tokenizer, 2 * most, report, before, heard)


@overload
def open_engine(engine: Literal["vllm"], model: str, *, apart: Literal[False], **options: Any) -> VllmEngine: ...
@overload
def open_engine(engine: str, model: str, *, apart: Literal[False], **options: Any) -> Any: ...
@overload
def open_engine(
    engine: str,
    model: str,
    *,
    apart: Literal[True] = True,
    say: Callable[[str], None] = ...,
    devices: str | None = None,
    elsewhere: Callable[[Spec], EngineProcess] | None = None,
    **options: Any,
) -> WatchedEngine: ...
def open_engine(
    engine: str,
    model: str,
    *,
    apart: bool = True,
    say: Callable[[str], None] = lambda text: None,
    devices: str | None = None,
    elsewhere: Callable[[Spec], EngineProcess] | None = None,
    **options: Any,
) -> Any:
    """A token engine for a model folder or hub name.

    Args:
        engine: "vllm", "transformers" or the `module:Class` of another.
        apart: in a watched process of its own, which starts when it is first needed; else in this one, at once.
        say: told about deaths of that process, in one line each.
        devices: the GPUs that process may see, as CUDA_VISIBLE_DEVICES takes them; None: all.
        elsewhere: starts the process where it is no child of this one.
        options: of the engine.
    """
    if apart:
        return WatchedEngine(engine, model, say, devices, elsewhere, **options)
    return load_engine(engine, model, **options)


def report_usage(job: Job, name: str, usage: Usage) -> None:
    """Note what one who answers has spent in all."""
    job.spend(name, **asdict(usage))


def listener(job: Job, name: str) -> Listener | None:
    """In a preview, what tells each request and its answer to whoever looks on (the event `exchange`); else nothing."""
    if not job.options.get(PREVIEW):
        return None

    def tell(request: dict[str, Any], answer: Answer | Failure) -> None:
        said = (
            {"failure": f"{answer.reason}: {answer.detail}"} if isinstance(answer, Failure) else {"answer": answer.text}
        )
        job.emit({"event": "exchange", "who": name, "request": request, **said})

    return tell
