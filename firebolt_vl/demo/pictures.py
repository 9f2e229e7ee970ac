"""Example pictures of a page, and questions about them."""

from pathlib import Path

EXAMPLES = Path(__file__).parent / "examples"
# Pictures that the embedded model can read, with a question about each that it can answer.
ASKED = (
    ("digits-1.png", "what digit is at the top left?"),
    ("digits-3-some-empty.png", "where can you see the 7?"),
    ("digits-4-clutter.png", "name the color of the number in the top left."),
)
ASKED_OF_ANY = "What is in the image?"
