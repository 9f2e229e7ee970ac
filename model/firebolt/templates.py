"""Chat templates in LFM2's format. Images yield nothing: no token stands for them."""

# What the assistant says, with the token that ends it, is marked: `return_assistant_tokens_mask` and trl's
# `assistant_only_loss` ask for the marks, which render to nothing.
CHAT_TEMPLATE = """\
{%- macro text_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for item in content if item['type'] == 'text' -%}
            {{- item['text'] -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{- text_of(message['content']) + '<|im_end|>' -}}{%- endgeneration -%}
    {%- else -%}
        {{- text_of(message['content']) + '<|im_end|>' -}}
    {%- endif -%}
    {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# The same without marks, as in checkpoints of version 0.1. Processors read it as CHAT_TEMPLATE.
UNMARKED_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for item in message['content'] if item['type'] == 'text' -%}
            {{- item['text'] -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def marked(template: str) -> str:
    """Return a template with marks around what the assistant says, where it is one of ours without them."""
    return CHAT_TEMPLATE if template.strip() == UNMARKED_TEMPLATE.strip() else template


__all__ = ["CHAT_TEMPLATE", "UNMARKED_TEMPLATE", "marked"]
