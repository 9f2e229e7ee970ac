"""Whole answers measured: every subject answers, at small sizes, and the table says what was measured."""

import itertools
import json

import pytest
import torch
from numerics import assert_close
from PIL import Image
from small_sizes import SMALL

from firebolt_vl import cli
from firebolt_vl.bench import answer as measuring
from firebolt_vl.bench import efficiency
from firebolt_vl.bench.modulator import NaiveTaps, PlainModulator
from firebolt_vl.cmm import CMMConfig, CrossModalModulator
from firebolt_vl.model.cpu.quantization import quantize_linear


@pytest.fixture
def small(monkeypatch):
    """All subjects small, the compiled one without a compiler, and a bandwidth that is not worth measuring."""
    full = measuring.build
    compiled = measuring.FireboltForConditionalGeneration.compile_step
    monkeypatch.setattr(
        measuring.FireboltForConditionalGeneration, "compile_step", lambda model: compiled(model, backend="eager")
    )
    monkeypatch.setattr(measuring, "BANDWIDTH_BYTES", 2**20)
    monkeypatch.setattr(measuring, "build", lambda *arguments: full(*arguments, sizes=SMALL))


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.run(["bench", "answer", *map(str, arguments)])
    return code, *capsys.readouterr()


def test_every_name_is_measured_and_told(small, capsys, tmp_path):
    code, out, err = run(capsys, "--peers", "--new-tokens", 6, "--rounds", 2, "--out", tmp_path, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [row["name"] for row in rows] == [*measuring.OURS, *measuring.PEERS]
    for row in rows:
        assert list(row) == ["name", "dtype", "first_token_s", "decode_tok_s", "answer_s", "peak_mb"]
        assert row["dtype"] == ("int8" if row["name"] == "ours-int8" else "float32")
        assert 0 < row["first_token_s"] < row["answer_s"]
        assert row["decode_tok_s"] > 0
        assert row["peak_mb"] > 0
    kept = measuring.from_csv((tmp_path / "answer.csv").read_text())
    assert [row.to_json() for row in kept] == rows
    by_name = {row.name: row for row in kept}
    assert by_name["ours-int8"].read_mb < by_name["ours"].read_mb
    assert by_name["ours"].read_mb >= by_name["decoder-alone"].read_mb
    with Image.open(tmp_path / "answer.png") as picture:
        assert picture.format == "PNG"


def test_the_table_is_shown_with_what_it_does_not_say(small, capsys, tmp_path):
    arguments = ("--new-tokens", 4, "--rounds", 1, "--out", tmp_path, "--dtype", "bfloat16", "--dtype", "float32")
    code, out, _ = run(capsys, *arguments, "--only", "ours", "--only", "ours-int8")
    assert code == 0
    for words in ("first token s", "tokens/s", "bfloat16", "int8", "of their spread", "linear layers are"):
        assert words in out


def test_what_cannot_be_measured_is_refused(capsys, tmp_path):
    for arguments, words in (
        (["--only", "theirs"], "--only is theirs; expected one of ours"),
        (["--dtype", "int3"], "--dtype is int3; expected one of"),
        (["--new-tokens", "1"], "--new-tokens"),
        (["--out", str(tmp_path / "f")], ", a file; expected a folder"),
    ):
        (tmp_path / "f").write_text("")
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, "")
        assert words in err


def test_every_subject_answers_the_tokens_that_are_asked_for():
    for subject in measuring.build("float32", "cpu", 5, True, None, SMALL):
        if subject.name == "ours-compiled":
            continue
        times = subject.answer(5)
        assert len(times) == 5, subject.name
        assert all(before < after for before, after in itertools.pairwise(times))


def test_the_decoder_alone_is_the_decoder():
    subjects = {s.name: s for s in measuring.build("float32", "cpu", 5, False, ["ours", "decoder-alone"], SMALL)}
    ours, bare = subjects["ours"].model, subjects["decoder-alone"].model
    ids = torch.randint(8, 290, (1, 9))
    with torch.no_grad():
        assert_close(bare(ids).logits, ours(ids).logits, relative=1e-5)
    assert bare.lm_head.weight.data_ptr() == ours.lm_head.weight.data_ptr()


def test_the_originals_policy_computes_in_transformers_own_backbones():
    names = ["ours", "original-policy", "original-policy-plain"]
    subjects = {s.name: s for s in measuring.build("float32", "cpu", 5, False, names, SMALL)}
    ours = subjects["ours"].model
    for name in names[1:]:
        model = subjects[name].model
        parts = (model.model.vision_tower, model.model.language_model, model.lm_head)
        kinds = {type(module).__module__ for part in parts for module in part.modules()}
        assert not [kind for kind in kinds if kind.startswith("firebolt_vl")]
        assert next(model.parameters()).data_ptr() == next(ours.parameters()).data_ptr()
    text, grids = torch.randint(8, 290, (1, 9)), torch.randn(1, 5, ours.config.vision_config.hidden_size)
    pixels = torch.rand(1, 3, SMALL.image_size, SMALL.image_size)
    with torch.no_grad():
        theirs = subjects["original-policy"].model
        assert_close(theirs(text, grids=grids).logits, ours(text, grids=grids).logits, relative=1e-5)
        wanted, found = (model.model.vision_tower(pixels).pooler_output for model in (ours, theirs))
        assert_close(found, wanted, relative=1e-5)


def test_bytes_are_counted_once_and_8_bits_as_one():
    shared = torch.nn.Linear(16, 8)
    assert measuring.weight_bytes([shared, torch.nn.Sequential(shared)]) == 4 * (16 * 8 + 8)
    quantize_linear(shared)
    assert measuring.weight_bytes([shared]) == 16 * 8 + 4 * 8 + 4 * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_plain_formulas_are_the_layer(dtype):
    config = CMMConfig(text_width=16, grid_width=12, heads=2, head_dim=8, top_k=3)
    layer = CrossModalModulator(config).eval().to(dtype)
    text, grids = torch.randn(2, 40, 16, dtype=dtype), torch.randn(2, 5, 12, dtype=dtype)
    boxes = torch.tensor([0.1, 0.2, 0.7, 0.9], dtype=dtype).expand(2, 5, 4)
    with torch.no_grad():
        found = PlainModulator(layer)(text, grids, grid_boxes=boxes)
        assert_close(found, layer(text, grids, grid_boxes=boxes), relative=1e-3 if dtype == torch.float32 else 1e-9)
        taps = NaiveTaps(layer.ssm.kernel)(600)
        assert taps.shape == (16, 512)
        assert_close(taps, layer.ssm.kernel.taps(512), relative=1e-3 if dtype == torch.float32 else 1e-9)


def test_the_plain_formulas_are_of_one_layer_that_asks_by_the_token():
    layer = CrossModalModulator(CMMConfig(text_width=16, grid_width=12, heads=2, head_dim=8, layers=2))
    with pytest.raises(ValueError, match="PlainModulator: layers is 2; expected 1, the default"):
        PlainModulator(layer)


def some_rows():
    row = dict(zip(measuring.JSON_NAMES, ("ours", "float32", 0.5, 12.0, 20.5, 1900.0)))
    row |= {"read_mb": 1418.0, "floor_tok_s": 14.0, "new_tokens": 256, "device": "cpu", "threads": 2, "torch": "2"}
    return [measuring.Row(**row), measuring.Row(**{**row, "name": "decoder-alone"})]


def test_the_table_goes_between_its_markers():
    rows = some_rows()
    before = f"a\n{efficiency.BEGIN}\nold\n{efficiency.END}\nb\n"
    once = efficiency.written(before, rows)
    assert once.startswith("a\n")
    assert once.endswith("\nb\n")
    assert "old" not in once
    assert efficiency.markdown(rows) in once
    assert efficiency.written(once, rows) == once
    assert "46.67" in once
    with pytest.raises(ValueError, match="page has no place for the table; expected the lines"):
        efficiency.written("nothing", rows)


def test_a_table_survives_its_csv():
    assert measuring.from_csv(measuring.to_csv(some_rows())) == some_rows()


def test_bars_start_at_zero_and_have_room_for_their_numbers(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **how: drawn.append(figure))
    rows = measuring.from_csv(efficiency.KEPT.read_text(encoding="utf-8"))
    measuring.plot(rows, tmp_path / "answer.png")
    for axis in drawn[0].axes:
        left, right = axis.get_xlim()
        assert (left, axis.get_xscale()) == (0, "linear")
        assert right > 1.2 * max(bar.get_width() for bar in axis.patches)
