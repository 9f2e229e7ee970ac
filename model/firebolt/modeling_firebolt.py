"""Firebolt-VL: SigLIP grids, a connector that writes what each token sees into that token, and the LFM2 decoder."""

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
    SiglipVisionModel,
    StaticCache,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from ...cmm import CrossAttend, CrossModalModulator, Prepend
from ...cmm.linear import Linear, compute_fast
from ..checkpoint_files import check_model
from ..compat import (
    CACHE,
    CACHE_NAMES,
    CachedGeneration,
    extend,
    find_layer,
    given_cache,
    layer_masks,
    pool_by_one_query,
    step_by_products,
)
from ..cpu.prepacking import is_prepacked
from ..cpu.quantization import is_quantized
from ..loading import load_backbone, load_checked, open_checkpoint
from ..packing import check_prompts, has_hole, kept_columns
from .cache_firebolt import ConnectorCacheLayer
from .configuration_firebolt import FireboltConfig
from .fusion import DecoderInputs, Fusion, Grids, Text, summarize_prompt
from .grounding import Grounding, answer_mask, occlusion_effects, to_pixels, unit_boxes
from .original import is_original, load_original

CONNECTOR_CLASSES = {"cmm": CrossModalModulator, "prepend": Prepend, "cross_attend": CrossAttend}
PIXEL_ARGUMENTS = ("pixel_values", "pixel_tiles", "tile_mask", "image_mask")
# Ways of generating that forget columns again, which a static cache cannot.
GROWING = ("assistant_model", "prompt_lookup_num_tokens")
# Static caches of a compiled step are a multiple of this long.
STATIC_LENGTH = 256
GRID_ARGUMENTS = ("grids", "grid_mask", "grid_boxes", "grid_images")


class FireboltPreTrainedModel(PreTrainedModel):
    config: FireboltConfig
    config_class = FireboltConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["Lfm2DecoderLayer", "SiglipEncoderLayer", "CrossModalModulator", "Prepend", "CrossAttend"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False
    # The parameters of the state-space models; see cmm.precision for casts after loading.
    _keep_in_fp32_modules_strict = ["ssm.kernel"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As on any model of transformers, of safetensors alone, once the weights are known to fill the model."""
        return load_checked(cls, super().from_pretrained, pretrained_model_name_or_path, args, kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if not isinstance(module, tuple(CONNECTOR_CLASSES.values())):
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
        step_by_products(self.language_model)
        pool_by_one_query(self.vision_tower)
        compute_fast(self)
        self.compiled_step = None
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
    ) -> Grids:
        """Encode every image of the batch once: one call of the vision tower for each view size.

        pixel_values [B,3,S,S] or [B,I,3,S,S]; pixel_tiles [B,M,3,t,t] or [B,I,M,3,t,t]; tile_mask [B,M] or [B,I,M];
        image_mask [B] or [B,I]; grid_boxes [B,1+M,4] or [B,I,1+M,4]. Masked views are not encoded; their features
        are zero. G = I (1 + M), image by image, the global view first.
        """
        if pixel_values.dim() == 4:
            pixel_values, pixel_tiles, tile_mask, image_mask, grid_boxes = (
                tensor.unsqueeze(1) if tensor is not None else None
                for tensor in (pixel_values, pixel_tiles, tile_mask, image_mask, grid_boxes)
            )
        if pixel_values.dim() != 5:
            raise ValueError(f"pixel_values: {tuple(pixel_values.shape)} came, [B,3,S,S] or [B,I,3,S,S] is wanted")
        batch_size, images = pixel_values.shape[:2]
        device = pixel_values.device
        tiles = pixel_tiles.shape[2] if pixel_tiles is not None else 0
        if image_mask is None:
            image_mask = torch.ones(batch_size, images, dtype=torch.bool, device=device)
        if tile_mask is None:
            tile_mask = torch.ones(batch_size, images, tiles, dtype=torch.bool, device=device)
        wanted = {
            "image_mask": (image_mask, (batch_size, images)),
            "tile_mask": (tile_mask, (batch_size, images, tiles)),
            "pixel_tiles": (pixel_tiles, (batch_size, images, tiles)),
            "grid_boxes": (grid_boxes, (batch_size, images, 1 + tiles, 4)),
        }
        for name, (tensor, shape) in wanted.items():
            if tensor is not None and tuple(tensor.shape[: len(shape)]) != shape:
                raise ValueError(f"{name}: {tuple(tensor.shape)} came, {list(shape)} is wanted beside pixel_values")

        image_mask = image_mask.bool()
        tile_mask = tile_mask.bool() & image_mask[..., None]
        mask = torch.cat([image_mask[..., None], tile_mask], dim=-1)
        features = self._encode_views(pixel_values, pixel_tiles, image_mask, tile_mask)
        index = torch.arange(images, device=device)[None, :, None].expand(batch_size, images, 1 + tiles)
        return Grids(
            features.flatten(1, 2),
            mask.flatten(1, 2),
            grid_boxes.flatten(1, 2) if grid_boxes is not None else None,
            index.flatten(1, 2) if images > 1 else None,
        )

    def _encode_views(self, pixel_values, pixel_tiles, image_mask, tile_mask) -> Tensor:
        """Pooled features [B,I,1+M,D_v] of the views that the masks keep, zeros elsewhere."""
        features = pixel_values.new_zeros(
            *image_mask.shape, 1 + tile_mask.shape[-1], self.config.vision_config.hidden_size, dtype=self.dtype
        )
        if not image_mask.any():
            return features
        whole = pixel_values[image_mask]
        parts = pixel_tiles[tile_mask] if pixel_tiles is not None and tile_mask.any() else whole[:0]
        if whole.shape[1:] == parts.shape[1:]:
            pooled = self._pool_views(torch.cat([whole, parts]))
            features[..., 0, :][image_mask], rest = pooled[: len(whole)], pooled[len(whole) :]
        else:
            features[..., 0, :][image_mask] = self._pool_views(whole)
            rest = self._pool_views(parts) if len(parts) else whole.new_zeros(0, features.shape[-1], dtype=self.dtype)
        features[..., 1:, :][tile_mask] = rest
        return features

    def _pool_views(self, pixels: Tensor) -> Tensor:
        """Pooled vectors [n,D_v] of n views of one size, position embeddings interpolated for sizes not trained on."""
        native = pixels.shape[-1] == pixels.shape[-2] == self.config.vision_config.image_size
        views = self.vision_tower(pixels.to(self.vision_tower.dtype), interpolate_pos_encoding=not native)
        return views.pooler_output.to(self.dtype)

    def _given_grids(self, grids, grid_mask, grid_boxes, grid_images, text: Tensor) -> Grids:
        if grids.dim() != 3 or grids.shape[0] != text.shape[0]:
            raise ValueError(f"grids: {tuple(grids.shape)} came, [{text.shape[0]}, G, D_v] is wanted")
        if grid_mask is None:
            grid_mask = torch.ones(grids.shape[:2], dtype=torch.bool, device=grids.device)
        return Grids(grids.to(text.dtype), grid_mask.bool(), grid_boxes, grid_images)

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
        grids: Tensor | None = None,
        grid_mask: Tensor | None = None,
        grid_images: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        prompt_summary: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: exactly one of them is wanted")
        if pixel_values is not None and grids is not None:
            raise ValueError("pixel_values, grids: both came, at most one of them is wanted")
        text = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache is None:
            use_cache = self.config.text_config.use_cache and not self.training
        cache = given_cache(cache, past_key_values)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config.text_config)
        memory = extend(cache, ConnectorCacheLayer) if cache is not None else None
        text_mask = self._text_mask(attention_mask, text, memory, prompt_mask)

        seen = None
        if pixel_values is not None or grids is not None:
            if memory is not None and memory.columns > 0:
                check_same_images(memory, image_mask if pixel_values is not None else None)
            elif pixel_values is not None:
                seen = self.get_grids(pixel_values, pixel_tiles, tile_mask, image_mask, grid_boxes)
            else:
                seen = self._given_grids(grids, grid_mask, grid_boxes, grid_images, text)
        if prompt_mask is not None and (prompt_mask.dim() != 2 or prompt_mask.shape[0] != text.shape[0]):
            raise ValueError(f"prompt_mask: {tuple(prompt_mask.shape)} came, [{text.shape[0]}, T] is wanted")
        decoder = Fusion(self.connector, self.config.fusion, memory).decoder_inputs(
            Text(text, text_mask), seen, attention_mask, position_ids, prompt_mask, prompt_summary
        )
        steps = self.compiled_step is not None and decoder.embeddings.shape[1] == 1
        steps = steps and isinstance(cache, StaticCache) and not self.training
        outputs = (self.compiled_step if steps else self.language_model)(
            inputs_embeds=decoder.embeddings,
            attention_mask=self._decoder_masks(decoder, text_mask, cache, make=steps),
            position_ids=decoder.position_ids,
            use_cache=use_cache,
            **{CACHE: cache},
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if decoder.places is not None:
            hidden = hidden.gather(1, decoder.places[..., None].expand(-1, -1, hidden.shape[-1]))
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
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
            came = tuple(attention_mask.shape) if isinstance(attention_mask, Tensor) else type(attention_mask).__name__
            raise ValueError(
                f"attention_mask: {came} came, [{batch_size}, {past + columns}] is wanted"
                + (f" ({past} columns in the cache and {columns} new ones)" if past else "")
            )
        if columns == 1 and prompt_mask is not None and past >= prompt_mask.shape[1]:
            return None
        mask = attention_mask.bool()
        if has_hole(mask).any():
            raise ValueError(
                "attention_mask: a row drops a position between two kept ones; padding on the left or right is wanted "
                "(LFM2's short convolution is wrong over holes)"
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
        kept = None if text_mask is None else decoder.attention_mask[:, -1:].bool()
        return layer_masks(
            self.config.text_config, decoder.embeddings, decoder.attention_mask, kept, decoder.position_ids, cache
        )


def check_same_images(memory: ConnectorCacheLayer, image_mask: Tensor | None) -> None:
    """Images that come with a cache must be those that its first turn came with: they are not encoded again."""
    if memory.image_rows is None:
        raise ValueError(
            "pixel_values: images came with a cache whose first turn had none; an image belongs to the first turn"
        )
    if image_mask is not None:
        rows = image_mask.bool().flatten(1).any(-1) if image_mask.dim() > 1 else image_mask.bool()
        if rows.shape != memory.image_rows.shape or bool((rows != memory.image_rows).any()):
            raise ValueError("image_mask: other rows have an image than in the first turn of this cache")


class FireboltForConditionalGeneration(FireboltPreTrainedModel, CachedGeneration, GenerationMixin):
    """Firebolt-VL with its language-model head: answers questions about images, in text.

    Rows may have no image (their text embeddings reach the decoder unchanged), one, or several. Generation is exact
    and cached: an image is encoded once, the grid side of the connector is computed once, and the connector's state
    travels with the decoder's cache, so that step t equals column t of the full forward.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    cache_layer = ConnectorCacheLayer
    first_call_arguments = (*GRID_ARGUMENTS, "prompt_summary")

    def __init__(self, config: FireboltConfig):
        super().__init__(config)
        self.model = FireboltModel(config)
        self.lm_head = Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def compile_step(self, **options) -> "FireboltForConditionalGeneration":
        """Compile the decoder's generation step; the first answer afterwards waits for it. Returns the model.

        `options` go to torch.compile (backend, mode; on a GPU mode="reduce-overhead" captures CUDA graphs, the default
        there). The step runs on a static cache, which `generate` then takes by itself, its length rounded up, so that
        answers of other lengths seldom compile anew. Prompts run as before, and so do calls with another cache.
        """
        if self.device.type == "cuda":
            options = {"mode": "reduce-overhead", **options}
        self.model.compiled_step = torch.compile(self.model.language_model.forward, dynamic=False, **options)
        return self

    def get_grids(self, pixel_values: Tensor, **images) -> Grids:
        """See FireboltModel.get_grids."""
        return self.model.get_grids(pixel_values, **images)

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
        grids: Tensor | None = None,
        grid_mask: Tensor | None = None,
        grid_images: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        prompt_summary: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        r"""Logits of the next token at each text column, and the loss where there are labels.

        input_ids [B,T] (or inputs_embeds [B,T,D]); attention_mask [B, past + T], True = keep, padded left or right;
        images as `FireboltProcessor` makes them (see `get_grids`), or grids [B,G,D_v] with grid_mask [B,G],
        grid_boxes [B,G,4] and grid_images [B,G]; prompt_mask [B,T]: the question, which fusions `concat` and `pool`
        need (default: the kept positions before the first answer token, or without labels all of them); labels [B,T],
        -100 where no loss is wanted. Logits are [B,T,V] for every connector and fusion.

        Raises ValueError where a shape is not as above, a mask has holes, or both pixels and grids came.
        """
        if labels is not None:
            if labels.dim() != 2 or (input_ids if input_ids is not None else inputs_embeds).shape[:2] != labels.shape:
                raise ValueError(f"labels: {tuple(labels.shape)} came, the shape of the text, [B,T], is wanted")
            if prompt_mask is None:
                prompt_mask = (labels != -100).long().cumsum(-1) == 0
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            pixel_values=pixel_values,
            pixel_tiles=pixel_tiles,
            tile_mask=tile_mask,
            image_mask=image_mask,
            grid_boxes=grid_boxes,
            grids=grids,
            grid_mask=grid_mask,
            grid_images=grid_images,
            prompt_mask=prompt_mask,
            prompt_summary=prompt_summary,
            cache=cache,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(kept_columns(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )

    def save_pretrained(self, *args, **kwargs) -> None:
        """As on any model of transformers. Raises ValueError for one whose weights are in 8 bits, or prepacked."""
        if is_quantized(self):
            raise ValueError("save_pretrained: the weights are in 8 bits; save the model, then load it and quantise it")
        if is_prepacked(self):
            raise ValueError("save_pretrained: the weights are prepacked; save the model, then load it and prepack it")
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As on any model of transformers, of safetensors alone; a checkpoint of the original is converted on the way.

        The original only names its backbones: their configurations are looked for as a local folder, then among the
        models that the hub gave before, then taken from `text_config=` / `vision_config=`. `kernel_taps=512` keeps its
        truncated S4 kernel.
        """
        backbones = {name: kwargs.pop(name, None) for name in ("text_config", "vision_config", "kernel_taps")}
        if pretrained_model_name_or_path is not None:
            opened = open_checkpoint(pretrained_model_name_or_path, kwargs)
            if kwargs.get("config") is None and is_original(opened.config):
                found = load_original(opened, **backbones)
                check_model(lambda: cls(found.config), opened.shapes, opened.folder / "config.json")
                return super().from_pretrained(None, *args, config=found.config, state_dict=found.state, **kwargs)
        if given := sorted(name for name, value in backbones.items() if value is not None):
            raise ValueError(
                f"{', '.join(given)}: only for checkpoints of the original Firebolt-VL, this is another one"
            )
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_backbones(
        cls, decoder: str, vision: str, *, dtype: torch.dtype | None = None, **config
    ) -> "FireboltForConditionalGeneration":
        """A new Firebolt-VL around a trained LFM2 and a trained SigLIP, its connector freshly initialised.

        decoder, vision: local folders or hub ids; of a SigLIP with two towers only the vision tower is loaded.
        `config` goes to FireboltConfig (cmm_config, connector, fusion).
        """
        language_model = load_backbone(AutoModelForCausalLM, decoder, dtype)
        vision_tower = load_backbone(SiglipVisionModel, vision, dtype)
        model = cls(FireboltConfig(text_config=language_model.config, vision_config=vision_tower.config, **config))
        model.to(language_model.dtype)
        model.model.language_model.load_state_dict(language_model.model.state_dict())
        model.lm_head.load_state_dict(language_model.lm_head.state_dict())
        model.model.vision_tower.load_state_dict(vision_tower.state_dict())
        model.generation_config = language_model.generation_config
        return model.eval()

    @torch.no_grad()
    def ground(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        method: str = "weights",
        answer_ids: Tensor | None = None,
        max_new_tokens: int = 32,
        image_sizes: Tensor | None = None,
        **images,
    ) -> Grounding:
        """Where an answer comes from, grid by grid; see Grounding for what comes back.

        method "weights": what each text token weighed (connector "cmm" alone has such weights). "occlusion": the
        answer, `answer_ids` [B,N] or else generated greedily, is scored with every grid and with each one masked.
        `images` is what `FireboltProcessor` returns, or grids, grid_mask, grid_boxes, grid_images; `image_sizes` [B,2]
        (height, width), or [B,I,2] with several images in a row, turns the boxes into pixels.

        Raises ValueError for an unknown method, for inputs without an image, and for weights of another connector.
        """
        if method not in ("weights", "occlusion"):
            raise ValueError(f"method: {method!r} came, 'weights' or 'occlusion' is wanted")
        if method == "weights" and self.config.connector != "cmm":
            raise ValueError(
                f"method: 'weights' came, but connector {self.config.connector!r} has none; use 'occlusion'"
            )
        input_ids = input_ids.to(self.device)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(self.device)
        mask = mask.bool()
        given = {name: value.to(self.device) for name, value in images.items() if value is not None}
        if "pixel_values" in given:
            seen = self.get_grids(**given)
        elif "grids" in given:
            seen = self.model._given_grids(*(given.get(name) for name in GRID_ARGUMENTS), given["grids"].to(self.dtype))
        else:
            raise ValueError("pixel_values, grids: neither came; grounding needs an image")
        boxes = to_pixels(unit_boxes(seen.mask, seen.boxes), image_sizes, seen.images)
        if method == "weights":
            text = self.get_input_embeddings()(input_ids)
            _, weights = self.model.connector(
                text, seen.features, mask, seen.mask, seen.boxes, grid_images=seen.images, return_weights=True
            )
            return Grounding(method, boxes, seen.mask, weights=weights.float())

        stops = self.generation_config.eos_token_id
        stops = [stops] if isinstance(stops, int) else list(stops or [])
        if answer_ids is None:
            grid_arguments = dict(zip(GRID_ARGUMENTS, seen))
            sequences = self.generate(
                input_ids=input_ids,
                attention_mask=mask.long(),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                **{name: value for name, value in grid_arguments.items() if value is not None},
            )
            answer_ids = sequences[:, input_ids.shape[1] :]
        elif answer_ids.dim() != 2 or answer_ids.shape[0] != input_ids.shape[0]:
            raise ValueError(f"answer_ids: {tuple(answer_ids.shape)} came, [{input_ids.shape[0]}, N] is wanted")
        answer_ids = answer_ids.to(self.device)
        scored = answer_mask(answer_ids, stops, self.generation_config.pad_token_id)
        effects = occlusion_effects(self, input_ids, mask, answer_ids, scored, seen)
        return Grounding(method, boxes, seen.mask, effects=effects, answer_ids=answer_ids, answer_mask=scored)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args, **kwargs):
        """`GenerationMixin.generate`, with every image encoded once, before beams or samples repeat the inputs.

        Raises ValueError for prompts that are padded on the right: what is generated would stand behind a hole.
        """
        check_prompts(kwargs.get("attention_mask"))
        kwargs = {name: value for name, value in kwargs.items() if value is not None or name not in PIXEL_ARGUMENTS}
        cache = given_cache(*(kwargs.get(name) for name in CACHE_NAMES))
        memory = find_layer(cache, ConnectorCacheLayer) if isinstance(cache, Cache) else None
        started = memory is not None and memory.begun
        if "pixel_values" in kwargs:
            pixels = {name: kwargs.pop(name) for name in (*PIXEL_ARGUMENTS, "grid_boxes") if name in kwargs}
            if kwargs.get("grids") is not None:
                raise ValueError("pixel_values, grids: both came, at most one of them is wanted")
            if started:
                check_same_images(memory, pixels.get("image_mask"))
            else:
                pixels = {name: value.to(self.device) for name, value in pixels.items() if value is not None}
                kwargs.update(zip(GRID_ARGUMENTS, self.get_grids(**pixels)))
        if not started and kwargs.get("prompt_mask") is None:
            kwargs["prompt_mask"] = self._whole_prompt(inputs, kwargs)
        if not started and self.config.fusion == "pool" and kwargs.get("grids") is not None:
            kwargs["prompt_summary"] = self._prompt_summary(inputs, kwargs)
        if not any(kwargs.get(name) for name in GROWING) and cache is None and self.model.compiled_step is not None:
            kwargs.setdefault("cache_implementation", "static")
        return super().generate(inputs, *args, **kwargs)

    def _whole_prompt(self, inputs, kwargs) -> Tensor | None:
        if (mask := kwargs.get("attention_mask")) is not None:
            return mask.bool()
        for given in (kwargs.get("inputs_embeds"), inputs, kwargs.get("input_ids")):
            if given is not None:
                return torch.ones(given.shape[:2], dtype=torch.bool, device=given.device)
        return None

    def _prompt_summary(self, inputs, kwargs) -> Tensor | None:
        """What fusion "pool" puts first; made here, since prefill in chunks needs it with the first chunk."""
        if (text := kwargs.get("inputs_embeds")) is None:
            ids = inputs if inputs is not None else kwargs.get("input_ids")
            if ids is None:
                return None
            text = self.get_input_embeddings()(ids.to(self.device))
        seen = self.model._given_grids(*(kwargs.get(name) for name in GRID_ARGUMENTS), text)
        return summarize_prompt(self.model.connector, text, kwargs["prompt_mask"].to(self.device), seen)

    def kind(self) -> str:
        cmm = self.config.cmm_config
        chosen = (cmm["ssm"], cmm["top_k_mode"], *(name for name in ("kernel_taps", "grid_positions") if cmm[name]))
        return " ".join(("firebolt", self.config.connector, self.config.fusion, *chosen))

    def miniature(self) -> tuple["FireboltForConditionalGeneration", dict[str, Tensor]]:
        """A small model of this kind with random weights, and a padded batch for it, one row without an image."""
        text = {
            "vocab_size": 61,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "layer_types": ["conv", "full_attention", "conv"],
            "block_auto_adjust_ff_dim": False,
            "initializer_range": 0.3,
        }
        vision = {
            "hidden_size": 24,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        }
        small = {"text_width": 32, "grid_width": 24, "heads": 2, "head_dim": 8, "top_k": 2, "state_size": 4}
        taps = self.config.cmm_config["kernel_taps"] and 4
        config = FireboltConfig(
            text_config=text,
            vision_config=vision,
            cmm_config={**self.config.cmm_config, **small, "kernel_taps": taps},
            connector=self.config.connector,
            fusion=self.config.fusion,
        )
        columns = torch.arange(8)
        inputs = {
            "input_ids": (torch.tensor([3, 7, 11])[:, None] * (columns + 2)) % 61,
            "attention_mask": (columns >= torch.tensor([3, 0, 1])[:, None]).long(),
            "pixel_values": torch.randn(3, 3, 16, 16),
            "pixel_tiles": torch.randn(3, 4, 3, 8, 8),
            "image_mask": torch.tensor([True, True, False]),
        }
        return type(self)(config), inputs

    def decoder_length(self, columns: int, model_kwargs: dict) -> int:
        if self.model.connector.inserts_grids and model_kwargs.get("grids") is not None:
            columns += model_kwargs["grids"].shape[1]
        elif self.config.fusion == "pool":
            columns += 1
        elif self.config.fusion == "concat" and model_kwargs.get("prompt_mask") is not None:
            columns += model_kwargs["prompt_mask"].shape[1]
        if self.model.compiled_step is not None:
            columns = -(-columns // STATIC_LENGTH) * STATIC_LENGTH
        return columns


__all__ = ["FireboltForConditionalGeneration", "FireboltModel", "FireboltPreTrainedModel"]
