"""Answers of a model in an exam: the prompt of a question, and greedy answers about grids that are made already."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..model import FireboltForConditionalGeneration, FireboltProcessor


def chat_prompt(processor: FireboltProcessor, question: str) -> str:
    """Render the question as the user's turn, up to where the model's turn begins."""
    messages = [{"role": "user", "content": question}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def greedy_answers(
    model: FireboltForConditionalGeneration,
    processor: FireboltProcessor,
    prompts: Sequence[str],
    grids: Mapping[str, Tensor],
    most_tokens: int,
) -> list[str]:
    """Return the model's greedy answers to prompts; `grids` are arguments of the model, a row for each prompt."""
    text = processor.tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(model.device)
    ids = model.generate(
        input_ids=text.input_ids,
        attention_mask=text.attention_mask,
        **grids,
        max_new_tokens=most_tokens,
        do_sample=False,
    )
    texts = processor.batch_decode(ids[:, text.input_ids.shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]
