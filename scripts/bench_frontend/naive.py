"""The frontend one writes first, to compare with: FastAPI, a pydantic object per token, a queue and a generator per request.

The same sockets, codec, detokenizer and uvicorn as the real one; none of its validation, limits or error handling.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import time
import uuid
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
import zmq.asyncio
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from penstock.frontend.chat_template import ChatTemplate
from penstock.frontend.detokenizer import Detokenizer
from penstock.frontend.open_requests import int32s
from penstock.frontend.tokenizer import Tokenizer
from penstock.ipc import messages
from penstock.ipc.sockets import FrontendSocket, SlowPeer


class ChatBody(BaseModel):
    """A request."""

    messages: list[dict[str, Any]]
    max_tokens: int
    priority: int = 0
    stream: bool = False
    seed: int = 0


class Delta(BaseModel):
    """What is new."""

    role: str | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """One choice's news."""

    index: int = 0
    delta: Delta
    logprobs: None = None
    finish_reason: str | None = None


class Chunk(BaseModel):
    """One event."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]


class NaiveFrontend:
    """A queue for every open request."""

    def __init__(self, socket_dir: Path) -> None:
        self._socket_dir = socket_dir
        self._queues: dict[int, asyncio.Queue[tuple[list[int], int]]] = {}
        self._ids = itertools.count(1)
        self.ready: messages.Ready | None = None

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Connects, and reads as long as the application lives."""
        context = zmq.asyncio.Context()
        self._data = FrontendSocket(context, self._socket_dir, "data", f"naive:{os.urandom(8).hex()}".encode())
        reading = asyncio.create_task(self._read())
        greeting = asyncio.create_task(self._greet())
        yield
        reading.cancel()
        greeting.cancel()
        self._data.close()
        context.term()

    async def answer(self, body: ChatBody) -> AsyncIterator[str]:
        """The events of one answer."""
        prompt = self._tokenizer.encode(self._template.render(body.messages), add_special_tokens=False)
        request_id = next(self._ids)
        queue = self._queues[request_id] = asyncio.Queue()
        sampling = messages.Sampling(seed=body.seed, max_tokens=body.max_tokens)
        token_ids = array("i", prompt).tobytes()
        await self._data.send(
            messages.Submit(
                request_id=request_id, token_ids=token_ids, num_output_tokens=0, sampling=sampling, priority=body.priority
            )
        )
        detokenizer = Detokenizer(self._tokenizer, prompt)
        chunk_id, created_s = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

        def event(delta: Delta, finish_reason: str | None = None) -> str:
            choice = ChunkChoice(delta=delta, finish_reason=finish_reason)
            chunk = Chunk(id=chunk_id, created=created_s, model="stand-in", choices=[choice])
            return f"data: {chunk.model_dump_json(exclude_unset=True)}\n\n"

        yield event(Delta(role="assistant", content=""))
        finish = 0
        while not finish:
            new_ids, finish = await queue.get()
            text = detokenizer.push(new_ids).text
            if text:
                yield event(Delta(content=text))
        yield event(Delta(), "length")
        yield "data: [DONE]\n\n"

    async def _greet(self) -> None:
        while self.ready is None:
            with contextlib.suppress(SlowPeer):  # not there yet
                await self._data.send(messages.Hello(messages.PROTOCOL_VERSION))
            await asyncio.sleep(0.1)

    async def _read(self) -> None:
        while True:
            message = await self._data.receive()
            if isinstance(message, messages.Ready):
                self._tokenizer = Tokenizer.from_dir(message.model_dir)
                template = ChatTemplate.from_dir(Path(message.model_dir))
                assert template is not None
                self._template, self.ready = template, message
            elif isinstance(message, messages.Outputs):
                self._deliver(message)

    def _deliver(self, outputs: messages.Outputs) -> None:
        token_ids, start = int32s(outputs.token_ids), 0
        for request_id, count, finish in zip(
            int32s(outputs.request_ids), int32s(outputs.counts), outputs.finish_reasons, strict=True
        ):
            self._queues[request_id].put_nowait((token_ids[start : start + count], finish))
            start += count


def create_app(frontend: NaiveFrontend) -> FastAPI:
    """Two routes."""
    app = FastAPI(lifespan=frontend.lifespan)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody) -> StreamingResponse:
        return StreamingResponse(frontend.answer(body), media_type="text/event-stream")

    @app.get("/readyz")
    async def ready() -> Response:
        return Response(status_code=503 if frontend.ready is None else 200)

    return app


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket_dir", type=Path)
    parser.add_argument("listen_fd", type=int)
    arguments = parser.parse_args()
    app = create_app(NaiveFrontend(arguments.socket_dir))
    uvicorn.run(app, fd=arguments.listen_fd, http="httptools", loop="uvloop", log_level="warning", backlog=2048)


if __name__ == "__main__":
    main()
