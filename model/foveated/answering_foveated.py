"""The foveated model with text: answers about frames, their loss, and checkpoints."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple  # pyright: ignore[reportPrivateImportUsage]  # its documented place

from ...cmm.linear import product
from ..compat import CACHE, CachedGeneration, given_cache
from ..configuration_checks import backbone
from ..cpu.quantized_models import hold_quantized
from ..loading import load_backbone, open_folder, read_weights
from ..packing import check_prompts, kept_columns
from .cache_foveated import VisualCacheLayer
from .configuration_foveated import FoveatedVLMConfig
from .loss import cross_entropies, next_token_loss
from .miniature import miniature_of
from .original import CONFIG_FIELDS, convert_state_dict, open_original, original_config
from .reading import Images, Reading, ReadingModel
from .visual_tokens import VisualTokens


@dataclass
class FoveatedOutput(CausalLMOutputWithPast):
    """CausalLMOutputWithPast, and `visual`: the VisualTokens of this call; None where it has no frames."""

    visual: VisualTokens | None = None


class Wanted(NamedTuple):
    """Labels of a loss: ids [B,S] and which of them count [B,S], or the labels of the next tokens [B,S] themselves.

    total: how many labels count in the whole batch; None for those of this call.
    """

    ids: Tensor | None
    counted: Tensor | None
    shifted: Tensor | None
    total: Any


class FoveatedVLM(ReadingModel, CachedGeneration, GenerationMixin):
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
    takes_quantized = True

    def __init__(self, config: FoveatedVLMConfig):
        super().__init__(config)
        if config.quantized is not None:
            hold_quantized(self, config.quantized)
        self.post_init()

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args, **kwargs):
        """Generate as in `GenerationMixin`, with every frame looked at once, before beams or samples repeat the inputs.

        Images and mode are those of `forward`; or the cache is a state of `watch`.

        Raises ValueError for prompts that are padded on the right.
        """
        check_prompts(kwargs.get("attention_mask"))
        images = Images(**{name: kwargs.pop(name, None) for name in Images._fields}).unpacked()
        mode = kwargs.pop("mode", None)
        if images.frames is not None:
            visual = self.get_visual_tokens(images.frames, images.frame_mask, mode)
            images = Images(visual_tokens=visual.tokens, visual_mask=visual.mask)
        for name in ("visual_tokens", "visual_mask"):
            if (value := getattr(images, name)) is not None:
                kwargs[name] = value
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
        pixel_values: Tensor | None = None,
        image_position_ids: Tensor | None = None,
        pixel_attention_mask: Tensor | None = None,
        loss_mask: Tensor | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
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
        [B,T,3,H,W] with frame_mask [B,T], as `FoveatedProcessor` makes them, or packed, pixel_values [n,3,H,W] with
        image_position_ids [n,2] and pixel_attention_mask [B], or visual_tokens [B,T,E] with visual_mask [B,T], as
        `get_visual_tokens` does; without any, text alone or the continuation of a cache.

        Logits are [B,S,V], those at the text; in mode `coarse_only` [B,T+S,V], at the frames too; in `autoregressive`
        [B,1+S,V], the first at each row's last frame. Without frames in this call, [B,S,V] always.

        The loss is the mean cross-entropy of the text tokens that count: those where loss_mask [B,S] is not 0, else
        those that attention_mask keeps. labels [B,S] say the same the transformers way, -100 where no loss is wanted.
        The first text token counts too where there are logits at a frame to predict it from, so never in
        `coarse_fine`. Without any mask `coarse_only` also counts the frames but the first, under the label
        `pad_token_id`, as the original does. `coarse_fine` adds `lambda_coarse` times the loss with the coarse
        tokens. shift_labels [B,S], in the place of labels, are those of the next tokens already, as trainers have them
        that cut a text between devices. There is no loss for a call on a filled cache, with `logits_to_keep`, or with
        embeddings alone.

        Raises ValueError where a shape is not as above, two of the alternatives are given, or frames come after text.
        """
        if loss_mask is not None and (labels is not None or shift_labels is not None):
            raise ValueError("FoveatedVLM: loss_mask and labels are both given; expected one of them at most")
        total = kwargs.pop("num_items_in_batch", None)
        images = Images(
            *(frames, frame_mask, visual_tokens, visual_mask, pixel_values, image_position_ids, pixel_attention_mask)
        )
        told = {"loss_mask": loss_mask, "labels": labels, "shift_labels": shift_labels}
        cache = given_cache(cache, past_key_values)
        read = self.read(input_ids, attention_mask, inputs_embeds, images, mode, cache, use_cache, told, **kwargs)
        hidden = self._of_mode(read.mode, read.outputs.last_hidden_state, read.seen, read.text.shape[1])
        logits = product(self.llm.lm_head, kept_columns(hidden, logits_to_keep))

        loss = None
        whole = not read.begun and isinstance(logits_to_keep, int) and logits_to_keep == 0
        ids = labels.clamp(min=0) if labels is not None else input_ids
        if whole and (ids is not None or shift_labels is not None):
            counted = loss_mask if loss_mask is not None else labels != -100 if labels is not None else None
            loss = self._losses(logits, read, attention_mask, Wanted(ids, counted, shift_labels, total))
        return FoveatedOutput(
            loss=loss,
            logits=logits,
            hidden_states=read.outputs.hidden_states,
            attentions=read.outputs.attentions,
            visual=read.visual if visual_tokens is None else None,
            **{CACHE: read.cache},
        )

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

    def _losses(self, logits: Tensor, read: Reading, attention_mask, wanted: Wanted) -> Tensor:
        """The loss of `forward`, with that of the coarse tokens where it counts."""
        loss = self._loss(logits, read, attention_mask, wanted)
        if not self.config.lambda_coarse or read.mode != "coarse_fine":
            return loss
        coarse = loss  # that of text alone
        if read.visual is not None and read.visual.coarse is not None:
            hidden = self._read(read.visual.coarse, read.seen, read.text, attention_mask).last_hidden_state
            logits = product(self.llm.lm_head, hidden[:, -read.text.shape[1] :])
            coarse = self._loss(logits, read, attention_mask, wanted)
        return loss + self.config.lambda_coarse * coarse

    def _loss(self, logits: Tensor, read: Reading, attention_mask, wanted: Wanted) -> Tensor:
        """The loss of `forward`: `logits` [B,F+S,V] has F columns at frames, as the mode goes."""
        original = self.config.original_behaviour
        if wanted.shifted is not None:
            loss, count = cross_entropies(logits[:, -wanted.shifted.shape[1] :], wanted.shifted)
        else:
            assert wanted.ids is not None  # else there is no loss
            loss, count = self._next_tokens(logits, wanted.ids, wanted.counted, attention_mask, read)
        # Without a label that counts the original's loss is nan.
        if not original:
            count = count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
        return loss / (wanted.total if wanted.total is not None else count)

    def _next_tokens(
        self, logits: Tensor, ids: Tensor, counted, attention_mask, read: Reading
    ) -> tuple[Tensor, int | Tensor]:
        """Sum the cross-entropies of the tokens that count, and count them."""
        frames, seen = logits.shape[1] - ids.shape[1], read.seen
        if counted is None:
            counted = attention_mask
        pad = backbone(self.config.text_config).pad_token_id
        label_frames = counted is None and read.mode == "coarse_only" and pad is not None
        counted = torch.ones_like(ids, dtype=torch.bool) if counted is None else counted != 0
        counted = nn.functional.pad(counted, (frames, 0), value=label_frames)
        labels = nn.functional.pad(ids, (frames, 0), value=pad or 0)
        kept = None
        if not self.config.original_behaviour and (attention_mask is not None or (seen is not None and frames)):
            kept = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask != 0
            if frames:
                front = kept.new_ones(len(ids), frames) if seen is None else seen
                front = front if frames == front.shape[1] else front.any(1, keepdim=True)
                kept = torch.cat([front, kept], dim=1)
        return next_token_loss(logits, labels, counted, kept)

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
