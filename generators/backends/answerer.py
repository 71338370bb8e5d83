"""Who answers for a stage: a model among its inputs, or a server. Told by `plan`, and held by the run."""

from __future__ import annotations

from engine.errors import UserError


def check_answerer(models: int, servers: int) -> None:
    """Exactly one of them.

    Raises:
        UserError: there is none, or there are both.
    """
    if models + servers != 1:
        raise UserError(
            "who answers? Expected either a model among the inputs (`from: {model: ...}`) or a `server:`, "
            f"found {'both' if models and servers else 'neither' if not (models or servers) else 'several'}."
        )


def check_answerers(models: int, servers: int, n: int, temperatures: int) -> None:
    """At least one of them, and samples enough that each has one at every temperature.

    Args:
        n: samples a prompt.

    Raises:
        UserError: there is nobody, or `n` is too small for all of them.
    """
    who = models + servers
    if not who:
        raise UserError(
            "who answers? Expected a model among the inputs (`from: {model: ...}`) or a `server:`, found neither."
        )
    if who * temperatures > n:
        raise UserError(
            f"`n: {n}` is too small for {who} who answer at {temperatures} temperatures: each "
            f"prompt gets one answer of each, so {who * temperatures} at least."
        )
