"""Quantisers of other libraries find PyTorch's own layers in both models, before and after loading."""

import pytest
import torch
from foveated import make_foveated, make_frames
from numerics import largest
from tiny_models import make_model, make_pixels, make_text
from torch import nn
from transformers import BitsAndBytesConfig, QuantoConfig
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from firebolt_vl.model import FireboltForConditionalGeneration, FoveatedVLM

METHOD = "by_exact_class"


class ByteLinear(nn.Linear):
    """A layer whose weights are bytes, a scale for each row: as quantisers of the field do, a Linear by name alone."""

    def __init__(self, in_features, out_features, bias):
        super().__init__(in_features, out_features, bias)
        self.register_buffer("scale", torch.zeros(out_features, 1))

    def take(self, weight):
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


@register_quantization_config(METHOD)
class ByClassConfig(QuantizationConfigMixin):
    def __init__(self, kind=nn.Linear):
        self.quant_method, self.kind = METHOD, kind

    def to_dict(self):
        return {"quant_method": METHOD}


@register_quantizer(METHOD)
class ByClassQuantizer(HfQuantizer):
    """Replaces what is of one class, and of no other, before the weights are there, as bitsandbytes and FP8 do."""

    def _process_model_before_weight_loading(self, model, **kwargs):
        skipped = self.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
        from transformers.quantizers.quantizers_utils import should_convert_module

        for name, module in list(model.named_modules()):
            if type(module) is self.quantization_config.kind and should_convert_module(name, skipped):
                model.set_submodule(name, ByteLinear(module.in_features, module.out_features, module.bias is not None))

    def _process_model_after_weight_loading(self, model, **kwargs):
        for module in model.modules():
            if isinstance(module, ByteLinear):
                module.take(module.weight.data)

    def is_serializable(self):
        return False

    def is_trainable(self):
        return False


def firebolt(**keys):
    return make_model(**keys), FireboltForConditionalGeneration, {**make_text([7, 5]), **make_pixels(2)}


def foveated(**keys):
    return make_foveated(**keys), FoveatedVLM, {**make_text([6, 4]), **make_frames([3, 1])}


def bytes_of_bnb():
    return BitsAndBytesConfig(load_in_8bit=True)


def bytes_of_quanto():
    return QuantoConfig(weights="int8")


CASES = [
    (firebolt, {"ssm": "s4"}),
    (firebolt, {"ssm": "s4d", "grid_positions": False}),
    (firebolt, {"ssm": "mamba", "fusion": "concat"}),
    (firebolt, {"connector": "prepend"}),
    (firebolt, {"connector": "cross_attend"}),
    (foveated, {"mode": "coarse_fine"}),
    (foveated, {"mode": "autoregressive"}),
]


@torch.no_grad()
def drift(model, cls, inputs, folder, config, **keys):
    """The loaded model, and how far its logits lie from those of the one that was saved, in their spread."""
    wanted = model(**inputs).logits
    model.save_pretrained(folder)
    loaded = cls.from_pretrained(folder, quantization_config=config, **keys).eval()
    found = loaded(**inputs).logits
    answer = loaded.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert answer.shape[1] == inputs["input_ids"].shape[1] + 2
    return loaded, (largest(found.float() - wanted) / wanted.std()).item()


@pytest.mark.parametrize(("make", "keys"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_layers_are_of_pytorchs_class_and_a_quantiser_replaces_them_all(make, keys, tmp_path):
    model, cls, inputs = make(**keys)
    linear = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert not [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module).__module__.startswith("firebolt_vl")
    ]
    model.generate(**inputs, max_new_tokens=2)
    assert linear == {name for name, module in model.named_modules() if type(module) is nn.Linear}
    loaded, error = drift(model, cls, inputs, tmp_path, ByClassConfig())
    assert loaded.is_quantized
    replaced = {name for name, module in loaded.named_modules() if type(module) is ByteLinear}
    head = {"lm_head", "llm.lm_head"}
    assert linear - replaced - head == {name for name in linear if ".positions." in name}
    assert loaded.get_memory_footprint() < model.get_memory_footprint()
    assert 1e-4 < error < 0.5


def test_a_quantiser_that_changes_nothing_is_told_of(tmp_path):
    model, cls, _ = firebolt()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"quantization_config is given \(ByClassConfig\), and it has changed no"):
        cls.from_pretrained(tmp_path, quantization_config=ByClassConfig(nn.Bilinear))


LIBRARIES = [("bitsandbytes", bytes_of_bnb), ("optimum.quanto", bytes_of_quanto)]


@pytest.mark.parametrize(("library", "make_config"), LIBRARIES)
@pytest.mark.parametrize("make", [firebolt, foveated])
def test_quantisers_that_are_installed_work(library, make_config, make, tmp_path):
    pytest.importorskip(library)
    loaded, error = drift(*make(), tmp_path, make_config())
    assert loaded.is_quantized
    assert 1e-4 < error < 0.5


DYNAMIC = hasattr(torch.ao.quantization, "quantize_dynamic") and torch.backends.quantized.supported_engines


@pytest.mark.skipif(not DYNAMIC, reason="this PyTorch does not quantise by itself")
@pytest.mark.filterwarnings("ignore")
def test_pytorchs_own_dynamic_quantisation_finds_the_layers():
    model = make_model()
    names = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert [name for name in names if type(quantised.get_submodule(name)) is not nn.Linear] == names
