"""The foveated model's looks: a query looks at each frame, the decoder reads its token and says where to look next."""

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache

from ..compat import CACHE, CACHE_NAMES, extend, parameters_present
from ..configuration_checks import backbone
from ..loading import load_checked
from .cache_foveated import VisualCacheLayer
from .configuration_foveated import FoveatedVLMConfig, check_mode
from .encoder import FoveatedEncoder
from .loss import previous_kept
from .visual_tokens import Frames, VisualTokens


class FoveatedPreTrainedModel(PreTrainedModel):
    config: FoveatedVLMConfig
    config_class = FoveatedVLMConfig
    base_model_prefix = "reader"
    main_input_name = "input_ids"
    input_modalities = ["image", "video", "text"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer", "FoveatedEncoder"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    # Visual tokens are masked by tensors, and patches attend without a mask, which flex attention has no form for here.
    _supports_flex_attn = False
    _can_compile_fullgraph = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a model like any of transformers, of safetensors alone, once the weights are known to fill it."""
        return load_checked(cls, super().from_pretrained, pretrained_model_name_or_path, args, kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FoveatedModel):
            init.normal_(module.q_static)
            init.normal_(module.q_init)


class FoveatedModel(FoveatedPreTrainedModel):
    """Frames to visual tokens: the vision tower, the decoder that steers the looks, and what lies between them.

    `get_visual_tokens` and `watch` look at frames; FoveatedVLM reads text after them. Modes: see there.
    """

    def __init__(self, config: FoveatedVLMConfig):
        super().__init__(config)
        text, vision = backbone(config.text_config), backbone(config.vision_config)
        self.q_static = nn.Parameter(torch.empty(1, config.query_dim))
        self.q_init = nn.Parameter(torch.empty(1, config.query_dim))
        self.encoder = FoveatedEncoder(config)
        self.llm = AutoModelForCausalLM.from_config(text)
        self.dino_to_llm = nn.Linear(vision.hidden_size, text.hidden_size)
        self.llm_to_query = nn.Linear(text.hidden_size, config.query_dim)

    def get_input_embeddings(self) -> nn.Module:
        return self.llm.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.llm.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.llm.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.llm.set_output_embeddings(new_embeddings)

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
        static = self._learned("q_static").expand(*seen.kept.shape, -1)
        z, attention = self._look(seen, static, deep, return_attention and mode == "coarse_only")
        tokens = self._to_decoder(z)
        if mode == "coarse_only":
            return VisualTokens(tokens, seen.kept, z, static, attention=attention)
        mask = self._decoder_mask(seen.kept)
        hidden = self._decode(tokens, mask, past=0).last_hidden_state
        queries = self._moved(self.llm_to_query(hidden), mask)
        z, attention = self._look(seen, queries, deep, return_attention)
        return VisualTokens(self._to_decoder(z), seen.kept, z, queries, coarse=tokens, attention=attention)

    def watch(
        self,
        frames: Tensor,
        frame_mask: Tensor | None = None,
        state: Cache | None = None,
        return_attention: bool = False,
    ) -> tuple[VisualTokens, Cache]:
        """Run mode `autoregressive` over the frames [B,T,3,H,W] that there are: T may be 1, and the next call goes on.

        `state` is what the last call returned: the decoder's cache, which knows where to look next. It is changed in
        place. `generate(input_ids=..., past_key_values=state)` answers a question about all that was seen; to go on
        watching after that, ask a `copy.deepcopy` of it, or `crop` the text away again.

        Raises ValueError where a shape is not as above, the rows of `state` are others, or it has text in it.
        """
        if self.training and self.llm.model.gradient_checkpointing:
            raise ValueError(
                "FoveatedVLM: mode is 'autoregressive' with gradient checkpointing; expected another mode, or no "
                "checkpointing, which switches off the decoder's cache"
            )
        original = self.config.original_behaviour  # which takes every query for a deep one here
        deep = self.config.deep_query or original
        seen = self._encode(frames, frame_mask, deep)
        batch_size = len(seen.kept)
        cache = DynamicCache(config=backbone(self.config.text_config)) if state is None else state
        layer = extend(cache, VisualCacheLayer)
        query = layer.query = self._next_query(layer, batch_size)
        looks = []
        for frame in range(frames.shape[1]):
            now, asked = seen.only(frame), query[:, None]
            z, attention = self._look(now, asked, deep, return_attention, look_at_nothing=original)
            tokens = self._to_decoder(z)
            mask = self._decoder_mask(now.kept)
            past = layer.width
            layer.add_frames(mask, batch_size, 1, tokens.device)
            hidden = self._decode(tokens, layer.mask, past, cache).last_hidden_state
            moved = self.llm_to_query(hidden[:, 0])
            query = layer.query = moved if mask is None else torch.where(mask, moved, query)
            looks.append((tokens, z, asked, attention))
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

    def _next_query(self, layer: VisualCacheLayer, batch_size: int) -> Tensor:
        """Return where to look at the next frame, [B,Q]. Raises ValueError for a state that `watch` did not leave."""
        if layer.columns:
            raise ValueError(
                f"FoveatedVLM: state has {layer.columns} text columns; expected none, as frames come before the text"
            )
        if layer.query is None:
            if layer.width:
                raise ValueError("FoveatedVLM: state is a cache of another mode; expected one that `watch` returned")
            return self._learned("q_init").expand(batch_size, -1)
        if len(layer.query) != batch_size:
            raise ValueError(
                f"FoveatedVLM: state has {len(layer.query)} rows; expected {batch_size}, as many as frames has"
            )
        return layer.query

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

    def _encode(self, frames: Tensor, frame_mask: Tensor | None, deep: bool) -> Frames:
        """The patch pass, once, over the frames that are there."""
        if frames.dim() != 5:
            raise ValueError(f"FoveatedVLM: frames has shape {list(frames.shape)}; expected [B,T,3,H,W]")
        kept = torch.ones(frames.shape[:2], dtype=torch.bool, device=frames.device)
        if frame_mask is not None:
            if frame_mask.shape != kept.shape:
                raise ValueError(
                    f"FoveatedVLM: frame_mask has shape {list(frame_mask.shape)}; expected {list(kept.shape)}"
                )
            kept = frame_mask.to(frames.device) != 0
        if not frames.shape[1]:
            raise ValueError(f"FoveatedVLM: frames has shape {list(frames.shape)}; expected at least one frame")
        if torch.compiler.is_compiling():  # a graph cannot look into a mask: a frame that is not there is black
            there = torch.where(kept[..., None, None, None], frames, 0)
            return Frames(self.encoder.remember(there.flatten(0, 1), deep), kept, whole=True)
        return Frames(self.encoder.remember(frames[kept], deep), kept)

    def _look(
        self,
        frames: Frames,
        queries: Tensor,
        deep: bool,
        return_attention: bool = False,
        look_at_nothing: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """z [B,T,D] of queries [B,T,Q], 0 where there is no frame, and the attention [B,T,L,H,N] if asked for.

        `look_at_nothing`: where there is no frame, look at keys and values of 0.
        """
        kept, memory = frames.kept, frames.memory
        width = backbone(self.config.vision_config).hidden_size
        z = queries.new_zeros(*kept.shape, width, dtype=self.q_static.dtype)
        attention = None
        if return_attention:
            _, heads, rows, _ = memory.keys[0].shape
            attention = z.new_zeros(*kept.shape, len(memory.keys), heads, rows, dtype=torch.float32)
        if look_at_nothing and (frames.whole or not kept.all()):
            missing = queries.flatten(0, 1) if frames.whole else queries[~kept]
            seen = self.encoder.look(memory.nothing(missing.shape[0]), missing, deep)[0].to(z.dtype)
            if frames.whole:
                z = seen.unflatten(0, kept.shape)
            else:
                z[~kept] = seen
        if frames.whole or kept.any():
            seen, weights = self.encoder.look(memory, frames.chosen(queries), deep, return_attention)
            z = frames.spread(seen, z)
            if attention is not None and weights is not None:
                attention = frames.spread(weights, attention)
        return z, attention

    def _to_decoder(self, z: Tensor) -> Tensor:
        return self.config.visual_scale * self.dino_to_llm(z)

    def _moved(self, queries: Tensor, kept: Tensor | None) -> Tensor:
        """Return where each frame's kept neighbour before it says to look, [B,T,Q]; `q_init` where it has none."""
        batch_size, frames = queries.shape[:2]
        if kept is None:
            kept = torch.ones(batch_size, frames, dtype=torch.bool, device=queries.device)
        before = previous_kept(kept)[..., None]
        moved = queries.gather(1, before.clamp(min=0).expand_as(queries))
        return torch.where(before >= 0, moved, self._learned("q_init"))

    def _learned(self, name: str) -> Tensor:
        """Return a learned query [1,Q], whose owner need not be in a call."""
        with parameters_present(self):
            return getattr(self, name)

    def _decoder_mask(self, kept: Tensor) -> Tensor | None:
        """The mask [B,T] of the visual tokens that the decoder attends to; None for all of them."""
        if self.config.original_behaviour:
            return None
        return kept if torch.compiler.is_compiling() or not kept.all() else None

    def _mode(self, mode: str | None) -> str:
        mode = self.config.mode if mode is None else mode
        check_mode("FoveatedVLM", mode)
        return mode


__all__ = ["FoveatedModel", "FoveatedPreTrainedModel"]
