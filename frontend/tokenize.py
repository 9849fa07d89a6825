"""POST /tokenize and /detokenize, with vLLM's fields."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import Field, model_validator

from .chat import encode_conversation
from .chat_types import Message, TemplateFields
from .json_body import JsonRoute
from .off_loop import LONG_TEXT_CHARS, off_loop_if
from .openai_types import RequestModel
from .served_model import ServedModel
from .service import Service


class TokenizeRequest(TemplateFields):
    """POST /tokenize: either `prompt` or `messages`."""

    messages: list[Message] = Field(default_factory=list)
    prompt: str | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    """None: as the generation endpoints do it, true for a prompt and false for messages."""
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _has_one(self) -> TokenizeRequest:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("send either prompt or messages")
        return self


class DetokenizeRequest(RequestModel):
    """POST /detokenize."""

    tokens: list[int]
    model: str | None = None


def tokenize_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=JsonRoute, tags=["Tokens"])

    @router.post("/tokenize", summary="Text or conversation to token ids")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        model = service.ready_model()
        model.check_name(body.model)
        service.undeclared_fields.check(body.model_extra)
        token_ids = await _encode(body, model)
        token_strs = [model.tokenizer.token_text(token_id) for token_id in token_ids] if body.return_token_strs else None
        limit = model.facts.max_model_len
        return {"count": len(token_ids), "max_model_len": limit, "tokens": token_ids, "token_strs": token_strs}

    @router.post("/detokenize", summary="Token ids to text")
    async def detokenize(body: DetokenizeRequest) -> dict[str, Any]:
        model = service.ready_model()
        model.check_name(body.model)
        service.undeclared_fields.check(body.model_extra)
        model.check_token_ids(body.tokens, "tokens")

        def decode() -> str:
            return model.tokenizer.decode(body.tokens, skip_special_tokens=False)

        return {"prompt": await off_loop_if(len(body.tokens) > LONG_TEXT_CHARS, decode)}

    return router


async def _encode(body: TokenizeRequest, model: ServedModel) -> list[int]:
    if body.prompt is None:
        return await encode_conversation(body, model, add_special_tokens=bool(body.add_special_tokens))
    [token_ids] = await model.encode([body.prompt], add_special_tokens=body.add_special_tokens is not False, param="prompt")
    return token_ids
