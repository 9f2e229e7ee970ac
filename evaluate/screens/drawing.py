"""Drawing of screens: shapes and texts on a sheet, then the picture that was taken of it."""

import io
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .fonts import ends, glyph
from .scenes import Scene, turn

NOISE = 1 << 20


def draw(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB image of side x side pixels; the same scene is the same image again."""
    side, look = scene.side, scene.look
    image = Image.new("RGB", (side, side), scene.background)
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        y0, x0, y1, x1 = (round(end) for end in shape.box)
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), fill=shape.fill, outline=shape.outline)
    for text in scene.texts:
        for x, letter in zip((0.0, *ends(text.face, text.text)), text.text):
            drawn = glyph(text.face, letter)
            image.paste(text.ink, (round(text.x + x) + drawn.x, round(text.y) + drawn.y), drawn.covered)
    if look.angle or look.zoom != 1:
        image = _turned(image, scene)
    if look.blur:
        image = image.filter(ImageFilter.GaussianBlur(look.blur))
    if look.noise:
        image = _noisy(image, look.noise, look.seed)
    if look.quality:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=look.quality)
        image = Image.open(file).convert("RGB")
    return image


def _turned(image: Image.Image, scene: Scene) -> Image.Image:
    centre = scene.side / 2
    (a, b), (c, d) = np.linalg.inv(turn(scene.look))  # of (y, x); Pillow asks for (x, y)
    across, down = centre - d * centre - c * centre, centre - b * centre - a * centre
    back = (d, c, across, b, a, down)
    size = image.size
    return image.transform(size, Image.Transform.AFFINE, back, Image.Resampling.BILINEAR, fillcolor=scene.background)


@cache
def _normal() -> np.ndarray:
    """Make normal numbers once: drawing them anew for each image would take longer than all else."""
    return np.random.default_rng(0).standard_normal(NOISE, dtype=np.float32)


def _noisy(image: Image.Image, deviation: float, seed: int) -> Image.Image:
    levels = np.asarray(image, dtype=np.float32)
    start = seed % (NOISE - levels.size)
    levels = levels + deviation * _normal()[start : start + levels.size].reshape(levels.shape)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))
