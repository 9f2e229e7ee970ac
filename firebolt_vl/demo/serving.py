"""The server behind the page: on this machine alone unless told, and nothing on the page comes from elsewhere."""

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import Failure, Misuse
from ..serving.gate import check_headers, is_own_machine
from ..serving.refusal import Refused
from ..serving.server import address_of, listen

PORTS = range(7860, 7960)
MEGABYTE = 2**20
# What a browser may load and ask, whatever is written on the page: this server alone.
POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; form-action 'self'"
SECONDS_TO_CLOSE = 2


def open_socket(host: str, port: int | None) -> socket.socket:
    """Open the socket of the page; without `port` the first free one from 7860. Raises Misuse."""
    if port is not None:
        return listen(host, port)
    free = listen(host, 0)  # where the host is none, it is said here
    for number in PORTS:
        try:
            found = listen(host, number)
        except Misuse:
            continue
        free.close()
        return found
    return free


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

        try:
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            check_headers({"host": host}, key=None, own_machine=self.local)
        except Refused as refused:
            await send_guarded({"type": "http.response.start", "status": refused.status, "headers": []})
            await send_guarded({"type": "http.response.body", "body": f"{refused}\n".encode()})
            return
        await self.app(scope, receive, send_guarded)


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
        with open_socket(host, port) as opened:
            _serve_on(opened, checkpoint, most_mb, {"device": device, "dtype": dtype, "quantize": quantize}, say)


def _serve_on(
    opened: socket.socket, checkpoint: str | None, most_mb: int, how: dict, say: Callable[[str], None]
) -> None:
    from .answering import open_model
    from .page import Page

    page = Page(open_model(checkpoint, **how))
    local = is_own_machine(opened.getsockname()[0])
    app = make_app(page, local, most_mb)
    say(address_of(opened))
    if not local:
        say("whoever reaches this machine can ask and upload: there is no password")
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
