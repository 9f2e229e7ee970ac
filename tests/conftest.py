"""Seeds, bounded property tests, one torch thread for each pytest worker, and random order where it is asked for.

Every run is the same, unless TEST_SEED is given another number than 0 (`make test-machines`): then random numbers and
examples are others, and tests run in an order that follows from it. TEST_EXAMPLES is the number of examples of each
property.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
# Fixed when a kernel is defined. `make test-gpu` sets it to 0.
os.environ.setdefault("TRITON_INTERPRET", "1")

import random
import signal
from importlib.util import find_spec

import interpreter
import pytest
import torch
from hypothesis import HealthCheck, settings

import examples

if os.environ["TRITON_INTERPRET"] == "1" and find_spec("triton"):
    interpreter.install()

SEED = int(os.environ.get("TEST_SEED", 0))
EXAMPLES = int(os.environ.get("TEST_EXAMPLES", 25))

settings.register_profile(
    "ci",
    derandomize=SEED == 0,
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("ci")  # `make fuzz` puts its own in the place of this one (support/fuzzing.py)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


# What runs in a shell's background (`make test &`, nohup) is told to ignore Ctrl-C, and so is all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

examples.register_torch()


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(SEED)


@pytest.fixture(scope="session", autouse=True)
def nothing_remembered(tmp_path_factory):
    """What passed a self-check before the tests is not taken from, and not left in, the user's own folder."""
    os.environ["FIREBOLT_CACHE"] = str(tmp_path_factory.mktemp("firebolt-cache"))


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if SEED:
        config.option.hypothesis_seed = SEED  # its plugin reads it next


def pytest_report_header():
    return f"TEST_SEED={SEED}, torch threads {torch.get_num_threads()}, CPU {torch.backends.cpu.get_cpu_capability()}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Files in random order, and the tests of each: what a file sets up is set up once."""
    examples.seed_each_example(items)
    if SEED:
        order = random.Random(SEED)
        files = sorted({item.path for item in items})
        places = {path: place for place, path in enumerate(order.sample(files, len(files)))}
        order.shuffle(items)
        items.sort(key=lambda item: places[item.path])
