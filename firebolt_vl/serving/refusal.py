"""Refusals of requests: a status of HTTP and one line, in the form that clients of OpenAI's protocol read."""

MOST_CHARACTERS = 1000
# What the protocol calls errors of each status; others are the request's own.
TYPES = {401: "authentication_error", 429: "rate_limit_error"}


class Refused(Exception):
    """A request that is not answered.

    status, code    of HTTP, and a word for programs
    param           the part of the request that is to be changed, where it is one
    retry_after     seconds after which another try may succeed
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, _plain(message), code
        self.param, self.retry_after = param and _plain(param), retry_after

    def to_dict(self) -> dict:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}


def _plain(text: str) -> str:
    """A text that can be sent, whatever of a request it quotes."""
    return text[:MOST_CHARACTERS].encode("utf-8", "replace").decode("utf-8")


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> Refused:
    """Return the refusal of a request that has to be changed."""
    return Refused(400, message, code, param)
