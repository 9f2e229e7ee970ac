"""The original's tiny checkpoint, written as the original saves one."""

import json

import golden
from safetensors.torch import save_file

VECTORS = golden.load("firebolt_tiny_upstream")
DESCRIBED = json.loads(golden.path("firebolt_tiny_upstream.json").read_text())


def write_original(folder, state: dict | None = None, shards: int = 1) -> None:
    """The layout that the original saves: its own keys, and backbones that the configuration only names."""
    config = {**DESCRIBED["firebolt_config"], "lm_name_or_path": "lm", "vision_ckpt_path": "siglip"}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, key in (("lm", "lm_config"), ("siglip", "siglip_config")):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(DESCRIBED[key]))
    state = VECTORS.under("param") if state is None else state
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    if shards == 1:
        save_file(state, folder / "model.safetensors")
        return
    weight_map = {key: f"model-{i % shards:05d}.safetensors" for i, key in enumerate(sorted(state))}
    for file in sorted(set(weight_map.values())):
        save_file({key: state[key] for key in state if weight_map[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
