"""The body of /v1/chat/completions, and of /tokenize with messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, field_validator

from .openai_types import MAX_LOGPROBS, GenerationFields, Int32, RequestModel

_TEMPLATE_ARGUMENTS = frozenset(
    {"add_generation_prompt", "chat_template", "continue_final_message", "documents", "messages", "self", "tokenize", "tools"}
)


class TextPart(RequestModel):
    """One part of a message's content."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class Message(RequestModel):
    """One message of the conversation. Fields beyond these reach the chat template as they are."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[TextPart] | None = None
    """A text or its parts. Null, as assistants with tool calls have it, reads as an empty text."""
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text_only(cls, content: Any) -> Any:
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind not in get_args(TextPart.model_fields["type"].annotation):
                raise ValueError(f"content parts must be of type text, {str(kind)[:40]!r} is not supported")
        return content

    def for_template(self) -> dict[str, Any]:
        """The message as templates expect it: absent fields left out, developers' messages as the system's."""
        role = "system" if self.role == "developer" else self.role
        content = (
            [{"type": "text", "text": part.text} for part in self.content] if isinstance(self.content, list) else self.content
        )
        message: dict[str, Any] = {**(self.model_extra or {}), "role": role, "content": content or ""}
        for name in ("name", "tool_calls", "tool_call_id"):
            value = getattr(self, name)
            if value is not None:
                message[name] = value
        return message


class TemplateFields(RequestModel):
    """How a conversation is rendered."""

    messages: list[Message] = Field(min_length=1)
    add_generation_prompt: bool | None = None
    """None: true, unless the last message is to be continued."""
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, str | bool | int | float | list[Any] | None] | None = None
    """Further variables of the template, such as enable_thinking."""
    reasoning_effort: str | None = None
    """Reaches the template under this name."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _own_names(cls, variables: dict[str, Any] | None) -> dict[str, Any] | None:
        taken = sorted(_TEMPLATE_ARGUMENTS.intersection(variables or ()))
        if taken:
            raise ValueError(f"{taken[0]!r} is not a variable that a request may set here")
        return variables


class ChatRequest(GenerationFields, TemplateFields):
    """POST /v1/chat/completions."""

    max_completion_tokens: Int32 | None = Field(None, ge=1)
    """The newer name of max_tokens."""
    max_tokens: Int32 | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool = False
    """Adds a beginning-of-text token to what the template gave; templates write their own."""
    echo: Literal[False] | None = None
