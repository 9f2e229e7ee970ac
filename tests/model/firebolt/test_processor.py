"""FireboltProcessor and its image processor: batches, images of every kind, round trips, chat messages."""

import base64
import io
import json
import os
from urllib.parse import quote

import golden
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_processor, make_tokenizer
from transformers import AutoImageProcessor, AutoProcessor

from firebolt_vl.model import images as pictures
from firebolt_vl.model.firebolt.image_processing_firebolt import FireboltImageProcessor, image_rows
from firebolt_vl.model.firebolt.processing_firebolt import FireboltProcessor

IMAGE_INPUTS = ["pixel_values", "pixel_tiles", "tile_mask", "image_mask", "grid_boxes"]


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def call(processor, images, text, **kwargs):
    return processor(images=images, text=text, return_tensors="pt", padding=True, **kwargs)


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype
        assert torch.equal(found[name], wanted[name]), name


class TestBatches:
    def test_one_image_and_one_text_make_a_batch_of_one(self):
        batch = call(make_processor(), picture(32, 32), "what?")
        assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
            "input_ids": (1, 5),
            "attention_mask": (1, 5),
            "pixel_values": (1, 3, 32, 32),
            "pixel_tiles": (1, 4, 3, 16, 16),
            "tile_mask": (1, 4),
            "image_mask": (1,),
            "grid_boxes": (1, 5, 4),
        }
        assert {name: tensor.dtype for name, tensor in batch.items()} == {
            "input_ids": torch.int64,
            "attention_mask": torch.int64,
            "pixel_values": torch.float32,
            "pixel_tiles": torch.float32,
            "tile_mask": torch.bool,
            "image_mask": torch.bool,
            "grid_boxes": torch.float32,
        }

    def test_the_default_sizes_are_the_models(self):
        batch = FireboltImageProcessor()(picture(256, 256), return_tensors="pt")
        assert batch["pixel_values"].shape == (1, 3, 256, 256)
        assert batch["pixel_tiles"].shape == (1, 4, 3, 128, 128)
        assert batch["grid_boxes"][0].tolist() == [
            [0, 0, 1, 1],
            [0, 0, 0.5, 0.5],
            [0, 0.5, 0.5, 1],
            [0.5, 0, 1, 0.5],
            [0.5, 0.5, 1, 1],
        ]

    def test_missing_and_several_images_share_a_batch(self):
        a, b, c = picture(32, 32, 1), picture(16, 48, 2), picture(10, 10, 3)
        batch = call(make_processor(), [a, None, [b, c]], ["one", "two and more", "three"])
        assert [tuple(batch[name].shape) for name in IMAGE_INPUTS] == [
            (3, 2, 3, 32, 32),
            (3, 2, 4, 3, 16, 16),
            (3, 2, 4),
            (3, 2),
            (3, 2, 5, 4),
        ]
        assert batch["image_mask"].tolist() == [[True, False], [False, False], [True, True]]
        assert batch["tile_mask"].sum(-1).tolist() == [[4, 0], [0, 0], [3, 1]]
        for row, column, image in ((0, 0, a), (2, 0, b), (2, 1, c)):
            alone = make_processor().image_processor(image, return_tensors="pt")
            tiles = alone["pixel_tiles"].shape[1]
            assert torch.equal(batch["pixel_values"][row, column], alone["pixel_values"][0])
            assert torch.equal(batch["pixel_tiles"][row, column, :tiles], alone["pixel_tiles"][0])
            assert torch.equal(batch["grid_boxes"][row, column, : 1 + tiles], alone["grid_boxes"][0])

    def test_what_is_not_there_is_zero_with_the_box_of_the_whole_image(self):
        batch = call(make_processor(), [picture(16, 48), None, picture(10, 10)], ["a", "b", "c"])
        assert batch["tile_mask"].tolist() == [[True] * 3, [False] * 3, [True, False, False]]
        assert batch["image_mask"].tolist() == [True, False, True]
        assert not batch["pixel_values"][1].any()
        assert not batch["pixel_tiles"][~batch["tile_mask"]].any()
        absent = torch.cat([~batch["image_mask"][:, None], ~batch["tile_mask"]], dim=1)
        assert (batch["grid_boxes"][absent] == torch.tensor([0.0, 0, 1, 1])).all()

    @pytest.mark.parametrize("images", [None, [None, None], [[], None], [[None], []]])
    def test_a_batch_without_images_has_no_image_inputs(self, images):
        assert list(call(make_processor(), images, ["one", "three"])) == ["input_ids", "attention_mask"]

    def test_images_alone_give_image_inputs_alone(self):
        assert list(make_processor()(images=[picture(8, 8)], return_tensors="pt")) == IMAGE_INPUTS

    def test_several_images_beside_a_single_text_are_that_texts(self):
        a, b = picture(32, 32, 1), picture(32, 32, 2)
        flat, nested = (call(make_processor(), images, "both?") for images in ([a, b], [[a, b]]))
        assert flat["image_mask"].tolist() == [[True, True]]
        assert_same(flat, nested)

    def test_a_stack_of_images_is_a_row_each(self):
        stack = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
        assert_same(call(make_processor(), stack, ["a", "b"]), call(make_processor(), list(stack), ["a", "b"]))

    def test_without_return_tensors_there_are_lists_and_arrays(self):
        batch = make_processor()(images=picture(32, 32), text="what?")
        assert batch["input_ids"] == [make_tokenizer()("what?")["input_ids"]]
        assert isinstance(batch["pixel_values"], np.ndarray)

    def test_no_token_stands_for_the_image(self):
        processor = make_processor()
        with_image, without = call(processor, picture(8, 8), "what?"), call(processor, None, "what?")
        assert torch.equal(with_image["input_ids"], without["input_ids"])

    def test_decoding_gives_the_text_back(self):
        processor, texts = make_processor(), ["what digit?", "où est le 7 ? 数字 🙂"]
        batch = call(processor, None, texts)
        assert processor.batch_decode(batch["input_ids"], skip_special_tokens=True) == texts
        assert processor.decode(batch["input_ids"][1], skip_special_tokens=True) == texts[1]
        assert processor.post_process_image_text_to_text(batch["input_ids"]) == texts


class TestPadding:
    texts = ("a", "abc")

    def left(self, batch):
        return batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]

    def test_it_is_on_the_left_by_default(self):
        processor = make_processor()
        assert processor.tokenizer.padding_side == "left"
        assert self.left(call(processor, None, list(self.texts)))

    def test_the_side_the_tokenizer_was_made_with_is_kept(self):
        assert not self.left(call(make_processor({"padding_side": "right"}), None, list(self.texts)))

    def test_the_side_set_on_the_tokenizer_or_named_in_the_call_is_kept(self):
        processor = make_processor()
        assert not self.left(call(processor, None, list(self.texts), padding_side="right"))
        processor.tokenizer.padding_side = "right"
        assert not self.left(call(processor, None, list(self.texts)))

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_it_survives_saving(self, tmp_path, side):
        processor = make_processor()
        processor.tokenizer.padding_side = side
        processor.save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        assert self.left(call(loaded, None, list(self.texts))) == (side == "left")


class TestPixels:
    def test_compatible_tiling_gives_the_originals_tiles_under_its_pixel_rule(self):
        vectors = golden.load("tiles")
        for case in vectors.cases:
            name, tile = case["case"], case["tile_size"]
            images = vectors[f"{name}.in.image_u8"]
            processor = FireboltImageProcessor(
                tiling="compatible",
                do_resize=False,
                tile_size=tile,
                tile_overlap=case["overlap"],
                rescale_factor=1 / 256,
            )
            batch = processor(images, return_tensors="pt")
            assert batch["pixel_tiles"].shape == (case["B"], case["n_tiles_per_image"], 3, tile, tile)
            assert batch["grid_boxes"].shape[1] == case["G_with_global"]
            means = batch["pixel_tiles"].flatten(0, 1).double().flatten(2).mean(-1) * 128 + 128
            assert (means - vectors[f"{name}.out.tile_mean"]).abs().max() < 1e-9
            pixels = (images.float() - 128) / 128
            wanted = torch.nn.functional.interpolate(pixels, (256, 256), mode="bilinear", align_corners=False)
            assert (batch["pixel_values"] - wanted).abs().max() <= 1e-6

    def test_the_originals_pixel_rule_is_exact(self):
        levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
        processor = FireboltImageProcessor(
            tiling="compatible", size={"height": 16, "width": 16}, tile_size=16, rescale_factor=1 / 256
        )
        batch = processor(levels, return_tensors="pt")
        wanted = (levels.float() - 128) / 128
        assert torch.equal(batch["pixel_values"][0], wanted)
        assert torch.equal(batch["pixel_tiles"][0, 0], wanted)

    def test_siglips_pixel_rule_is_the_default(self):
        levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, -1, -1)
        processor = FireboltImageProcessor(size={"height": 16, "width": 16}, tile_size=16)
        found = processor(levels, return_tensors="pt")["pixel_tiles"][0, 0]
        assert (found - (levels.double() / 255 - 0.5) / 0.5).abs().max() < 2e-7

    def test_compatible_tiling_resizes_first_unless_told_not_to(self):
        image = picture(384, 384)
        assert FireboltImageProcessor(tiling="compatible")(image)["pixel_tiles"].shape[1] == 4
        assert FireboltImageProcessor(tiling="compatible", do_resize=False)(image)["pixel_tiles"].shape[1] == 9

    def test_native_tiles_of_an_image_that_fits_are_its_own_pixels(self):
        image = picture(32, 48)
        batch = make_processor(max_tiles=6).image_processor(image, return_tensors="pt")
        rows = [torch.cat(list(batch["pixel_tiles"][0, 3 * row : 3 * row + 3]), dim=-1) for row in range(2)]
        levels = torch.from_numpy(np.array(image)).permute(2, 0, 1).double()
        assert (torch.cat(rows, dim=-2) - (levels / 127.5 - 1)).abs().max() < 2e-7

    def test_wide_images_get_more_columns(self):
        boxes = make_processor().image_processor(picture(20, 90), return_tensors="pt")["grid_boxes"][0]
        assert boxes.tolist() == [[0, 0, 1, 1], *([0, i / 4, 1, (i + 1) / 4] for i in range(4))]

    @pytest.mark.parametrize(("height", "width"), [(1, 1), (10, 20000), (20000, 10), (1, 300), (300, 1)])
    @pytest.mark.parametrize("tiling", ["native", "compatible"])
    def test_extreme_sizes_are_answered_within_the_budget(self, height, width, tiling):
        batch = make_processor(tiling=tiling).image_processor(picture(height, width), return_tensors="pt")
        assert 1 <= batch["pixel_tiles"].shape[1] <= 9
        if tiling == "native":
            assert batch["pixel_tiles"].shape[1] <= 4
        assert batch["grid_boxes"].min() >= 0
        assert batch["grid_boxes"].max() <= 1
        assert all(torch.isfinite(batch[name]).all() for name in IMAGE_INPUTS)

    def test_options_of_a_call_go_before_the_processors_own(self):
        processor = make_processor()
        batch = call(processor, picture(64, 64), "x", max_tiles=9)
        assert batch["pixel_tiles"].shape[1] == 9
        batch = call(processor, picture(64, 64), "x", images_kwargs={"tiling": "compatible"})
        assert batch["pixel_tiles"].shape[1] == 4


def as_file(image: Image.Image, format: str, **kwargs) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, format, **kwargs)
    return Image.open(io.BytesIO(buffer.getvalue()))


class TestModes:
    """Every kind of image becomes the RGB picture a viewer would show."""

    def levels(self, image) -> np.ndarray:
        image = pictures.to_rgb(image) if isinstance(image, Image.Image) else pictures.from_array(image)
        assert image.mode == "RGB"
        return np.array(image)

    def test_colours_of_any_mode(self):
        teal = Image.new("RGB", (6, 4), (0, 128, 128))
        for mode in ("RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "P", "RGBa", "PA"):
            source = teal.convert("RGBA") if mode == "RGBa" else teal.quantize(2) if mode in ("P", "PA") else teal
            assert np.abs(self.levels(source.convert(mode)).astype(int) - (0, 128, 128)).max() <= 6, mode
        lab_grey = Image.merge("LAB", [Image.new("L", (6, 4), level) for level in (137, 128, 128)])
        assert np.abs(self.levels(lab_grey).astype(int) - 128).max() <= 3

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "I", "F", "I;16", "I;16B"])
    def test_greys_of_any_depth(self, mode):
        white = 65535 if mode.startswith("I;16") else 255
        if mode in ("LA", "La"):
            image = Image.new("LA", (3, 2), (255, 255)).convert(mode)
        else:
            image = Image.new(mode, (3, 2), white)
        assert (self.levels(image) == 255).all()

    def test_sixteen_bits_are_scaled_not_clipped(self):
        ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
        file = as_file(Image.fromarray(ramp), "PNG")
        assert file.mode.startswith("I")
        assert (self.levels(file)[..., 0] == np.arange(256).reshape(16, 16)).all()

    def test_floating_point_levels_of_any_range_stay_in_order(self):
        for low, high, wanted in ((0, 1, (0, 255)), (0, 255, (0, 255)), (-5, 3000, (0, 255)), (0, 0.5, (0, 128))):
            levels = np.linspace(low, high, 12, dtype=np.float32).reshape(3, 4)
            found = self.levels(Image.fromarray(levels))[..., 0].ravel()
            assert (found[0], found[-1]) == wanted
            assert (np.diff(found.astype(int)) > 0).all()
        assert (self.levels(Image.new("F", (2, 2), -5)) == 0).all()

    def test_transparency_lies_over_white(self):
        clear = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
        assert (self.levels(clear) == 255).all()
        assert (self.levels(Image.new("RGBA", (2, 2), (0, 0, 0, 128))) == 127).all()
        assert (self.levels(Image.new("LA", (2, 2), (0, 0))) == 255).all()
        palette = Image.new("P", (2, 2), 0)
        palette.putpalette([10, 20, 30])
        assert (self.levels(as_file(palette, "PNG", transparency=0)) == 255).all()
        assert (self.levels(as_file(palette, "PNG"))[0, 0] == (10, 20, 30)).all()

    def test_an_animation_shows_its_first_frame(self):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        for format in ("GIF", "PNG", "WEBP"):
            kwargs = {"lossless": True} if format == "WEBP" else {}
            file = as_file(frames[0], format, save_all=True, append_images=frames[1:], **kwargs)
            assert file.n_frames == 2
            assert (self.levels(file) == (255, 0, 0)).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied(self, orientation):
        upright = np.zeros((16, 24, 3), dtype=np.uint8)
        upright[:8, :8] = 255
        turns = {
            1: lambda x: x,
            2: lambda x: x[:, ::-1],
            3: lambda x: x[::-1, ::-1],
            4: lambda x: x[::-1],
            5: lambda x: x.transpose(1, 0, 2),
            6: lambda x: np.rot90(x, 1),
            7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
            8: lambda x: np.rot90(x, -1),
        }
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(np.ascontiguousarray(turns[orientation](upright)))
        found = self.levels(as_file(stored, "PNG", exif=exif))
        assert found.shape == upright.shape
        assert (found == upright).all()

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # by Pillow, when it saves
    def test_damaged_exif_does_not_spoil_the_image(self):
        image = as_file(picture(8, 8), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nonsense")
        assert self.levels(image).shape == (8, 8, 3)

    def test_arrays_and_tensors_give_what_the_image_gives(self):
        image = picture(6, 9)
        levels = np.array(image)
        forms = [
            levels,
            np.moveaxis(levels, -1, 0),
            levels.astype(np.int64),
            levels.astype(np.float32),
            levels / 255,
            levels.astype(np.uint16) * 257,
            np.dstack([levels, np.full((6, 9), 255, np.uint8)]),
            torch.from_numpy(levels),
            torch.from_numpy(levels).permute(2, 0, 1),
            torch.from_numpy(levels / 255).half(),
            torch.from_numpy(levels / 255).requires_grad_(),
        ]
        for form in forms:
            assert (self.levels(form) == levels).all()
        grey = levels[..., 0]
        for form in (grey, grey[..., None], grey[None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
            assert (self.levels(form) == grey[..., None]).all()
        assert (self.levels(grey > 127) == np.where(grey > 127, 255, 0)[..., None]).all()

    def test_channels_lie_where_the_library_has_them_or_where_the_call_says(self):
        levels = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
        first = np.moveaxis(levels, 0, -1)
        assert (self.levels(levels) == levels).all()
        assert (self.levels(torch.from_numpy(levels)) == first).all()
        processor = FireboltImageProcessor(size={"height": 8, "width": 8}, tile_size=8)
        told = processor(levels, input_data_format="channels_first")["pixel_values"]
        assert (told == processor(first)["pixel_values"]).all()

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (np.zeros((5, 4, 2), np.uint8), r"shape \[5, 4, 2\]; expected \[H,W\], \[H,W,C\] or \[C,H,W\]"),
            (np.zeros((2, 3, 4, 4, 3), np.uint8), r"shape \[2, 3, 4, 4, 3\]; expected"),
            (torch.zeros(7), r"shape \[7\]; expected"),
            (np.zeros((0, 4, 3), np.uint8), r"shape \[0, 4, 3\]; expected"),
            (torch.randn(3, 8, 8), r"levels -.*; expected 0..255, or 0..1 in floating point"),
            (np.full((2, 2), np.nan), "levels nan..nan; expected"),
            (np.full((2, 2), 300), "levels 300..300; expected"),
        ],
    )
    def test_an_array_that_is_no_image_is_named(self, array, words):
        with pytest.raises(ValueError, match=words):
            pictures.from_array(array)


class TestFiles:
    """Opening what people have on their disks."""

    def test_a_path_an_address_of_data_and_base64_give_the_same_image(self, tmp_path):
        image = picture(40, 40)
        path = tmp_path / "a.png"
        image.save(path)
        text = base64.b64encode(path.read_bytes()).decode()
        processor = make_processor()
        wanted = call(processor, image, "x")
        for source in (path, str(path), text, f"data:image/png;base64,{text}"):
            assert_same(call(processor, source, "x"), wanted)

    @pytest.mark.parametrize(
        ("make", "error", "words"),
        [
            (lambda path: None, FileNotFoundError, "does not exist; check the path"),
            (lambda path: path.mkdir(), IsADirectoryError, "is a directory; name one image file in it"),
            (lambda path: path.write_text("no pixels here"), pictures.ImageError, "is not an image that can be read"),
            (lambda path: path.write_bytes(b""), pictures.ImageError, "is not an image that can be read"),
        ],
    )
    def test_what_cannot_be_read_is_named_in_one_line(self, tmp_path, make, error, words):
        path = tmp_path / "a.png"
        make(path)
        with pytest.raises(error, match=words) as caught:
            pictures.open_image(path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        assert caught.value.__cause__ is None

    def test_a_file_below_a_file_is_missing(self, tmp_path):
        (tmp_path / "a").write_text("")
        with pytest.raises(FileNotFoundError, match="a part of the path is a file"):
            pictures.open_image(tmp_path / "a" / "b.png")

    @pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
    def test_a_truncated_image_is_refused(self, tmp_path, format):
        path = tmp_path / "a.img"
        picture(64, 64).save(path, format)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(pictures.ImageError, match=r"damaged or incomplete|not an image"):
            pictures.open_image(path)

    def test_a_decompression_bomb_is_refused_at_pillows_limit(self, tmp_path, monkeypatch):
        path = tmp_path / "a.png"
        Image.new("1", (50, 41)).save(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
        with pytest.raises(pictures.ImageError, match=r"more than 2,000 pixels.*scale the image down"):
            pictures.open_image(path)
        Image.new("1", (50, 40)).save(path)
        assert pictures.open_image(path).size == (50, 40)

    def test_no_other_program_is_run(self, tmp_path):
        path = tmp_path / "a.png"
        picture(8, 8).save(path, "EPS")
        with pytest.raises(pictures.ImageError, match="is EPS, which another program must draw"):
            pictures.open_image(path)

    def test_a_path_that_cannot_be_is_named(self):
        with pytest.raises(pictures.ImageError, match=r"cannot be opened .*; check the path"):
            pictures.open_image("x" * 300)

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "a.png")
        with pytest.raises(pictures.ImageError, match="is not a regular file"):
            pictures.open_image(tmp_path / "a.png")


class TestErrors:
    @pytest.mark.parametrize(
        ("images", "text", "words"),
        [
            ([picture(4, 4)] * 3, ["a", "b"], "FireboltProcessor: images has 3 rows; expected 2"),
            (picture(4, 4), ["a", "b"], "FireboltProcessor: images has 1 rows; expected 2"),
            (None, [], "FireboltProcessor: text is an empty list"),
            (None, ["a", ""], "FireboltProcessor: text is empty in row 1"),
        ],
    )
    def test_rows_that_do_not_match_are_named(self, images, text, words):
        with pytest.raises(ValueError, match=words):
            call(make_processor(), images, text)

    @pytest.mark.parametrize("images", [3, [picture(4, 4), 3], [[picture(4, 4), {}]]])
    def test_what_is_no_image_is_named(self, images):
        with pytest.raises(TypeError, match=r"images (is of type|has a) (int|dict).*; expected"):
            call(make_processor(), images, "a")

    def test_other_media_are_refused(self):
        with pytest.raises(ValueError, match="videos is of type list; expected images and text alone"):
            make_processor()(text=["a"], videos=[np.zeros((2, 4, 4, 3))])

    @pytest.mark.parametrize("nothing", [[], [None, None], [[], [None]]], ids=str)
    def test_media_of_which_nothing_came(self, nothing):
        found = call(make_processor(), nothing, ["a", "bb"], videos=nothing, audio=nothing)
        assert_same(found, call(make_processor(), None, ["a", "bb"]))

    @pytest.mark.parametrize(
        ("kwargs", "words"),
        [
            ({"tiling": "natural"}, "FireboltImageProcessor: tiling is 'natural'; expected one of native, compatible"),
            ({"size": {"height": 32, "width": 16}}, "size is .*; expected an equal height and width"),
            ({"size": {"shortest_edge": 32}}, "size is .*; expected an equal height and width"),
            ({"tile_size": 0}, "tile_size is 0; expected at least 1"),
            ({"tile_overlap": 16}, "tile_overlap is 16; expected 0 to tile_size - 1 = 15"),
            ({"max_tiles": 0}, "max_tiles is 0; expected at least 1"),
        ],
    )
    def test_options_that_cannot_be_are_named_when_made_and_when_called(self, kwargs, words):
        with pytest.raises(ValueError, match=words):
            make_processor(**kwargs)
        if kwargs != {"tiling": "natural"}:  # transformers' own check of a call's options has its own words
            with pytest.raises(ValueError, match=words):
                make_processor().image_processor(picture(4, 4), **kwargs)


class TestRoundTrips:
    options = {"tiling": "compatible", "tile_overlap": 4, "max_tiles": 7, "rescale_factor": 1 / 256}

    def test_a_saved_processor_loads_by_the_auto_class_and_gives_the_same(self, tmp_path, caplog):
        processor = make_processor(**self.options)
        processor.save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        assert type(loaded) is FireboltProcessor
        assert type(loaded.image_processor) is FireboltImageProcessor
        assert loaded.chat_template == processor.chat_template
        assert loaded.image_processor.to_dict() == processor.image_processor.to_dict()
        arguments = ([picture(50, 70), None, [picture(9, 9)] * 2], ["a", "bb", "ccc"])
        assert_same(call(loaded, *arguments), call(processor, *arguments))
        assert not caplog.records

    def test_a_saved_image_processor_loads_by_the_auto_class(self, tmp_path):
        processor = make_processor(**self.options).image_processor
        processor.save_pretrained(tmp_path)
        loaded = AutoImageProcessor.from_pretrained(tmp_path)
        assert loaded.to_dict() == processor.to_dict()
        for backend in ("pil", "torchvision"):
            assert type(AutoImageProcessor.from_pretrained(tmp_path, backend=backend)) is FireboltImageProcessor

    def test_what_is_saved_says_no_more_than_is_set(self, tmp_path):
        make_processor().save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "processor_config.json").read_text())
        assert saved["processor_class"] == "FireboltProcessor"
        assert set(saved["image_processor"]) == {
            "do_normalize",
            "do_rescale",
            "do_resize",
            "image_mean",
            "image_processor_type",
            "image_std",
            "max_tiles",
            "packed",
            "resample",
            "rescale_factor",
            "size",
            "tile_overlap",
            "tile_size",
            "tiling",
        }


class TestChats:
    def message(self, *content, role="user"):
        return [{"role": role, "content": list(content)}]

    def text(self, text="what?"):
        return {"type": "text", "text": text}

    def test_image_items_yield_no_text(self):
        image = picture(8, 8)
        messages = self.message({"type": "image", "image": image}, self.text())
        prompt = make_processor().apply_chat_template(messages, add_generation_prompt=True)
        assert prompt == "<|startoftext|><|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n"
        assert prompt == make_processor().apply_chat_template(
            [{"role": "user", "content": "what?"}], add_generation_prompt=True
        )

    def apply(self, messages, **kwargs):
        return make_processor().apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True, **kwargs
        )

    def test_images_in_messages_reach_the_batch(self, tmp_path):
        image = picture(20, 60)
        path = tmp_path / "a.png"
        image.save(path)
        wanted = make_processor().image_processor(image, return_tensors="pt")
        for item in ({"image": image}, {"path": str(path)}, {"url": str(path)}, {"image": np.array(image)}):
            batch = self.apply(self.message({"type": "image", **item}, self.text()))
            assert batch["input_ids"][0, 0] == 1
            assert (batch["input_ids"] == 1).sum() == 1
            for name in IMAGE_INPUTS:
                assert torch.equal(batch[name], wanted[name])

    def test_nested_and_missing_images_of_a_batch(self):
        a, b = picture(16, 16, 1), picture(16, 32, 2)
        chats = [
            self.message({"type": "image", "image": a}, self.text("one")),
            self.message(self.text("none")),
            self.message({"type": "image", "image": a}, {"type": "image", "image": b}, self.text("two images")),
            self.message({"type": "image"}, self.text("forgotten")),
            self.message({"type": "image", "image": None}, self.text("nothing")),
        ]
        batch = self.apply(chats, processor_kwargs={"padding": True})
        assert batch["image_mask"].sum(-1).tolist() == [1, 0, 2, 0, 0]
        assert batch["pixel_values"].shape == (5, 2, 3, 32, 32)
        assert batch["attention_mask"][:, -1].all()
        assert list(self.apply(chats[1:2])) == ["input_ids", "attention_mask"]
        assert list(self.apply(chats[4:])) == ["input_ids", "attention_mask"]

    def test_the_tokenizers_template_is_used_where_there_is_no_other(self):
        tokenizer = make_tokenizer(chat_template="{{ messages[0]['content'] }}!")
        processor = FireboltProcessor(FireboltImageProcessor(), tokenizer)
        assert processor.apply_chat_template([{"role": "user", "content": "hm"}]) == "hm!"


class TestBase64:
    """A text is a path where a file has that name, else an image in base64, whatever its length, else a path."""

    @pytest.mark.parametrize("side", [1, 5, 16, 64])
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
    def test_of_any_length_and_spelling(self, side, kind):
        file = io.BytesIO()
        Image.new("RGB", (side, side), (200, 0, 0)).save(file, kind)
        data = file.getvalue()
        plain, url = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
        spelt = [plain, url, url.rstrip("="), base64.encodebytes(data).decode(), f"  {plain}\r\n"]
        spelt += [f"{start}{plain}" for start in ("data:image/png;base64,", "DATA:image/PNG;Base64,", "data:;base64,")]
        spelt += [f"data:image/png;charset=x;base64,{quote(plain)}", f"data:image/png,{quote(data)}"]
        for text in spelt:
            assert pictures.load_image(text).getpixel((0, 0))[0] > 180, text[:40]

    def test_a_file_of_that_name_comes_first(self, tmp_path, monkeypatch):
        file = io.BytesIO()
        Image.new("RGB", (1, 1), "white").save(file, "GIF")
        name = base64.urlsafe_b64encode(file.getvalue()).decode()
        monkeypatch.chdir(tmp_path)
        Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / name)
        assert pictures.load_image(name).size == (3, 3)

    @pytest.mark.parametrize("text", ["abcd", "photo", "no/such/photo", "a" * 5000 + ".png", "a\0b", "QUJDRA==", ""])
    def test_a_path_that_leads_nowhere_is_said_to_be_one(self, text):
        with pytest.raises((FileNotFoundError, IsADirectoryError)) as raised:
            pictures.load_image(text)
        assert len(str(raised.value)) < 200

    @pytest.mark.parametrize(
        "text", ["data:image/png;base64", "data:image/png;base64,@@@@", "data:image/png;base64,QUJD", "data:,a"]
    )
    def test_a_broken_data_url_is_said_to_be_one(self, text):
        with pytest.raises(pictures.ImageError, match="data: URL"):
            pictures.load_image(text)


class TestScale:
    """Floating-point levels are of 0..1 or of 0..255; which of them is not guessed where both could be."""

    @staticmethod
    def ramp(high: float, low: float = 0.0) -> np.ndarray:
        return np.linspace(low, high, 48, dtype=np.float32).reshape(4, 4, 3)

    @pytest.mark.parametrize("high", [1.0000001, 1.001, 1.02, 1.09])
    def test_a_little_above_1_is_still_of_1(self, high):
        for array in (self.ramp(high), torch.from_numpy(self.ramp(high)).permute(2, 0, 1)):
            assert np.asarray(pictures.from_array(array)).max() == 255
            assert np.asarray(pictures.from_array(array)).mean() > 120
        grey = Image.fromarray(self.ramp(high)[..., 0])
        assert np.asarray(pictures.to_rgb(grey)).mean() > 120

    def test_a_little_below_0_is_of_1_too(self):
        assert np.asarray(pictures.from_array(self.ramp(1.003, -0.004))).min() == 0

    @pytest.mark.parametrize("high", [1.2, 1.5, 1.99])
    def test_what_could_be_both_is_refused(self, high):
        for read, image in (
            (pictures.from_array, self.ramp(high)),
            (pictures.to_rgb, Image.fromarray(np.ascontiguousarray(self.ramp(high)[..., 2]))),
        ):
            with pytest.raises(pictures.ImageError, match=r"could be of 0\.\.1 or 0\.\.255"):
                read(image)

    @pytest.mark.parametrize("high", [2.0, 7.5, 255.0])
    def test_dark_is_of_255(self, high):
        assert np.asarray(pictures.from_array(self.ramp(high))).max() == round(high)

    @pytest.mark.parametrize("kind", ["array", "tensor"])
    def test_a_stack_has_one_scale(self, kind):
        """A dark image alone would be taken for one of 0..1, and be white."""
        stack = np.stack([np.full((8, 8, 3), level, dtype=np.float32) for level in (0.0, 1.0, 200.0)])
        rows = image_rows(stack if kind == "array" else torch.from_numpy(stack).permute(0, 3, 1, 2))
        assert [np.asarray(pictures.from_array(row[0])).max() for row in rows] == [0, 1, 200]


def test_a_byte_order_mark_before_a_template_is_no_part_of_the_prompt(tmp_path):
    make_processor().save_pretrained(tmp_path)
    file = tmp_path / "chat_template.jinja"
    plain = FireboltProcessor.from_pretrained(tmp_path).apply_chat_template([{"role": "user", "content": "q"}])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    found = FireboltProcessor.from_pretrained(tmp_path).apply_chat_template([{"role": "user", "content": "q"}])
    assert found == plain
