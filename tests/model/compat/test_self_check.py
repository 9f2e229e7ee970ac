"""The check before the first answer: exact caches pass, wrong ones are an error, and what passed is remembered."""

import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import tiny_models
import torch
from foveated import MODES, make_foveated, make_frames

from firebolt_vl.cmm import CrossModalModulator
from firebolt_vl.model.compat import GrowingLayer, OneQueryPooling, StepwiseShortConv, self_check
from firebolt_vl.model.firebolt.cache_firebolt import ConnectorCacheLayer

KINDS = {
    "s4": {},
    "s4d": {"ssm": "s4d"},
    "mamba": {"ssm": "mamba"},
    "liquid": {"ssm": "liquid"},
    "taps": {"kernel_taps": 3},
    "truncate": {"top_k_mode": "truncate"},
    "asking": {"query": "state", "layers": 2, "start": "identity"},
    "concat": {"fusion": "concat"},
    "pool": {"fusion": "pool"},
    "prepend": {"connector": "prepend"},
    "cross_attend": {"connector": "cross_attend"},
    "routed": {"connector": "routed"},
    "routed_text": {"connector": "routed_text", "grids": "both"},
    "routed_original": {"connector": "routed_original", "grids": "patches"},
}
ANSWER = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}


@pytest.fixture(autouse=True)
def afresh(monkeypatch, tmp_path):
    """As in a new process of a user for whom nothing was checked."""
    monkeypatch.setattr(self_check, "_passed", set())
    monkeypatch.setenv("FIREBOLT_CACHE", str(tmp_path / "cache"))


def ask(model, **options):
    if model.config.model_type == "foveated_vlm":
        inputs = {**tiny_models.make_text([4, 2]), **make_frames([2, 1])}
    else:
        inputs = {**tiny_models.make_text([4, 2]), **tiny_models.make_pixels(2)}
    return model.generate(**inputs, **ANSWER, **options)


def off_by_one(update):
    """A layer that puts a step's values one place too early."""

    def wrong(self, keys, values, *args, **kwargs):
        seen_keys, seen = update(self, keys, values, *args, **kwargs)
        return (seen_keys, seen.roll(-1, dims=-2)) if keys.shape[-2] == 1 else (seen_keys, seen)

    return wrong


class TestExact:
    @pytest.mark.parametrize("kind", KINDS)
    def test_every_connector_and_fusion_passes(self, kind):
        ask(tiny_models.make_model(**KINDS[kind]))

    @pytest.mark.parametrize("mode", MODES)
    def test_every_mode_of_the_foveated_model_passes(self, mode):
        ask(make_foveated(mode=mode))

    def test_exact_caches_stay_far_below_the_tolerance(self):
        for kind in KINDS.values():
            assert self_check._difference(tiny_models.make_model(**kind)) < 0.01 * self_check.TOLERANCE

    def test_generators_and_modes_are_left_as_they_were(self):
        model = tiny_models.make_model().train()
        torch.manual_seed(5)
        wanted = torch.rand(3)
        torch.manual_seed(5)
        self_check.check_generation(model)
        assert torch.equal(torch.rand(3), wanted)
        assert model.training

    def test_another_default_device_does_no_harm(self):
        with torch.device("meta"):
            self_check.check_generation(tiny_models.make_model())


def stale(step):
    return lambda self, token, state: (step(self, token, state)[0], state)


def without_state(forward):
    return lambda self, x, *args, **kwargs: forward(self, x)


def doubled(forward):
    return lambda self, x: 2 * forward(self, x)


def one_column_more(property_of):
    return property(lambda self: self.__dict__["columns"] + 1, lambda self, n: self.__dict__.update(columns=n))


FAULTS = {
    "keys off by one": (GrowingLayer, "update", off_by_one),
    "a state that stands still": (CrossModalModulator, "step", stale),
    "a convolution without its past": (StepwiseShortConv, "forward", without_state),
    "a pooling head that is another": (
        OneQueryPooling,
        "forward",
        lambda forward: lambda self, x: 2 * forward(self, x),
    ),
    "columns off by one": (ConnectorCacheLayer, "columns", one_column_more),
}


class TestWrong:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_a_fault_is_an_error_and_not_an_answer(self, fault):
        owner, name, spoil = FAULTS[fault]
        model = tiny_models.make_model()
        with mock.patch.object(owner, name, spoil(getattr(owner, name))):
            for _ in range(2):  # and stays one
                with pytest.raises(RuntimeError, match=r"transformers .*use_cache=False"):
                    ask(model)
        ask(model)

    def test_the_foveated_models_cache_is_checked_too(self):
        with (
            mock.patch.object(GrowingLayer, "update", off_by_one(GrowingLayer.update)),
            pytest.raises(RuntimeError, match="another function"),
        ):
            ask(make_foveated())

    def test_generation_without_a_cache_goes_on(self):
        model = tiny_models.make_model()
        wanted = ask(model, use_cache=False)
        with mock.patch.object(GrowingLayer, "update", off_by_one(GrowingLayer.update)):
            assert torch.equal(ask(model, use_cache=False), wanted)

    def test_one_right_kind_does_not_vouch_for_another(self):
        ask(tiny_models.make_model(connector="prepend"))
        with (
            mock.patch.object(CrossModalModulator, "step", stale(CrossModalModulator.step)),
            pytest.raises(RuntimeError, match="another function"),
        ):
            ask(tiny_models.make_model())


class TestRemembered:
    def test_it_runs_once_for_a_version_and_kind(self, monkeypatch):
        model, runs = tiny_models.make_model(), []
        measure = self_check._difference
        monkeypatch.setattr(self_check, "_difference", lambda model: runs.append(model.kind()) or measure(model))
        ask(model)
        ask(model)
        assert len(runs) == 1
        self_check._passed.clear()  # another process
        ask(model)
        assert len(runs) == 1
        for module in (self_check.transformers, self_check.torch):
            self_check._passed.clear()
            monkeypatch.setattr(module, "__version__", "99.0")
            ask(model)
        assert len(runs) == 3
        assert len(self_check.record().read_text().splitlines()) == 3

    @pytest.mark.parametrize("obstacle", ["a file", "no right to write", "not text"])
    def test_it_runs_each_time_where_nothing_can_be_kept(self, obstacle, tmp_path, monkeypatch):
        folder = tmp_path / "cache"
        if obstacle == "a file":
            folder.write_text("")
        else:
            folder.mkdir()
            if obstacle == "not text":
                (folder / "generation-checks").write_bytes(b"\xff\xfe\xff")
            else:
                monkeypatch.setattr("pathlib.Path.write_text", mock.Mock(side_effect=PermissionError))
        ask(tiny_models.make_model())


def test_a_padded_batch_is_answered_in_silence(tmp_path):
    """What a user sees of all this."""
    code = (
        "import torch, sys; sys.path.insert(0, sys.argv[1]); import tiny_models\n"
        "inputs = {**tiny_models.make_text([5, 2]), **tiny_models.make_pixels(2)}\n"
        "print(tiny_models.make_model().generate(**inputs, max_new_tokens=3, do_sample=False).shape[0])"
    )
    support = str(Path(tiny_models.__file__).parent)
    command = [sys.executable, "-c", code, support]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("2\n", "")
