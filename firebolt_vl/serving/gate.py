"""Doorkeeping: how many requests are let in at a time, how large, from where, with which key."""

import hmac
from collections.abc import AsyncIterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import NamedTuple

from .metrics import Metrics
from .refusal import Refused

DRAINED = 8
"""Bodies that are too large are read to their end, up to so many times what is allowed: most clients hear of a refusal
only once they have sent everything."""
HELD = 8
"""Largest bodies that are in memory together."""


class Limits(NamedTuple):
    """Limits of a server.

    requests      let in at a time, those that are answered among them
    body          bytes of a request
    seconds       from a request to the end of its answer
    """

    requests: int = 128
    body: int = 2**25
    seconds: float = 120


class Gate:
    """Counts of what is let in, in the event loop's thread."""

    def __init__(self, limits: Limits, metrics: Metrics):
        self.limits, self.metrics = limits, metrics
        self.inside = self.held = 0

    @contextmanager
    def place(self):
        """A place for a request. Raises Refused where none is free."""
        if self.inside >= self.limits.requests:
            raise Refused(
                429,
                f"{self.inside} requests wait or are answered; expected at most {self.limits.requests} at a time; try "
                "again later",
                "queue_full",
                retry_after=self.metrics.retry_after(),
            )
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def body(self, headers: Mapping[str, str], stream: AsyncIterator[bytes]) -> bytes:
        """Read the body of a request. Raises Refused where it is too large, or too many large ones are being read."""
        told = headers.get("content-length", "")
        if told.isdecimal() and int(told) > self.limits.body:
            await drain(stream, DRAINED * self.limits.body)
            raise self._too_large()
        parts, size = [], 0
        try:
            async for part in stream:
                size += len(part)
                self.held += len(part)
                if size > self.limits.body:
                    parts.clear()
                    await drain(stream, DRAINED * self.limits.body)
                    raise self._too_large()
                if self.held > HELD * self.limits.body:
                    parts.clear()
                    await drain(stream, DRAINED * self.limits.body)
                    raise Refused(503, "too many large requests at a time; try again later", "busy", retry_after=1)
                parts.append(part)
            return b"".join(parts)
        finally:
            self.held -= size

    def _too_large(self) -> Refused:
        return Refused(413, f"the body is larger than {self.limits.body:,} bytes, the most here", "body_too_large")


async def drain(stream: AsyncIterator[bytes], most: int) -> None:
    """Read a body that is refused to its end, or `most` bytes of it."""
    size = 0
    async for part in stream:
        size += len(part)
        if size > most:
            return


def check_headers(headers: Mapping[str, str], key: str | None, own_machine: bool) -> None:
    """Check who asks. Raises Refused.

    `key` is what a client has to know, if anything. `own_machine`: only names of this machine are answered to, or a
    page on the web that calls itself by its address (DNS rebinding) could ask from a browser here.
    """
    if own_machine and not is_own_machine(_host(headers.get("host", ""))):
        raise Refused(
            403,
            f"the request's Host is {headers.get('host')!r}; expected localhost or an address of it (--host serves "
            "other names)",
            "wrong_host",
        )
    given = headers.get("authorization", "").partition(" ")[2].strip()
    if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
        raise Refused(401, "the Authorization header has no valid key; expected Bearer KEY", "invalid_api_key")


def is_own_machine(host: str) -> bool:
    """Return whether a name or an address is one of the machine's own, which no other machine reaches."""
    if host.lower() in ("localhost", ""):
        return host != ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _host(header: str) -> str:
    """The host of a Host header, without its port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
