"""The foveated model with text: answers about frames, their loss, and checkpoints."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, DynamicCache, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple  # pyright: ignore[reportPrivateImportUsage]  # its documented place

from ...cmm.linear import product
from ..compat import CACHE, CachedGeneration, extend, given_cache
from ..configuration_checks import backbone
from ..loading import load_backbone, open_folder, read_weights
from ..packing import check_prompts, kept_columns
from .cache_foveated import VisualCacheLayer
from .configuration_foveated import FoveatedVLMConfig
from .loss import next_token_loss
from .miniature import miniature_of
from .modeling_foveated import FoveatedModel
from .original import CONFIG_FIELDS, convert_state_dict, open_original, original_config
from .visual_tokens import VisualTokens


@dataclass
class FoveatedOutput(CausalLMOutputWithPast):
    """CausalLMOutputWithPast, and `visual`: the VisualTokens of this call; None where it has no frames.

    last_hidden_state [B,S,E]: what the head makes logits of, at the text.
    """

    visual: VisualTokens | None = None
    last_hidden_state: Tensor | None = None


class FoveatedVLM(FoveatedModel, CachedGeneration, GenerationMixin):
    r"""One visual token for each frame: DINOv2 looks by a query, a Llama decoder reads and says where to look next.

    Visual tokens come before the text, one a frame. By `mode`:

    - `coarse_only`: the learned `q_static` looks at every frame.
    - `coarse_fine`: the decoder reads these coarse tokens; from its state at each frame comes the query for the next
      one (the first is `q_init`), and the second look gives the tokens that the text is read with.
    - `autoregressive`: no coarse look; `q_init` looks at the first frame, its token goes through the decoder, from
      whose state comes the query for the next frame, and so on. Frames may come one by one (`watch`).

    Each frame goes through the vision tower once, however many queries look at it. A row's result does not depend on
    what else is in the batch: frames outside `frame_mask` are neither encoded nor attended to, and positions count
    what is there. (`config.original_behaviour` undoes that.)
    """

    _tied_weights_keys = {"llm.lm_head.weight": "llm.model.embed_tokens.weight"}
    cache_layer = VisualCacheLayer
    first_call_arguments = ("visual_tokens", "visual_mask")

    def __init__(self, config: FoveatedVLMConfig):
        super().__init__(config)
        self.post_init()

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args, **kwargs):
        """Generate as in `GenerationMixin`, with every frame looked at once, before beams or samples repeat the inputs.

        frames, frame_mask and mode are those of `forward`; or the cache is a state of `watch`.

        Raises ValueError for prompts that are padded on the right.
        """
        check_prompts(kwargs.get("attention_mask"))
        frames, mask = kwargs.pop("frames", None), kwargs.pop("frame_mask", None)
        mode = kwargs.pop("mode", None)
        if frames is not None:
            if kwargs.get("visual_tokens") is not None:
                raise ValueError("FoveatedVLM: frames and visual_tokens are both given; expected one of them at most")
            visual = self.get_visual_tokens(frames, mask, mode)
            kwargs.update(visual_tokens=visual.tokens, visual_mask=visual.mask)
        return super().generate(inputs, *args, **kwargs)

    def kind(self) -> str:
        return f"foveated {self.config.mode}"

    def miniature(self) -> tuple["FoveatedVLM", dict[str, Tensor]]:
        """Return a small model of this kind with random weights, and a padded batch, one frame of it missing."""
        config, inputs = miniature_of(self.config)
        return type(self)(config), inputs

    def decoder_length(self, columns: int, model_kwargs: dict) -> int:
        visual = model_kwargs.get("visual_tokens")
        return columns if visual is None else columns + visual.shape[1]

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        frames: Tensor | None = None,
        frame_mask: Tensor | None = None,
        loss_mask: Tensor | None = None,
        labels: Tensor | None = None,
        mode: str | None = None,
        visual_tokens: Tensor | None = None,
        visual_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Cache | None = None,
        **kwargs,
    ) -> FoveatedOutput:
        r"""Compute the logits of the next token, and the loss.

        input_ids [B,S] (or inputs_embeds [B,S,E]); attention_mask [B, past + S], not 0 = keep, any mask; frames
        [B,T,3,H,W] with frame_mask [B,T], as `FoveatedProcessor` makes them, or visual_tokens [B,T,E] with visual_mask
        [B,T], as `get_visual_tokens` does; without either, text alone or the continuation of a cache.

        Logits are [B,S,V], those at the text; in mode `coarse_only` [B,T+S,V], at the frames too; in `autoregressive`
        [B,1+S,V], the first at each row's last frame. Without frames in this call, [B,S,V] always.

        The loss is the mean cross-entropy of the text tokens that count: those where loss_mask [B,S] is not 0, else
        those that attention_mask keeps. labels [B,S] say the same the transformers way, -100 where no loss is wanted.
        The first text token counts too where there are logits at a frame to predict it from, so never in
        `coarse_fine`. Without any mask `coarse_only` also counts the frames but the first, under the label
        `pad_token_id`, as the original does. `coarse_fine` adds `lambda_coarse` times the loss with the coarse
        tokens. There is no loss for a call on a filled cache, with `logits_to_keep`, or with embeddings alone.

        Raises ValueError where a shape is not as above, two of the alternatives are given, or frames come after text.
        """
        mode = self._mode(mode)
        if (input_ids is None) == (inputs_embeds is None):
            given = "are both given" if input_ids is not None else "are not given"
            raise ValueError(f"FoveatedVLM: input_ids and inputs_embeds {given}; expected one of them")
        if loss_mask is not None and labels is not None:
            raise ValueError("FoveatedVLM: loss_mask and labels are both given; expected one of them at most")
        if frames is not None and visual_tokens is not None:
            raise ValueError("FoveatedVLM: frames and visual_tokens are both given; expected one of them at most")
        cache = given_cache(cache, past_key_values)
        text = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        columns = text.shape[1]
        config = backbone(self.config.text_config)
        if use_cache is None:
            use_cache = cache is not None or (config.use_cache and not self.training)
        if use_cache and cache is None:
            cache = DynamicCache(config=config)
        layer = extend(cache, VisualCacheLayer) if cache is not None else None
        begun = layer is not None and layer.begun
        self._check_text(text, attention_mask, loss_mask, labels, layer)
        if begun and (frames is not None or visual_tokens is not None):
            raise ValueError(
                "FoveatedVLM: frames is given with a filled cache; expected frames before all text (see `watch`)"
            )
        visual = None
        if frames is not None:
            visual = self.get_visual_tokens(frames, frame_mask, mode)
        elif visual_tokens is not None:
            visual = self._given(visual_tokens, visual_mask)
        if visual is not None and len(visual.tokens) != len(text):
            raise ValueError(
                f"FoveatedVLM: frames has {len(visual.tokens)} rows; expected {len(text)}, one for each text"
            )
        total = kwargs.pop("num_items_in_batch", None)
        seen = self._decoder_mask(visual.mask) if visual is not None else None
        front = visual.tokens.to(text.dtype) if visual is not None else text[:, :0]
        outputs = self._read(front, seen, text, attention_mask, cache, **kwargs)
        text_hidden = outputs.last_hidden_state[:, -columns:]
        hidden = self._of_mode(mode, outputs.last_hidden_state, seen, columns)
        logits = product(self.llm.lm_head, kept_columns(hidden, logits_to_keep))

        loss = None
        whole = not begun and isinstance(logits_to_keep, int) and logits_to_keep == 0
        ids = labels.clamp(min=0) if labels is not None else input_ids
        if whole and ids is not None:
            counted = loss_mask if loss_mask is not None else labels != -100 if labels is not None else None
            told = (ids, counted, attention_mask, total, seen, mode)
            loss = self._loss(logits, *told)
            if self.config.lambda_coarse and mode == "coarse_fine":
                coarse = loss  # that of text alone
                if visual is not None and visual.coarse is not None:
                    hidden = self._read(visual.coarse, seen, text, attention_mask).last_hidden_state
                    coarse = self._loss(product(self.llm.lm_head, hidden[:, -columns:]), *told)
                loss = loss + self.config.lambda_coarse * coarse
        return FoveatedOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            visual=visual if frames is not None else None,
            last_hidden_state=text_hidden,
            **{CACHE: cache if use_cache else None},
        )

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

    def _of_mode(self, mode: str, hidden: Tensor, seen: Tensor | None, columns: int) -> Tensor:
        """The states that have logits, of those at frames and text [B,T+S,E]; see `forward`."""
        frames = hidden.shape[1] - columns
        if mode == "coarse_only" or not frames:
            return hidden
        text = hidden[:, frames:]
        if mode == "coarse_fine":
            return text
        if seen is None:
            return hidden[:, frames - 1 :]
        columns_of_frames = torch.arange(frames, device=seen.device)
        last = torch.where(seen, columns_of_frames, -1).amax(1)
        lead = hidden[torch.arange(len(hidden), device=seen.device), last.clamp(min=0)]
        return torch.cat([torch.where(last[:, None] >= 0, lead, 0)[:, None], text], dim=1)

    def _loss(self, logits: Tensor, ids: Tensor, counted, attention_mask, total, seen, mode: str) -> Tensor:
        """The loss of `forward`: `logits` [B,F+S,V] has F columns at frames, as the mode goes."""
        frames = logits.shape[1] - ids.shape[1]
        if counted is None:
            counted = attention_mask
        pad = backbone(self.config.text_config).pad_token_id
        label_frames = counted is None and mode == "coarse_only" and pad is not None
        counted = torch.ones_like(ids, dtype=torch.bool) if counted is None else counted != 0
        counted = nn.functional.pad(counted, (frames, 0), value=label_frames)
        labels = nn.functional.pad(ids, (frames, 0), value=pad or 0)
        original = self.config.original_behaviour
        kept = None
        if not original and (attention_mask is not None or (seen is not None and frames)):
            kept = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
            if frames:
                front = kept.new_ones(len(ids), frames) if seen is None else seen
                front = front if frames == front.shape[1] else front.any(1, keepdim=True)
                kept = torch.cat([front, kept], dim=1)
        loss, count = next_token_loss(logits, labels, counted, kept)
        # Without a label that counts the original's loss is nan.
        return loss / (total if total is not None else count if original else max(count, 1))

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
    def _check_text(text: Tensor, attention_mask, loss_mask, labels, layer: VisualCacheLayer | None) -> None:
        batch_size, columns = text.shape[:2]
        past = layer.columns if layer is not None else 0
        wanted = {
            "attention_mask": (attention_mask, (batch_size, past + columns)),
            "loss_mask": (loss_mask, (batch_size, columns)),
            "labels": (labels, (batch_size, columns)),
        }
        for name, (tensor, shape) in wanted.items():
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"FoveatedVLM: {name} has shape {list(tensor.shape)}; expected {list(shape)}")
        if layer is not None and layer.query is not None and len(layer.query) != batch_size:
            raise ValueError(
                f"FoveatedVLM: {CACHE} has {len(layer.query)} rows; expected {batch_size}, one for each text (its "
                "batch_repeat_interleave makes more)"
            )

    @classmethod
    def from_original(
        cls, state_dict: dict[str, Tensor], vision_config=None, text_config=None, **config
    ) -> "FoveatedVLM":
        """Build the model of a state dict of the original, in eval mode and float32, `config` as for FoveatedVLMConfig.

        vision_config, text_config: of its backbones, which a state dict does not name; DINOv2-small and SmolLM2-135M
        by default. query_dim is read off the state dict where it is not given.

        Raises ValueError where a key is missing, unknown or of another shape than the configurations say.
        """
        config = original_config(state_dict, vision_config=vision_config, text_config=text_config, **config)
        model = cls(config)
        converted = convert_state_dict(state_dict, model.state_dict())
        model.load_state_dict(converted)
        return model.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a model like any of transformers, of safetensors alone; one of the original is converted on the way.

        Those are a state dict in a safetensors file, in a folder or at a hub id. What `from_original` takes may come
        here then (vision_config, text_config, query_dim, visual_scale, ...), or stand in a config.json beside it.
        """
        name = pretrained_model_name_or_path
        if name is not None and kwargs.get("config") is None:
            name = open_folder(name, kwargs)
            if (original := open_original(name)) is not None:
                told, shapes = original
                given = {field: kwargs.pop(field) for field in CONFIG_FIELDS if field in kwargs}
                config = original_config(shapes, **{**told, **given})
                with torch.device("meta"):
                    wanted = cls(config).state_dict()
                kwargs.setdefault("dtype", torch.float32)
                state = convert_state_dict(read_weights(name), wanted)
                return super().from_pretrained(None, *args, config=config, state_dict=state, **kwargs)
        return super().from_pretrained(name, *args, **kwargs)

    @classmethod
    def from_backbones(cls, decoder: str, vision: str, *, dtype: torch.dtype | None = None, **config) -> "FoveatedVLM":
        """Build a foveated model around a trained Llama and a trained DINOv2, queries and bridges newly initialised.

        decoder, vision: local folders or hub ids. `config` goes to FoveatedVLMConfig.
        """
        llm = load_backbone(AutoModelForCausalLM, decoder, dtype)
        dino = load_backbone(AutoModel, vision, dtype)
        model = cls(FoveatedVLMConfig(text_config=llm.config, vision_config=dino.config, **config))
        model.to(llm.dtype)  # pyright: ignore[reportArgumentType]  # `wraps` around it forgets self
        model.llm.load_state_dict(llm.state_dict())
        model.encoder.dino.load_state_dict(dino.state_dict())
        model.generation_config = llm.generation_config
        return model.eval()


__all__ = ["FoveatedOutput", "FoveatedVLM"]
