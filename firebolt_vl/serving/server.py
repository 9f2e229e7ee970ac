"""A server on a socket: from a checkpoint to the last answer after Ctrl-C."""

import os
import socket
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import Failure, Misuse, first_line
from ..files.writing import words

if TYPE_CHECKING:
    import uvicorn

    from ..checkpoint import Loaded
    from .gate import Limits
    from .pictures import Sources
    from .preparation import Most
    from .service import Service

STOPPING = 5.0
"""Seconds for the model to end its step once nobody waits for it."""
KEY = "FIREBOLT_API_KEY"
"""The variable of the environment with the key that clients have to know."""


class Plan(NamedTuple):
    """Description of what is served, and how."""

    name: str
    batch_size: int
    most: "Most"
    limits: "Limits"
    sources: "Sources"


def check_installed() -> None:
    """Check that what a web server needs is there. Raises Failure."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise Failure(f"{error.name} is not installed; pip install 'firebolt-vl[serve]'") from None


def listen(host: str, port: int) -> socket.socket:
    """Return a socket at an address. Raises Misuse where there can be none."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        why = first_line(error)
        raise Misuse(f"--host is {host}, which cannot be found ({why}); expected a name or an address") from None
    listener = socket.socket(family, kind)
    try:
        if os.name == "posix":  # the port of a server that ended just now is free
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise Misuse(
            f"--port is {port}, which cannot be had on {host} ({words(error)}); name another one, or 0 for any"
        ) from None
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the address at which clients on this machine reach a socket, which may be on all of its networks."""
    host, port = listener.getsockname()[:2]
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def build(loaded: "Loaded", folder: Path, plan: Plan, note: Callable[[str], None]) -> "Service":
    """Put a service together around a model."""
    from .desk import Desk
    from .engine import Engine
    from .metrics import Metrics
    from .preparation import Preparation
    from .service import Service

    preparation = Preparation(loaded, folder, plan.sources, plan.most, note)
    metrics = Metrics()
    desk = Desk(Engine(loaded, preparation.sight, metrics), plan.batch_size)
    return Service(plan.name, preparation, desk, metrics, plan.limits)


def web_server(service: "Service", listener: socket.socket, started: Callable[[], None]) -> "uvicorn.Server":
    """Return the server of a service, which calls `started` once it answers."""
    import uvicorn

    from .gate import is_own_machine

    @asynccontextmanager
    async def lifespan(app):
        started()
        yield

    app = service.app(os.environ.get(KEY) or None, is_own_machine(listener.getsockname()[0]))
    app.router.lifespan_context = lifespan
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=round(service.gate.limits.seconds),
    )
    return uvicorn.Server(config)


def run(server: "uvicorn.Server", service: "Service", listener: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM: what was let in by then is answered, a second Ctrl-C ends it at once."""
    service.desk.start()
    try:
        server.run(sockets=[listener])
    finally:
        service.desk.close(STOPPING)
        listener.close()
