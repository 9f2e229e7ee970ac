"""Cut the vectors of the original implementations down to the selection that is kept beside this file.

    python tests/golden/cut.py PATH_TO_ALL_VECTORS

Of each file whole cases are kept (of fvlm_tiny_upstream one precision of each), never parts of one, and the list of
cases in each header is cut to match: a test that walks the list runs on the selection and on the full set alike.
"""

import json
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

# file -> the cases kept (None: all of them)
SELECTION = {
    "hippo_nplr": None,
    "ssm_blocks": None,
    "selective_scan": ["all", "all_constBC", "all_grouped", "complex_constBC", "complex_varBC"],
    "s4d_kernel": ["firebolt_zoh_h3_n64_L100", "ss_zoh_lin_h4_n16_L64", "ss_bilinear_inv_h3_n64_L100"],
    "s4_nplr_kernel": [
        "h4_n16_L64",
        "h4_n32_L100",
        "h3_n16_L100_lmax512",
        "h3_n16_L200_lmax64",
        "h2_n16_L128_lmax64_rate0.5",
        "h2_n16_L50_lmax100_rate2.0",
    ],
    "tiles": ["h100_w90", "t64_o16_h150_w170", "h256_w256"],
    "cmm_upstream_s4_topk4": ["g5", "g13_masked"],
    "cmm_upstream_s4d_topk2": ["g5"],
    "firebolt_tiny_upstream": None,
    "firebolt_v2_routed": None,
}

# Of fvlm_tiny_upstream: case -> the precision whose results are kept, and the entries at most of a gradient kept.
FOVEATED = {"b2": "f64", "b2_pad": "f32", "b2_lambda": "f32", "dpo": "f32"}
LARGEST_GRADIENT = 100
FOVEATED_FACTS = ("dino_config", "llm_config", "model", "cases", "param_groups", "schedules", "versions")


def select(source: Path, target: Path) -> None:
    for name, kept in SELECTION.items():
        with safe_open(source / f"{name}.safetensors", "pt") as file:
            metadata = file.metadata()
            keys = list(file.keys())
            if kept is not None:
                cases = json.loads(metadata["cases"])
                names = [case["case"] if isinstance(case, dict) else case for case in cases]
                dropped = tuple(f"{case}." for case in names if case not in kept)
                keys = [key for key in keys if not key.startswith(dropped)]
                metadata["cases"] = json.dumps([case for case, its in zip(cases, names) if its in kept])
            tensors = {key: file.get_tensor(key) for key in keys}
        save_file(tensors, target / f"{name}.safetensors", metadata=metadata)
    (target / "firebolt_tiny_upstream.json").write_bytes((source / "firebolt_tiny_upstream.json").read_bytes())

    select_foveated(source, target)


def select_foveated(source: Path, target: Path) -> None:
    described = json.loads((source / "fvlm_tiny_upstream.json").read_text())
    described = {name: described[name] for name in FOVEATED_FACTS}
    with safe_open(source / "fvlm_tiny_upstream.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if _is_kept(key, file)}  # noqa: SIM118
        save_file(tensors, target / "fvlm_tiny_upstream.safetensors", metadata=file.metadata())
    (target / "fvlm_tiny_upstream.json").write_text(json.dumps(described))


def _is_kept(key: str, file) -> bool:
    kind, case, *rest = key.split(".")
    if kind in ("param", "ref"):
        return True
    if case not in FOVEATED:
        return False
    if kind == "grad":
        return case == "b2" and file.get_tensor(key).numel() <= LARGEST_GRADIENT
    return kind == "in" or (kind == "out" and FOVEATED[case] in rest)


if __name__ == "__main__":
    select(Path(sys.argv[1]), Path(__file__).parent)
