"""POST /v1/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request, Response

from .answers import answer, model_for
from .completion_types import CompletionRequest
from .errors import BadRequest
from .generation import ChoiceDelta, Generation, Prompt
from .json_body import JsonRoute
from .logprobs import CompletionLogprobs, join_logprobs
from .sampling import LogprobsWanted, max_output_tokens, to_sampling
from .served_model import ServedModel
from .service import Service

DEFAULT_MAX_TOKENS = 16
MAX_CHOICES_IN_ALL = 2048


def completions_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter(route_class=JsonRoute, tags=["OpenAI"])

    @router.post("/v1/completions", summary="Continue one or several prompts")
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        model = model_for(body, service)
        _check(body)
        prompts = await _prompts(body, model)
        shape = CompletionShape(body, model, prompts)
        generation = await Generation.start(service, model, body, prompts)
        return await answer(request, service, body, generation, shape)

    return router


def _check(body: CompletionRequest) -> None:
    if body.max_tokens == 0 and not body.echo:
        raise BadRequest("max_tokens must be at least 1 unless echo is true.", "max_tokens")
    num_choices = len(body.prompts()) * (body.n or 1)
    if num_choices > MAX_CHOICES_IN_ALL:
        raise BadRequest(f"{num_choices} choices in all, at most {MAX_CHOICES_IN_ALL} are allowed.", "n")


async def _prompts(body: CompletionRequest, model: ServedModel) -> list[Prompt]:
    wanted = LogprobsWanted(output=body.logprobs, prompt=body.logprobs if body.echo else None)
    given = body.prompts()
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    encoded = await model.encode(texts, add_special_tokens=body.add_special_tokens, param="prompt", cache_salt=body.cache_salt)
    prompts = []
    for token_ids in encoded or [prompt for prompt in given if isinstance(prompt, list)]:
        model.check_token_ids(token_ids, "prompt")
        if not token_ids:
            raise BadRequest("prompt: must not be empty", "prompt")
        max_tokens = max_output_tokens(
            model, len(token_ids), body.max_tokens, DEFAULT_MAX_TOKENS, prompt_param="prompt", asked_param="max_tokens"
        )
        prompts.append(Prompt(token_ids, to_sampling(body, model, max_tokens, wanted)))
    return prompts


class CompletionShape:
    """The JSON of completions and their chunks, which are alike."""

    def __init__(self, body: CompletionRequest, model: ServedModel, prompts: list[Prompt]) -> None:
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created_s = int(time.time())
        self._model = model
        self._body = body
        self._prompts = prompts
        self.is_text_alone = body.logprobs is None and not body.return_token_ids
        self._echoed: set[int] = set()
        self._num_choices = len(prompts) * (body.n or 1)
        self._logprobs = [CompletionLogprobs(model.tokenizer, body.logprobs or 0) for _ in range(self._num_choices)]
        self._whole: list[list[dict[str, Any]]] = [[] for _ in range(self._num_choices)]

    def head(self, *, streamed: bool) -> dict[str, Any]:
        return {"id": self._id, "object": "text_completion", "created": self._created_s, "model": self._model.name}

    def chunks(self, delta: ChoiceDelta) -> Iterator[dict[str, Any]]:
        chunk = self._chunk(delta)
        if self._body.echo and delta.index not in self._echoed:
            self._echoed.add(delta.index)
            self._prepend_prompt(chunk, delta)
        if self._body.logprobs is not None:
            rows = self._logprobs[delta.index].of(delta.logprobs)
            chunk["logprobs"] = rows if chunk["logprobs"] is None else join_logprobs([chunk["logprobs"], rows])
        if chunk["text"] or chunk["finish_reason"] or self._body.return_token_ids or chunk["logprobs"]:
            yield chunk

    def add(self, delta: ChoiceDelta) -> None:
        self._whole[delta.index].extend(self.chunks(delta))

    def choices(self) -> list[dict[str, Any]]:
        return [self._joined(chunks) for chunks in self._whole]

    def _chunk(self, delta: ChoiceDelta) -> dict[str, Any]:
        chunk = {
            "index": delta.index,
            "text": delta.text,
            "logprobs": None,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._body.return_token_ids:
            chunk["token_ids"] = delta.token_ids
        return chunk

    def _prepend_prompt(self, chunk: dict[str, Any], delta: ChoiceDelta) -> None:
        token_ids = self._prompts[delta.index // (self._body.n or 1)].token_ids
        skip = self._body.skip_special_tokens
        chunk["text"] = self._model.tokenizer.decode(token_ids, skip_special_tokens=skip) + chunk["text"]
        if self._body.logprobs is not None:
            rows = delta.prompt_logprobs or []
            chunk["logprobs"] = self._logprobs[delta.index].of_prompt(token_ids, rows)

    def _joined(self, chunks: list[dict[str, Any]]) -> dict[str, Any]:
        choice = {**chunks[-1], "text": "".join(chunk["text"] for chunk in chunks)}
        if self._body.logprobs is not None:
            choice["logprobs"] = join_logprobs([chunk["logprobs"] for chunk in chunks])
        if self._body.return_token_ids:
            choice["token_ids"] = [token_id for chunk in chunks for token_id in chunk["token_ids"]]
        return choice
