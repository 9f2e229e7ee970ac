"""A checkpoint as a page: graphs, tokenizer, ONNX Runtime Web and a script, in a folder for any server of files."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..demo.pictures import ASKED, ASKED_OF_ANY, EXAMPLES
from ..engines.description import FILE, TOKENIZER, Description
from ..errors import Failure
from ..export import Form, write_graphs
from ..outputs import new_folder
from ..version import __version__
from ..views.images import open_image
from .runtime import put_runtime
from .tokens import check_tokenizer

SITE = Path(__file__).parent / "site"
MODEL, RUNTIME, PICTURES = "model", "runtime", "examples"
# A browser gives WebAssembly 4 GB, and the decoder's weights are there twice, for the prompt and for the step.
MOST_WEIGHTS = 3 * 2**29


@dataclass
class Page:
    """Result of `export_page`."""

    checkpoint: str
    out: str
    files: int
    bytes: int

    def to_dict(self) -> dict:
        return asdict(self)


def export_page(out: str, checkpoint: str | None, runtime: str | None, say: Callable[[str], None]) -> Page:
    """Write a checkpoint as a page into the new folder `out`: whole, or not at all.

    The folder works from any server of static files and asks for nothing outside it. ONNX Runtime Web is fetched from
    npm, which `say` is told, or taken from the copy `runtime` (`put_runtime`).

    Raises:
        Misuse, Failure: what cannot be done, in one line.
    """
    with new_folder("OUT", out) as unfinished:
        put_runtime(unfinished / RUNTIME, runtime, say)
        graphs = unfinished / MODEL
        graphs.mkdir()
        folder, description = write_graphs(Form("onnx", weights=True), graphs, checkpoint)
        check_tokenizer(json.loads((graphs / TOKENIZER).read_text(encoding="utf-8")))
        write_site(unfinished, folder.name, description)
    written = [file for file in Path(out).rglob("*") if file.is_file()]
    return Page(str(folder), out, len(written), sum(file.stat().st_size for file in written))


def write_site(page: Path, name: str, description: Description) -> None:
    """Write the page around the graphs in its folder `model` and the runtime in `runtime`; `name` is the model's.

    Raises Failure for a model that has no room in a browser.
    """
    graphs = page / MODEL
    weights = sum(file.stat().st_size for file in graphs.iterdir() if file.suffix == ".bin")
    if weights > MOST_WEIGHTS:
        raise Failure(
            f"the checkpoint has {weights / 2**30:.1f} GB of weights; expected at most {MOST_WEIGHTS / 2**30:.1f}, as "
            "a browser has no room for more; firebolt serve answers from a server"
        )
    shutil.copytree(SITE, page, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    (page / PICTURES).mkdir()
    for picture, _ in ASKED:
        shutil.copyfile(EXAMPLES / picture, page / PICTURES / picture)
    told = json.dumps(_told(page, name, description), indent=1, ensure_ascii=False)
    (page / "page.json").write_text(told + "\n", encoding="utf-8")


def _told(page: Path, name: str, description: Description) -> dict[str, Any]:
    """Describe what the page's script has to know: which files it loads, and what is to be read on the page.

    Of the examples those alone that the model says it knows.
    """
    from ..evaluate.familiar import read_familiar

    familiar = read_familiar(page / MODEL)
    parts = [FILE, TOKENIZER, *description.graphs.values(), *(file.name for file in (page / MODEL).glob("*.bin"))]
    loaded = [f"{RUNTIME}/onnxruntime.wasm", *(f"{MODEL}/{part}" for part in parts)]
    return {
        "version": __version__,
        "name": name,
        "files": {file: (page / file).stat().st_size for file in loaded},
        "familiar": None if familiar is None else asdict(familiar),
        "examples": [
            {"picture": f"{PICTURES}/{picture}", "question": ASKED_OF_ANY if familiar is None else question}
            for picture, question in ASKED
            if familiar is None or not familiar.doubts(question, open_image(EXAMPLES / picture))
        ],
    }
