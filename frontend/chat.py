"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from .answers import answer, model_for
from .chat_types import ChatRequest, TemplateFields
from .errors import BadRequest
from .generation import ChoiceDelta, Generation, Prompt
from .json_body import JsonRoute
from .logprobs import chat_logprobs
from .sampling import LogprobsWanted, max_output_tokens, to_sampling
from .served_model import ServedModel
from .service import Service


def chat_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

    @router.post("/v1/chat/completions", summary="Answer a conversation")
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        model = model_for(body, service)
        _check(body)
        prompt = await _prompt(body, model)
        shape = ChatShape(body, model)
        generation = await Generation.start(service, model, body, [prompt])
        return await answer(request, service, body, generation, shape)

    return router


def _check(body: ChatRequest) -> None:
    if body.top_logprobs and not body.logprobs:
        raise BadRequest("top_logprobs is only allowed when logprobs is true.", "top_logprobs")


async def _prompt(body: ChatRequest, model: ServedModel) -> Prompt:
    token_ids = await encode_conversation(body, model, add_special_tokens=body.add_special_tokens, cache_salt=body.cache_salt)
    asked, param = body.max_tokens, "max_tokens"
    if body.max_completion_tokens is not None:
        asked, param = body.max_completion_tokens, "max_completion_tokens"
    max_tokens = max_output_tokens(model, len(token_ids), asked, None, prompt_param="messages", asked_param=param)
    wanted = LogprobsWanted(output=(body.top_logprobs or 0) if body.logprobs else None)
    return Prompt(token_ids, to_sampling(body, model, max_tokens, wanted))


async def encode_conversation(
    fields: TemplateFields, model: ServedModel, *, add_special_tokens: bool, cache_salt: str | None = None
) -> list[int]:
    """The conversation rendered and tokenized. Raises BadRequest."""
    if fields.add_generation_prompt and fields.continue_final_message:
        raise BadRequest("add_generation_prompt and continue_final_message exclude each other.", "continue_final_message")
    options = dict(fields.chat_template_kwargs or {})
    if fields.reasoning_effort is not None:
        options["reasoning_effort"] = fields.reasoning_effort
    options["continue_final_message"] = fields.continue_final_message
    options["add_generation_prompt"] = not fields.continue_final_message and fields.add_generation_prompt is not False
    text = await model.render([message.for_template() for message in fields.messages], options)
    [token_ids] = await model.encode([text], add_special_tokens=add_special_tokens, param="messages", cache_salt=cache_salt)
    if not token_ids:
        raise BadRequest("messages: the prompt is empty", "messages")
    return token_ids


class ChatShape:
    """The JSON of chat completions and their chunks."""

    def __init__(self, body: ChatRequest, model: ServedModel) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created_s = int(time.time())
        self._model = model
        self._with_logprobs = bool(body.logprobs)
        self._num_top = body.top_logprobs or 0
        self._with_token_ids = bool(body.return_token_ids)
        self.is_text_alone = not (self._with_logprobs or self._with_token_ids)
        self._begun: set[int] = set()
        self._whole: dict[int, list[ChoiceDelta]] = {index: [] for index in range(body.n or 1)}

    def head(self, *, streamed: bool) -> dict[str, Any]:
        kind = "chat.completion.chunk" if streamed else "chat.completion"
        return {"id": self._id, "object": kind, "created": self._created_s, "model": self._model.name}

    def chunks(self, delta: ChoiceDelta) -> Iterator[dict[str, Any]]:
        index = delta.index
        if index not in self._begun:
            self._begun.add(index)
            yield self._chunk(index, {"role": "assistant", "content": ""})
        if delta.text or (delta.logprobs and self._with_logprobs) or (delta.token_ids and self._with_token_ids):
            chunk = self._chunk(index, {"content": delta.text})
            chunk["logprobs"] = self._logprobs(delta)
            if self._with_token_ids:
                chunk["token_ids"] = delta.token_ids
            yield chunk
        if delta.finish_reason is not None:
            yield {**self._chunk(index, {}), "finish_reason": delta.finish_reason, "stop_reason": delta.stop_reason}

    def add(self, delta: ChoiceDelta) -> None:
        self._whole[delta.index].append(delta)

    def choices(self) -> list[dict[str, Any]]:
        return [self._choice(index, deltas) for index, deltas in self._whole.items()]

    def _choice(self, index: int, deltas: list[ChoiceDelta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        parts = [block for delta in deltas if (block := self._logprobs(delta)) is not None]
        logprobs = {"content": [entry for part in parts for entry in part["content"]], "refusal": None} if parts else None
        choice = {
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": logprobs,
            "finish_reason": deltas[-1].finish_reason,
            "stop_reason": deltas[-1].stop_reason,
        }
        if self._with_token_ids:
            choice["token_ids"] = [token_id for delta in deltas for token_id in delta.token_ids]
        return choice

    def _chunk(self, index: int, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _logprobs(self, delta: ChoiceDelta) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return chat_logprobs(self._model.tokenizer, delta.logprobs, self._num_top)
