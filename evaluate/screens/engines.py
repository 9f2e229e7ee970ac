"""Engines that read text, beside which a model is measured where the user has one installed."""

import shutil
import subprocess
from collections.abc import Callable

import numpy as np
from PIL import Image

Engine = Callable[[Image.Image], str]
"""Reads the one line of text that an image shows."""
ENGINES = ("tesseract", "rapidocr")


def open_engine(name: str) -> Engine:
    """Return an engine by its name. Raises ValueError where there is none of that name, or it is not installed."""
    if name not in ENGINES:
        raise ValueError(f"open_engine: name is {name!r}; expected one of {', '.join(ENGINES)}")
    return _tesseract() if name == "tesseract" else _rapidocr()


def _tesseract() -> Engine:
    """The program tesseract, told that an image is a single line (--psm 7)."""
    program = shutil.which("tesseract")
    if program is None:
        raise ValueError(
            "open_engine: name is 'tesseract', a program that is not on the path; expected one that is installed "
            "(Debian: apt install tesseract-ocr)"
        )

    def read(image: Image.Image) -> str:
        import io

        file = io.BytesIO()
        image.convert("RGB").save(file, "PNG")
        command = [program, "stdin", "stdout", "--psm", "7"]
        done = subprocess.run(command, input=file.getvalue(), capture_output=True, check=False)
        return " ".join(done.stdout.decode("utf-8", errors="replace").split())

    return read


def _rapidocr() -> Engine:
    """The package rapidocr, or rapidocr_onnxruntime, of which the recogniser alone is asked."""
    try:
        try:
            from rapidocr import RapidOCR
        except ModuleNotFoundError:
            from rapidocr_onnxruntime import RapidOCR
    except ModuleNotFoundError:
        raise ValueError(
            "open_engine: name is 'rapidocr', which is not installed; pip install rapidocr-onnxruntime"
        ) from None
    engine = RapidOCR()

    def read(image: Image.Image) -> str:
        found = engine(np.asarray(image.convert("RGB"))[..., ::-1], use_det=False, use_cls=False, use_rec=True)
        texts = getattr(found, "txts", None)
        if texts is None:
            lines = found[0] if isinstance(found, tuple) else found
            texts = [line[0] for line in lines or ()]
        return " ".join(" ".join(texts).split())

    return read


def cut_out(image: Image.Image, box: tuple[float, float, float, float], scale: int = 3) -> Image.Image:
    """Cut a box (y0, x0, y1, x1) with a margin out of an image, and enlarge it as engines like it."""
    y0, x0, y1, x1 = box
    margin = 4
    left, top = max(0, int(x0) - margin), max(0, int(y0) - margin)
    right, bottom = min(image.width, int(x1) + margin + 1), min(image.height, int(y1) + margin + 1)
    part = image.crop((left, top, right, bottom))
    return part.resize((part.width * scale, part.height * scale), Image.Resampling.BICUBIC)
