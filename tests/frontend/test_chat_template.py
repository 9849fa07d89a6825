"""Rendering is compared with transformers' apply_chat_template, which defines what a template means."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from penstock.frontend import chat_template as chat_template_module
from penstock.frontend.chat_template import ChatTemplate, TemplateError
from tests.tokenizers_for_tests import CHATML_TEMPLATE, byte_level_tokenizer

CHATML_WITH_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "system" and loop.first %}{%- continue %}{%- endif %}
    {%- if message.role == "assistant" %}
        {{- '<|im_start|>assistant' }}
        {%- if loop.index0 > ns.last_query_index and message.reasoning_content %}
            {{- '\\n<think>\\n' + message.reasoning_content + '\\n</think>' }}
        {%- endif %}
        {%- generation %}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {%- endgeneration %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

LLAMA_3_STYLE = """\
{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.tool_calls is defined %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL_STYLE = """\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
  {% if message['role'] == 'user' %}
{{ '[INST] ' + message['content'] + ' [/INST]' }}
  {% elif message['role'] == 'assistant' %}
{{ message['content'] + eos_token }}
  {% else %}
{{ raise_exception('Only user and assistant roles are supported!') }}
  {% endif %}
{% endfor %}"""

TOOLS = [
    {"type": "function", "function": {"name": "look <up>", "parameters": {"type": "object", "properties": {}}, "é": "ü&'"}}
]
USER = {"role": "user", "content": "What's 1 < 2 & «é»?\n"}
ASSISTANT = {"role": "assistant", "content": " Yes. "}
CALL = {
    "role": "assistant",
    "content": None,
    "reasoning": "hm",
    "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {"q": "ü", "n": [1, 2.5, None, True]}}}],
}
RESULT = {"role": "tool", "content": "42"}
SYSTEM = {"role": "system", "content": "  Be brief. "}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [USER],
    "system": [SYSTEM, USER],
    "several turns": [USER, ASSISTANT, USER],
    "tool call": [USER, CALL, RESULT],
}
SPECIAL_TOKENS = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}

Render = Callable[..., str]


@pytest.fixture(scope="module")
def reference() -> Render:
    """apply_chat_template(template, messages, ...) -> text."""
    from transformers import PreTrainedTokenizerFast

    make: Any = PreTrainedTokenizerFast  # its constructor has no types
    tokenizer = make(tokenizer_object=byte_level_tokenizer(), **SPECIAL_TOKENS)

    def render(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
        assert isinstance(text, str)
        return text

    return render


def render(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return ChatTemplate(template, SPECIAL_TOKENS).render(messages, **options)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("with_tools", [False, True])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_chatml_with_tools_renders_as_in_transformers(
    reference: Render, conversation: str, with_tools: bool, add_generation_prompt: bool
) -> None:
    messages = CONVERSATIONS[conversation]
    options = {
        "tools": TOOLS if with_tools else None,
        "add_generation_prompt": add_generation_prompt,
        "enable_thinking": False,
    }
    text = render(CHATML_WITH_TOOLS, messages, **options)
    assert text == reference(CHATML_WITH_TOOLS, messages, **options)
    assert ("look <up>" in text) == with_tools


@pytest.mark.parametrize("conversation", ["one turn", "system", "several turns"])
def test_llama_3_style_renders_as_in_transformers(reference: Render, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    text = render(LLAMA_3_STYLE, messages)
    assert text == reference(LLAMA_3_STYLE, messages, add_generation_prompt=True)
    assert str(datetime.now().year) in text
    assert text.startswith("<|endoftext|><|start_header_id|>system")


@pytest.mark.parametrize("conversation", ["one turn", "several turns"])
def test_mistral_style_renders_as_in_transformers(reference: Render, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    assert render(MISTRAL_STYLE, messages) == reference(MISTRAL_STYLE, messages, add_generation_prompt=True)


@pytest.mark.parametrize(
    "template", [CHATML_TEMPLATE, CHATML_WITH_TOOLS, LLAMA_3_STYLE], ids=["chatml", "chatml with tools", "llama 3"]
)
@pytest.mark.parametrize("text", ["The answer is", "The answer is \n", ""], ids=repr)
def test_continuing_the_last_message_renders_as_in_transformers(reference: Render, template: str, text: str) -> None:
    messages = [USER, {"role": "assistant", "content": text}]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    assert render(template, messages, **options) == reference(template, messages, **options)


def test_a_list_of_text_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "What's 1 < 2"}, {"type": "text", "text": " & «é»?\n"}]
    assert render(CHATML_TEMPLATE, [{"role": "user", "content": parts}]) == render(CHATML_TEMPLATE, [USER])
    continued = render(
        CHATML_TEMPLATE,
        [USER, {"role": "assistant", "content": parts}],
        continue_final_message=True,
        add_generation_prompt=False,
    )
    assert continued.endswith("& «é»?\n")


def test_parts_that_are_not_text_reach_the_template_as_they_are() -> None:
    template = "{% for part in messages[0].content %}{{ part.type }} {% endfor %}"
    parts = [{"type": "text", "text": "see"}, {"type": "image"}]
    assert render(template, [{"role": "user", "content": parts}]) == "text image "


@pytest.mark.parametrize(
    ("arguments", "rendered"),
    [('{"q": "ü"}', '{"q": "ü"}'), ({"q": "ü"}, '{"q": "ü"}'), ("not json", '"not json"'), ("[1]", '"[1]"')],
)
def test_a_tool_calls_arguments_are_the_object_they_stand_for(arguments: Any, rendered: str) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": arguments}}]}
    template = "{{ messages[0].tool_calls[0].function.arguments | tojson }}"
    assert render(template, [call]) == rendered


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = json.loads(json.dumps([USER, {**CALL, "content": [{"type": "text", "text": "a"}]}]))
    copy = json.loads(json.dumps(messages))
    render(CHATML_TEMPLATE, messages, continue_final_message=True, add_generation_prompt=False)
    assert messages == copy


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        (MISTRAL_STYLE, [USER, USER], "roles must alternate"),
        (LLAMA_3_STYLE, [USER, {**CALL, "content": "x", "tool_calls": []}], "single tool-calls"),
        ("{{ messages[0].content.nothing.at_all }}", [USER], "no attribute 'nothing'"),
        ("{{ 1 + messages[0].content }}", [USER], r"fails on these messages \(TypeError\)"),
        ("{{ messages[0].content.__class__.__mro__ }}", [USER], "unsafe"),
        ("{{ messages.append(1) }}", [USER], "unsafe"),
        ("{{ dict.update(messages[0], role='x') }}", [USER], "no attribute 'update'"),
        ("{% set ns = namespace(__class__=1) %}", [USER], "namespace cannot have"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", [USER], "namespace cannot have"),
    ],
)
def test_what_a_template_refuses_is_told(template: str, messages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        render(template, messages)


def test_the_output_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template_module, "MAX_RENDERED_CHARS", 1000)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}"
    with pytest.raises(TemplateError, match="longer than 1000"):
        render(endless, [USER])


@pytest.mark.parametrize("name", ["tools", "bos_token", "eos_token", "raise_exception", "namespace", "range"])
def test_variables_with_a_meaning_cannot_be_replaced(name: str) -> None:
    options: dict[str, Any] = {name: "x"}
    if name == "tools":
        assert render("{{ tools }}", [USER], tools=TOOLS) == str(TOOLS)
        return
    with pytest.raises(TemplateError, match=f"{name}' is reserved"):
        render(CHATML_TEMPLATE, [USER], **options)


@pytest.mark.parametrize("value", [{"a": 1}, len, object()], ids=["dict", "function", "object"])
def test_variables_are_plain_values(value: Any) -> None:
    with pytest.raises(TemplateError, match="must be a text, number, boolean or list"):
        render(CHATML_TEMPLATE, [USER], extra=value)


def test_variables_reach_the_template() -> None:
    template = "{{ style }} {{ number }} {{ flag }} {{ nothing }} {{ documents[0] }}"
    variables = {"style": "s", "number": 1.5, "flag": True, "nothing": None, "documents": ["d"]}
    assert render(template, [USER], **variables) == "s 1.5 True None d"


@pytest.mark.parametrize(
    ("messages", "add_generation_prompt", "said"),
    [
        ([USER], True, "exclude each other"),
        ([], False, "needs a message"),
        ([{"role": "assistant", "content": None}], False, "with text"),
        ([{"role": "assistant", "content": [{"type": "image"}]}], False, "with text"),
    ],
)
def test_there_must_be_something_to_continue(messages: list[dict[str, Any]], add_generation_prompt: bool, said: str) -> None:
    with pytest.raises(TemplateError, match=said):
        render(CHATML_TEMPLATE, messages, continue_final_message=True, add_generation_prompt=add_generation_prompt)


def test_a_template_that_drops_the_last_message_cannot_continue_it() -> None:
    with pytest.raises(TemplateError, match="leaves out"):
        render("{{ messages[0].role }}", [USER], continue_final_message=True, add_generation_prompt=False)


def write_config(path: Path, **config: Any) -> None:
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_model_may_have_no_template(tmp_path: Path) -> None:
    assert ChatTemplate.from_dir(tmp_path) is None
    write_config(tmp_path, bos_token="<s>")
    assert ChatTemplate.from_dir(tmp_path) is None


def test_the_template_file_goes_before_the_config(tmp_path: Path) -> None:
    write_config(tmp_path, chat_template="config {{ bos_token }}", bos_token={"content": "<s>"})
    template = ChatTemplate.from_dir(tmp_path)
    assert template is not None
    assert template.render([USER]) == "config <s>"
    (tmp_path / "chat_template.jinja").write_text("file {{ bos_token }}")
    template = ChatTemplate.from_dir(tmp_path)
    assert template is not None
    assert template.render([USER]) == "file <s>"


@pytest.mark.parametrize("as_files", [False, True])
def test_named_templates_are_chosen_by_what_is_asked(tmp_path: Path, as_files: bool) -> None:
    sources = {"default": "plain", "tool_use": "tools"}
    if as_files:
        (tmp_path / "chat_template.jinja").write_text(sources["default"])
        (tmp_path / "chat_templates").mkdir()
        (tmp_path / "chat_templates" / "tool_use.jinja").write_text(sources["tool_use"])
    else:
        write_config(tmp_path, chat_template=[{"name": name, "template": text} for name, text in sources.items()])
    template = ChatTemplate.from_dir(tmp_path)
    assert template is not None
    assert (template.render([USER]), template.render([USER], tools=TOOLS)) == ("plain", "tools")


def test_named_templates_without_default_are_refused_when_needed() -> None:
    template = ChatTemplate({"tool_use": "tools"}, {})
    assert template.render([USER], tools=TOOLS) == "tools"
    with pytest.raises(TemplateError, match="no default"):
        template.render([USER])


@pytest.mark.parametrize("value", ["{% if %}", [{"name": "default"}], [{"name": "default", "template": 1}], 7])
def test_a_broken_template_is_reported_when_it_is_read(tmp_path: Path, value: Any) -> None:
    write_config(tmp_path, chat_template=value)
    with pytest.raises(TemplateError, match="chat template"):
        ChatTemplate.from_dir(tmp_path)
