"""Data files: what is read, what is refused and how it is named, how rows become batches."""

import codecs
import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from conversations import (
    BROKEN,
    broken_folder,
    encoded,
    picture,
    row,
    turns,
    write_conversations,
    write_rows,
    write_shard,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import make_processor
from transformers import AddedToken
from videos import write_video

from firebolt_vl.files.problems import BadRow
from firebolt_vl.model.video import read_video
from firebolt_vl.train.data import BatchOrder, Collator, Conversations, TooManyBadRows
from firebolt_vl.train.data.batches import StepBatches
from firebolt_vl.train.data.chat import IGNORED, Chat
from firebolt_vl.train.data.rows import ROLES, check_row, parse_row

PROCESSOR = make_processor()
TOKENIZER = PROCESSOR.tokenizer


def read(file, **options) -> Conversations:
    return Conversations([file], TOKENIZER, **{"max_length": 512, "max_bad_share": 1.0, **options})


def test_each_kind_of_broken_row_is_named_with_its_file_and_line(tmp_path):
    broken_folder(tmp_path)
    good = [row("what?", "that", image="0.png"), row("what?", "that")]
    file = write_rows(tmp_path / "rows.jsonl", [good[0], *(broken for _, broken in BROKEN), good[1]])
    told = []
    found = read(file, check_images=True, report=told.append)
    assert len({kind for kind, _ in BROKEN}) >= 30
    assert [(problem.file, problem.place, problem.kind) for problem in told] == [
        (str(file), str(line), kind) for line, (kind, _) in enumerate(BROKEN, start=2)
    ]
    assert str(told[0]).startswith(f"{file}:2: broken JSON: ")
    assert len(found) == 2
    assert found.problems.rows == len(BROKEN) + 2
    assert f"{len(BROKEN)} of {len(BROKEN) + 2} rows cannot be used: 4 unreadable image, " in found.problems.summary()
    assert [found.row(i) for i in range(2)] == [check_row(one) for one in good]


def test_videos_are_read_and_what_is_wrong_with_them_is_named(tmp_path):
    write_video(tmp_path / "clip.mp4", seconds=3)
    (tmp_path / "text.mp4").write_text("hello")
    write_shard(tmp_path / "shard.tar", {"clip.mp4": (tmp_path / "clip.mp4").read_bytes()})
    bad = {
        "missing video": "none.mp4",
        "video is a folder": ".",
        "video in a shard": "shard.tar/clip.mp4",
        "unreadable video": "text.mp4",
    }
    rows = [row("a", "b", video=name) for name in ("clip.mp4", *bad.values())]
    file, told = write_rows(tmp_path / "rows.jsonl", rows), []
    found = read(file, check_images=True, report=told.append, read_video=lambda path: read_video(path, frames=3).frames)
    assert [(problem.place, problem.kind) for problem in told] == [
        (str(line), kind) for line, kind in enumerate(bad, start=2)
    ]
    (example,) = [found[i] for i in range(len(found))]
    assert example.is_video
    assert [image.size for image in example.images] == [(64, 64)] * 3
    levels = [np.asarray(image).mean() for image in example.images]
    assert levels == sorted(levels)
    assert levels[0] < levels[-1]


def test_a_video_is_not_opened_before_its_turn(tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    file = write_rows(tmp_path / "rows.jsonl", [row("a", "b", video="text.mp4")])
    found = read(file, read_video=lambda path: read_video(path).frames)
    with pytest.raises(BadRow, match="unreadable video"):
        found[0]
    write_rows(tmp_path / "rows.jsonl", [row("a", "b"), row("a", "b", video="text.mp4")])
    told = []
    read(file, report=told.append)  # for a model that looks at images
    assert [str(problem) for problem in told] == [
        f"{file}:2: row with a video: it is text.mp4; expected images, which this model looks at"
    ]


def test_preferences_need_two_answers_and_a_bad_one_is_named(tmp_path):
    good = row("what?", "that", "and?", "this", rejected="nothing")
    bad = {
        "no rejected answer": row("a", "b"),
        "rejected is no text": row("a", "b", rejected=["c"]),
        "empty rejected answer": row("a", "b", rejected=" "),
        "rejected is chosen": row("a", "b", rejected="b"),
        "control token in the text": row("a", "b", rejected="c<|im_end|>"),
        "over-long text": row("a", "b", rejected="c" * 600),
        "half a character": json.dumps(row("a", "b", rejected="\ud83d")).encode(),
    }
    file, told = write_rows(tmp_path / "rows.jsonl", [good, *bad.values()]), []
    found = read(file, preferences=True, report=told.append)
    assert [(problem.place, problem.kind) for problem in told] == [
        (str(line), kind) for line, kind in enumerate(bad, start=2)
    ]
    example = found[0]
    chosen, rejected = (TOKENIZER.decode(tokens.ids) for tokens in (example.tokens, example.rejected))
    assert chosen.count("this") == 1
    assert rejected == chosen.replace("this", "nothing")
    # Training on answers leaves it alone, whatever it is.
    assert len(read(file)) == 1 + len(bad)
    assert read(file)[0].rejected is None


def test_without_looking_into_images_a_damaged_one_is_noted_when_its_turn_comes(tmp_path):
    broken_folder(tmp_path)
    rows = [row("what?", "that", image=name) for name in ("0.png", "half.png", "text.png")]
    found = read(write_rows(tmp_path / "rows.jsonl", rows), max_bad_share=0.4)
    batch = Collator(found, PROCESSOR)([1, 0])
    assert batch.inputs["input_ids"].shape[0] == 1
    assert [(problem.place, problem.kind) for problem in batch.problems] == [("2", "unreadable image")]
    for _ in range(2):  # the same row in another epoch
        found.note(batch.problems[0])
    last = Collator(found, PROCESSOR)([2])
    assert last.inputs is None
    assert last.answer_tokens == 0
    with pytest.raises(TooManyBadRows, match=r"2 of 3 rows cannot be used: 2 unreadable image; max_bad_share=0\.4"):
        found.note(last.problems[0])


def test_too_many_bad_rows_stop_with_a_summary(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [*(row("a", "b") for _ in range(9)), b"{", row("a", "")])
    with pytest.raises(TooManyBadRows, match="2 of 11 rows cannot be used: 1 broken JSON, 1 empty answer; max_bad_sh"):
        read(file, max_bad_share=0.1)
    assert len(read(file, max_bad_share=0.2)) == 9


def test_files_without_a_row_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"none\.jsonl does not exist; check the path"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="has no rows; expected at least one"):
        read(tmp_path / "empty.jsonl")
    with pytest.raises(TooManyBadRows, match="no row is left"):
        read(write_rows(tmp_path / "bad.jsonl", [b"{"]))
    (tmp_path / "no.tar").write_text("hello" * 200)
    with pytest.raises(ValueError, match="is not a tar shard that can be read"):
        read(tmp_path / "no.tar")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_stands_on_a_line_it_is_a_row_or_a_bad_row(line):
    with pytest.raises(BadRow):
        parse_row(line)


@given(
    st.fixed_dictionaries(
        {"conversations": st.lists(st.fixed_dictionaries({"from": st.sampled_from(ROLES), "value": JSON}))},
        optional={"image": JSON},
    )
)
def test_a_row_that_is_taken_has_turns_in_turns_and_words_in_each(value):
    try:
        found = check_row(value)
    except BadRow:
        return
    assert [turn.role for turn in found.turns] == ["human", "assistant"] * (len(found.turns) // 2)
    assert all(turn.text.strip() for turn in found.turns)


def test_a_byte_order_mark_other_line_ends_and_other_keys_do_no_harm(tmp_path):
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps(row("ä", "b", id=number)) for number in range(2)]
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    found = read(file)
    assert len(found) == 2
    assert [turn.text for turn in found.row(1).turns] == ["ä", "b"]


def test_images_come_from_a_folder_and_from_shards_alike(tmp_path):
    images = [picture(number) for number in range(3)]
    for folder in ("photos", "shards"):
        (tmp_path / folder).mkdir()
    images[0].save(tmp_path / "photos" / "0.png")
    write_shard(tmp_path / "shards" / "a.tar", {"x/1.png": encoded(images[1]), "2.png": encoded(images[2])})
    rows = [row("a", "b", image=["photos/0.png", "shards/a.tar/x/1.png"]), row("a", "b", image="shards/a.tar/2.png")]
    for root, place in ((None, tmp_path), (tmp_path, tmp_path / "photos")):
        found = read(write_rows(place / "rows.jsonl", rows), image_root=root)
        assert [image.tobytes() for i in range(2) for image in found[i].images] == [i.tobytes() for i in images]


def test_a_shard_holds_rows_with_their_images(tmp_path):
    files = {
        "000.jpg": encoded(picture(0), "jpeg"),
        "000.json": json.dumps({"conversations": turns("a", "b")}).encode(),
        "001.json": json.dumps({"image": None, "conversations": turns("c", "d")}).encode(),
        "001.png": encoded(picture(1)),
        "002.png": encoded(picture(2)),
        "003.json": b"{",
    }
    told = []
    found = read(write_shard(tmp_path / "rows.tar", files), report=told.append)
    assert [len(found[i].images) for i in range(2)] == [1, 0]
    assert [(problem.place, problem.kind) for problem in told] == [
        ("002", "sample without JSON"),
        ("003", "broken JSON"),
    ]


def test_the_loss_is_about_the_answers_of_every_turn_and_their_ends():
    tokens = Chat(TOKENIZER)(check_row(row("how many?", "two", "really?", "yes, two")))
    marked = [label for label in tokens.labels if label != IGNORED]
    assert TOKENIZER.decode(marked) == "two<|im_end|>yes, two<|im_end|>"
    assert all(label in (IGNORED, token) for token, label in zip(tokens.ids, tokens.labels))
    whole = [{"role": turn, "content": text} for turn, text in (("user", "how many?"), ("assistant", "two"))]
    prompt = TOKENIZER.apply_chat_template(
        [*whole, {"role": "user", "content": "really?"}],
        chat_template=PROCESSOR.chat_template,
        add_generation_prompt=True,
        tokenize=False,
    )
    last = len(tokens.ids) - len(TOKENIZER("yes, two<|im_end|>").input_ids)
    assert TOKENIZER.decode(tokens.ids[:last]) == prompt


def test_the_bound_of_a_length_is_one(tmp_path):
    chat = Chat(TOKENIZER)
    for one in (row("a", "b"), row("ä?", "€", "c", "d"), row("\n", "\t x")):
        if all(turn["value"].strip() for turn in one["conversations"]):
            assert len(chat(check_row(one)).ids) <= chat.check(check_row(one))


def test_a_template_that_rewrites_what_was_said_is_refused():
    backwards = make_processor(chat_template="{% for m in messages|reverse %}{{ m['content'] }}{% endfor %}").tokenizer
    backwards.chat_template = "{% for m in messages|reverse %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(ValueError, match="chat_template ends a prompt elsewhere than where the answer begins"):
        Chat(backwards)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(0, 3), st.integers(1, 3), st.integers(1, 3))
def test_every_row_comes_once_an_epoch_whatever_the_number_of_processes(rows, batch, seed, processes, pieces):
    order = BatchOrder(np.random.default_rng(seed).integers(1, 90, rows), batch, seed)
    for epoch in range(2):
        steps = range(epoch * order.batches_per_epoch, (epoch + 1) * order.batches_per_epoch)
        seen = []
        for step in steps:
            parts = order.parts(step, processes, pieces)
            assert [len(part) for part in parts] == [pieces] * processes
            assert sorted([row for part in parts for piece in part for row in piece]) == sorted(order.batch(step))
            seen += order.batch(step).tolist()
        assert sorted(seen) == list(range(rows))


def test_the_order_is_another_each_epoch_and_seed_and_the_same_again():
    sizes = np.arange(100)
    first, again, other = BatchOrder(sizes, 4, 0), BatchOrder(sizes, 4, 0), BatchOrder(sizes, 4, 1)
    assert [first.batch(i).tolist() for i in range(30)] == [again.batch(i).tolist() for i in (*range(30),)]
    assert again.batch(3).tolist() == first.batch(3).tolist()
    assert [first.batch(i).tolist() for i in range(25)] != [first.batch(i).tolist() for i in range(25, 50)]
    assert [first.batch(i).tolist() for i in range(25)] != [other.batch(i).tolist() for i in range(25)]


def test_rows_of_like_length_share_a_batch():
    sizes = np.random.default_rng(0).integers(1, 1000, 4000)
    order = BatchOrder(sizes, 8, 0)
    padded = sum(8 * sizes[order.batch(i)].max() for i in range(order.batches_per_epoch))
    assert padded < 1.15 * sizes.sum()


def test_a_process_loads_its_share_from_any_step_on():
    order = BatchOrder(np.arange(20), 4, 0)
    shares = [[*StepBatches(order, 100 + np.arange(20), process, 2, 2, 3, 5)] for process in range(2)]
    assert [len(share) for share in shares] == [4, 4]
    for turn, step in enumerate((3, 4)):
        loaded = [row for share in shares for piece in range(2) for row in share[2 * turn + piece]]
        assert sorted(loaded) == sorted((100 + order.batch(step)).tolist())


def test_a_batch_is_padded_on_the_right_and_a_row_may_be_text_alone(tmp_path):
    found = read(write_conversations(tmp_path, rows=4, images=2, text_only=4))
    batch = Collator(found, PROCESSOR)([3, 0])
    inputs = batch.inputs
    lengths = [len(found[i].tokens.ids) for i in (3, 0)]
    assert inputs["attention_mask"].sum(1).tolist() == lengths
    assert inputs["image_mask"].tolist() == [False, True]
    for one, length, i in zip(range(2), lengths, (3, 0)):
        assert inputs["input_ids"][one, :length].tolist() == found[i].tokens.ids
        assert inputs["labels"][one, :length].tolist() == found[i].tokens.labels
        assert (inputs["labels"][one, length:] == IGNORED).all()
    assert batch.answer_tokens == sum(found[i].tokens.answer_tokens for i in (3, 0))
    assert torch.equal(
        inputs["pixel_values"][1], PROCESSOR.image_processor([found[0].images], return_tensors="pt")["pixel_values"][0]
    )
    assert not Collator(found, PROCESSOR)([3]).has_images


def answers_of(shard) -> dict:
    """Key -> what the assistant says, and the images' first level."""
    found = Conversations([shard], None, max_bad_share=1.0, check_images=True)
    pictures = found.sources[0].pictures
    return {
        found._names[i]: (
            found.row(i).turns[-1].text,
            [pictures.open(p).getpixel((0, 0))[0] for p in found.row(i).images],
        )
        for i in range(len(found))
    }


def sample(key: str, answer: str, level: int) -> dict[str, bytes]:
    image = encoded(Image.new("RGB", (8, 8), (level,) * 3))
    return {f"{key}.json": json.dumps({"conversations": turns("q", answer)}).encode(), f"{key}.png": image}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ([("a", "one", 10), ("b", "two", 90)], [("b", "two", 90), ("a", "one", 10)]),
        ([("a", "one", 10)], [("a", "a longer one", 10), ("b", "two", 90)]),
        ([("a", "one", 10), ("b", "two", 90)], [("b", "two", 90)]),
        ([("a", "one", 10)], [("a", "two", 90)]),
    ],
)
def test_a_shard_written_anew_is_read_anew(tmp_path, first, then):
    """Also within the grain of the clock, at the same size and in the same place on the disk."""
    shard, seen = tmp_path / "s.tar", []
    for samples in (first, then):
        files = {name: data for one in samples for name, data in sample(*one).items()}
        with shard.open("wb") if not shard.exists() else shard.open("r+b") as file:
            file.truncate(0)
            file.write(write_shard(tmp_path / "made.tar", files).read_bytes())
        os.utime(shard, ns=(10**18, 10**18))
        seen.append(answers_of(shard))
    assert seen == [{key: (answer, [level]) for key, answer, level in samples} for samples in (first, then)]


def test_a_file_that_changes_under_a_run_is_noticed(tmp_path):
    rows = [row("a", f"{number}") for number in range(3)]
    found = read(write_rows(tmp_path / "rows.jsonl", rows))
    write_rows(tmp_path / "rows.jsonl", [*rows, row("a", "more")])  # what is added is not read, and does no harm
    assert [found.row(i).turns[-1].text for i in range(3)] == ["0", "1", "2"]
    write_rows(tmp_path / "rows.jsonl", rows[::-1])
    assert found.row(1).turns[-1].text == "1"
    with pytest.raises(BadRow, match="changed file"):
        found[0]
    shard = write_shard(tmp_path / "s.tar", {**sample("a", "one", 10), **sample("b", "two", 90)})
    found = read(shard)
    write_shard(shard, {**sample("b", "two", 90), **sample("a", "one", 10)})
    with pytest.raises(BadRow, match="changed file"):
        found[0]


def test_images_of_a_sample_are_found_by_any_name_and_through_links(tmp_path):
    said = json.dumps({"conversations": turns("a", "b")}).encode()
    image, shard = encoded(picture(1)), tmp_path / "s.tar"
    files = {f"{key}.json": said for key in "abcdefgh"} | {"./e.PNG": image}
    files |= {"a.JPG": encoded(picture(1), "jpeg"), "b.left.png": image, "b.right.png": image, "c.jfif": image}
    files |= {"d.heic": b"?", "f.txt": b"words", "h.json": json.dumps({"image": None, **json.loads(said)}).encode()}
    files["h.heic"] = b"?"
    with tarfile.open(shard, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, kind, target in (
            ("g.png", tarfile.LNKTYPE, "c.jfif"),
            ("i.json", tarfile.SYMTYPE, "a.json"),
            ("i.png", tarfile.SYMTYPE, "g.png"),
            ("j.json", tarfile.SYMTYPE, "a.json"),
            ("j.png", tarfile.SYMTYPE, "../outside.png"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    told = []
    found = read(shard, report=told.append)
    counts = {found._names[i]: len(found[i].images) for i in range(len(found))}
    assert counts == {"a": 1, "b": 2, "c": 1, "e": 1, "f": 0, "g": 1, "h": 0, "i": 1}
    assert [(one.place, one.kind) for one in told] == [("d", "unknown file in sample"), ("j", "missing in shard")]
    assert "link to ../outside.png" in told[1].message


def test_marks_of_files_are_no_part_of_rows(tmp_path):
    good = json.dumps(row("a", "b")).encode()
    whole = read(write_rows(tmp_path / "rows.jsonl", [codecs.BOM_UTF8 + good, good, codecs.BOM_UTF8 + good]))
    assert [whole.row(i) for i in range(3)] == [check_row(row("a", "b"))] * 3
    (tmp_path / "wide.jsonl").write_bytes(codecs.BOM_UTF16_LE + good.decode().encode("utf-16-le"))
    with pytest.raises(ValueError, match="is UTF-16 text, by its byte-order mark; save it as UTF-8"):
        read(tmp_path / "wide.jsonl")


def test_special_tokens_that_are_only_added_are_control_tokens_too(tmp_path):
    tokenizer = make_processor().tokenizer
    tokenizer.add_tokens([AddedToken("<|tool|>", special=True), AddedToken("plain", special=False)])
    chat = Chat(tokenizer)
    with pytest.raises(BadRow, match="control token in the text"):
        chat.check(check_row(row("a <|tool|>", "b")))
    chat.check(check_row(row("a plain word", "b")))
    tokenizer.chat_template = "\ufeff" + PROCESSOR.chat_template
    assert Chat(tokenizer)._render([{"role": "user", "content": "q"}], False)[0] != "\ufeff"
