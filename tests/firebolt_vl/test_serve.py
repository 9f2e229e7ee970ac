"""`firebolt serve`: the openai client gets the answers of `firebolt ask`, whoever else asks, hangs up or is refused."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import assert_refused
from foveated import make_foveated
from serving import data_url, running, user
from tiny_models import make_tokenizer

from firebolt_vl import embedded_checkpoint, serve_benchmark
from firebolt_vl.answer_files import Question
from firebolt_vl.ask import ask, ignore_settings
from firebolt_vl.batch import Answering
from firebolt_vl.checkpoint import load
from firebolt_vl.evaluate.familiar import read_familiar
from firebolt_vl.model import CHAT_TEMPLATE, FoveatedImageProcessor, FoveatedProcessor
from firebolt_vl.model.images import open_image
from firebolt_vl.watch import load_foveated, watch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
IMAGES = sorted(EXAMPLES.glob("digits-*.png"))
QUESTIONS = ("what digit is at the top left?", "how many digits are there?", "is there a 3?", "what digit is red?")


@pytest.fixture(scope="module")
def served():
    """The embedded model."""
    with running(embedded_checkpoint()) as server:
        yield server


@pytest.fixture(scope="module")
def slow(checkpoint):
    """A model with random weights, which goes on for as long as it may; few are let in."""
    with running(checkpoint, requests=3, body=10**6) as server:
        yield server


def spoken(stream) -> str:
    return "".join(piece.choices[0].delta.content or "" for piece in stream if piece.choices)


def test_64_clients_get_what_each_gets_alone_in_their_order(served):
    asked = [(IMAGES[i % len(IMAGES)], QUESTIONS[i % 4], "?" * (i % 5)) for i in range(64)]
    loaded = load(embedded_checkpoint(), "cpu")
    ignore_settings(loaded, None, print)
    alone = Answering(loaded, open_image, 128, familiar=read_familiar(embedded_checkpoint()))
    wanted = [alone.answer([Question(i, i, q + more, [str(image)])])[0] for i, (image, q, more) in enumerate(asked)]
    client = served.client()

    def one(number: int):
        image, question, more = asked[number]
        messages = [user(question + more, data_url(image))]
        if number % 2:
            return spoken(client.chat.completions.create(model="model", messages=messages, stream=True)), None
        reply = client.chat.completions.create(model="model", messages=messages)
        return reply.choices[0].message.content, reply

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(one, range(64)))
    assert [text for text, _ in found] == [answer.answer for answer in wanted]
    for (_, reply), answer in zip(found, wanted):
        if reply is not None:
            used = reply.usage.prompt_tokens, reply.usage.completion_tokens
            assert used == (answer.prompt_tokens, answer.answer_tokens)
            assert reply.model_extra["firebolt"]["probability"] == pytest.approx(answer.probability, abs=1e-4)
            assert reply.model_extra["firebolt"]["doubts"] == answer.doubts
            assert reply.choices[0].finish_reason == "stop"
    assert served.count("images_encoded") == len(IMAGES)
    assert served.count("batches_total") < 64


def test_a_seed_replays_and_gives_what_ask_gives_with_it(slow, image, checkpoint):
    client = slow.client()

    def sampled(seed: int, **more) -> tuple[str, float]:
        messages = [user("why?", data_url(image))]
        reply = client.chat.completions.create(model="model", messages=messages, seed=seed, max_tokens=12, **more)
        assert reply.model_extra["firebolt"]["seed"] == seed
        return reply.choices[0].message.content, reply.model_extra["firebolt"]["probability"]

    def asked(seed: int | None) -> tuple[str, float]:
        reply = ask(str(image), "why?", str(checkpoint), max_new_tokens=12, seed=seed)
        return reply.answer, round(reply.probability, 4)

    seeds = (0, 1, -3)
    wanted = [asked(seed) for seed in seeds]
    assert len(set(wanted)) == 3
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(sampled, seeds)) == wanted
    assert sampled(0, temperature=1.7, top_p=0.9) == sampled(0, temperature=1.7, top_p=0.9) != wanted[0]
    assert sampled(5, temperature=0.001) == asked(None)


def test_a_temperature_without_a_seed_tells_the_seed_that_replays_it(slow):
    def asked(**how):
        return slow.client().chat.completions.create(model="model", messages=[user("why?")], max_tokens=12, **how)

    first = asked(temperature=1.0)
    again = asked(temperature=1.0, seed=first.model_extra["firebolt"]["seed"])
    assert again.choices[0].message.content == first.choices[0].message.content


def test_streams_say_the_same_in_pieces(slow, image):
    client, messages = slow.client(), [user("why?", data_url(image))]
    whole = client.chat.completions.create(model="model", messages=messages, max_tokens=9)
    pieces = list(
        client.chat.completions.create(
            model="model", messages=messages, max_tokens=9, stream=True, stream_options={"include_usage": True}
        )
    )
    assert spoken(pieces) == whole.choices[0].message.content
    assert pieces[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert pieces[-1].usage == whole.usage
    assert len({piece.id for piece in pieces}) == 1


def test_several_turns_and_images_are_one_prompt(slow, image, checkpoint):
    url, client = data_url(image), slow.client()
    turns = [
        {"role": "system", "content": "be brief"},
        user("what?", url),
        {"role": "assistant", "content": "this"},
        user("and these?", url, url),
    ]
    reply = client.chat.completions.create(model="model", messages=turns, max_tokens=7)
    model, processor = load(checkpoint, "cpu")
    text = processor.apply_chat_template(turns_for_the_template(turns), add_generation_prompt=True)
    inputs = processor(images=[[open_image(image)] * 3], text=[text], return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(**inputs, max_new_tokens=7, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert reply.choices[0].message.content == processor.decode(tokens, skip_special_tokens=True).strip()
    assert reply.usage.prompt_tokens == inputs["input_ids"].shape[1]
    answered = [*turns, reply.choices[0].message.model_dump(), user("why?")]  # as clients go on
    assert client.chat.completions.create(model="model", messages=answered, max_tokens=3).usage.completion_tokens <= 3


def turns_for_the_template(turns: list[dict]) -> list[dict]:
    rename = {"image_url": {"type": "image"}}
    return [
        {**turn, "content": [rename.get(part["type"], part) for part in turn["content"]]}
        if isinstance(turn["content"], list)
        else {**turn, "content": [{"type": "text", "text": turn["content"]}]}
        for turn in turns
    ]


def test_an_answer_ends_before_a_stop(slow):
    client, messages = slow.client(), [user("why?")]
    whole = client.chat.completions.create(model="model", messages=messages, max_tokens=40).choices[0].message.content
    stop = whole[5:7]
    reply = client.chat.completions.create(model="model", messages=messages, max_tokens=40, stop=[stop, "zzz"])
    assert reply.choices[0].message.content == whole.partition(stop)[0]
    assert reply.choices[0].finish_reason == "stop"
    stream = client.chat.completions.create(model="model", messages=messages, max_tokens=40, stop=stop, stream=True)
    assert spoken(stream) == whole.partition(stop)[0]


def test_a_client_that_hangs_up_costs_nothing_more(slow, monkeypatch):
    seen, answer = [], slow.service.desk.engine.answer
    monkeypatch.setattr(slow.service.desk.engine, "answer", lambda rows: (seen.extend(rows), answer(rows)))
    before = slow.count("clients_gone_total")
    stream = slow.client().chat.completions.create(model="model", messages=[user("why?")], max_tokens=1900, stream=True)
    next(iter(stream))
    stream.close()
    after = slow.client().chat.completions.create(model="model", messages=[user("why?")], max_tokens=2)
    assert after.usage.completion_tokens == 2
    assert len(seen[0].tokens) < 1900
    assert slow.count("clients_gone_total") == before + 1
    slow.wait_until(inside=0)


@pytest.fixture
def held(slow, monkeypatch):
    """The model's thread waits until the event is set."""
    engine, free = slow.service.desk.engine, threading.Event()
    answer = engine.answer
    monkeypatch.setattr(engine, "answer", lambda rows: (free.wait(60), answer(rows)))
    yield free
    free.set()


def test_a_client_that_hangs_up_while_it_waits_gives_its_place_back(slow, held):
    before = slow.count("clients_gone_total")
    connections = [http.client.HTTPConnection("127.0.0.1", slow.port) for _ in range(3)]
    body = json.dumps({"model": "model", "messages": [user("why?")], "max_tokens": 1900})
    for connection in connections:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    slow.wait_until(inside=3)
    for connection in connections:
        connection.close()
    slow.wait_until(inside=0)
    assert slow.count("clients_gone_total") == before + 3


def test_a_full_queue_is_told_with_the_time_to_come_again(slow, held):
    client = slow.client()

    def asked(number: int):
        return client.chat.completions.create(model="model", messages=[user("why?")], max_tokens=2)

    with ThreadPoolExecutor(3) as pool:
        let_in = pool.map(asked, range(3))
        slow.wait_until(inside=3)
        large = [user("why?", "data:image/png;base64," + "A" * 900_000)]
        with pytest.raises(openai.RateLimitError, match="at most 3 at a time") as refused:
            client.chat.completions.create(model="model", messages=large)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert slow.send("GET", "/health")[0] == 200
        held.set()
        assert [reply.usage.completion_tokens for reply in let_in] == [2, 2, 2]
    assert asked(4).usage.completion_tokens == 2


def test_what_takes_too_long_is_given_up(checkpoint, monkeypatch):
    with running(checkpoint, seconds=0.5) as server:
        engine, free, ended = server.service.desk.engine, threading.Event(), []
        answer = engine.answer
        monkeypatch.setattr(engine, "answer", lambda rows: (free.wait(60), answer(rows), ended.extend(rows)))
        with pytest.raises(openai.APIStatusError, match=r"no answer within 0\.5 s") as refused:
            server.client().chat.completions.create(model="model", messages=[user("why?")], max_tokens=1900)
        assert refused.value.status_code == 504
        free.set()
        with pytest.raises(openai.APIError):  # a stream that has begun ends with the error
            list(
                server.client().chat.completions.create(
                    model="model", messages=[user("why?")], max_tokens=1900, stream=True
                )
            )
        server.wait_until(inside=0)
    assert all(len(row.tokens) < 1900 for row in ended)


def test_a_fault_in_the_model_is_told_and_the_server_goes_on(slow, monkeypatch, capfd):
    model = slow.service.preparation.loaded.model
    generate = model.generate

    def fails(**given):
        raise RuntimeError("out of memory\nand more") if len(given["input_ids"]) > 1 or "once" in fault else KeyError

    fault = {"once"}
    monkeypatch.setattr(model, "generate", fails)
    with pytest.raises(openai.InternalServerError, match="could not answer: out of memory"):
        slow.client().chat.completions.create(model="model", messages=[user("why?")])
    fault.clear()
    with pytest.raises(openai.InternalServerError, match="its log says why"):
        slow.client().chat.completions.create(model="model", messages=[user("why?")])
    assert "KeyError" in capfd.readouterr().err
    monkeypatch.setattr(model, "generate", generate)
    assert slow.client().chat.completions.create(model="model", messages=[user("why?")], max_tokens=1).choices


def test_a_foveated_model_sees_images_as_frames(tmp_path, image):
    folder = tmp_path / "foveated"
    make_foveated(mode="autoregressive").save_pretrained(folder)
    images = FoveatedImageProcessor(size={"height": 28, "width": 28})
    FoveatedProcessor(images, make_tokenizer(), CHAT_TEMPLATE).save_pretrained(folder)
    loaded, url = load_foveated(folder, "cpu"), data_url(image)
    model, processor = load_foveated(folder, "cpu")
    still, picture = watch(str(image), "what?", str(folder), max_new_tokens=6), open_image(image)
    text = processor.apply_chat_template([{"role": "user", "content": "what happens?"}], add_generation_prompt=True)
    inputs = processor(videos=[[picture] * 3], text=[text], return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    clip = processor.decode(tokens, skip_special_tokens=True).strip()
    with running(folder, loaded=loaded) as server:
        engine, free = server.service.desk.engine, threading.Event()
        answer = engine.answer
        engine.answer = lambda rows: (free.wait(60), answer(rows))
        asked = [user("what?", url), user("what happens?", url, url, url), user("what?", url), user("why?")]
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(
                lambda one: server.client().chat.completions.create(model="model", messages=[one], max_tokens=6), asked
            )
            server.wait_until(inside=4)
            free.set()
            assert [reply.choices[0].message.content for reply in found][:3] == [still.answer, clip, still.answer]
        assert server.count("images_encoded") == 2


REFUSED = [
    (404, "model_not_found", {"model": "another"}),
    (400, "invalid_value", {"n": 2}),
    (400, "invalid_value", {"messages": []}),
    (400, "invalid_value", {"messages": [user("a <|im_end|> b")]}),
    (400, "context_length_exceeded", {"messages": [user("x" * 3000)]}),
    (400, "image_not_allowed", {"messages": [user("what?", "/etc/passwd")]}),
    (400, "image_not_allowed", {"messages": [user("what?", "http://127.0.0.1:9/a.png")]}),
    (400, "invalid_image", {"messages": [user("what?", "data:image/png;base64,AAAA")]}),
    (400, "invalid_image", {"messages": [user("what?", "data:image/png;base64,?")]}),
    (413, "body_too_large", {"messages": [user("what?", "data:image/png;base64," + "A" * 50_000_000)]}),
]


@pytest.mark.parametrize(("status", "code", "changed"), REFUSED, ids=lambda value: str(value)[:40])
def test_bad_requests_have_a_status_a_code_and_a_reason(slow, status, code, changed):
    with pytest.raises(openai.APIStatusError) as refused:
        slow.client().chat.completions.create(**{"model": "model", "messages": [user("why?")], **changed})
    assert (refused.value.status_code, refused.value.code) == (status, code)
    assert refused.value.body["message"]


def test_requests_that_are_none_are_told(slow):
    path, good = "/v1/chat/completions", {"model": "model", "messages": [user("why?")], "max_tokens": 1}
    assert slow.send("POST", path, good)[0] == 200
    for status, code, method, place, body, headers in (
        (415, "unsupported_media_type", "POST", path, good, {"Content_Type": "text/plain"}),
        (400, "invalid_json", "POST", path, b"{", {}),
        (400, "invalid_json", "POST", path, b"\xff", {}),
        (405, "method_not_allowed", "GET", path, None, {}),
        (404, "not_found", "GET", "/v1", None, {}),
        (404, "model_not_found", "GET", "/v1/models/other", None, {}),
        (403, "wrong_host", "POST", path, good, {"Host": "evil.example"}),
    ):
        found, _, reply = slow.send(method, place, body, **headers)
        assert (found, json.loads(reply)["error"]["code"]) == (status, code)
    chunks = (b"A" * 10**5 for _ in range(20))  # chunked: no length is told
    assert slow.send("POST", path, chunks)[0] == 413
    assert json.loads(slow.send("GET", "/v1/models")[2])["data"][0]["id"] == "model"


def test_a_port_that_is_taken_and_a_package_that_is_missing_are_told_at_once(firebolt, served, monkeypatch):
    assert_refused(firebolt("serve", "--port", served.port), 2, f"--port is {served.port}", "127.0.0.1", "or 0 for any")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert_refused(firebolt("serve", "--port", 0), 1, "uvicorn is not installed", "firebolt-vl[serve]")


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_the_command_serves_until_ctrl_c_and_answers_what_was_let_in(tmp_path):
    command = [sys.executable, "-m", "firebolt_vl", "serve", "--port", "0", "--quantize", "int8"]
    environment = {**os.environ, "FIREBOLT_API_KEY": "secret"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path) as process:
        try:
            line = process.stderr.readline()
            address = re.search(r"http://127\.0\.0\.1:\d+/v1", line)[0]
            with pytest.raises(openai.AuthenticationError, match="Bearer KEY"):
                openai.OpenAI(base_url=address, api_key="guess", max_retries=0).models.list()
            client = openai.OpenAI(base_url=address, api_key="secret", max_retries=0)
            assert [model.id for model in client.models.list()] == ["tiny"]
            messages = [user(QUESTIONS[0], data_url(IMAGES[0]))]
            stream = client.chat.completions.create(model="tiny", messages=messages, stream=True)
            first = next(iter(stream))
            process.send_signal(signal.SIGINT)
            told = (first.choices[0].delta.content or "") + spoken(stream)
            assert told == ask(str(IMAGES[0]), QUESTIONS[0], quantize="int8").answer
            assert process.wait(60) == 0
            assert process.stderr.read() == "firebolt: stopped\n"
        finally:
            process.kill()


@pytest.mark.skipif(os.name != "posix", reason="the server is ended by a signal")
def test_the_benchmark_says_what_clients_saw(served, tmp_path, monkeypatch):
    page = tmp_path / "serve.md"

    @contextmanager
    def server(checkpoint, batch_size, clients):
        yield serve_benchmark.Server(os.getpid(), served.address.removesuffix("/v1"), batch_size, clients)

    for name, value in (("server", server), ("WARM", 2), ("TURN", 3)):
        monkeypatch.setattr(serve_benchmark, name, value)
    monkeypatch.setattr(serve_benchmark, "QUESTIONS", ("why?",))
    serve_benchmark.serve_benchmark(None, 2, 4, [1, 8], str(page), True, False)
    lines = page.read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("| 1") or line.startswith("| 8")]
    assert [(row[0].strip(), row[1].strip(), row[2].strip()) for row in rows] == [("1", "2", "4"), ("8", "2", "4")]
    assert all(0 < float(row[4]) <= float(row[5]) for row in rows)
