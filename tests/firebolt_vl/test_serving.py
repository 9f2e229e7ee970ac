"""Parts of a server: requests read, stops found in text, images fetched, who may ask, what is counted."""

import asyncio
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from serving import data_url, user
from tiny_models import ROUTED, make_model, make_processor
from transformers import GenerationConfig

from firebolt_vl.checkpoint import Loaded
from firebolt_vl.evaluate.familiar import Familiar
from firebolt_vl.model.generation import own_settings
from firebolt_vl.serving.chat import MOST_CHARACTERS, MOST_IMAGES, Sampling, read_chat
from firebolt_vl.serving.engine import Engine
from firebolt_vl.serving.gate import Gate, Limits, check_headers, is_own_machine
from firebolt_vl.serving.metrics import Metrics
from firebolt_vl.serving.pictures import Sources
from firebolt_vl.serving.refusal import Refused
from firebolt_vl.serving.row import Ended, Prepared, Row
from firebolt_vl.serving.sampling import Sampler
from firebolt_vl.serving.server import address_of
from firebolt_vl.serving.sight import Picture, Views
from firebolt_vl.serving.stopping import UntilStop

ASKED = {"model": "model", "messages": [user("why?")]}


def read(**changes):
    return read_chat(json.dumps({**ASKED, **changes}).encode())


@pytest.mark.parametrize(
    ("bound", "address"),
    [
        (("127.0.0.1", 8000), "http://127.0.0.1:8000"),
        (("192.168.1.7", 80), "http://192.168.1.7:80"),
        (("0.0.0.0", 8000), "http://127.0.0.1:8000"),
        (("::", 8000, 0, 0), "http://[::1]:8000"),
        (("fd00::7", 8000, 0, 0), "http://[fd00::7]:8000"),
    ],
)
def test_the_address_that_is_told_can_be_opened_here(bound, address):
    assert address_of(SimpleNamespace(getsockname=lambda: bound)) == address


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"messages": "why?"}, "messages"),
        ({"messages": ["why?"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "7"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "messages[0].tool_calls"),
        ({"messages": [user("a"), {"role": "assistant", "content": "b"}]}, "messages"),
        ({"messages": [{**user("a", "data:,"), "role": "system"}, user("b")]}, "messages[0].content[0]"),
        ({"messages": [user("a", *["data:,"] * (MOST_IMAGES + 1))]}, "messages"),
        ({"messages": [user("a" * (MOST_CHARACTERS + 1))]}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": "1"}, "top_p"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"top_k": 5}, "top_k"),
        ({"\ud800": "\ud800"}, "?"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_what_is_not_done_is_refused_by_name(changed, param):
    with pytest.raises(Refused) as refused:
        read(**changed)
    assert refused.value.param == param
    assert refused.value.status in (400, 413)
    told = json.dumps(refused.value.to_dict(), ensure_ascii=False).encode()
    assert len(told) < 2000


def test_what_asks_for_nothing_is_taken():
    chat = read(n=1, logprobs=False, tools=[], tool_choice="none", user="me", temperature=0, stop=None, top_p=1.0)
    assert (chat.sampling, chat.stop, chat.most_tokens, chat.stream) == (None, (), None, False)
    assert chat.question == "why?"


@pytest.mark.parametrize(
    ("asked", "sampling"),
    [
        ({}, None),
        ({"temperature": 0}, None),
        ({"temperature": 1e-9, "seed": 3}, None),
        ({"top_p": 0, "seed": 3}, None),
        ({"top_p": 1}, None),
        ({"seed": 3}, Sampling(None, None, 3)),
        ({"temperature": 1}, Sampling(1, None, None)),
        ({"top_p": 0.5, "seed": -1}, Sampling(None, 0.5, -1)),
    ],
)
def test_answers_are_sampled_where_something_asks_for_it(asked, sampling):
    assert read(**asked).sampling == sampling


def test_a_conversation_keeps_its_order_and_loses_halves_of_characters():
    turns = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [*user("a\ud800", "one")["content"], *user("b", "two")["content"]]},
        {"role": "assistant", "content": "c", "refusal": None, "annotations": []},
        {"role": "user", "content": "d", "name": None},
    ]
    chat = read(messages=turns)
    assert chat.images == ["one", "two"]
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user"]
    assert [part.get("text", part["type"]) for part in chat.messages[1]["content"]] == ["image", "a?", "image", "b"]
    assert (chat.texts, chat.question) == (["be brief", "a?", "b", "c", "d"], "d")


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text as it grows letter by letter, until it ends in a stop."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(
    st.lists(st.text("ab", max_size=4), max_size=6),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_a_text_is_cut_at_the_first_stop_however_it_comes(pieces, stops):
    said = []
    until = UntilStop(stops, said.append)
    for piece in pieces:
        until.put(piece)
    until.end()
    assert ("".join(said), until.found) == cut("".join(pieces), stops)
    assert all(said)


def test_files_are_read_inside_their_folder_alone(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "a b.png").write_bytes(b"image")
    (outside / "b.png").write_bytes(b"secret")
    (inside / "link.png").symlink_to(outside / "b.png")
    sources = Sources(inside, (), 5)
    for address in ("a b.png", str(inside / "a b.png"), (inside / "a b.png").as_uri()):
        assert sources.read(address, "image 1") == b"image"
    for address in ("../out/b.png", str(outside / "b.png"), "link.png", "gone.png", ".", "a\0b", "file:///etc/passwd"):
        with pytest.raises(Refused, match="no file in the folder of images"):
            sources.read(address, "image 1")
    with pytest.raises(Refused, match="reads no files") as refused:
        Sources().read(str(inside / "a b.png"), "image 1")
    assert refused.value.code == "image_not_allowed"
    with pytest.raises(Refused, match="larger than 4 bytes") as refused:
        Sources(inside, (), 4).read("a b.png", "image 1")
    assert refused.value.status == 413


class Pages(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "/image.png")
        else:
            self.send_response(200 if self.path == "/image.png" else 404)
        self.end_headers()
        self.wfile.write(b"image")

    def log_message(self, *_):
        pass


def test_hosts_that_are_allowed_are_fetched_from(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    with HTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            base = f"http://127.0.0.1:{server.server_port}"
            sources = Sources(None, ("127.0.0.1",), 5)
            assert sources.read(f"{base}/image.png", "image 1") == b"image"
            for path, status in (("/away", 302), ("/gone", 404)):
                with pytest.raises(Refused, match=f"status {status}"):
                    sources.read(base + path, "image 1")
            with pytest.raises(Refused, match="larger than 4 bytes"):
                Sources(None, ("127.0.0.1",), 4).read(f"{base}/image.png", "image 1")
            for address in (f"http://localhost:{server.server_port}/image.png", "http://[", "HTTP://other/"):
                with pytest.raises(Refused, match="fetches nothing"):
                    sources.read(address, "image 1")
        finally:
            server.shutdown()
    with pytest.raises(Refused, match="could not be fetched"):
        sources.read(f"{base}/image.png", "image 1")


def test_only_this_machine_and_those_with_the_key_may_ask():
    for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1"):
        assert is_own_machine(host)
    for host in ("", "0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "evil.example"):
        assert not is_own_machine(host)
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        check_headers({"host": host}, None, True)
    for host in ("evil.example", "evil.example:8000", "[::2]", ""):
        with pytest.raises(Refused, match="Host"):
            check_headers({"host": host}, None, True)
        check_headers({"host": host}, None, False)
    check_headers({"authorization": "Bearer ké"}, "ké", False)
    for given_key in ("Bearer no", "Bearer", "ké", ""):
        with pytest.raises(Refused) as refused:
            check_headers({"authorization": given_key}, "ké", False)
        assert refused.value.status == 401


def test_bodies_are_bounded_one_by_one_and_together():
    gate = Gate(Limits(body=10), Metrics())

    async def stream(*sizes):
        for size in sizes:
            yield b"a" * size

    async def body(*sizes, **headers):
        return await gate.body(headers, stream(*sizes))

    assert asyncio.run(body(4, 6)) == b"a" * 10
    for sizes, headers in (((4, 7), {}), ((11,), {}), ((1,), {"content-length": "11"})):
        with pytest.raises(Refused) as refused:
            asyncio.run(gate.body(headers, stream(*sizes)))
        assert refused.value.status == 413
    gate.held = 75
    with pytest.raises(Refused) as refused:
        asyncio.run(body(10))
    assert (refused.value.status, refused.value.retry_after) == (503, 1)
    assert gate.held == 75


def test_metrics_are_in_prometheus_form():
    metrics = Metrics()
    metrics.batch(3)
    metrics.refused(429)
    metrics.began(0.02)
    metrics.answered(5, 7, 2.0)
    page = metrics.page([("waiting", "Those that wait.", 4)])
    line = re.compile(r'# (HELP|TYPE) firebolt_\w+ .+|firebolt_\w+(\{\w+="[^"]+"\})? [\d.]+')
    assert [one for one in page.splitlines() if not line.fullmatch(one)] == []
    assert page.endswith("\n")
    for wanted in (
        'firebolt_requests_total{status="429"} 1',
        "firebolt_batch_rows_total 3",
        "firebolt_waiting 4",
        'firebolt_first_token_seconds_bucket{le="0.03"} 1',
        'firebolt_request_seconds_bucket{le="1"} 0',
        'firebolt_request_seconds_bucket{le="+Inf"} 1',
        "firebolt_request_seconds_sum 2.0",
    ):
        assert wanted in page.splitlines()
    assert metrics.retry_after() == 2


@pytest.fixture(scope="module")
def engine():
    loaded = Loaded(make_model().eval(), make_processor())
    own_settings(loaded.model, loaded.processor.tokenizer, sampled=False)
    return Engine(loaded, Views(loaded, None), Metrics())


def row_of(engine, prompt: str, most: int, told: list, sampler=None) -> Row:
    tokens = engine.loaded.processor.tokenizer(prompt).input_ids
    return Row(Prepared(tokens, [], most, sampler, (), None), engine.loaded.processor, told.append)


def test_rows_of_a_batch_end_one_by_one(engine):
    told = [[], [], []]
    rows = [row_of(engine, "what is it" + "?" * i, most, told[i]) for i, most in enumerate((3, 20, 9))]
    engine.answer(rows)
    for number, row in enumerate(rows):
        alone: list = []
        engine.answer([row_of(engine, "what is it" + "?" * number, row.asked.most, alone)])
        assert told[number][:-1] == alone[:-1]
        ended, by_itself = told[number][-1], alone[-1]
        assert (ended.text, ended.tokens, ended.reason) == (by_itself.text, by_itself.tokens, by_itself.reason)
        assert ended.probability == pytest.approx(by_itself.probability, abs=1e-4)


def test_the_model_stops_once_nobody_waits(engine, monkeypatch):
    rows = [row_of(engine, "why?", 500, []), row_of(engine, "where?", 500, [])]
    put = Row.put

    def put_and_hang_up(row, *given):
        put(row, *given)
        for one in rows:
            one.cancelled = len(rows[0].tokens) >= 5

    monkeypatch.setattr(Row, "put", put_and_hang_up)
    engine.answer(rows)
    assert [len(row.tokens) for row in rows] == [5, 4]
    assert not any(row.done for row in rows)


def test_a_batch_that_fails_is_answered_one_by_one(engine, monkeypatch):
    generate, sizes = engine.loaded.model.generate, []

    def short_of_memory(**given):
        sizes.append(len(given["input_ids"]))
        if sizes[-1] > 1:
            generate(**{**given, "generation_config": GenerationConfig(max_new_tokens=2, pad_token_id=0)})
            raise RuntimeError("out of memory")
        return generate(**given)

    settings = engine.loaded.model.generation_config
    sampled = GenerationConfig(**{**settings.to_dict(), "do_sample": True, "temperature": 1.0, "top_k": 50})
    told: list[list] = [[], []]

    def rows():
        return [
            row_of(engine, f"{i}?", 6, told[i], Sampler(sampled, Sampling(None, None, i), torch.device("cpu")))
            for i in range(2)
        ]

    for row in rows():
        engine.answer([row])
    alone = [list(events) for events in told]
    for events in told:
        events.clear()
    monkeypatch.setattr(engine.loaded.model, "generate", short_of_memory)
    monkeypatch.setattr(Row, "begun", False)
    engine.answer(rows())
    assert sizes == [2, 1, 1]
    assert [events[-1] for events in told] == [events[-1] for events in alone]
    monkeypatch.setattr(Row, "begun", True)
    engine.answer(rows())
    assert all(isinstance(events[-1], Refused) and events[-1].status == 500 for events in told)


def test_batches_fit_into_the_models_positions(engine):
    rows = [row_of(engine, "a" * 1000, 500, []), row_of(engine, "a" * 10, 900, []), row_of(engine, "a", 1100, [])]
    assert engine.together(rows[:1], rows[1])
    assert not engine.together(rows[:2], rows[2])


def test_rows_that_see_black_are_not_mixed_with_others(engine):
    black = Loaded(make_model("routed", **ROUTED["routed_original"]).eval(), make_processor())
    shown, bare = row_of(engine, "a", 2, []), row_of(engine, "a", 2, [])
    shown.asked = shown.asked._replace(pictures=[Picture("a", None, [], 0)])
    assert engine.together([shown], bare)
    apart = Engine(black, Views(black, None), Metrics())
    assert not apart.together([shown], bare)
    assert apart.together([shown], shown)
    assert apart.together([bare], bare)


def test_batches_are_not_mostly_padding(engine):
    long, short = row_of(engine, "a" * 1500, 2, []), [row_of(engine, "a", 2, []) for _ in range(3)]
    assert engine.together([long], short[0])  # few enough tokens
    assert not engine.together([long, *short[:2]], short[2])
    assert not engine.together([*short[:2], short[2]], long)
    assert engine.together([long] * 3, long)


def test_images_are_encoded_once_and_what_is_remembered_is_bounded(engine, image, monkeypatch):
    familiar = Familiar("all", [], [], dict.fromkeys(("paper", "strokes", "colour"), (0.0, 1.0)))
    data = image.read_bytes()
    sight = Views(engine.loaded, familiar)
    first, second = sight.ready([data, data])
    sight.look([first, second])
    assert (sight.encoded, second.seen) == (1, first.seen)
    assert sight.ready([data])[0].seen is first.seen
    monkeypatch.setattr(Views, "KEPT", 1)
    forgetful = Views(engine.loaded, familiar)
    forgetful.look(forgetful.ready([data]))
    assert forgetful.ready([data])[0].seen is None
    with pytest.raises(Refused, match="image 2 is not an image"):
        sight.ready([data, b"no image"])


def test_the_end_of_an_answer_is_told_once(engine):
    told: list = []
    engine.answer([row_of(engine, "why?", 4, told)])
    assert [type(event) for event in told].count(Ended) == 1
    assert "".join(event for event in told if isinstance(event, str)) == told[-1].text


def test_addresses_of_images_are_data_urls(image):
    assert Sources().read(data_url(image), "image 1") == image.read_bytes()
    assert Sources().read("DATA:,plain", "image 1") == b"plain"
    with pytest.raises(Refused, match="no comma"):
        Sources().read("data:image/png", "image 1")
