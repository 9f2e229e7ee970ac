"""Firebolt-VL without its head: SigLIP grids, a connector, through which each token sees them, and the LFM2 decoder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    DynamicCache,
    PreTrainedModel,
    StaticCache,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import can_return_tuple  # pyright: ignore[reportPrivateImportUsage]  # its documented place

from ...cmm import CrossAttend, CrossModalModulator, Prepend, Routed, RoutedConfig
from ...cmm.connector import Connector
from ...cmm.linear import fast_without_gradients
from ...cmm.sequences import Sequences
from ..compat import (
    CACHE,
    CACHE_NAMES,
    attend_by_sequence,
    compute_in_fewer_calls,
    decode_packed,
    extend,
    find_layer,
    given_cache,
    know_steps_and_borders,
    layer_masks,
    parameters_present,
    pool_by_one_query,
)
from ..configuration_checks import backbone
from ..loading import load_checked
from ..packing import has_hole
from .cache_firebolt import ConnectorCacheLayer
from .configuration_firebolt import FireboltConfig
from .fusion import DecoderInputs, Fusion, Text
from .grids import (
    BLACK,
    Grids,
    Seen,
    encode_views,
    given_grids,
    named_grids,
    rows_with_images,
    views_of,
    with_black_images,
)
from .packed_text import packed_sequences, without_packed_names

CONNECTOR_CLASSES: dict[str, type[Connector]] = {
    "cmm": CrossModalModulator,
    "prepend": Prepend,
    "cross_attend": CrossAttend,
    "routed": Routed,
}


@dataclass
class FireboltOutputWithPast(BaseModelOutputWithPast):
    """Output of the decoder; `balance` is the balance loss of the connector's experts in training, not yet weighted."""

    balance: Tensor | None = None


class FireboltPreTrainedModel(PreTrainedModel):
    config: FireboltConfig
    config_class = FireboltConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = [
        *("Lfm2DecoderLayer", "SiglipEncoderLayer"),
        *("CrossModalModulator", "Prepend", "CrossAttend", "Routed"),
    ]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False
    # The decoder's masks are made for a text alone, and where it is to be compiled as tensors.
    _supports_flex_attn = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a model like any of transformers, of safetensors alone, once the weights are known to fill it."""
        return load_checked(cls, super().from_pretrained, pretrained_model_name_or_path, args, kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, Connector):
            super()._init_weights(module)
            return
        # A connector sets all its parameters in one go; those that a checkpoint has filled keep what they hold.
        loaded = [p for p in module.parameters() if getattr(p, "_is_hf_initialized", False)]
        values = [p.detach().clone() for p in loaded]
        module.reset_parameters()
        for parameter, value in zip(loaded, values):
            parameter.copy_(value)


class FireboltModel(FireboltPreTrainedModel):
    """Vision tower, connector and decoder without its head; see FireboltForConditionalGeneration."""

    def __init__(self, config: FireboltConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.connector = CONNECTOR_CLASSES[config.connector](config.connector_config())
        self.language_model = AutoModel.from_config(config.text_config)
        know_steps_and_borders(self.language_model)
        attend_by_sequence(self.language_model)
        compute_in_fewer_calls(self.language_model)
        pool_by_one_query(self.vision_tower)
        if self.connector.positions is not None:
            # What quantisers leave as it is: maps of 36 and 8 numbers fill no block of theirs.
            self._keep_in_fp32_modules = [".*connector.positions"]
        self.compiled_step: Callable[..., Any] | None = None
        # The parameters of the state-space models; see cmm.precision for casts after loading.
        if any(".ssm.kernel." in name for name, _ in self.connector.named_parameters(prefix=".")):
            self._keep_in_fp32_modules_strict = ["ssm.kernel"]
        self.post_init()

    def __getstate__(self):
        """Copies and pickles go without the compiled step, which is one of this very decoder."""
        return {**self.__dict__, "compiled_step": None}

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_grids(
        self,
        pixel_values: Tensor,
        pixel_tiles: Tensor | None = None,
        tile_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        image_position_ids: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        image_numbers: Tensor | None = None,
        image_times: Tensor | None = None,
        *,
        black_rows: Tensor | None = None,
    ) -> Grids:
        """Encode every image of the batch once: one call of the vision tower for each view size.

        pixel_values [B,3,S,S] or [B,I,3,S,S]; pixel_tiles [B,M,3,t,t] or [B,I,M,3,t,t]; tile_mask [B,M] or [B,I,M];
        image_mask [B] or [B,I]; grid_boxes [B,1+M,4] or [B,I,1+M,4]; for frames of videos image_numbers [B] or [B,I],
        which image or video of its row each is of, and image_times [B] or [B,I], its second; black_rows [B], rows
        without an image that are shown a black one. Masked views are not encoded; their features are zero. G is I times
        the grids of an image: with `config.grids` "views" 1 + M, the global view first; with "patches" its P patches,
        for which no tiles are needed; with "both" 1 + M + P. Packed views are pixel_values [n,3,H,W] with
        image_position_ids [n,1+M,2,4] ([n,1+M,3,4] with videos) and pixel_attention_mask [B]; see
        FireboltImageProcessor.

        A connector without `grid_times` cannot tell the frames of a video: it gets them as images in their order.

        Raises ValueError where a shape is not as above, or tiles are missing.
        """
        tiled = self.config.grids != "patches"
        rest = (image_position_ids, pixel_attention_mask, image_numbers, image_times)
        views = views_of(pixel_values, pixel_tiles, tile_mask, image_mask, grid_boxes, *rest, tiled=tiled)
        if not self.connector.config.grid_times:
            views = views._replace(numbers=None, times=None)
        if black_rows is not None:
            views = with_black_images(views, black_rows & ~views.image_mask.any(-1))
        vision = backbone(self.config.vision_config)
        height, width = (side // vision.patch_size for side in views.images.shape[-2:])
        return encode_views(views, self._see, self.config.grids, (height, width), vision.hidden_size, self.dtype)

    def add_grids(self, past_key_values: Cache, **images: Tensor | None) -> None:
        """Show more images, or frames of a video that goes on, to a conversation: what follows sees them too.

        past_key_values: the cache of all calls so far, changed in place. `images` as in `get_grids`, or grids
        [B,G,D_v] with grid_mask, grid_boxes, grid_images and grid_times, as in `forward`; only these are encoded. No
        earlier token is computed again, nor changed. A row that had no image, and so was read without the connector,
        begins with it here.

        Raises ValueError for a cache that no call has begun, and where images stand in the text, or before it: for
        connectors other than "cmm" and "cross_attend", and for fusions other than "replace".
        """
        memory = find_layer(past_key_values, ConnectorCacheLayer)
        if memory is None or not memory.begun:
            raise ValueError(
                "FireboltModel: past_key_values has no call in it; expected the cache of a conversation that has begun "
                "(its first images go with its first call)"
            )
        if self.connector.inserts_grids or self.config.fusion != "replace":
            raise ValueError(
                f"FireboltModel: add_grids is called with connector {self.config.connector!r} and fusion "
                f"{self.config.fusion!r}; expected 'cmm' or 'cross_attend' and 'replace', where grids stand beside the "
                "text"
            )
        given = {name: value.to(self.device) for name, value in images.items() if value is not None}
        if ("pixel_values" in given) == ("grids" in given):
            both = "both given" if "grids" in given else "not given"
            raise ValueError(f"FireboltModel: pixel_values and grids are {both}; expected one of them")
        if "grids" in given:
            seen = named_grids(given, given["grids"].to(self.dtype))
        else:
            seen = self.get_grids(**given)
        memory.add_grids(self.connector, seen)

    def _see(self, pixels: Tensor) -> Seen:
        """See n views of one size, position embeddings interpolated for sizes not trained on."""
        native = pixels.shape[-1] == pixels.shape[-2] == backbone(self.config.vision_config).image_size
        # Positions are interpolated from weights that their module is not called for.
        embeddings = getattr(self.vision_tower, "embeddings", self.vision_tower)
        with parameters_present(*embeddings.modules()), fast_without_gradients(self.vision_tower):
            views = self.vision_tower(pixels.to(self.vision_tower.dtype), interpolate_pos_encoding=not native)
        return Seen(
            views.pooler_output.to(self.dtype) if self.config.grids != "patches" else None,
            views.last_hidden_state.to(self.dtype) if self.config.grids != "views" else None,
        )

    @property
    def packs(self) -> bool:
        """Flag of models that take several sequences packed into one row."""
        return self.config.fusion == "replace" and self.connector.packs

    @property
    def reads_prompt(self) -> bool:
        """Flag of models in which an answer, taken for the question, would change what is made of it."""
        return self.config.fusion != "replace" or self.connector.reads_prompt

    def image_tokens(self, input_ids: Tensor | None) -> Tensor | None:
        """The places of images in the text [B,T] bool; None for a connector that puts none there. Raises ValueError."""
        if not self.connector.places_images:
            return None
        if input_ids is None:
            raise ValueError(
                "FireboltModel: inputs_embeds is given; expected input_ids, in which insert 'mean_at_token' finds its "
                "image_token_id"
            )
        return input_ids == cast("RoutedConfig", self.connector.config).image_token_id

    def black_rows(self, image_tokens: Tensor | None, rows: int) -> Tensor | None:
        """The rows [B] bool that get a black image where they have none, as the original does; None: none does."""
        if not getattr(self.connector.config, "black_image", False):
            return None
        if image_tokens is not None:
            return image_tokens.any(-1)
        return torch.ones(rows, dtype=torch.bool, device=self.device)

    def black_pixels(self, rows: int) -> dict[str, Tensor]:
        """Pixels for a batch without any image, to be shown black ones."""
        side = backbone(self.config.vision_config).image_size
        return {
            "pixel_values": torch.full((rows, 3, side, side), BLACK, dtype=self.dtype, device=self.device),
            "image_mask": torch.zeros(rows, dtype=torch.bool, device=self.device),
            "tile_mask": torch.zeros(rows, 0, dtype=torch.bool, device=self.device),
        }

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_tiles: Tensor | None = None,
        tile_mask: Tensor | None = None,
        image_mask: Tensor | None = None,
        grid_boxes: Tensor | None = None,
        image_position_ids: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        grids: Tensor | None = None,
        grid_mask: Tensor | None = None,
        grid_images: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        prompt_summary: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        cu_seq_lens_q: Tensor | Sequences | None = None,
        image_numbers: Tensor | None = None,
        image_times: Tensor | None = None,
        grid_times: Tensor | None = None,
        **kwargs,
    ) -> FireboltOutputWithPast:
        """Compute the decoder's last hidden states [B,T,D] at the text columns.

        Arguments are those of `FireboltForConditionalGeneration.forward` but labels, without which fusions "concat" and
        "pool" must be told the prompt: prompt_mask [B,T], or in the place of its mean prompt_summary [B,D].
        """
        if (input_ids is None) == (inputs_embeds is None):
            given = "are both given" if input_ids is not None else "are not given"
            raise ValueError(f"FireboltModel: input_ids and inputs_embeds {given}; expected one of them")
        if pixel_values is not None and grids is not None:
            raise ValueError("FireboltModel: pixel_values and grids are both given; expected at most one of them")
        text = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        cache = given_cache(cache, past_key_values)
        sequences = packed_sequences(
            self.config,
            text,
            cu_seq_lens_q,
            position_ids,
            attention_mask,
            packs=self.packs,
            cached=cache is not None or bool(use_cache),
        )
        if sequences is not None:
            use_cache, attention_mask = False, None
        if use_cache is None:
            use_cache = backbone(self.config.text_config).use_cache and not self.training
        if use_cache and cache is None:
            cache = DynamicCache(config=backbone(self.config.text_config))
        memory = extend(cache, ConnectorCacheLayer) if cache is not None else None
        text_mask = self._text_mask(attention_mask, text, memory, prompt_mask)

        seen = None
        image_tokens = self.image_tokens(input_ids)
        begins = memory is None or not memory.begun
        black = self.black_rows(image_tokens, text.shape[0]) if begins and grids is None else None
        if black is not None and pixel_values is None:
            pixel_values, image_mask, tile_mask = self.black_pixels(text.shape[0]).values()
        if pixel_values is not None or grids is not None:
            if memory is not None and memory.begun:
                told = rows_with_images(image_mask, pixel_attention_mask) if pixel_values is not None else None
                check_same_images(memory, told)
            elif pixel_values is not None:
                rest = (image_position_ids, pixel_attention_mask, image_numbers, image_times)
                seen = self.get_grids(
                    pixel_values, pixel_tiles, tile_mask, image_mask, grid_boxes, *rest, black_rows=black
                )
            elif grids is not None:
                rows = None if sequences is None else len(sequences.lengths)
                seen = given_grids(grids, grid_mask, grid_boxes, grid_images, grid_times, text, rows)
        if sequences is not None and seen is not None and len(seen.features) != len(sequences.lengths):
            raise ValueError(
                f"FireboltModel: pixel_values has images of {len(seen.features)} rows; expected "
                f"{len(sequences.lengths)}, one for each text packed into the row (image_mask tells which have one)"
            )
        if prompt_mask is not None and (prompt_mask.dim() != 2 or prompt_mask.shape[0] != text.shape[0]):
            raise ValueError(
                f"FireboltModel: prompt_mask has shape {list(prompt_mask.shape)}; expected [{text.shape[0]}, T]"
            )
        if seen is not None and prompt_mask is None and prompt_summary is None and self.reads_prompt:
            raise ValueError(
                f"FireboltModel: prompt_mask is not given with fusion {self.config.fusion!r} and connector "
                f"{self.config.connector!r}; expected [B,T], the positions of the question, since an answer must not "
                "be taken for it (trainers that score answers call this model without labels: let the data collator "
                "add prompt_mask, or train fusion 'replace')"
            )
        decoder = Fusion(self.connector, self.config.fusion, memory).decoder_inputs(
            Text(text, text_mask, image_tokens, sequences),
            seen,
            attention_mask,
            position_ids,
            prompt_mask,
            prompt_summary,
        )
        if sequences is not None:
            packed = decode_packed(
                self.language_model,
                decoder.embeddings,
                decoder.position_ids,
                sequences,
                **without_packed_names(kwargs),
            )
            return FireboltOutputWithPast(**packed._asdict())
        compiled = self.compiled_step
        if decoder.embeddings.shape[1] != 1 or not isinstance(cache, StaticCache) or self.training:
            compiled = None
        outputs = (self.language_model if compiled is None else compiled)(
            inputs_embeds=decoder.embeddings,
            attention_mask=self._decoder_masks(decoder, text_mask, cache, make=compiled is not None),
            position_ids=decoder.position_ids,
            use_cache=use_cache,
            **{CACHE: cache},
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if decoder.places is not None:
            hidden = hidden.gather(1, decoder.places[..., None].expand(-1, -1, hidden.shape[-1]))
        return FireboltOutputWithPast(
            last_hidden_state=hidden,
            balance=decoder.balance,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: cache if use_cache else None},
        )

    def _text_mask(
        self, attention_mask, text: Tensor, memory: ConnectorCacheLayer | None, prompt_mask: Tensor | None
    ) -> Tensor | None:
        """The part of `attention_mask` [B, past + T] that belongs to this call's columns: [B,T] bool, None if all kept.

        A single column after the prompt of `generate`, which has checked that, is a generated token, never padding:
        its mask is not even looked at, which on a GPU would wait for the device at each step.
        """
        if attention_mask is None:
            return None
        past = memory.columns if memory is not None else 0
        batch_size, columns = text.shape[:2]
        if not isinstance(attention_mask, Tensor) or attention_mask.shape != (batch_size, past + columns):
            tensor = isinstance(attention_mask, Tensor)
            found = f"has shape {list(attention_mask.shape)}" if tensor else f"is a {type(attention_mask).__name__}"
            raise ValueError(
                f"FireboltModel: attention_mask {found}; expected [{batch_size}, {past + columns}]"
                + (f" ({past} columns in the cache and {columns} new ones)" if past else "")
            )
        if columns == 1 and prompt_mask is not None and past >= prompt_mask.shape[1]:
            return None
        mask = attention_mask.bool()
        if torch.compiler.is_compiling():  # a graph cannot look into a mask
            return mask[:, past:]
        if has_hole(mask).any():
            raise ValueError(
                "FireboltModel: attention_mask drops a position between two kept ones; expected padding on the left "
                "or right alone (LFM2's short convolution is wrong over holes)"
            )
        if columns == 1 and bool(mask[:, -1].all()):
            return None
        return mask[:, past:]

    def _decoder_masks(self, decoder: DecoderInputs, text_mask: Tensor | None, cache: Cache | None, make: bool):
        """The decoder makes its masks itself, except for one column with padding in it (a prompt in chunks of one), and
        with `make`, where a mask that grows would be compiled for each length.

        LFM2 takes every single column for a generated token and lets padding into its convolution.
        """
        if not make and (text_mask is None or decoder.embeddings.shape[1] > 1):
            return decoder.attention_mask
        mask = decoder.attention_mask
        kept = None if text_mask is None or mask is None else mask[:, -1:].bool()
        config = backbone(self.config.text_config)
        return layer_masks(config, decoder.embeddings, mask, kept, decoder.position_ids, cache)


def check_same_images(memory: ConnectorCacheLayer, rows: Tensor | None) -> None:
    """Raise ValueError for images other than those of a cache's first turn; `rows` [B] are said to have one.

    They are not encoded again.
    """
    if memory.image_rows is None:
        raise ValueError(
            "FireboltModel: pixel_values is given with a cache whose first turn had no image; expected images in the "
            "first turn alone"
        )
    if rows is not None and (rows.shape != memory.image_rows.shape or bool((rows != memory.image_rows).any())):
        raise ValueError(
            "FireboltModel: image_mask has other rows with an image; expected those of this cache's first turn"
        )


__all__ = ["FireboltModel", "FireboltPreTrainedModel", "check_same_images"]
