"""The web application around a model: what it tells of itself, who may ask, and errors in the protocol's form."""

import time
from contextlib import suppress

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .completions import Completions, check_name
from .desk import Desk
from .gate import Gate, Limits, check_headers, drain
from .metrics import Metrics
from .preparation import Preparation
from .refusal import Refused


class Service:
    """A model that clients ask for chat completions. `name` is what they call it."""

    def __init__(self, name: str, preparation: Preparation, desk: Desk, metrics: Metrics, limits: Limits):
        self.name, self.preparation, self.desk, self.metrics = name, preparation, desk, metrics
        self.gate, self.created = Gate(limits, metrics), int(time.time())

    def app(self, key: str | None = None, own_machine: bool = True) -> Starlette:
        """The application; arguments as for `gate.check_headers`."""
        completions = Completions(self.name, self.gate, self.preparation, self.desk)
        return Starlette(
            routes=[
                Route("/v1/chat/completions", completions, methods=["POST"]),
                Route("/v1/models", self.models),
                Route("/v1/models/{name:path}", self.model),
                Route("/health", self.health),
                Route("/metrics", self.count),
            ],
            middleware=[Middleware(Guard, key=key, own_machine=own_machine, most=self.gate.limits.body)],
            exception_handlers={HTTPException: _not_here, Refused: _refused},
        )

    async def models(self, request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> JSONResponse:
        check_name(request.path_params["name"], self.name)
        return JSONResponse(self._described())

    async def health(self, request: Request) -> JSONResponse:
        alive = self.desk.alive
        return JSONResponse({"status": "ok" if alive else "stopping"}, status_code=200 if alive else 503)

    async def count(self, request: Request) -> PlainTextResponse:
        gauges = (
            ("requests_inside", "Requests that wait or are being answered.", self.gate.inside),
            ("requests_waiting", "Requests that wait for the model.", self.desk.waiting),
            ("images_encoded", "Images that passed the encoder.", self.preparation.sight.encoded),
        )
        return PlainTextResponse(self.metrics.page(gauges), media_type="text/plain; version=0.0.4")

    def _described(self) -> dict:
        described = {"id": self.name, "object": "model", "created": self.created, "owned_by": "firebolt-vl"}
        return {**described, "max_model_len": self.desk.engine.positions}


class Guard:
    """A layer around an application that turns away those who may not ask; all may ask whether it is well."""

    def __init__(self, app: ASGIApp, key: str | None, own_machine: bool, most: int):
        """`most` are the bytes of a body that are read before it is refused."""
        self.app, self.key, self.own_machine, self.most = app, key, own_machine, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            request = Request(scope, receive)
            try:
                check_headers(request.headers, self.key, self.own_machine)
            except Refused as refused:
                with suppress(ClientDisconnect):
                    await drain(request.stream(), self.most)
                    await refusal(refused)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def refusal(refused: Refused) -> JSONResponse:
    return JSONResponse(refused.to_dict(), refused.status, refused.headers)


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return refusal(error)


def _not_here(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    message = f"{what} is not served; expected POST /v1/chat/completions, GET /v1/models, /health or /metrics"
    code = "method_not_allowed" if error.status_code == 405 else "not_found"
    reply = refusal(Refused(error.status_code, message, code))
    reply.headers.update(error.headers or {})
    return reply
