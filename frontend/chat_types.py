"""The body of /v1/chat/completions, and of /tokenize with messages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from .openai_types import MAX_LOGPROBS, GenerationFields, Int32, RequestModel


class TextPart(RequestModel):
    """One part of a message's content."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class Message(RequestModel):
    """One message of the conversation. Fields beyond these reach the chat template as they are."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as templates expect it: text joined, absent fields left out."""
        message: dict[str, Any] = {**(self.model_extra or {}), "role": self.role}
        if isinstance(self.content, list):
            message["content"] = "".join(part.text for part in self.content)
        else:
            message["content"] = self.content
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
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    """Reaches the template under this name."""


class ChatRequest(GenerationFields, TemplateFields):
    """POST /v1/chat/completions."""

    model_config = ConfigDict(title="ChatRequest")

    max_completion_tokens: Int32 | None = Field(None, ge=1)
    """The newer name of max_tokens."""
    max_tokens: Int32 | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    add_special_tokens: bool = False
    """Adds a beginning-of-text token to what the template gave; templates write their own."""
    echo: Literal[False] | None = None
