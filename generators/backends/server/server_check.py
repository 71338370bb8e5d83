"""For `Stage.check` of those that may ask a server: the client of HTTP (`reachable.py`) is imported where there is one to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.stage.preflight import Preflight
    from generators.backends.server.settings import ServerSettings


def check_servers(known: Preflight, *servers: ServerSettings | None) -> None:
    """Ask each server that a stage names whether it is there; none if the plan is offline.

    Raises:
        UserError: as `reachable.check`.
    """
    for server in servers:
        if server is not None and not known.offline:
            from generators.backends.server import reachable

            reachable.check(server, known)
