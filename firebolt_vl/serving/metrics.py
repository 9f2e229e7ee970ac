"""Counts and times of a server, in the text form that Prometheus reads."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from threading import Lock

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
RECENT = 64


class Histogram:
    """Counts of times below each of SECONDS."""

    def __init__(self):
        self.counts, self.sum, self.count = [0] * len(SECONDS), 0.0, 0

    def add(self, seconds: float) -> None:
        for number, most in enumerate(SECONDS):
            self.counts[number] += seconds <= most
        self.sum += seconds
        self.count += 1

    def lines(self, name: str) -> Iterator[str]:
        for most, count in zip((*SECONDS, "+Inf"), (*self.counts, self.count)):
            yield f'{name}_bucket{{le="{most}"}} {count}'
        yield f"{name}_sum {self.sum}"
        yield f"{name}_count {self.count}"


class Metrics:
    """Counts of a server, added to from any of its threads."""

    def __init__(self):
        self.lock = Lock()
        self.statuses: Counter[int] = Counter()
        self.hung_up = self.batches = self.rows = self.prompt_tokens = self.answer_tokens = 0
        self.first, self.whole = Histogram(), Histogram()
        self.recent: deque[float] = deque(maxlen=RECENT)

    def batch(self, rows: int) -> None:
        with self.lock:
            self.batches += 1
            self.rows += rows

    def refused(self, status: int) -> None:
        with self.lock:
            self.statuses[status] += 1

    def gone(self) -> None:
        with self.lock:
            self.hung_up += 1

    def began(self, seconds: float) -> None:
        """Count the first piece of an answer, so many seconds after its request."""
        with self.lock:
            self.first.add(seconds)

    def answered(self, prompt_tokens: int, answer_tokens: int, seconds: float) -> None:
        with self.lock:
            self.statuses[200] += 1
            self.prompt_tokens += prompt_tokens
            self.answer_tokens += answer_tokens
            self.whole.add(seconds)
            self.recent.append(seconds)

    def retry_after(self) -> int:
        """Return after how many seconds a place may be free: the mean time of the last answers, 1 to 60."""
        with self.lock:
            mean = sum(self.recent) / len(self.recent) if self.recent else 1
        return min(60, max(1, round(mean)))

    def page(self, gauges: Sequence[tuple[str, str, float]]) -> str:
        """All of it as text; `gauges` (name, meaning, value) are what others know."""
        with self.lock:
            counters = (
                ("clients_gone", "Requests whose client hung up.", self.hung_up),
                ("batches", "Batches that the model answered.", self.batches),
                ("batch_rows", "Requests in these batches.", self.rows),
                ("prompt_tokens", "Tokens of prompts that were answered.", self.prompt_tokens),
                ("answer_tokens", "Tokens of whole answers.", self.answer_tokens),
            )
            lines = [*_head("requests_total", "Requests by the status of their reply.", "counter")]
            lines += [f'firebolt_requests_total{{status="{one}"}} {count}' for one, count in self.statuses.items()]
            for name, meaning, value in counters:
                lines += [*_head(f"{name}_total", meaning, "counter"), f"firebolt_{name}_total {value}"]
            for name, meaning, value in gauges:
                lines += [*_head(name, meaning, "gauge"), f"firebolt_{name} {value}"]
            for name, meaning, times in (
                ("first_token_seconds", "Time from a request to the first text of its answer.", self.first),
                ("request_seconds", "Time from a request to the end of its answer.", self.whole),
            ):
                lines += [*_head(name, meaning, "histogram"), *times.lines(f"firebolt_{name}")]
        return "\n".join(lines) + "\n"


def _head(name: str, meaning: str, kind: str) -> Iterator[str]:
    yield f"# HELP firebolt_{name} {meaning}"
    yield f"# TYPE firebolt_{name} {kind}"
