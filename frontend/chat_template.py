"""A model's chat template: messages to the one text that the model continues.

Templates come with the model, messages and variables from clients. They render in jinja2's immutable sandbox with the
helpers that Hugging Face templates use, character for character as transformers' apply_chat_template does. The text starts
with whatever the template writes, so it is tokenized without special tokens being added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from .template_messages import for_template
from .tokenizer import named_special_tokens, read_tokenizer_config

MAX_RENDERED_CHARS = 8 << 20
_CONTINUE_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


class TemplateError(ValueError):
    """The messages cannot be rendered, or the template cannot be used. The message is fit for clients."""


class ChatTemplate:
    """A compiled template, or several by name: "tool_use" is taken when there are tools, else "default"."""

    def __init__(self, source: str | Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """`special_tokens`: variables of the template such as "bos_token". Raises TemplateError for broken templates."""
        environment = _environment()
        sources = {"default": source} if isinstance(source, str) else source
        self._special_tokens = dict(special_tokens)
        self._sources = tuple(sources.values())
        try:
            self._templates = {name: environment.from_string(text) for name, text in sources.items()}
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"the model's chat template is broken: {error}") from error
        self._reserved_names = {"messages", "tools", "add_generation_prompt", "continue_final_message", *environment.globals}
        self._reserved_names |= {"bos_token", "eos_token", *special_tokens}

    @classmethod
    def from_dir(cls, path: Path | str) -> ChatTemplate | None:
        """The template of a model directory, None if it has none.

        `chat_template.jinja` and `chat_templates/*.jinja` go before tokenizer_config.json's `chat_template`, a text or a
        list of named texts. Raises TemplateError when they cannot be read or compiled.
        """
        directory = Path(path)
        try:
            config = read_tokenizer_config(directory)
            sources = _template_files(directory) or _configured_templates(config.get("chat_template"))
        except (OSError, ValueError) as error:
            raise TemplateError(f"cannot read the model's chat template: {error}") from error
        return cls(sources, named_special_tokens(config)) if sources else None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt.

        `add_generation_prompt` ends it with the opening of the assistant's answer, `continue_final_message` leaves the
        last message open for the model to go on. `kwargs` are further variables of the template: texts, numbers, booleans
        and lists; none of the names this method or the template's environment gives a meaning. Raises TemplateError.
        """
        self._check_variables(kwargs)
        chat = [for_template(message) for message in messages]
        if continue_final_message:
            if add_generation_prompt:
                raise TemplateError("continue_final_message and add_generation_prompt exclude each other")
            if not chat:
                raise TemplateError("continue_final_message needs a message to continue")
            chat[-1], final_text = _marked(chat[-1])
        variables = {
            "messages": chat,
            "tools": None if tools is None else list(tools),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **self._special_tokens,
            **kwargs,
        }
        rendered = _render(self._select(tools), variables)
        return _cut_at_mark(rendered, final_text) if continue_final_message else rendered

    def mentions(self, text: str) -> bool:
        """One of the templates has this text in it, as it is written."""
        return any(text in source for source in self._sources)

    def _select(self, tools: Sequence[dict[str, Any]] | None) -> jinja2.Template:
        if tools is not None and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" not in self._templates:
            raise TemplateError(f"the model's chat templates have no default: there are {', '.join(sorted(self._templates))}")
        return self._templates["default"]

    def _check_variables(self, kwargs: Mapping[str, Any]) -> None:
        for name, value in kwargs.items():
            if name in self._reserved_names:
                raise TemplateError(f"chat template variable {name!r} is reserved")
            if value is not None and not isinstance(value, (str, int, float, list)):
                raise TemplateError(f"chat template variable {name!r} must be a text, number, boolean or list")


def _render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    chunks, num_chars = [], 0
    try:
        for chunk in template.generate(variables):
            chunks.append(chunk)
            num_chars += len(chunk)
            if num_chars > MAX_RENDERED_CHARS:
                raise TemplateError(f"the rendered chat is longer than {MAX_RENDERED_CHARS} characters")
    except jinja2.TemplateError as error:
        raise TemplateError(f"the model's chat template refuses these messages: {error}") from error
    except TemplateError:
        raise
    except Exception as error:  # templates are programs: they fail in every way Python can, with texts not meant for clients
        raise TemplateError(f"the model's chat template fails on these messages ({type(error).__name__})") from error
    return "".join(chunks)


def _marked(message: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The message with a mark behind its text, and that text."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + _CONTINUE_MARK}, content
    parts = list(content) if isinstance(content, list) else []
    for index in reversed(range(len(parts))):
        if isinstance(parts[index], dict) and isinstance(text := parts[index].get("text"), str):
            parts[index] = {**parts[index], "text": text + _CONTINUE_MARK}
            return {**message, "content": parts}, text
    raise TemplateError("continue_final_message needs a last message with text to continue")


def _cut_at_mark(rendered: str, final_text: str) -> str:
    at = rendered.rfind(_CONTINUE_MARK.strip())
    if at < 0 or final_text.strip() not in rendered:
        raise TemplateError("continue_final_message: the model's chat template leaves out or changes the last message")
    kept = rendered[:at]
    return kept if rendered.startswith(_CONTINUE_MARK, at) else kept.rstrip()  # rstrip: the template trims messages


def _template_files(directory: Path) -> dict[str, str]:
    paths = {path.stem: path for path in sorted((directory / "chat_templates").glob("*.jinja"))}
    if (directory / "chat_template.jinja").is_file():
        paths["default"] = directory / "chat_template.jinja"
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items()}


def _configured_templates(value: Any) -> dict[str, str]:
    named = [{"name": "default", "template": value}] if isinstance(value, str) else value or []
    try:
        templates = {entry["name"]: entry["template"] for entry in named}
    except (TypeError, KeyError) as error:
        raise ValueError("chat_template in tokenizer_config.json is neither a text nor a list of named texts") from error
    if not all(isinstance(text, str) for text in templates.values()):
        raise ValueError("chat_template in tokenizer_config.json is not text")
    return templates


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["dict"] = _new_dict
    environment.globals["namespace"] = _PlainNamespace
    return environment


class _GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what the assistant said, for training; here it renders its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class _PlainNamespace(Namespace):
    """jinja2's namespace without attributes that begin with an underscore, which reach into the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args  # so that namespace(self=...) works
        Namespace.__init__(self)
        for name, value in dict(*rest, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot have the attribute {name!r}")
        Namespace.__setitem__(self, name, value)


def _new_dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """In place of the type itself, whose methods would change dictionaries behind the sandbox's back."""
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes for HTML that jinja2's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
