"""The endpoint for chat completions: a request from its first byte to the last of its answer."""

import asyncio
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

from anyio import CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from .chat import Chat, read_chat
from .desk import Desk
from .gate import DRAINED, Gate, drain
from .preparation import Preparation
from .refusal import Refused
from .replies import Reply, failed
from .row import Ended, Event, Prepared, Row

PREPARING = 2
"""Requests that are made ready at a time: images are large while they are decoded."""
GONE = None
"""Event of a client that hung up."""
LAST_WORD = 5.0
"""Seconds that a refusal may take to be sent."""


class Completions:
    """The endpoint for chat completions with the model that is called `name`."""

    def __init__(self, name: str, gate: Gate, preparation: Preparation, desk: Desk):
        self.name, self.preparation, self.desk = name, preparation, desk
        self.gate, self.limits, self.metrics = gate, gate.limits, gate.metrics
        self.preparing: CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            await self._serve(exchange)
        except ClientDisconnect:
            self.metrics.gone()
        except Refused as refused:
            await self._refuse(exchange, refused)
        except TimeoutError:
            message = f"no answer within {self.limits.seconds:g} s, the most here; ask for fewer tokens, or later"
            await self._refuse(exchange, Refused(504, message, "timeout", retry_after=self.metrics.retry_after()))
        except Exception:
            traceback.print_exc(file=sys.stderr)
            await self._refuse(exchange, Refused(500, "the server failed; its log says why", "internal_error"))

    async def _refuse(self, exchange: "Exchange", refused: Refused) -> None:
        self.metrics.refused(refused.status)
        with suppress(TimeoutError, ClientDisconnect):  # a client that does not read, or is gone
            async with asyncio.timeout(LAST_WORD):
                if not exchange.read:
                    await drain(exchange.request.stream(), DRAINED * self.limits.body)
                await exchange.refuse(refused)

    async def _serve(self, exchange: "Exchange") -> None:
        """Answer a request. Raises Refused, TimeoutError, ClientDisconnect."""
        start = time.perf_counter()
        request = exchange.request
        with self.gate.place():
            async with asyncio.timeout(self.limits.seconds):
                exchange.read = True
                body = await self.gate.body(request.headers, request.stream())
                _check_type(request)
                if self.preparing is None:
                    self.preparing = CapacityLimiter(PREPARING)
                chat, asked = await to_thread.run_sync(self._prepare, body, limiter=self.preparing)
                del body
                events: asyncio.Queue[Event | None] = asyncio.Queue()
                row = Row(asked, self.preparation.loaded.processor, _teller(events))
                gone = asyncio.create_task(_wait_until_gone(exchange.receive, events))
                try:
                    self.desk.submit(row)
                    ended = await self._reply(exchange, Reply(chat, asked), events, start)
                finally:
                    row.cancelled = True
                    gone.cancel()
        self.metrics.answered(len(asked.prompt), ended.tokens, time.perf_counter() - start)

    def _prepare(self, body: bytes) -> tuple[Chat, Prepared]:
        chat = read_chat(body)
        check_name(chat.model, self.name)
        return chat, self.preparation.prepare(chat)

    async def _reply(self, exchange: "Exchange", reply: Reply, events: asyncio.Queue, start: float) -> Ended:
        """Send what the row tells, until it ends. Raises Refused, ClientDisconnect."""
        while True:
            event = await events.get()
            if not exchange.heard and isinstance(event, str | Ended):
                exchange.heard = True
                self.metrics.began(time.perf_counter() - start)
            if event is GONE:
                raise ClientDisconnect
            if isinstance(event, Refused):
                raise event
            if reply.chat.stream and not exchange.begun:
                await exchange.begin_stream(reply.first())
            if isinstance(event, Ended):
                if reply.chat.stream:
                    await exchange.send_piece(reply.last(event), more=False)
                else:
                    await exchange.send_json(reply.whole(event))
                return event
            if reply.chat.stream:
                await exchange.send_piece(reply.piece(event))


class Exchange:
    """One request and its reply.

    read, heard, begun    whether its body was read, there is any of its answer, and any of its reply was sent
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self.scope, self.receive, self.send = scope, receive, send
        self.request = Request(scope, receive)
        self.read = self.heard = self.begun = False

    async def begin_stream(self, data: bytes) -> None:
        self.begun = True
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})
        await self.send_piece(data)

    async def send_piece(self, data: bytes, more: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def send_json(self, value: dict) -> None:
        self.begun = True
        await JSONResponse(value)(self.scope, self.receive, self.send)

    async def refuse(self, refused: Refused) -> None:
        if self.begun:
            await self.send_piece(failed(refused), more=False)
        else:
            await JSONResponse(refused.to_dict(), refused.status, refused.headers)(self.scope, self.receive, self.send)


def check_name(name: str, ours: str) -> None:
    """Check that a request means our model. Raises Refused."""
    if name != ours:
        raise Refused(404, f"model is {name!r}; expected {ours!r}, the one here", "model_not_found", "model")


def _check_type(request: Request) -> None:
    """Check that the body is JSON: what a page on the web can send here without being allowed is not."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Refused(415, f"the Content-Type is {kind!r}; expected application/json", "unsupported_media_type")


def _teller(events: asyncio.Queue) -> Callable[[Event], None]:
    """A listener for the model's thread, of events for the one of the loop that runs."""
    loop = asyncio.get_running_loop()

    def tell(event: Event) -> None:
        if not loop.is_closed():  # at the end of the server nobody listens any more
            loop.call_soon_threadsafe(events.put_nowait, event)

    return tell


async def _wait_until_gone(receive: Receive, events: asyncio.Queue) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    events.put_nowait(GONE)
