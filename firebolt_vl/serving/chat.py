"""Requests for a chat completion, read: what is asked, and how it is to be answered.

A parameter of OpenAI's protocol that would change the answer in a way that is not done here is refused, not ignored.
"""

import json
from typing import Any, NamedTuple

from ..files.reading import parse_json
from .refusal import Refused, bad_request

ROLES = ("system", "developer", "user", "assistant")
MOST_IMAGES = 16
MOST_CHARACTERS = 1_000_000
"""Of all texts of a request: a model reads some thousand tokens."""
MOST_STOPS = 4
COLDEST = 1e-5
"""Temperature below which an answer is the most likely one."""
MOST_SHOWN = 60

READ = (
    *("model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream"),
    "stream_options",
)
# What changes no answer.
WITHOUT_EFFECT = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls",),
)
# What may stand there as long as it asks for nothing.
NEUTRAL = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


class Sampling(NamedTuple):
    """Settings of an answer that is sampled: None is the checkpoint's own, for the seed any."""

    temperature: float | None
    top_p: float | None
    seed: int | None


class Chat(NamedTuple):
    """A request for a chat completion.

    messages    for the chat template: role, and content as a list of parts; an image is {"type": "image"}
    images      where they come from, in their order
    """

    model: str
    messages: list[dict]
    images: list[str]
    most_tokens: int | None
    sampling: Sampling | None
    """None for the most likely answer."""
    stop: tuple[str, ...]
    stream: bool
    with_usage: bool

    @property
    def texts(self) -> list[str]:
        return [part["text"] for message in self.messages for part in message["content"] if part["type"] == "text"]

    @property
    def question(self) -> str:
        """The text of the last turn."""
        return "".join(part["text"] for part in self.messages[-1]["content"] if part["type"] == "text")


def read_chat(body: bytes) -> Chat:
    """Read the body of a request. Raises Refused."""
    try:
        whole = parse_json(body)
    except ValueError as error:
        raise bad_request(f"the body is not valid JSON ({error})", code="invalid_json") from None
    if not isinstance(whole, dict):
        raise bad_request(
            f'the body is {shown(whole)}; expected {{"model": ..., "messages": [...]}}', code="invalid_json"
        )
    asked = {name: value for name, value in whole.items() if value is not None}
    _check_names(asked)
    images: list[str] = []
    messages = _messages(asked, images)
    options = asked.get("stream_options", {})
    if not isinstance(options, dict):
        raise bad_request(f"stream_options is {shown(options)}; expected an object", "stream_options")
    return Chat(
        model=_text(asked, "model"),
        messages=messages,
        images=images,
        most_tokens=_most_tokens(asked),
        sampling=_sampling(asked),
        stop=_stop(asked),
        stream=_flag(asked, "stream"),
        with_usage=_flag(options, "include_usage"),
    )


def shown(value: Any) -> str:
    """Return a value of a request as JSON, cut short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def _check_names(asked: dict) -> None:
    for name, value in asked.items():
        if name in READ or name in WITHOUT_EFFECT:
            continue
        if name not in NEUTRAL:
            raise bad_request(f"{name} is {shown(value)}, a parameter that is not known here; leave it out", name)
        if value not in NEUTRAL[name]:
            allowed = " or ".join(map(shown, NEUTRAL[name]))
            raise bad_request(f"{name} is {shown(value)}; expected {allowed}: nothing else is done here", name)


def _text(asked: dict, name: str) -> str:
    value = asked.get(name)
    if not isinstance(value, str) or not value:
        raise bad_request(f"{name} is {shown(value)}; expected a text", name)
    return value


def _flag(asked: dict, name: str) -> bool:
    value = asked.get(name) or False
    if not isinstance(value, bool):
        raise bad_request(f"{name} is {shown(value)}; expected true or false", name)
    return value


def _number(asked: dict, name: str, low: float, high: float, whole: bool = False) -> Any:
    """The number of that name; None where there is none. Raises Refused."""
    value = asked.get(name)
    if value is None:
        return None
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "an integer" if whole else "a number"
        raise bad_request(f"{name} is {shown(value)}; expected {kind} from {low:,} to {high:,}", name)
    return value


def _most_tokens(asked: dict) -> int | None:
    names = ("max_completion_tokens", "max_tokens")
    found = [_number(asked, name, 1, 2**31 - 1, whole=True) for name in names]
    return next((value for value in found if value is not None), None)


def _sampling(asked: dict) -> Sampling | None:
    """Read how to sample; None where neither a seed nor a temperature nor top_p asks for it."""
    temperature, top_p = _number(asked, "temperature", 0, 2), _number(asked, "top_p", 0, 1)
    seed = _number(asked, "seed", -(2**63), 2**64 - 1, whole=True)
    nothing_asked = temperature is None and seed is None and top_p in (None, 1)
    one_token_left = (temperature is not None and temperature < COLDEST) or top_p == 0
    return None if nothing_asked or one_token_left else Sampling(temperature, top_p, seed)


def _stop(asked: dict) -> tuple[str, ...]:
    value = asked.get("stop", [])
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise bad_request(f"stop is {shown(value)}; expected a text or a list of texts that are not empty", "stop")
    if len(stops) > MOST_STOPS:
        raise bad_request(f"stop has {len(stops)} texts; expected at most {MOST_STOPS}", "stop")
    return tuple(stops)


def _messages(asked: dict, images: list[str]) -> list[dict]:
    """The conversation for the chat template; where its images come from is added to `images`. Raises Refused."""
    given = asked.get("messages")
    if not isinstance(given, list) or not given:
        raise bad_request(f"messages is {shown(given)}; expected a list of one or more messages", "messages")
    messages = [_message(f"messages[{number}]", one, images) for number, one in enumerate(given)]
    if messages[-1]["role"] != "user":
        raise bad_request(
            f"messages[{len(given) - 1}].role is {shown(messages[-1]['role'])}; expected the last message to be the "
            "user's",
            "messages",
        )
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    if not "".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text").strip():
        raise bad_request("messages has no text in its last message; expected a question", "messages")
    if (length := sum(map(len, texts))) > MOST_CHARACTERS:
        raise Refused(
            413,
            f"messages has {length:,} characters; expected at most {MOST_CHARACTERS:,}",
            "context_length_exceeded",
            "messages",
        )
    if len(images) > MOST_IMAGES:
        raise bad_request(f"messages has {len(images)} images; expected at most {MOST_IMAGES}", "messages")
    return messages


def _message(where: str, given: Any, images: list[str]) -> dict:
    if not isinstance(given, dict):
        raise bad_request(f"{where} is {shown(given)}; expected an object with role and content", where)
    role, content = given.get("role"), given.get("content")
    if role not in ROLES:
        raise bad_request(f"{where}.role is {shown(role)}; expected one of {', '.join(ROLES)}", f"{where}.role")
    for name, value in given.items():
        if name not in ("role", "content") and value:  # a client sends an answer back with all its empty fields
            raise bad_request(f"{where}.{name} is {shown(value)}; expected none: it is not read", f"{where}.{name}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise bad_request(
            f"{where}.content is {shown(content)}; expected a text or a list of parts", f"{where}.content"
        )
    role = "system" if role == "developer" else role
    parts = [_part(f"{where}.content[{number}]", role, part, images) for number, part in enumerate(content)]
    return {"role": role, "content": parts}


def _part(where: str, role: str, part: Any, images: list[str]) -> dict:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        # Halves of a surrogate pair, which JSON allows, are no characters.
        return {"type": "text", "text": part["text"].encode("utf-8", "replace").decode("utf-8")}
    if kind == "image_url":
        if role != "user":
            raise bad_request(f"{where} is an image of the {role}; expected images in the user's messages", where)
        given = part.get("image_url")
        url = given.get("url") if isinstance(given, dict) else given
        if not isinstance(url, str) or not url:
            raise bad_request(f"{where}.image_url is {shown(given)}; expected an object with a url", where)
        images.append(url)
        return {"type": "image"}
    raise bad_request(f"{where} is {shown(part)}; expected a part of type text or image_url", where)
