"""A server of a small model in this process, and clients of it."""

import base64
import http.client
import json
import threading
from contextlib import contextmanager
from pathlib import Path

from firebolt_vl.checkpoint import Loaded, load, quiet
from firebolt_vl.serving import server as serving
from firebolt_vl.serving.gate import Limits
from firebolt_vl.serving.pictures import Sources
from firebolt_vl.serving.preparation import Most


class Running:
    """A server that answers, until the context ends."""

    def __init__(self, service, address: str):
        self.service, self.address = service, address
        self.port = int(address.rpartition(":")[2].removesuffix("/v1"))

    def client(self):
        import openai

        return openai.OpenAI(base_url=self.address, api_key="none", max_retries=0)

    def send(self, method: str, path: str, body: bytes | dict | None = None, **headers) -> tuple[int, dict, bytes]:
        """Send any request: status, headers, body of the reply."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        connection.request(method, path, json.dumps(body) if isinstance(body, dict) else body, sent)
        reply = connection.getresponse()
        found = reply.status, dict(reply.getheaders()), reply.read()
        connection.close()
        return found

    def wait_until(self, inside: int) -> None:
        """Ask until so many requests are inside."""
        for _ in range(20_000):
            if self.count("requests_inside") == inside:
                return
        raise AssertionError(f"{self.count('requests_inside')} requests are inside; expected {inside}")

    def count(self, name: str) -> float:
        """A number of /metrics."""
        text = self.send("GET", "/metrics")[2].decode()
        [value] = [line.split()[1] for line in text.splitlines() if line.startswith(f"firebolt_{name} ")]
        return float(value)


@contextmanager
def running(checkpoint: Path, *, sources: Sources | None = None, loaded: Loaded | None = None, **limits):
    """Serve a checkpoint, or what was `loaded` of it, as "model" on a port of its own."""
    listener = serving.listen("127.0.0.1", 0)
    plan = serving.Plan("model", 8, Most(2000, 2000), Limits(**limits), sources or Sources())
    with quiet():
        service = serving.build(loaded or load(checkpoint, "cpu"), checkpoint, plan, lambda line: None)
        started = threading.Event()
        server = serving.web_server(service, listener, started.set)
        thread = threading.Thread(target=serving.run, args=(server, service, listener))
        thread.start()
        try:
            assert started.wait(60)
            yield Running(service, f"{serving.address_of(listener)}/v1")
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()


def data_url(image: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()


def user(text: str, *addresses: str) -> dict:
    """A message of the user's, its images first."""
    shown = [{"type": "image_url", "image_url": {"url": address}} for address in addresses]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}
