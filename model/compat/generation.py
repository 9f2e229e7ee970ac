"""`generate` of transformers with a layer of ours at the end of its cache, and masks that are left to the model."""

from abc import abstractmethod
from typing import Any, cast

from torch import Tensor

from ...cmm.linear import fast_products
from ..adapters import check_adapters
from .caches import extend, find_layer
from .extra_layer import ExtraLayer
from .self_check import check_generation
from .versions import CACHE, CACHE_NAMES, given_cache


class CachedGeneration:
    """Mixin before GenerationMixin, for a model that remembers more than its decoder's keys and values.

    cache_layer            the class of its layer in the cache
    first_call_arguments   arguments of `forward` that a begun cache makes superfluous
    decoder_length         how many positions the decoder takes for the text's columns

    Masks reach `forward` as they came, for the text alone.
    """

    cache_layer: type[ExtraLayer]
    first_call_arguments: tuple[str, ...] = ()
    generation_config: Any

    @abstractmethod
    def kind(self) -> str:
        """Return a name for all models that generate alike: one of them is checked for all."""

    @abstractmethod
    def miniature(self) -> tuple[Any, dict[str, Tensor]]:
        """Return a small model of this kind with random weights, and a padded batch for it."""

    def decoder_length(self, columns: int, model_kwargs: dict) -> int:
        """Return how many positions the decoder's cache has to hold for so many text columns."""
        return columns

    def generate(self, inputs: Tensor | None = None, *args, **kwargs):
        """Generate as in `GenerationMixin`, checked once for each version, with the cache under either of its names."""
        cache = given_cache(*(kwargs.pop(name, None) for name in CACHE_NAMES))
        if cache is not None:
            kwargs[CACHE] = cache
        config = kwargs.get("generation_config", args[0] if args else None) or self.generation_config
        if kwargs.get("use_cache", config.use_cache) is not False:
            check_generation(self)
        stock: Any = super()  # GenerationMixin
        check_adapters("generate", cast(Any, self))
        with fast_products(cast(Any, self)):
            return stock.generate(inputs, *args, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ) -> bool:
        implementation = generation_config.cache_implementation
        if implementation not in (None, "dynamic", "static"):
            raise ValueError(
                f"generate: cache_implementation is {implementation!r}; expected 'dynamic' or 'static' (what this "
                "model remembers beside keys and values cannot be quantised, offloaded or windowed)"
            )
        length = self.decoder_length(max_cache_length, model_kwargs)
        stock: Any = super()
        prepared = stock._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, length
        )
        if (cache := model_kwargs.get(CACHE)) is not None:
            layer = extend(cache, self.cache_layer)
            if generation_config.is_assistant:
                layer.activate_past_recording()
        return prepared

    def _valid_auto_compile_criteria(self, model_kwargs, generation_config) -> bool:
        """Never compile the whole forward, whose memory of the conversation is not made for it."""
        return False

    def create_masks_for_generate(self, attention_mask=None, **_) -> Tensor | None:
        """Leave the mask as it is: it is the text's, and the decoder's is made in `forward`."""
        return attention_mask

    def prepare_inputs_for_generation(self, input_ids, *args, inputs_embeds=None, **kwargs) -> dict:
        """Prepare inputs as in transformers, without `first_call_arguments` where the cache has begun."""
        stock: Any = super()
        model_inputs = stock.prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        layer = find_layer(cache, self.cache_layer) if (cache := kwargs.get(CACHE)) is not None else None
        if layer is not None and layer.begun:
            for name in self.first_call_arguments:
                model_inputs.pop(name, None)
        return model_inputs
