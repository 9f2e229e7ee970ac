"""Replies in the form of OpenAI's chat completions, whole or in pieces."""

import json
import secrets
import time
from typing import Any

from .chat import Chat
from .refusal import Refused
from .row import Ended, Prepared

DONE = b"data: [DONE]\n\n"


class Reply:
    """The reply to one request.

    What the protocol has no place for stands under `firebolt`: the answer's probability, doubts about it (null for a
    model that does not say what it was made for), and the seed that it was sampled with.
    """

    def __init__(self, chat: Chat, asked: Prepared):
        self.chat, self.asked = chat, asked
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def whole(self, ended: Ended) -> dict:
        message = {"role": "assistant", "content": ended.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": ended.reason}
        return {**self._head("chat.completion"), "choices": [choice], **self._tail(ended)}

    def first(self) -> bytes:
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> bytes:
        return self._chunk({"content": text})

    def last(self, ended: Ended) -> bytes:
        """The end of a stream."""
        end = self._chunk({}, ended.reason, firebolt=self._own(ended))
        if self.chat.with_usage:
            end += event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage(ended)})
        return end + DONE

    def _chunk(self, delta: dict, reason: str | None = None, **more) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **more})

    def _head(self, kind: str) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.chat.model}

    def _tail(self, ended: Ended) -> dict:
        return {"usage": self._usage(ended), "firebolt": self._own(ended)}

    def _usage(self, ended: Ended) -> dict:
        prompt = len(self.asked.prompt)
        return {"prompt_tokens": prompt, "completion_tokens": ended.tokens, "total_tokens": prompt + ended.tokens}

    def _own(self, ended: Ended) -> dict:
        seed = self.asked.sampler.seed if self.asked.sampler is not None else None
        return {"probability": round(ended.probability, 4), "doubts": self.asked.doubts, "seed": seed}


def event(value: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def failed(refused: Refused) -> bytes:
    """Return the end of a stream that could not go on."""
    return event(refused.to_dict())
