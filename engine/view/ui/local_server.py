"""`flywheel ui`: serve the pages on this machine, for whoever has the link."""

from __future__ import annotations

import os
import socket
import webbrowser
from importlib.util import find_spec
from typing import Annotated

import typer

from engine.errors import UserError
from engine.view.output import put

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def ui(
    store: Annotated[str | None, typer.Option("--store", help="Folder or URL of artifacts [.flywheel].")] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="On this machine; any free one if 0.")] = 0,
    open_: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in a browser, where there is one.")
    ] = True,
) -> None:
    """Look at runs, rows, lineage, curves, evaluations, answers, people and costs in a browser, while they are made and after.

    The page is on this machine alone (127.0.0.1), for whoever has the link, and changes nothing.
    """
    if any(find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise UserError("`flywheel ui` needs the extra `ui`: pip install 'flywheel[ui]'.")
    import uvicorn

    from engine.store.store import Store
    from engine.view.ui.admission import Admission
    from engine.view.ui.site import Site

    opened = Store(store)
    admission = Admission(Site(opened).app())
    try:
        bound = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise UserError(
            f"port {port} of this machine can't be had: {error.strerror}. Leave --port out for a free one."
        ) from None
    link = f"http://127.0.0.1:{bound.getsockname()[1]}/?token={admission.token}"
    put(f"{link}\nStore: {opened.url}. Ctrl-C ends it.", flush=True)
    if open_ and (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        webbrowser.open(link)
    server = uvicorn.Server(
        uvicorn.Config(
            admission, log_level="warning", access_log=False, lifespan="off", server_header=False, timeout_keep_alive=75
        )
    )
    server.run(sockets=[bound])
