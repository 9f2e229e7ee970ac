"""Install the folders at the top of the repository as the package ``firebolt_vl``."""

from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
FACE = "firebolt_vl"
# The folders at the top of the repository, lowest layer first: an import only ever points to the left.
LAYERS = ("kernels", "cmm", "files", "views", "model", "evaluate", "train", "bench")


def subpackages(layer: str) -> list[str]:
    inits = sorted((ROOT / layer).rglob("__init__.py"))
    return [".".join(init.parent.relative_to(ROOT).parts) for init in inits]


def version() -> str:
    for line in (ROOT / FACE / "version.py").read_text(encoding="utf-8").splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise RuntimeError("firebolt_vl/version.py has no __version__ line")


packages = subpackages(FACE) + [f"{FACE}.{name}" for layer in LAYERS for name in subpackages(layer)]

setup(
    name="firebolt-vl",
    version=version(),
    description="Firebolt-VL: a fast, small vision-language model, its cross-modal modulator layer and its kernels",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=packages,
    package_dir={FACE: FACE, **{f"{FACE}.{layer}": layer for layer in LAYERS}},
    package_data={
        FACE: ["py.typed", "tiny/*"],
        f"{FACE}.demo": ["page.css", "page.js", "examples/*.png"],
        f"{FACE}.browser": ["site/*"],
        f"{FACE}.kernels": ["measured/*.json"],
        f"{FACE}.train": ["configs/*.toml", "configs/accelerate/*.yaml"],
    },
    # Lower bounds and upper bounds are the oldest and the newest minor versions that `make test-versions` passes with.
    install_requires=[
        "torch>=2.12,<2.16",
        # A torch for GPUs pins the Triton that it was built with; Triton's wheels are for Linux.
        "triton>=3.7,<3.10; platform_system == 'Linux'",
        "numpy>=2.0,<2.5",
        "transformers>=5.23,<5.25",
        "tokenizers>=0.23,<0.24",
        "safetensors>=0.8,<0.9",
        "pillow>=11,<14",
        # Older ones have holes in the sandbox that chat templates run in.
        "jinja2>=3.1.6",
        "packaging>=24",
        "matplotlib>=3.9",
        "typer>=0.16",
        "rich>=14",
    ],
    extras_require={
        # scikit-learn ships the handwritten digits that the embedded model is trained and tested on.
        "train": ["scikit-learn>=1.5", "accelerate>=1.10,<1.16", "peft>=0.18,<0.22", "tensorboard>=2.19", "pyyaml>=6"],
        "test": ["pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.130", "openai>=2"],
        # PyAV brings FFmpeg's libraries with it: nothing else is installed or run.
        "video": ["av>=14"],
        # The data sets of benchmarks: parquet, saved folders, the hub.
        "eval": ["datasets>=4,<6"],
        # Exports, and answers from them: ONNX Runtime and OpenVINO. `firebolt ask --engine` needs the runtimes alone.
        "onnx": ["onnx>=1.19,<2", "onnxscript>=0.5,<0.8", "onnxruntime>=1.22,<2"],
        "openvino": ["openvino>=2025.2", "onnx>=1.19,<2", "onnxscript>=0.5,<0.8"],
        # Its runtime takes PyTorch's tensors.
        "executorch": ["executorch>=1.5,<1.6"],
        # `firebolt serve`: an endpoint in the form of OpenAI's.
        "serve": ["starlette>=0.46", "uvicorn>=0.34"],
        # Preference tuning and reinforcement learning: `firebolt train sft`, `dpo` and `grpo`.
        "trl": ["trl>=1.16,<1.17", "peft>=0.18,<0.22"],
        # The page of `firebolt demo`. It takes Pillow 12 at most, so that it has an environment of its own in tests.
        "demo": ["gradio>=6.31,<7"],
        "lint": ["ruff>=0.12", "basedpyright>=1.31"],
    },
    entry_points={
        "console_scripts": ["firebolt = firebolt_vl.cli:main"],
        "lmms_eval.models": [
            "firebolt = firebolt_vl.harness.lmms_eval:manifest",
            "firebolt_foveated = firebolt_vl.harness.lmms_eval:foveated_manifest",
        ],
    },
)
