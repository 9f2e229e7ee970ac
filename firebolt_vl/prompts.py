"""Prompts as a checkpoint wants them, and what they leave room for."""

from .checkpoint import Loaded
from .errors import Failure


def prompt(loaded: Loaded, question: str, images: int = 1) -> str:
    """The prompt as the checkpoint wants it: in its chat template, or the question as it stands where it has none.

    Raises Failure for a question with a control token in it.
    """
    check_controls(loaded, question)
    if loaded.processor.chat_template is None:
        return question
    message = {"role": "user", "content": [*[{"type": "image"}] * images, {"type": "text", "text": question}]}
    return render(loaded, [message])


def render(loaded: Loaded, messages: list[dict]) -> str:
    """A conversation in the checkpoint's chat template, up to where the answer begins. Raises Failure."""
    from .model.chat_template import ChatTemplateError

    try:
        return loaded.processor.apply_chat_template(messages, add_generation_prompt=True)
    except ChatTemplateError as error:
        raise Failure(f"checkpoint {loaded.model.name_or_path}: {error}") from None


def check_controls(loaded: Loaded, question: str) -> None:
    """Check that a question spells no control token, since it would forge turns. Raises Failure."""
    from .model.firebolt import control_tokens

    if held := next((token for token in control_tokens(loaded.processor.tokenizer) if token in question), None):
        raise Failure(f"the question has {held!r}, a control token of this model; write it another way")


def room_for_answer(model, prompt_tokens: int) -> int:
    """Return the most tokens that an answer may have. Raises Failure where the prompt leaves no room."""
    most = model.config.text_config.max_position_embeddings
    if prompt_tokens >= most:
        raise Failure(
            f"the question is {prompt_tokens:,} tokens long; expected fewer than {most:,}, as this model reads "
            "no more with its answer; shorten it"
        )
    return most - prompt_tokens


def specials(loaded: Loaded, text: str) -> dict[str, bool]:
    """Return how to tokenise a prompt: a template that starts with the first token must not get another one."""
    bos = loaded.processor.tokenizer.bos_token
    return {"add_special_tokens": not (bos and text.startswith(bos))}


def stops(model) -> list[int]:
    ids = model.generation_config.eos_token_id
    return [ids] if isinstance(ids, int) else list(ids or [])
