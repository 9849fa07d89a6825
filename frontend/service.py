"""What the routes share: the engine's client, the model being served, the configuration."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from ..ipc.messages import Heartbeat, Ready
from .board import Place, Presence
from .chat_template import TemplateError
from .config import FrontendConfig
from .engine_client import EngineClient
from .engine_link import ModelUnusable
from .errors import Unavailable
from .known_fields import UndeclaredFields
from .prompt_encoder import TokenCounts
from .served_model import ServedModel
from .token_pieces import TextError

WAITS_FOR_OTHERS_S = 5.0
"""A frontend that is ready says so when the others are, or after this long."""


class Service:
    """One frontend's parts. `start` and `close` frame its life."""

    def __init__(
        self,
        config: FrontendConfig,
        on_unusable_model: Callable[[], None] = lambda: None,
        on_model_loaded: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_unusable_model` is called when the files of the engine's model cannot be read: it will never be ready."""
        self.config = config
        self._on_model_loaded = on_model_loaded
        self._on_unusable_model = on_unusable_model
        self.http_responses: Counter[str] = Counter()
        self.token_counts = TokenCounts()
        self.undeclared_fields = UndeclaredFields()
        self.is_draining = False
        self.place = Place(config.board_fd, config.number)
        self.client = EngineClient(
            config.socket_dir,
            config.name,
            on_ready=self._load_model,
            on_lost=self._show_presence,
            heartbeat=self._heartbeat,
        )
        self._model: ServedModel | None = None
        self._ready_since_s = 0.0

    async def start(self) -> None:
        """Begins to look for the engine; requests get a 503 until it has answered."""
        self.place.show(Presence.NOT_READY)
        await self.client.start()

    async def close(self) -> None:
        """Ends what is still open and takes leave of the engine."""
        await self.client.close()
        self.place.show(Presence.ABSENT)

    @property
    def is_ready(self) -> bool:
        """A request would be served now, whichever frontend takes it.

        The others are waited for in the beginning only: one that dies later, or never comes, does not stop the rest.
        """
        if not self.client.is_ready or self.is_draining:
            return False
        return self.place.all_ready or time.monotonic() - self._ready_since_s > WAITS_FOR_OTHERS_S

    def ready_model(self) -> ServedModel:
        """The model, if the engine is there. Raises Unavailable."""
        if self.is_draining:
            raise Unavailable("The server is shutting down.")
        if self._model is None or self.client.facts is None:
            raise Unavailable("The model is not ready yet.")
        return self._model

    def _heartbeat(self) -> Heartbeat:
        counts = self.token_counts
        return Heartbeat(dict(self.http_responses), {"encoded": counts.num_encoded, "reused": counts.num_reused})

    async def _load_model(self, facts: Ready) -> None:
        if self._model is None or self._model.facts != facts:
            try:
                self._model = await asyncio.to_thread(ServedModel.load, facts, self.token_counts)
            except Exception as error:
                # Hides nothing: whatever the files hold that no reader expected is a broken file, and its name is told.
                self._on_unusable_model()
                raise ModelUnusable(f"cannot serve the model in {facts.model_dir}: {_reason(error)}") from error
            self._on_model_loaded()
        self._ready_since_s = time.monotonic()
        self.place.show(Presence.READY)

    def _show_presence(self) -> None:
        self.place.show(Presence.NOT_READY if self.client.facts is None else Presence.READY)


def _reason(error: Exception) -> str:
    """Own errors and those of the system speak for themselves."""
    return str(error) if isinstance(error, (TextError, TemplateError, OSError)) else repr(error)
