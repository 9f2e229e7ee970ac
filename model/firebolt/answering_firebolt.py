"""Firebolt-VL with its language-model head: answers, generated and cached, and where they come from."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationMixin,
    SiglipVisionModel,
)
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple  # pyright: ignore[reportPrivateImportUsage]  # its documented place

from ...cmm.inserting import Inserting
from ...cmm.linear import product
from ...cmm.sequences import Sequences
from ..adapters import check_adaptable
from ..checkpoint_sizes import check_model
from ..compat import (
    CACHE,
    CACHE_NAMES,
    CachedGeneration,
    find_layer,
    given_cache,
    to_device_of,
)
from ..configuration_checks import backbone
from ..cpu.quantized_models import hold_quantized
from ..loading import load_backbone, open_checkpoint
from ..packing import check_prompts, kept_columns
from .cache_firebolt import ConnectorCacheLayer
from .configuration_firebolt import FireboltConfig
from .fusion import inserted_grids, summarize_prompt
from .grids import GRID_ARGUMENTS, PIXEL_ARGUMENTS, Grids, named_grids, rows_with_images
from .grounding import Grounding, ground
from .miniature import miniature_of
from .modeling_firebolt import FireboltModel, FireboltPreTrainedModel, check_same_images
from .original import is_original, load_original
from .packed_text import packed_sequences
from .parts import ExportPart, export_parts


@dataclass
class FireboltCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Logits and loss; `balance` is the balance loss of the connector's experts in training, not yet weighted."""

    balance: Tensor | None = None


# Ways of generating that forget columns again, which a static cache cannot.
GROWING = ("assistant_model", "prompt_lookup_num_tokens")
# Static caches of a compiled step are a multiple of this long.
STATIC_LENGTH = 256


class FireboltForConditionalGeneration(FireboltPreTrainedModel, CachedGeneration, GenerationMixin):
    """Firebolt-VL with its language-model head: answers questions about images, in text.

    Rows may have no image (their text embeddings reach the decoder unchanged), one, or several. Generation is exact
    and cached: an image is encoded once, the grid side of the connector is computed once, and the connector's state
    travels with the decoder's cache, so that step t equals column t of the full forward.
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    cache_layer = ConnectorCacheLayer
    first_call_arguments = (*GRID_ARGUMENTS, "prompt_summary")
    takes_quantized = True

    def __init__(self, config: FireboltConfig):
        super().__init__(config)
        self.model = FireboltModel(config)
        text = backbone(config.text_config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        if config.quantized is not None:
            hold_quantized(self, config.quantized)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

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

    def export_parts(
        self, view_size: int | None = None, tile_size: int | None = None, weights: bool = False
    ) -> dict[str, ExportPart]:
        """Return the model as three callables for `torch.export` and other engines: "grids", "prompt" and "step".

        "grids" makes of images what the connector keeps of them, "prompt" reads tokens after a state, from nothing or
        from an earlier call, and "step" one token. States are real numbers that go in and come out. The views are
        `view_size` pixels wide (default: the vision tower's own) and its tiles `tile_size` (default: half of that).
        With `weights` "grids" also returns the grids' boxes [B,G,4], and the others the share of each grid in each
        token [B,T,G] after the logits, as `ground` gives them. The callables share this model's parameters.

        Raises ValueError for a connector other than "cmm" with fusion "replace", a state-space model other than s4,
        s4d and mamba, and a model in training mode.
        """
        return export_parts(self, view_size, tile_size, weights)

    def get_grids(self, pixel_values: Tensor, **images) -> Grids:
        """Encode every image of the batch once; see FireboltModel.get_grids."""
        return self.model.get_grids(pixel_values, **images)

    @torch.no_grad()
    def add_grids(self, past_key_values: Cache, **images: Tensor | None) -> None:
        """Show a conversation more images, or frames of a video that goes on; see FireboltModel.add_grids."""
        self.model.add_grids(past_key_values, **images)

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
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        cu_seq_lens_q: Tensor | Sequences | None = None,
        image_numbers: Tensor | None = None,
        image_times: Tensor | None = None,
        grid_times: Tensor | None = None,
        **kwargs,
    ) -> FireboltCausalLMOutputWithPast:
        r"""Compute the logits of the next token at each text column, and the loss where there are labels.

        input_ids [B,T] (or inputs_embeds [B,T,D]); attention_mask [B, past + T], True = keep, padded left or right;
        images as `FireboltProcessor` makes them (see `get_grids`), or grids [B,G,D_v] with grid_mask [B,G],
        grid_boxes [B,G,4], grid_images [B,G] and grid_times [B,G] in seconds; prompt_mask [B,T]: the question, which
        fusions `concat` and `pool` need (default: the kept positions before the first answer token, or without labels
        all of them); labels [B,T], -100 where no loss is wanted. Logits are [B,T,V] for every connector and fusion. In
        training the loss of a connector with experts has `balance_weight` times their balance in it.

        Several sequences may be packed into one row [1,T], as transformers' collators for padding-free training do:
        position_ids [1,T] begin again with each, without attention_mask and cache, or cu_seq_lens_q [S+1] has their
        borders, from 0 to T. Images (or grids) then have S rows, one for each sequence, and each sequence gives what it
        gives alone; a label at the beginning of one counts for nothing. So with fusion `replace`.

        Raises ValueError where a shape is not as above, a mask has holes, or both pixels and grids are given.
        """
        if labels is not None:
            text = input_ids if input_ids is not None else inputs_embeds
            if labels.dim() != 2 or (text is not None and text.shape[:2] != labels.shape):
                raise ValueError(
                    f"FireboltForConditionalGeneration: labels has shape {list(labels.shape)}; expected that of the "
                    "text, [B,T]"
                )
            if prompt_mask is None:
                prompt_mask = (labels != -100).long().cumsum(-1) == 0
            sequences = packed_sequences(
                self.config,
                labels[..., None],
                cu_seq_lens_q,
                position_ids,
                attention_mask,
                packs=self.model.packs,
                cached=given_cache(cache, past_key_values) is not None or bool(use_cache),
            )
            if sequences is not None:
                cu_seq_lens_q, labels = sequences, labels.masked_fill(sequences.position == 0, -100)
        elif prompt_mask is None and self.model.reads_prompt:
            prompt_mask = self._all_of_the_text(input_ids, inputs_embeds, given_cache(cache, past_key_values))
        if self.training and torch.is_grad_enabled():
            check_adaptable("forward", self)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            pixel_values=pixel_values,
            pixel_tiles=pixel_tiles,
            tile_mask=tile_mask,
            image_mask=image_mask,
            grid_boxes=grid_boxes,
            image_position_ids=image_position_ids,
            pixel_attention_mask=pixel_attention_mask,
            image_numbers=image_numbers,
            image_times=image_times,
            grids=grids,
            grid_mask=grid_mask,
            grid_images=grid_images,
            grid_times=grid_times,
            prompt_mask=prompt_mask,
            prompt_summary=prompt_summary,
            cache=cache,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            cu_seq_lens_q=cu_seq_lens_q,
            **kwargs,
        )
        logits = product(self.lm_head, kept_columns(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            vocab_size = backbone(self.config.text_config).vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
            if outputs.balance is not None:
                loss = loss + self.balance_weight * _share(labels, kwargs) * outputs.balance
        return FireboltCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            balance=outputs.balance,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )

    @property
    def balance_weight(self) -> float:
        """Weight of the balance loss of the connector's experts, 0 where it has none."""
        return getattr(self.model.connector.config, "balance_weight", 0.0)

    @staticmethod
    def _all_of_the_text(input_ids, inputs_embeds, cache: Cache | None) -> Tensor | None:
        """Take a text without labels for the prompt, all of it [B,T]; None where a cache has begun, and knows."""
        text = input_ids if input_ids is not None else inputs_embeds
        memory = find_layer(cache, ConnectorCacheLayer) if cache is not None else None
        if text is None or (memory is not None and memory.begun):
            return None
        return torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a model like any of transformers, of safetensors alone; one of the original is converted on the way.

        The original only names its backbones: their configurations are looked for as a local folder, then among the
        models that the hub gave before, then taken from `text_config=` / `vision_config=`. `kernel_taps=512` keeps its
        truncated S4 kernel, `insert=` says where V2 puts an image, "prepend" or "mean_at_token".
        """
        backbones = {name: kwargs.pop(name, None) for name in ("text_config", "vision_config", "kernel_taps", "insert")}
        if pretrained_model_name_or_path is not None:
            opened = open_checkpoint(pretrained_model_name_or_path, kwargs)
            if kwargs.get("config") is None and is_original(opened.config):
                found = load_original(opened, **backbones)
                check_model(lambda: cls(found.config), opened.shapes, opened.folder / "config.json")
                return super().from_pretrained(None, *args, config=found.config, state_dict=found.state, **kwargs)
        if given := sorted(name for name, value in backbones.items() if value is not None):
            raise ValueError(
                f"from_pretrained: {', '.join(given)} given; expected so only for a checkpoint of the original "
                "Firebolt-VL"
            )
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @classmethod
    def from_backbones(
        cls, decoder: str, vision: str, *, dtype: torch.dtype | None = None, **config
    ) -> "FireboltForConditionalGeneration":
        """Build a new Firebolt-VL around a trained LFM2 and a trained SigLIP, its connector freshly initialised.

        decoder, vision: local folders or hub ids; of a SigLIP with two towers only the vision tower is loaded.
        `config` goes to FireboltConfig (cmm_config, connector, fusion, grids).
        """
        language_model = load_backbone(AutoModelForCausalLM, decoder, dtype)
        vision_tower = load_backbone(SiglipVisionModel, vision, dtype)
        model = cls(FireboltConfig(text_config=language_model.config, vision_config=vision_tower.config, **config))
        model.to(language_model.dtype)  # pyright: ignore[reportArgumentType]  # `wraps` around it forgets self
        model.model.language_model.load_state_dict(language_model.model.state_dict())
        model.lm_head.load_state_dict(language_model.lm_head.state_dict())
        there = model.model.vision_tower.state_dict()  # without a head where patches alone are read
        model.model.vision_tower.load_state_dict({n: t for n, t in vision_tower.state_dict().items() if n in there})
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
        """Measure where an answer comes from, grid by grid; see Grounding for what comes back.

        method "weights": what each text token weighed (connector "cmm" alone has such weights). "occlusion": the
        answer, `answer_ids` [B,N] or else generated greedily, is scored with every grid and with each one masked.
        `images` is what `FireboltProcessor` returns, or grids, grid_mask, grid_boxes, grid_images, grid_times;
        `image_sizes` [B,2] (height, width), or [B,I,2] with several images in a row, turns the boxes into pixels.

        Raises ValueError for an unknown method, for inputs without an image, and for weights of another connector.
        """
        return ground(self, input_ids, attention_mask, method, answer_ids, max_new_tokens, image_sizes, images)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args, **kwargs):
        """Generate as in `GenerationMixin`, with every image encoded once, before beams or samples repeat the inputs.

        Raises ValueError for prompts that are padded on the right: what is generated would stand behind a hole.
        """
        check_prompts(kwargs.get("attention_mask"))
        kwargs = {name: value for name, value in kwargs.items() if value is not None or name not in PIXEL_ARGUMENTS}
        cache = given_cache(*(kwargs.get(name) for name in CACHE_NAMES))
        memory = find_layer(cache, ConnectorCacheLayer) if isinstance(cache, Cache) else None
        memory = memory if memory is not None and memory.begun else None
        if "pixel_values" in kwargs:
            pixels = {name: kwargs.pop(name) for name in (*PIXEL_ARGUMENTS, "grid_boxes") if name in kwargs}
            if kwargs.get("grids") is not None:
                raise ValueError("generate: pixel_values and grids are both given; expected at most one of them")
            if memory is not None:
                told = rows_with_images(pixels.get("image_mask"), pixels.get("pixel_attention_mask"))
                check_same_images(memory, told)
            else:
                pixels = {name: to_device_of(self, value) for name, value in pixels.items() if value is not None}
                black = self._black_rows(inputs, kwargs)
                kwargs.update(zip(GRID_ARGUMENTS, self.model.get_grids(**pixels, black_rows=black)))
        elif memory is None and kwargs.get("grids") is None and (black := self._black_rows(inputs, kwargs)) is not None:
            shown = self.model.get_grids(**self.model.black_pixels(len(black)), black_rows=black)
            kwargs.update(zip(GRID_ARGUMENTS, shown))
        if memory is None and kwargs.get("prompt_mask") is None:
            kwargs["prompt_mask"] = self._whole_prompt(inputs, kwargs)
        if memory is None and self._reads_whole_prompt and kwargs.get("grids") is not None:
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

    @property
    def _reads_whole_prompt(self) -> bool:
        return self.config.fusion == "pool" or self.model.connector.reads_prompt

    def _prompt_ids(self, inputs, kwargs) -> Tensor | None:
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        return None if ids is None else to_device_of(self, ids)

    def _black_rows(self, inputs, kwargs) -> Tensor | None:
        """The rows of the prompt that get a black image where they have none; see FireboltModel.black_rows."""
        ids = self._prompt_ids(inputs, kwargs)
        text = ids if ids is not None else kwargs.get("inputs_embeds")
        if text is None:
            return None
        return self.model.black_rows(self.model.image_tokens(ids), text.shape[0])

    def _prompt_summary(self, inputs, kwargs) -> Tensor | None:
        """Make what stands before the text and depends on the whole prompt: what fusion "pool" puts first, or what a
        connector chooses by the question; here, since prefill in chunks needs it with the first chunk."""
        if (text := kwargs.get("inputs_embeds")) is None:
            if (ids := self._prompt_ids(inputs, kwargs)) is None:
                return None
            text = self.get_input_embeddings()(ids)
        seen, prompt = named_grids(kwargs, text), to_device_of(self, kwargs["prompt_mask"])
        if self.config.fusion == "pool":
            return summarize_prompt(self.model.connector, text, prompt, seen)
        return inserted_grids(self.model.connector, text, None, prompt, seen)[0]

    def kind(self) -> str:
        cmm = self.config.connector_config()
        switched_on = (name for name in ("kernel_taps", "grid_positions", "grid_times") if getattr(cmm, name))
        chosen = (cmm.ssm, cmm.top_k_mode, cmm.query, str(cmm.layers), cmm.start, *switched_on)
        own = (str(getattr(cmm, name)) for name in ("insert", "route_by", "black_image") if hasattr(cmm, name))
        return " ".join(("firebolt", self.config.connector, self.config.fusion, self.config.grids, *chosen, *own))

    def miniature(self) -> tuple["FireboltForConditionalGeneration", dict[str, Tensor]]:
        """Return a small model of this kind with random weights, and a padded batch, one row without an image."""
        config, inputs = miniature_of(self.config)
        return type(self)(config), inputs

    def decoder_length(self, columns: int, model_kwargs: dict) -> int:
        connector = self.model.connector
        if connector.inserts_grids and not connector.places_images and model_kwargs.get("grids") is not None:
            mask = named_grids(model_kwargs, model_kwargs["grids"]).mask
            columns += cast("Inserting", connector).inserted_mask(mask, model_kwargs.get("grid_images")).shape[1]
        elif self.config.fusion == "pool":
            columns += 1
        elif self.config.fusion == "concat" and model_kwargs.get("prompt_mask") is not None:
            columns += model_kwargs["prompt_mask"].shape[1]
        if self.model.compiled_step is not None:
            columns = -(-columns // STATIC_LENGTH) * STATIC_LENGTH
        return columns


def _share(labels: Tensor, arguments: dict) -> Tensor | float:
    """The share of a step's answer tokens that are in this batch, where a trainer accumulates several of them."""
    if (items := arguments.get("num_items_in_batch")) is None:
        return 1.0
    return (labels[:, 1:] != -100).sum() / items


__all__ = ["FireboltForConditionalGeneration"]
