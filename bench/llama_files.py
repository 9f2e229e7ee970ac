"""Files of llama.cpp (GGUF) of LFM2 with random weights, in bfloat16, 8 and 4 bits.

`python llama_files.py FOLDER SIZES` with the package gguf, in an environment of its own (`bench/llama_build.py`); SIZES
is a configuration of LFM2 as JSON. What is measured does not depend on what the weights say, so the rows of a matrix
are a few random ones, over and over.
"""

import json
import sys
from pathlib import Path

import numpy as np

ROWS, SPREAD, NORM_EPS = 64, 0.02, 1e-5
# The embeddings, which are the head too, in 8 bits beside 4, as in our own exports.
KINDS = {"bf16": ("BF16", "BF16"), "q8_0": ("Q8_0", "Q8_0"), "q4_0": ("Q4_0", "Q8_0")}


def feed_forward_width(config: dict) -> int:
    """Compute the width inside a feed-forward network, as LFM2's configuration means it."""
    if not config.get("block_auto_adjust_ff_dim", True):
        return config["intermediate_size"]
    multiple = config.get("block_multiple_of", 256)
    width = int(config.get("block_ffn_dim_multiplier", 1.0) * int(2 * config["intermediate_size"] / 3))
    return -(-width // multiple) * multiple


def matrices(config: dict) -> dict[str, tuple[int, int]]:
    """Name -> (outputs, inputs) of the products of all layers."""
    width, inner = config["hidden_size"], feed_forward_width(config)
    head = width // config["num_attention_heads"]
    shared = head * config["num_key_value_heads"]
    found = {}
    for layer, kind in enumerate(config["layer_types"]):
        attention = {"attn_q": (width, width), "attn_k": (shared, width), "attn_v": (shared, width)}
        convolution = {"shortconv.in_proj": (3 * width, width), "shortconv.out_proj": (width, width)}
        mixer = convolution if kind == "conv" else {**attention, "attn_output": (width, width)}
        feed_forward = {"ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in {**mixer, **feed_forward}.items()}
    return found


def vectors(config: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape of what stays in float32: norms and the taps of convolutions."""
    width = config["hidden_size"]
    head = width // config["num_attention_heads"]
    found: dict[str, tuple[int, ...]] = {"token_embd_norm.weight": (width,)}
    for layer, kind in enumerate(config["layer_types"]):
        own = {"attn_q_norm": (head,), "attn_k_norm": (head,)}
        mixer = {"shortconv.conv": (width, config["conv_L_cache"])} if kind == "conv" else own
        norms = {"attn_norm": (width,), "ffn_norm": (width,)}
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in {**mixer, **norms}.items()}
    return found


def write(file: Path, config: dict, kind: str) -> None:
    """Write one file."""
    import gguf

    types = [gguf.GGMLQuantizationType[name] for name in KINDS[kind]]
    generator = np.random.default_rng(0)

    def rows(shape: tuple[int, int], dtype) -> np.ndarray:
        few = generator.standard_normal((ROWS, shape[1]), dtype=np.float32) * SPREAD
        packed = gguf.quants.quantize(few, dtype)
        return np.resize(packed, (shape[0], packed.shape[1]))

    writer = gguf.GGUFWriter(file, "lfm2")
    writer.add_context_length(4096)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(len(config["layer_types"]))
    writer.add_head_count(config["num_attention_heads"])
    shared = config["num_key_value_heads"]
    writer.add_head_count_kv([0 if kind == "conv" else shared for kind in config["layer_types"]])
    writer.add_feed_forward_length(feed_forward_width(config))
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_shortconv_l_cache(config["conv_L_cache"])
    writer.add_tokenizer_model("none")
    embeddings = rows((config["vocab_size"], config["hidden_size"]), types[1])
    writer.add_tensor("token_embd.weight", embeddings, raw_dtype=types[1])
    for name, shape in matrices(config).items():
        writer.add_tensor(name, rows(shape, types[0]), raw_dtype=types[0])
    for name, shape in vectors(config).items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    for one in KINDS:
        write(Path(sys.argv[1]) / f"{one}.gguf", json.loads(sys.argv[2]), one)
