"""Tools for models whose chat template ignores them."""

from __future__ import annotations

CHATML = "<|im_start|>"

_TOOLS = """\
{%- set ns = namespace(tools=(tools and true)) -%}
{%- for message in messages -%}
    {%- if message.role == 'tool' or message.tool_calls -%}{%- set ns.tools = true -%}{%- endif -%}
{%- endfor -%}
{%- if ns.tools -%}
    {%- if tools or messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' }}
        {%- if messages[0]['role'] == 'system' %}
            {{- messages[0]['content'] + ('\\n\\n' if tools else '') }}
        {%- endif %}
        {%- if tools %}
            {{- 'You can call functions. Each line is one function:\\n' }}
            {%- for tool in tools %}
                {{- tool | tojson }}
                {{- '\\n' }}
            {%- endfor %}
            {{- 'To call one, answer with its name and arguments like this:\\n' }}
            {{- '<tool_call>\\n{"name": "NAME", "arguments": {}}\\n</tool_call>' }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
    {%- for message in messages %}
        {%- if message.role == 'assistant' and message.tool_calls %}
            {{- '<|im_start|>assistant' }}
            {%- if message.content %}
                {{- '\\n' + message.content }}
            {%- endif %}
            {%- for tool_call in message.tool_calls %}
                {{- '\\n<tool_call>\\n{"name": "' }}
                {{- tool_call.function.name }}
                {{- '", "arguments": ' }}
                {{- tool_call.function.arguments | tojson }}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
            {{- '<|im_end|>\\n' }}
        {%- elif message.role == 'tool' %}
            {{- '<|im_start|>user\\n<tool_response>\\n' + message.content }}
            {{- '\\n</tool_response><|im_end|>\\n' }}
        {%- elif message.role != 'system' or not loop.first %}
            {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
        {%- endif %}
    {%- endfor %}
    {%- if add_generation_prompt %}
        {{- '<|im_start|>assistant\\n' }}
    {%- endif %}
{%- else -%}
%ORIGINAL%
{%- endif -%}
"""


def with_tools(template: str) -> tuple[str, bool]:
    """The template, made to know tools where it can be; and whether it knows them.

    A ChatML template that ignores tools gets a branch for conversations with tools;
    others are rendered by the original, unchanged. Empty stands for llama.cpp's default.
    """
    if "tools" in template:
        return template, True
    if CHATML not in template:
        return template, False
    return _TOOLS.replace("%ORIGINAL%", template), True
