"""transformers' Trainer with its own collator, on rows that a processor made one by one, or a data set maps."""

import numpy as np
import torch
from PIL import Image
from tiny_models import make_model, make_processor
from transformers import Trainer, TrainingArguments, default_data_collator


def rows(count: int):
    """One question about one image each, packed, as a mapped data set has them: no two images have as many tiles."""
    processor = make_processor(packed=True, max_tiles=6)
    for seed in range(count):
        levels = np.random.default_rng(seed).integers(0, 256, (16, 16 * (seed + 1), 3), dtype=np.uint8)
        row = processor(images=[Image.fromarray(levels)], text=["what is it? a digit"], return_tensors="np")
        row = {name: value[0] for name, value in row.items()}
        yield {**row, "labels": np.where(np.arange(len(row["input_ids"])) < 12, -100, row["input_ids"])}


def test_rows_are_stacked_and_trained_on(tmp_path):
    model, data = make_model(), list(rows(4))
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 3, "use_cpu": True}
    arguments = TrainingArguments(
        **options, output_dir=str(tmp_path), report_to=[], save_strategy="no", learning_rate=1e-2, disable_tqdm=True
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=data)
    assert trainer.train().training_loss > 0
    changed = [name for name, value in model.state_dict().items() if not torch.equal(before[name], value)]
    for part in ("vision_tower", "connector", "language_model"):
        assert any(part in name for name in changed)
    assert np.isfinite(trainer.evaluate()["eval_loss"])


def test_a_stacked_batch_gives_what_its_rows_give():
    model, data = make_model().double(), list(rows(3))
    with torch.no_grad():
        together = model(**default_data_collator(data)).logits
        for row, wanted in zip(data, together):
            assert torch.allclose(model(**default_data_collator([row])).logits[0], wanted, rtol=1e-6, atol=1e-9)
