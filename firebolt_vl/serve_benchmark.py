"""`firebolt bench serve`: many clients of a server in a process of its own, for each batch size."""

import base64
import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import local
from urllib.parse import urlsplit

from .bench_commands import give_report, new_table, report_file, show_table
from .errors import Failure
from .files.tables import markdown_table
from .progress import progress_bar
from .serving.server import KEY, check_installed

TITLE = "Serving many clients\n"
QUESTIONS = ("what digit is at the top left?", "how many digits are there?", "is there a 3?", "what digit is red?")
IMAGES = 16
"""Different images that are asked about."""
TURN = 128
"""Requests of a server before it is the turn of the next: what else the machine does meets all alike."""
WARM = 64
"""Requests of each server that are not counted."""


@dataclass(frozen=True)
class Load:
    """Load of a server, as its clients saw it, that answers `batch_size` requests together; times in seconds."""

    batch_size: int
    clients: int
    requests: int
    mean_batch: float
    p50_s: float
    p95_s: float
    requests_per_s: float
    tokens_per_s: float
    resident_mb: float | None
    """At the end."""
    growth_mb: float | None
    """Since the first requests, which are not counted."""
    open_files: int | None
    """More than after the first requests, once all clients have gone."""


COLUMNS = (
    *("batch size", "clients", "requests", "mean batch", "p50 s", "p95 s", "requests/s", "tokens/s", "resident MB"),
    *("growth MB", "files left open"),
)


def serve_benchmark(
    checkpoint: str | None,
    clients: int,
    requests: int,
    batch_sizes: Sequence[int],
    out: str | None,
    as_json: bool,
    overwrite: bool,
) -> None:
    check_installed()
    file = report_file(out, TITLE, "rows", overwrite)
    bodies = [_body(image, question) for image in range(IMAGES) for question in QUESTIONS]
    with progress_bar("asking") as progress, ExitStack() as stack:
        servers = [stack.enter_context(server(checkpoint, size, clients)) for size in batch_sizes]
        for one in servers:
            one.warm(bodies)
        for done in range(0, requests, TURN):
            for number, one in enumerate(servers):
                one.take_turn(bodies, min(TURN, requests - done))
                progress(done * len(servers) + TURN * (number + 1), requests * len(servers))
        found = [one.load() for one in servers]
    data = {"rows": [asdict(load) for load in found]}
    give_report(file, data, partial(page, found), as_json, lambda: _show(found))


@contextmanager
def server(checkpoint: str | None, batch_size: int, clients: int) -> Iterator["Server"]:
    """A server in a process of its own."""
    command = [sys.executable, "-m", "firebolt_vl", "serve", "--port", "0", "--name", "model", "--timeout", "3600"]
    command += ["--batch-size", str(batch_size), "--queue", str(2 * clients)]
    command += ["--checkpoint", checkpoint] if checkpoint else []
    environment = {name: value for name, value in os.environ.items() if name != KEY}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            said = []
            while (line := process.stderr.readline()) and not (told := re.search(r"http://\S+(?=/v1;)", line)):
                said.append(line.strip().removeprefix("firebolt: "))
            if not line:
                raise Failure(f"the server did not start: {said[-1] if said else 'it said nothing'}")
            yield Server(process.pid, told[0], batch_size, clients)
        finally:
            process.terminate()


class Server:
    """A server of this machine that clients ask, and what they see of it."""

    def __init__(self, pid: int, address: str, batch_size: int, clients: int):
        self.pid, self.address, self.batch_size, self.clients = pid, address, batch_size, clients
        self.seen: list[tuple[float, int]] = []
        """Seconds and tokens of each answer."""
        self.passed = 0.0

    def warm(self, bodies: Sequence[bytes]) -> None:
        """Ask what is not counted."""
        _ask_all(self.address, bodies, self.clients, WARM)
        self.rows, self.batches = self._batches()
        self.resident, self.files = _resident_mb(self.pid), _open_files(self.pid)

    def take_turn(self, bodies: Sequence[bytes], requests: int) -> None:
        start = time.perf_counter()
        self.seen += _ask_all(self.address, bodies, self.clients, requests)
        self.passed += time.perf_counter() - start

    def load(self) -> Load:
        rows, batches = self._batches()
        resident, files = _resident_mb(self.pid), _open_files(self.pid)
        seconds = sorted(one for one, _ in self.seen)
        return Load(
            batch_size=self.batch_size,
            clients=self.clients,
            requests=len(self.seen),
            mean_batch=(rows - self.rows) / (batches - self.batches),
            p50_s=seconds[len(seconds) // 2],
            p95_s=seconds[len(seconds) * 95 // 100],
            requests_per_s=len(self.seen) / self.passed,
            tokens_per_s=sum(tokens for _, tokens in self.seen) / self.passed,
            resident_mb=resident,
            growth_mb=None if resident is None or self.resident is None else resident - self.resident,
            open_files=None if files is None or self.files is None else files - self.files,
        )

    def _batches(self) -> tuple[float, float]:
        return _count(self.address, "batch_rows_total"), _count(self.address, "batches_total")


def _body(image: int, question: str) -> bytes:
    """A request about one of several images of lines on paper."""
    from PIL import Image, ImageDraw

    drawn = Image.new("RGB", (128, 128), (236, 230, 216))
    pen = ImageDraw.Draw(drawn)
    for line in range(4):
        place = 24 * line + 2 * image
        pen.line((place, 20, 120 - place, 100), fill=(200, 40 + 10 * image, 50 * line), width=5)
    file = BytesIO()
    drawn.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return json.dumps({"model": "model", "messages": [{"role": "user", "content": content}]}).encode()


def _ask_all(address: str, bodies: Sequence[bytes], clients: int, requests: int) -> list[tuple[float, int]]:
    """Seconds and tokens of each of so many requests, asked by clients that each wait for their answer."""
    place, own, connections = urlsplit(address), local(), []

    def ask(number: int) -> tuple[float, int]:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection(place.hostname or "", place.port)
            connections.append(own.connection)
        start = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        own.connection.request("POST", "/v1/chat/completions", bodies[number % len(bodies)], headers)
        reply = own.connection.getresponse()
        told = json.loads(reply.read())
        if reply.status != 200:
            raise Failure(f"the server refused a request: {told['error']['message']}")
        return time.perf_counter() - start, told["usage"]["completion_tokens"]

    try:
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(ask, range(requests)))
    finally:
        for connection in connections:
            connection.close()


def _count(address: str, name: str) -> float:
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(re.search(rf"^firebolt_{name} (\S+)$", text, re.MULTILINE)[1])


def _resident_mb(pid: int) -> float | None:
    """The memory that a process holds; None where /proc does not say it."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return None
    return int(re.search(r"VmRSS:\s+(\d+) kB", status.read_text())[1]) / 1000


def _open_files(pid: int) -> int | None:
    files = Path(f"/proc/{pid}/fd")
    return len(list(files.iterdir())) if files.exists() else None


def cells(load: Load) -> list[str]:
    def shown(value: float | None, digits: int = 2) -> str:
        return "?" if value is None else f"{value:.{digits}f}"

    return [
        *(str(load.batch_size), str(load.clients), f"{load.requests:,}", shown(load.mean_batch, 1)),
        *(shown(load.p50_s), shown(load.p95_s), shown(load.requests_per_s, 1), shown(load.tokens_per_s, 1)),
        *(shown(load.resident_mb, 0), shown(load.growth_mb, 1), shown(load.open_files, 0)),
    ]


def page(found: Sequence[Load], command: str) -> str:
    """The report as a page, which the command line `command` writes."""
    table = markdown_table(COLUMNS, map(cells, found), left=0)
    about = (
        "Clients on the server's own machine, each of which asks again once it has its answer, about one of "
        f"{IMAGES} images. Servers take turns of {TURN} requests. Times are those of whole requests; the first {WARM} "
        "of each server are not counted."
    )
    return f"# {TITLE}\n{about}\n\n{table}\n\nWritten by `{command}`.\n"


def _show(found: Sequence[Load]) -> None:
    table = new_table("many clients", COLUMNS, ())
    for load in found:
        table.add_row(*cells(load))
    show_table(table, 200)
