"""The foveated model: a query looks at each frame, the decoder reads one visual token for it and moves the query on."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from ...cmm.linear import compute_fast
from ..compat import CACHE, CACHE_NAMES, CachedGeneration, extend, find_layer, given_cache
from ..loading import load_backbone, load_checked, open_folder, read_weights
from ..packing import check_prompts, kept_columns
from .cache_foveated import VisualCacheLayer
from .configuration_foveated import FoveatedVLMConfig, check_mode
from .encoder import FoveatedEncoder, PatchMemory
from .loss import next_token_loss, previous_kept
from .original import CONFIG_FIELDS, convert_state_dict, open_original, original_config


@dataclass
class VisualTokens:
    """What the decoder gets of B rows of T frames, and how it came about.

    tokens      [B,T,E], visual_scale (W z + b): the decoder's input
    mask        [B,T] bool, the frames that are there: all others are nothing to the decoder (with `original_behaviour`
                it attends to them too)
    features    [B,T,D], z: what the query saw; 0 where there is no frame
    queries     [B,T,Q], where it looked (both None where only tokens were given)
    coarse      [B,T,E], the coarse visual tokens of mode `coarse_fine`; None in the others
    attention   [B,T,L,H,1+patches] float32, the query's weights in each layer of the vision tower, the class token
                first; None unless asked for
    """

    tokens: Tensor
    mask: Tensor
    features: Tensor | None = None
    queries: Tensor | None = None
    coarse: Tensor | None = None
    attention: Tensor | None = None

    def maps(self) -> Tensor:
        """Where each query looked, [B,T,h,w]: the share of each patch of a square frame, 0 where there is no frame.

        Mean over the layers and heads of the weights of the patches, without the class token, scaled to a sum of 1:
        what the query weighed, which need not be what the answer rests on.
        """
        if self.attention is None:
            raise ValueError("attention: there is none; get_visual_tokens makes it with return_attention=True")
        patches = self.attention[..., 1:].mean(dim=(2, 3))
        side = round(patches.shape[-1] ** 0.5)
        if side * side != patches.shape[-1]:
            raise ValueError(f"attention: {patches.shape[-1]} patches came, those of a square frame are wanted")
        shares = patches / patches.sum(-1, keepdim=True).clamp(min=torch.finfo(patches.dtype).tiny)
        return shares.unflatten(-1, (side, side))


@dataclass
class FoveatedOutput(CausalLMOutputWithPast):
    """CausalLMOutputWithPast, and `visual`: the VisualTokens of this call; None where no frames came with it."""

    visual: VisualTokens | None = None


@dataclass
class _Frames:
    """Rows of frames; `memory` of the F that are there, which are those of `kept` [B,T], row by row."""

    memory: PatchMemory
    kept: Tensor

    def only(self, frame: int) -> "_Frames":
        """One frame of each row, T = 1."""
        kept = self.kept[:, frame]
        index = (self.kept.flatten().cumsum(0) - 1).view_as(self.kept)[:, frame]
        return _Frames(self.memory.select(index[kept]), kept[:, None])


class FoveatedPreTrainedModel(PreTrainedModel):
    config: FoveatedVLMConfig
    config_class = FoveatedVLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer", "FoveatedEncoder"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As on any model of transformers, of safetensors alone, once the weights are known to fill the model."""
        return load_checked(cls, super().from_pretrained, pretrained_model_name_or_path, args, kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FoveatedVLM):
            init.normal_(module.q_static)
            init.normal_(module.q_init)


class FoveatedVLM(FoveatedPreTrainedModel, CachedGeneration, GenerationMixin):
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
        width = config.text_config.hidden_size
        self.q_static = nn.Parameter(torch.empty(1, config.query_dim))
        self.q_init = nn.Parameter(torch.empty(1, config.query_dim))
        self.encoder = FoveatedEncoder(config)
        self.llm = AutoModelForCausalLM.from_config(config.text_config)
        self.dino_to_llm = nn.Linear(config.vision_config.hidden_size, width)
        self.llm_to_query = nn.Linear(width, config.query_dim)
        compute_fast(self)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.llm.set_output_embeddings(value)

    def get_visual_tokens(
        self,
        frames: Tensor,
        frame_mask: Tensor | None = None,
        mode: str | None = None,
        return_attention: bool = False,
    ) -> VisualTokens:
        """Look at frames [B,T,3,H,W], those of `frame_mask` [B,T] (default: all), and make their visual tokens."""
        mode = self._mode(mode)
        if mode == "autoregressive":
            return self.watch(frames, frame_mask, return_attention=return_attention)[0]
        deep = self.config.deep_query
        seen = self._encode(frames, frame_mask, deep)
        static = self.q_static.expand(*seen.kept.shape, -1)
        z, attention = self._look(seen, static, deep, return_attention and mode == "coarse_only")
        tokens = self._to_decoder(z)
        if mode == "coarse_only":
            return VisualTokens(tokens, seen.kept, z, static, attention=attention)
        mask = self._decoder_mask(seen.kept)
        hidden = self._decode(tokens, mask, past=0).last_hidden_state
        queries = self._moved(self.llm_to_query(hidden), mask)
        z, attention = self._look(seen, queries, deep, return_attention)
        return VisualTokens(self._to_decoder(z), seen.kept, z, queries, coarse=tokens, attention=attention)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, *args, **kwargs):
        """`GenerationMixin.generate`, with every frame looked at once, before beams or samples repeat the inputs.

        frames, frame_mask and mode are those of `forward`; or the cache is a state of `watch`.

        Raises ValueError for prompts that are padded on the right.
        """
        check_prompts(kwargs.get("attention_mask"))
        frames, mask = kwargs.pop("frames", None), kwargs.pop("frame_mask", None)
        mode = kwargs.pop("mode", None)
        if frames is not None:
            if kwargs.get("visual_tokens") is not None:
                raise ValueError("frames, visual_tokens: both came, at most one of them is wanted")
            visual = self.get_visual_tokens(frames, mask, mode)
            kwargs.update(visual_tokens=visual.tokens, visual_mask=visual.mask)
        return super().generate(inputs, *args, **kwargs)

    def kind(self) -> str:
        return f"foveated {self.config.mode}"

    def miniature(self) -> tuple["FoveatedVLM", dict[str, Tensor]]:
        """A small model of this kind with random weights, and a padded batch for it, one frame of which is missing."""
        text = {
            "vocab_size": 61,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.3,
        }
        vision = {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        }
        config = FoveatedVLMConfig(
            vision_config={"model_type": "dinov2", **vision},
            text_config={"model_type": "llama", **text},
            query_dim=16,
            mode=self.config.mode,
        )
        columns = torch.arange(8)
        inputs = {
            "input_ids": (torch.tensor([3, 7])[:, None] * (columns + 2)) % 61,
            "attention_mask": (columns >= torch.tensor([3, 0])[:, None]).long(),
            "frames": torch.randn(2, 3, 3, 16, 16),
            "frame_mask": torch.tensor([[True, True, False], [True, True, True]]),
        }
        return type(self)(config), inputs

    def decoder_length(self, columns: int, model_kwargs: dict) -> int:
        visual = model_kwargs.get("visual_tokens")
        return columns if visual is None else columns + visual.shape[1]

    def watch(
        self,
        frames: Tensor,
        frame_mask: Tensor | None = None,
        state: Cache | None = None,
        return_attention: bool = False,
    ) -> tuple[VisualTokens, Cache]:
        """Mode `autoregressive`, as far as frames [B,T,3,H,W] have come: T may be 1, and the next call goes on.

        `state` is what the last call returned: the decoder's cache, which knows where to look next. It is changed in
        place. `generate(input_ids=..., past_key_values=state)` answers a question about all that was seen; to go on
        watching after that, ask a `copy.deepcopy` of it, or `crop` the text away again.

        Raises ValueError where a shape is not as above, the rows of `state` are others, or it has text in it.
        """
        if self.training and self.llm.model.gradient_checkpointing:
            raise ValueError(
                "mode: 'autoregressive' needs the decoder's cache, which gradient checkpointing switches off"
            )
        original = self.config.original_behaviour  # which takes every query for a deep one here
        deep = self.config.deep_query or original
        seen = self._encode(frames, frame_mask, deep)
        batch_size = len(seen.kept)
        cache = DynamicCache(config=self.config.text_config) if state is None else state
        layer = extend(cache, VisualCacheLayer)
        if layer.columns:
            raise ValueError(f"state: a cache with {layer.columns} text columns came; frames come before the text")
        if layer.query is None:
            if layer.width:
                raise ValueError("state: a cache of another mode came, one that `watch` returned is wanted")
            layer.query = self.q_init.expand(batch_size, -1)
        elif len(layer.query) != batch_size:
            raise ValueError(f"state: {len(layer.query)} rows came, {batch_size} are wanted, as many as frames has")
        looks = []
        for frame in range(frames.shape[1]):
            now = seen.only(frame)
            query = layer.query[:, None]
            z, attention = self._look(now, query, deep, return_attention, look_at_nothing=original)
            tokens = self._to_decoder(z)
            mask = self._decoder_mask(now.kept)
            past = layer.width
            layer.add_frames(mask, batch_size, 1, tokens.device)
            hidden = self._decode(tokens, layer.mask, past, cache).last_hidden_state
            moved = self.llm_to_query(hidden[:, 0])
            layer.query = moved if mask is None else torch.where(mask, moved, layer.query)
            looks.append((tokens, z, query, attention))
        tokens, z, queries, attention = zip(*looks)
        return (
            VisualTokens(
                torch.cat(tokens, dim=1),
                seen.kept,
                torch.cat(z, dim=1),
                torch.cat(queries, dim=1),
                attention=torch.cat(attention, dim=1) if return_attention else None,
            ),
            cache,
        )

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
        r"""Logits of the next token, and the loss.

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

        Raises ValueError where a shape is not as above, two of the alternatives came, or frames come after text.
        """
        mode = self._mode(mode)
        for names, given in (
            ("input_ids, inputs_embeds: exactly one", (input_ids is None) + (inputs_embeds is None) == 1),
            ("frames, visual_tokens: at most one", frames is None or visual_tokens is None),
            ("loss_mask, labels: at most one", loss_mask is None or labels is None),
        ):
            if not given:
                raise ValueError(f"{names} of them is wanted")
        cache = given_cache(cache, past_key_values)
        text = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        batch_size, columns = text.shape[:2]
        if use_cache is None:
            use_cache = cache is not None or (self.config.text_config.use_cache and not self.training)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config.text_config)
        layer = extend(cache, VisualCacheLayer) if cache is not None else None
        begun = layer is not None and layer.begun
        self._check_text(text, attention_mask, loss_mask, labels, layer)

        visual = None
        if frames is not None or visual_tokens is not None:
            if begun:
                raise ValueError("frames: they came with a filled cache; they come before all text, or by `watch`")
            if frames is not None:
                visual = self.get_visual_tokens(frames, frame_mask, mode)
            else:
                visual = self._given(visual_tokens, visual_mask)
            if len(visual.tokens) != batch_size:
                raise ValueError(f"frames: {len(visual.tokens)} rows came, {batch_size} are wanted, one for each text")
        total = kwargs.pop("num_items_in_batch", None)
        seen = self._decoder_mask(visual.mask) if visual is not None else None
        front = visual.tokens.to(text.dtype) if visual is not None else text[:, :0]
        outputs = self._read(front, seen, text, attention_mask, cache, **kwargs)
        hidden = self._of_mode(mode, outputs.last_hidden_state, seen, columns)
        logits = self.llm.lm_head(kept_columns(hidden, logits_to_keep))

        loss = None
        whole = not begun and isinstance(logits_to_keep, int) and logits_to_keep == 0
        if whole and (input_ids is not None or labels is not None):
            ids = input_ids if labels is None else labels.clamp(min=0)
            counted = loss_mask if loss_mask is not None else labels != -100 if labels is not None else None
            told = (ids, counted, attention_mask, total, seen, mode)
            loss = self._loss(logits, *told)
            if self.config.lambda_coarse and mode == "coarse_fine":
                coarse = loss  # that of text alone
                if visual is not None and visual.coarse is not None:
                    hidden = self._read(visual.coarse, seen, text, attention_mask).last_hidden_state
                    coarse = self._loss(self.llm.lm_head(hidden[:, -columns:]), *told)
                loss = loss + self.config.lambda_coarse * coarse
        return FoveatedOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            visual=visual if frames is not None else None,
            **{CACHE: cache if use_cache else None},
        )

    def _read(self, front: Tensor, seen, text: Tensor, attention_mask, cache: Cache | None = None, **kwargs):
        """The decoder over visual tokens `front` [B,T,E] and then text [B,S,E]; last_hidden_state is [B,T+S,E].

        `seen` [B,T] is the visual tokens' mask, attention_mask [B, past + S] that of all text; None: all of them.
        """
        layer = find_layer(cache, VisualCacheLayer) if cache is not None else VisualCacheLayer()
        past = layer.width + layer.columns
        if front.shape[1]:
            layer.add_frames(seen, *front.shape[:2], text.device)
        layer.columns += text.shape[1]
        if self.config.original_behaviour:
            attention_mask = None
        mask = attention_mask.bool() if attention_mask is not None else None
        mask = layer.extended(mask, len(text), layer.columns, text.device)
        return self._decode(torch.cat([front, text], dim=1), mask, past, cache, **kwargs)

    def _decode(self, embeddings: Tensor, mask: Tensor | None, past: int, cache: Cache | None = None, **kwargs):
        """The decoder over embeddings [B,n,E] after `past` positions; mask [B,past+n]. Positions count what is kept.

        What is masked at a row's end counts as kept for this call: nothing comes after it that could attend to it, and
        so right-padded text gives what it gives in the original.
        """
        count = embeddings.shape[1]
        if mask is None:
            positions = torch.arange(past, past + count, device=embeddings.device)[None]
        else:
            ahead = mask.flip(-1).long().cumsum(-1).flip(-1)  # kept positions from here to the end
            mask = mask | (ahead == 0)
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, past:]
        return self.llm.model(
            inputs_embeds=embeddings.to(self.llm.dtype),
            attention_mask=mask,
            position_ids=positions,
            use_cache=cache is not None,
            **{CACHE: cache},
            **kwargs,
        )

    def _encode(self, frames: Tensor, frame_mask: Tensor | None, deep: bool) -> "_Frames":
        """The patch pass, once, over the frames that are there."""
        if frames.dim() != 5:
            raise ValueError(f"frames: {tuple(frames.shape)} came, [B,T,3,H,W] is wanted")
        kept = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        if frame_mask is not None:
            if frame_mask.shape != kept.shape:
                raise ValueError(f"frame_mask: {tuple(frame_mask.shape)} came, {list(kept.shape)} is wanted")
            kept = frame_mask.to(frames.device) != 0
        if not frames.shape[1]:
            raise ValueError(f"frames: {tuple(frames.shape)} came, at least one frame is wanted")
        return _Frames(self.encoder.remember(frames[kept], deep), kept)

    def _look(
        self,
        frames: "_Frames",
        queries: Tensor,
        deep: bool,
        return_attention: bool = False,
        look_at_nothing: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """z [B,T,D] of queries [B,T,Q], 0 where there is no frame, and the attention [B,T,L,H,N] if asked for.

        `look_at_nothing`: where there is no frame, look at keys and values of 0.
        """
        kept, memory = frames.kept, frames.memory
        z = self.dino_to_llm.weight.new_zeros(*kept.shape, self.dino_to_llm.in_features)
        attention = None
        if return_attention:
            _, heads, rows, _ = memory.keys[0].shape
            attention = z.new_zeros(*kept.shape, len(memory.keys), heads, rows, dtype=torch.float32)
        if kept.any():
            seen, weights = self.encoder.look(memory, queries[kept], deep, return_attention)
            z[kept] = seen.to(z.dtype)
            if return_attention:
                attention[kept] = weights.float()
        if look_at_nothing and not kept.all():
            missing = queries[~kept]
            z[~kept] = self.encoder.look(memory.nothing(len(missing)), missing, deep)[0].to(z.dtype)
        return z, attention

    def _to_decoder(self, z: Tensor) -> Tensor:
        return self.config.visual_scale * self.dino_to_llm(z)

    def _moved(self, queries: Tensor, kept: Tensor | None) -> Tensor:
        """Where each frame's neighbour before it (the nearest that is kept) says to look: [B,T,Q], `q_init` first."""
        batch_size, frames = queries.shape[:2]
        if kept is None:
            kept = torch.ones(batch_size, frames, dtype=torch.bool, device=queries.device)
        before = previous_kept(kept)[..., None]
        moved = queries.gather(1, before.clamp(min=0).expand_as(queries))
        return torch.where(before >= 0, moved, self.q_init)

    def _decoder_mask(self, kept: Tensor) -> Tensor | None:
        """The mask [B,T] of the visual tokens that the decoder attends to; None for all of them."""
        return None if self.config.original_behaviour or kept.all() else kept

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
        pad = self.config.text_config.pad_token_id
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

    def _mode(self, mode: str | None) -> str:
        mode = self.config.mode if mode is None else mode
        check_mode(mode)
        return mode

    def _given(self, tokens: Tensor, mask: Tensor | None) -> VisualTokens:
        width = self.config.text_config.hidden_size
        if tokens.dim() != 3 or tokens.shape[-1] != width:
            raise ValueError(f"visual_tokens: {tuple(tokens.shape)} came, [B,T,{width}] is wanted")
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        elif mask.shape != tokens.shape[:2]:
            raise ValueError(f"visual_mask: {tuple(mask.shape)} came, {list(tokens.shape[:2])} is wanted")
        return VisualTokens(tokens, mask != 0)

    def _check_text(self, text: Tensor, attention_mask, loss_mask, labels, layer: VisualCacheLayer | None) -> None:
        batch_size, columns = text.shape[:2]
        past = layer.columns if layer is not None else 0
        wanted = {
            "attention_mask": (attention_mask, (batch_size, past + columns)),
            "loss_mask": (loss_mask, (batch_size, columns)),
            "labels": (labels, (batch_size, columns)),
        }
        for name, (tensor, shape) in wanted.items():
            if tensor is not None and tuple(tensor.shape) != shape:
                raise ValueError(f"{name}: {tuple(tensor.shape)} came, {list(shape)} is wanted")
        if layer is not None and layer.query is not None and len(layer.query) != batch_size:
            raise ValueError(
                f"{CACHE}: {len(layer.query)} rows came, {batch_size} are wanted, one for each text; its "
                "batch_repeat_interleave makes more"
            )

    @classmethod
    def from_original(
        cls, state_dict: dict[str, Tensor], vision_config=None, text_config=None, **config
    ) -> "FoveatedVLM":
        """The model of a state dict of the original, in eval mode and float32; `config` goes to FoveatedVLMConfig.

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
        """As on any model of transformers, of safetensors alone; weights of the original are converted on the way.

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
        """A new foveated model around a trained Llama and a trained DINOv2, queries and bridges freshly initialised.

        decoder, vision: local folders or hub ids. `config` goes to FoveatedVLMConfig.
        """
        llm = load_backbone(AutoModelForCausalLM, decoder, dtype)
        dino = load_backbone(AutoModel, vision, dtype)
        model = cls(FoveatedVLMConfig(text_config=llm.config, vision_config=dino.config, **config)).to(llm.dtype)
        model.llm.load_state_dict(llm.state_dict())
        model.encoder.dino.load_state_dict(dino.state_dict())
        model.generation_config = llm.generation_config
        return model.eval()


__all__ = ["FoveatedOutput", "FoveatedPreTrainedModel", "FoveatedVLM", "VisualTokens"]
