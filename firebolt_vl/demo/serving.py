"""The server behind the page: on this machine alone unless told, and nothing on the page comes from elsewhere."""

import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import Failure, Misuse
from ..files.writing import words

PORTS = range(7860, 7960)
MEGABYTE = 2**20
# What a browser may load and ask, whatever is written on the page: this server alone.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; form-action 'self'"
SECONDS_TO_CLOSE = 2


def listen(host: str, port: int | None) -> socket.socket:
    """Open the socket of the page; without `port` the first free one from 7860. Raises Misuse."""
    try:
        family, *_, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise Misuse(f"--host is {host}, which is no address here ({error}); expected one such as 127.0.0.1") from None
    for number in (port,) if port is not None else (*PORTS, 0):
        opened = socket.socket(family, socket.SOCK_STREAM)
        if os.name != "nt":  # there it would share a port that is taken
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((address[0], number, *address[2:]))
            opened.listen(socket.SOMAXCONN)
            return opened
        except OSError as error:
            opened.close()
            if error.errno == errno.EADDRNOTAVAIL:
                raise Misuse(f"--host is {host}, which is no address of this machine; expected one that is") from None
            if port is not None:
                raise Misuse(f"--port is {port}, which cannot be had ({words(error)}); name another") from None
    raise Misuse(f"--host is {host}, where no port can be had; name another, or a --port")


def is_local(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


class Guard:
    """Middleware that adds the policy to every response, and for a page on this machine alone refuses requests for
    another host: a site elsewhere whose name leads here would read what is asked (DNS rebinding)."""

    def __init__(self, app, local: bool):
        self.app, self.local = app, local

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        if self.local and not _names_this_machine(dict(scope["headers"]).get(b"host", b"").decode("latin-1")):
            await send_guarded({"type": "http.response.start", "status": 421, "headers": []})
            await send_guarded({"type": "http.response.body", "body": b"this page is for this machine alone\n"})
            return
        await self.app(scope, receive, send_guarded)


def _names_this_machine(host: str) -> bool:
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if name.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def make_app(page, local: bool, most_mb: int):
    """Make the application that serves a page (`demo.page.Page`), with files of at most so many megabytes."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware import Middleware

    folder = Path(__file__).parent
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, middleware=[Middleware(Guard, local=local)])
    return gr.mount_gradio_app(
        app,
        page.build(),
        path="/",
        max_file_size=most_mb * MEGABYTE,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        theme=gr.themes.Base(
            primary_hue="orange",
            font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
            font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
        ),
        head=f"<style>{style}</style><script>{script}</script>",
    )


def serve(
    checkpoint: str | None,
    host: str,
    port: int | None,
    most_mb: int,
    device: str,
    dtype: str,
    quantize: str | None,
    say: Callable[[str], None],
) -> None:
    """Serve the page until it is stopped; `say` is told its address. Raises Misuse, Failure."""
    with tempfile.TemporaryDirectory(prefix="firebolt-demo-") as uploads:
        # Before gradio is imported; its own folder is shared by all users of a machine.
        os.environ.update(GRADIO_TEMP_DIR=uploads, GRADIO_ANALYTICS_ENABLED="False")
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise Failure(f"the page needs gradio ({error}); install it: pip install 'firebolt-vl[demo]'") from None
        with listen(host, port) as opened:
            _serve_on(opened, checkpoint, most_mb, {"device": device, "dtype": dtype, "quantize": quantize}, say)


def _serve_on(
    opened: socket.socket, checkpoint: str | None, most_mb: int, how: dict, say: Callable[[str], None]
) -> None:
    from .answering import open_model
    from .page import Page

    page = Page(open_model(checkpoint, **how))
    address, number = opened.getsockname()[:2]
    local = is_local(address)
    app = make_app(page, local, most_mb)
    say(f"http://{f'[{address}]' if ':' in address else address}:{number}")
    if not local:
        say(f"whoever reaches {address} can ask and upload: there is no password")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that what was uploaded goes
    run_server(app, opened)


def run_server(app, opened: socket.socket) -> None:
    """Answer on a socket until a signal ends it; visitors who are still connected then are no error."""
    import uvicorn

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=SECONDS_TO_CLOSE)).run(sockets=[opened])
