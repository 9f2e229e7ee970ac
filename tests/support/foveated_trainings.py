"""Small training runs of the foveated model: random weights, rows of every kind, a configuration."""

from pathlib import Path

from conversations import picture, row, write_rows
from foveated import make_foveated
from tiny_models import make_tokenizer
from trainings import QUIET
from videos import write_video

from firebolt_vl.model import FoveatedImageProcessor, FoveatedProcessor
from firebolt_vl.train.config import FoveatedConfig
from firebolt_vl.train.config_files import checked
from firebolt_vl.train.start import train


def write_start(folder: Path) -> Path:
    """`folder`/model and `folder`/data/rows.jsonl: an image, several, a video, text alone; each with two answers."""
    make_foveated().save_pretrained(folder / "model")
    images = FoveatedImageProcessor(size={"height": 28, "width": 28}, image_frames=3)
    FoveatedProcessor(images, make_tokenizer()).save_pretrained(folder / "model")
    data = folder / "data"
    data.mkdir()
    for number in range(3):
        picture(number).save(data / f"{number}.png")
    write_video(data / "clip.mp4", seconds=4)
    seen = [{"image": "0.png"}, {"image": ["1.png", "2.png"]}, {"video": "clip.mp4"}, {}]
    rows = []
    for number in range(16):
        texts = [f"what is {number}?" + "!" * (number % 5), f"it is {number * number}"]
        if number % 3 == 0:
            texts += ["and then?", "no more"]
        rows.append({**row(*texts), **seen[number % 4], "rejected": f"not {number}"})
    write_rows(data / "rows.jsonl", rows)
    return folder


def config(folder: Path, **keys) -> FoveatedConfig:
    start = {"model": str(folder / "model"), "data": [str(folder / "data" / "rows.jsonl")]}
    sizes = {"batch_size": 4, "max_steps": 4, "lr": 1e-3, "frames": 2}
    return checked(FoveatedConfig, {**QUIET, **start, **sizes, **keys})


def run(folder: Path, out: str = "run", resume: bool = False, **keys) -> Path:
    return train(config(folder, **keys), folder / out, resume, note=lambda text: None)
