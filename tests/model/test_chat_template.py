"""Chat templates of strangers end: ordinary ones pass as they are, those without end are stopped by what they do."""

import payloads
import pytest
from jinja2.exceptions import TemplateError
from tiny_models import make_processor, make_tokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from firebolt_vl.model import CHAT_TEMPLATE, chat_template
from firebolt_vl.model.chat_template import ChatTemplateError, budget, check_template
from firebolt_vl.model.firebolt.original import original_chat_template
from firebolt_vl.model.firebolt.templates import UNMARKED_TEMPLATE

VARIABLES = {"tools": None, "documents": None, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
    {"role": "assistant", "content": "A digit."},
]
CHATML = """\
{%- set ns = namespace(images=0, text='') -%}
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] | trim -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- macro part(item) -%}
    {%- if item is string -%}{{- item -}}
    {%- elif item.type == 'image' -%}<image>{%- else -%}{{- item['text'] -}}{%- endif -%}
{%- endmacro -%}
{{- bos_token ~ system -}}
{%- for message in rest -%}
    {%- if message.role not in ['user', 'assistant', 'tool'] -%}{{- raise_exception('no such role') -}}{%- endif -%}
    {{- '<|' ~ message['role'].upper() + '|>' -}}
    {%- if message.content is string -%}{{- message.content.strip().split('</think>')[-1] -}}
    {%- else -%}{%- for item in message.content -%}{{- part(item) -}}{%- if item.type == 'image' -%}
    {%- set ns.images = ns.images + 1 -%}{%- endif -%}{%- endfor -%}{%- endif -%}
    {%- if not loop.last -%}{{- '%s;' % loop.index -}}{%- else -%}{{- '{}!'.format(loop.length) -}}{%- endif -%}
{%- endfor -%}
{{- messages | map(attribute='role') | list | join(',') | replace('user', 'you') -}}
{{- {'images': ns.images, 'tools': tools} | tojson -}}
{%- if add_generation_prompt -%}{%- generation -%}now{%- endgeneration -%}{%- endif -%}
{{- eos_token | default('') -}}
"""


def test_the_alphabet_of_ordinary_templates_passes():
    for template in (
        CHAT_TEMPLATE,
        UNMARKED_TEMPLATE,
        original_chat_template(None),
        original_chat_template(CHATML),
        CHATML,
    ):
        check_template(template, MESSAGES, VARIABLES)
    check_template("{{ strftime_now('%d %b %Y') }}", MESSAGES, VARIABLES)


@pytest.mark.parametrize("template", [CHATML, CHAT_TEMPLATE, UNMARKED_TEMPLATE, original_chat_template(None)])
def test_the_dry_run_makes_the_text_that_transformers_makes(template):
    compiled = chat_template._compiled(template)
    token = budget.current.set(budget.Budget(1000))
    found = "".join(compiled.generate(messages=MESSAGES, **VARIABLES))
    budget.current.reset(token)
    given = {name: value for name, value in VARIABLES.items() if name != "add_generation_prompt"}
    [wanted], _ = render_jinja_template([MESSAGES], chat_template=template, add_generation_prompt=True, **given)
    assert found == wanted


@pytest.mark.parametrize("template", payloads.LOOPING_TEMPLATES, ids=range(len(payloads.LOOPING_TEMPLATES)))
def test_templates_without_end_are_stopped(template):
    with pytest.raises(ChatTemplateError, match=r"^chat_template: .*another template"):
        check_template(template, MESSAGES, VARIABLES)


@pytest.mark.parametrize("template", payloads.TEMPLATES)
def test_pythons_insides_are_out_of_reach(template):
    with pytest.raises(ChatTemplateError, match=r"^chat_template: "):
        check_template(template, MESSAGES, VARIABLES)


@pytest.mark.parametrize(
    "template",
    [
        "{{ strftime_now('%f') }}",  # another one in the second rendering
        "{{ [1, 2] | random }}",
        "{{ raise_exception }}",
        "{{ range | string }}",
        "{% if lipsum is defined %}x{% endif %}",
    ],
)
def test_what_tells_one_rendering_from_the_other_is_refused(template):
    with pytest.raises(ChatTemplateError):
        check_template(template, MESSAGES, VARIABLES)


def test_long_conversations_pass():
    turns = [{"role": role, "content": "word " * 100} for _ in range(250) for role in ("user", "assistant")]
    for template in (CHAT_TEMPLATE, original_chat_template(None)):
        check_template(template, turns, VARIABLES)


def test_a_tokenizers_own_template_is_checked_in_training():
    from firebolt_vl.train.data.chat import Chat

    with pytest.raises(ChatTemplateError):
        Chat(make_tokenizer(chat_template=payloads.LOOPING_TEMPLATES[0]))


TURNS = [
    *MESSAGES,
    {"role": "user", "content": "and?"},
    {"role": "assistant", "content": [{"type": "text", "text": "Two, "}, {"type": "text", "text": "or three."}]},
]


@pytest.mark.parametrize("generate", [False, True])
def test_marks_around_answers_change_no_text(generate):
    processor = make_processor()
    found, wanted = (
        processor.apply_chat_template(TURNS, chat_template=template, add_generation_prompt=generate)
        for template in (CHAT_TEMPLATE, UNMARKED_TEMPLATE)
    )
    assert found == wanted
    assert "Two, or three.<|im_end|>" in found


@pytest.mark.parametrize("side", ["left", "right"])
def test_answers_are_marked_with_the_token_that_ends_them(side):
    processor = make_processor()
    out = processor.apply_chat_template(
        [TURNS, TURNS[:3]],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True, "padding_side": side},
    )
    said = [processor.tokenizer.decode(ids[mask.bool()]) for ids, mask in zip(out.input_ids, out.assistant_masks)]
    assert said == ["A digit.<|im_end|>Two, or three.<|im_end|>", "A digit.<|im_end|>"]


def test_a_checkpoint_with_our_template_of_before_has_marks_too(tmp_path):
    make_processor(chat_template=CHAT_TEMPLATE).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(UNMARKED_TEMPLATE)
    assert type(make_processor()).from_pretrained(tmp_path).chat_template == CHAT_TEMPLATE
    assert make_processor(chat_template=CHATML).chat_template == CHATML


def test_a_mask_of_answers_without_marks_is_an_error_and_not_all_zeros():
    processor = make_processor(chat_template=original_chat_template(None))
    with pytest.raises(ValueError, match=r"FireboltProcessor: .* has no {% generation %} marks"):
        processor.apply_chat_template(MESSAGES[1:2], tokenize=True, return_dict=True, return_assistant_tokens_mask=True)


def test_an_error_of_a_template_is_one_of_jinjas():
    with pytest.raises(TemplateError, match="no such role"):
        make_processor(chat_template=CHATML).apply_chat_template([{"role": "system", "content": "a"}, {"role": "x"}])
