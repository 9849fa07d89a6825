"""What the routes share: the engine's client, the model being served, the configuration."""

from __future__ import annotations

import asyncio
from collections import Counter

from ..ipc.messages import Ready
from .config import FrontendConfig
from .engine_client import EngineClient
from .errors import Unavailable
from .known_fields import UndeclaredFields
from .served_model import ServedModel


class Service:
    """One frontend's parts. `start` and `close` frame its life."""

    def __init__(self, config: FrontendConfig) -> None:
        self.config = config
        self.http_responses: Counter[str] = Counter()
        self.undeclared_fields = UndeclaredFields()
        self.is_draining = False
        self.client = EngineClient(
            config.socket_dir, config.name, on_ready=self._load_model, http_responses=self.http_responses
        )
        self._model: ServedModel | None = None

    async def start(self) -> None:
        """Begins to look for the engine; requests get a 503 until it has answered."""
        await self.client.start()

    async def close(self) -> None:
        """Ends what is still open and takes leave of the engine."""
        await self.client.close()

    @property
    def is_ready(self) -> bool:
        """A request would be served now."""
        return self.client.is_ready and not self.is_draining

    def ready_model(self) -> ServedModel:
        """The model, if the engine is there. Raises Unavailable."""
        if self.is_draining:
            raise Unavailable("The server is shutting down.")
        if self._model is None or self.client.facts is None:
            raise Unavailable("The model is not ready yet.")
        return self._model

    async def _load_model(self, facts: Ready) -> None:
        if self._model is None or self._model.facts != facts:
            self._model = await asyncio.to_thread(ServedModel.load, facts)
