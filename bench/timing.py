"""Clocks: functions timed in turns, on a CPU by processor or wall time, on a GPU by its own events."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

FEWEST_TURNS, MOST_TURNS = 3, 200
# More than the last-level cache of any GPU: written before each run, so that inputs come from memory.
FLUSHED_BYTES = 2**28


class Run(NamedTuple):
    """Something to time: `work` is given what `prepare`, which is not timed, returns."""

    work: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None


def clock_name(device: str) -> str:
    if device == "cuda":
        return "CUDA events"
    return "processor time, 1 thread" if torch.get_num_threads() == 1 else f"{torch.get_num_threads()} threads"


def time_in_turns(runs: dict[str, Run], device: str, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each run, all of them taken in turns for about `seconds` each, after one turn of warming up."""
    measure = _Cuda() if device == "cuda" else cpu_ms
    for run in runs.values():
        run.work(run.prepare())
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds * len(runs)
    for turn in range(MOST_TURNS):
        if turn >= FEWEST_TURNS and time.perf_counter() > end:
            break
        for name, run in runs.items():
            times[name].append(measure(run))
    return times


def cpu_ms(run: Run) -> float:
    """Measure processor time with one thread, which other work hardly touches; else time as it passes."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    prepared = run.prepare()
    start = clock()
    run.work(prepared)
    return 1e3 * (clock() - start)


class _Cuda:
    def __init__(self):
        self.flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device="cuda")

    def __call__(self, run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        prepared = run.prepare()
        self.flushed.zero_()
        start.record()
        run.work(prepared)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)


def peak_bytes(run: Run, device: str) -> int:
    """The most memory that the run held at a time, beyond what was there before it."""
    prepared = run.prepare()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run.work(prepared)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run.work(prepared)
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        now += change.nbytes()
        most = max(most, now)
    return most


def quantile(values: list[float], share: float) -> float:
    return torch.tensor(values, dtype=torch.float64).quantile(share).item()
