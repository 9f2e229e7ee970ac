"""Fixed seeds, bounded and deterministic property tests, one torch thread for each pytest worker."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
# Fixed when a kernel is defined. `make test-gpu` sets it to 0.
os.environ.setdefault("TRITON_INTERPRET", "1")

from importlib.util import find_spec

import interpreter
import pytest
import torch
from hypothesis import HealthCheck, settings

if os.environ["TRITON_INTERPRET"] == "1" and find_spec("triton"):
    interpreter.install()

settings.register_profile(
    "ci",
    derandomize=True,
    max_examples=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("ci")  # `make fuzz` puts its own in the place of this one (support/fuzzing.py)

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
