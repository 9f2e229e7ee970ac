"""One step of stage 1 at the model's full size, with random weights: how much memory it takes, and how long.

    python tests/support/full_size_step.py [--rows 8] [--micro 1]

The sizes are those of LFM2-350M and SigLIP 2 base/16 at 256; rows are captions about images of noise.
"""

import argparse
import resource
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from conversations import picture, row, write_rows
from transformers.utils import logging

from firebolt_vl import embedded_checkpoint
from firebolt_vl.train.config_files import load_config
from firebolt_vl.train.loop import HISTORY, read_history
from firebolt_vl.train.start import train

LFM2_350M = {
    "vocab_size": 65536,
    "hidden_size": 1024,
    "num_hidden_layers": 16,
    "layer_types": ["full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16)],
    "conv_L_cache": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 6656,
    "block_auto_adjust_ff_dim": True,
    "bos_token_id": 1,
    "eos_token_id": 7,
    "pad_token_id": 0,
}
SIGLIP_2_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 256,
    "patch_size": 16,
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8, help="of the batch")
    parser.add_argument("--micro", type=int, default=1, help="rows at a time")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        picture(side=256).save(folder / "0.png")
        rows = [row("Describe the image.", "noise in all colours of the rainbow " * 3, image="0.png")] * options.rows
        write_rows(folder / "rows.jsonl", rows)
        config = replace(
            load_config("stage1"),
            decoder=None,
            vision=None,
            architecture={"text_config": LFM2_350M, "vision_config": SIGLIP_2_BASE},
            tokenizer=str(embedded_checkpoint()),
            data=[str(folder / "rows.jsonl")],
            validation_share=0.0,
            batch_size=options.rows,
            micro_batch_size=options.micro,
            max_steps=1,
            save_every=0,
            workers=0,
            trackers=[],
        )
        out = train(config, folder / "run")
        [step] = read_history(out / HISTORY)
        size = (out / "model.safetensors").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"stage 1, {options.rows} rows, {options.micro} at a time: loss {step['loss']:.3f}, {step['seconds']:.1f} s, "
        f"{peak:.1f} GiB at most (a checkpoint and the model of {size / 1e9:.2f} GB written)"
    )
    return peak > 16


if __name__ == "__main__":
    sys.exit(main())
