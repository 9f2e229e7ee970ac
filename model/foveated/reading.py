"""The foveated model without its head: images in one of three forms, and text after them, to hidden states."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..compat import CACHE, extend, given_cache
from ..configuration_checks import backbone
from .cache_foveated import VisualCacheLayer
from .modeling_foveated import FoveatedModel
from .packed import unpacked
from .visual_tokens import VisualTokens


class Images(NamedTuple):
    """Images of a call, as `FoveatedVLM.forward` takes them: frames, visual tokens, or packed."""

    frames: Tensor | None = None
    frame_mask: Tensor | None = None
    visual_tokens: Tensor | None = None
    visual_mask: Tensor | None = None
    pixel_values: Tensor | None = None
    image_position_ids: Tensor | None = None
    pixel_attention_mask: Tensor | None = None

    def unpacked(self) -> "Images":
        """Return them with packed ones as frames. Raises ValueError where they are given in two forms."""
        forms = ("frames", "visual_tokens", "pixel_values")
        given = [name for name in forms if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"FoveatedVLM: {' and '.join(given)} are both given; expected one of them at most")
        if self.pixel_values is None:
            return self
        frames, mask = unpacked(self.pixel_values, self.image_position_ids, self.pixel_attention_mask)
        return Images(frames, mask)


class Reading(NamedTuple):
    """Result of the decoder for a call.

    outputs   the decoder's: last_hidden_state [B,T+S,E] at frames and text
    text      [B,S,E], the text's embeddings
    mode      of the looks
    visual    of the frames; None without
    seen      [B,T] bool, the visual tokens that are attended to; None for all
    cache     what is remembered; None where nothing is
    begun     whether the cache had begun before
    """

    outputs: Any
    text: Tensor
    mode: str
    visual: VisualTokens | None
    seen: Tensor | None
    cache: Cache | None
    begun: bool


class FoveatedReader(nn.Module):
    """A foveated model without its head, as trainers that score answers call it (`base_model`).

    A view: its one part is the whole model, whose parameters keep their names and places.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        mode: str | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Compute the last hidden states at the text [B,S,E]; images as in `FoveatedVLM.forward`."""
        images = Images(**{name: kwargs.pop(name) for name in Images._fields if name in kwargs})
        cache = given_cache(cache, past_key_values)
        read = self.model.read(input_ids, attention_mask, inputs_embeds, images, mode, cache, use_cache, **kwargs)
        return BaseModelOutputWithPast(
            last_hidden_state=read.outputs.last_hidden_state[:, -read.text.shape[1] :],
            hidden_states=read.outputs.hidden_states,
            attentions=read.outputs.attentions,
            **{CACHE: read.cache},
        )


class ReadingModel(FoveatedModel):
    """Frames and text to hidden states; FoveatedVLM makes answers and losses of them."""

    def read(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        inputs_embeds: Tensor | None,
        images: Images,
        mode: str | None,
        cache: Cache | None,
        use_cache: bool | None,
        beside: dict[str, Tensor | None] | None = None,
        **kwargs,
    ) -> Reading:
        """Look at the frames of a call and read its text after them, all but the head; arguments as of `forward`.

        `beside` are tensors that have the text's shape [B,S], by their names.
        """
        mode = self._mode(mode)
        if (input_ids is None) == (inputs_embeds is None):
            given = "are both given" if input_ids is not None else "are not given"
            raise ValueError(f"FoveatedVLM: input_ids and inputs_embeds {given}; expected one of them")
        images = images.unpacked()
        text = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        config = backbone(self.config.text_config)
        if use_cache is None:
            use_cache = cache is not None or (config.use_cache and not self.training)
        if use_cache and cache is None:
            cache = DynamicCache(config=config)
        layer = extend(cache, VisualCacheLayer) if cache is not None else None
        begun = layer is not None and layer.begun
        self._check_text(text, attention_mask, beside or {}, layer)
        if begun and (images.frames is not None or images.visual_tokens is not None):
            raise ValueError(
                "FoveatedVLM: frames is given with a filled cache; expected frames before all text (see `watch`)"
            )
        visual = None
        if images.frames is not None:
            visual = self.get_visual_tokens(images.frames, images.frame_mask, mode)
        elif images.visual_tokens is not None:
            visual = self._given(images.visual_tokens, images.visual_mask)
        if visual is not None and len(visual.tokens) != len(text):
            raise ValueError(
                f"FoveatedVLM: frames has {len(visual.tokens)} rows; expected {len(text)}, one for each text"
            )
        seen = self._decoder_mask(visual.mask) if visual is not None else None
        front = visual.tokens.to(text.dtype) if visual is not None else text[:, :0]
        outputs = self._read(front, seen, text, attention_mask, cache, **kwargs)
        return Reading(outputs, text, mode, visual, seen, cache if use_cache else None, begun)

    @property
    def reader(self) -> FoveatedReader:
        """The model without its head, which transformers calls its base model."""
        return FoveatedReader(self)

    def _read(self, front: Tensor, seen, text: Tensor, attention_mask, cache: Cache | None = None, **kwargs):
        """The decoder over visual tokens `front` [B,T,E] and then text [B,S,E]; last_hidden_state is [B,T+S,E].

        `seen` [B,T] is the visual tokens' mask, attention_mask [B, past + S] that of all text; None: all of them.
        """
        layer = extend(cache, VisualCacheLayer) if cache is not None else VisualCacheLayer()
        past = layer.width + layer.columns
        if front.shape[1]:
            layer.add_frames(seen, front.shape[0], front.shape[1], text.device)
        layer.columns += text.shape[1]
        if self.config.original_behaviour:
            attention_mask = None
        mask = attention_mask.bool() if attention_mask is not None else None
        mask = layer.extended(mask, len(text), layer.columns, text.device)
        return self._decode(torch.cat([front, text], dim=1), mask, past, cache, **kwargs)

    def _given(self, tokens: Tensor, mask: Tensor | None) -> VisualTokens:
        width = backbone(self.config.text_config).hidden_size
        if tokens.dim() != 3 or tokens.shape[-1] != width:
            raise ValueError(f"FoveatedVLM: visual_tokens has shape {list(tokens.shape)}; expected [B,T,{width}]")
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        elif mask.shape != tokens.shape[:2]:
            raise ValueError(
                f"FoveatedVLM: visual_mask has shape {list(mask.shape)}; expected {list(tokens.shape[:2])}"
            )
        return VisualTokens(tokens, mask != 0)

    @staticmethod
    def _check_text(text: Tensor, attention_mask, beside: dict, layer: VisualCacheLayer | None) -> None:
        batch_size, columns = text.shape[:2]
        past = layer.columns if layer is not None else 0
        wanted = {
            "attention_mask": (attention_mask, (batch_size, past + columns)),
            **{name: (tensor, (batch_size, columns)) for name, tensor in beside.items()},
        }
        for name, (tensor, shape) in wanted.items():
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"FoveatedVLM: {name} has shape {list(tensor.shape)}; expected {list(shape)}")
        if layer is not None and layer.query is not None and len(layer.query) != batch_size:
            raise ValueError(
                f"FoveatedVLM: {CACHE} has {len(layer.query)} rows; expected {batch_size}, one for each text (its "
                "batch_repeat_interleave makes more)"
            )


__all__ = ["FoveatedReader", "Images", "Reading", "ReadingModel"]
