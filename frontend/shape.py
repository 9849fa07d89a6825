"""What the two generation endpoints differ in: the JSON of their answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from .generation import ChoiceDelta


class Shape(Protocol):
    """An endpoint's JSON. One object serves one request."""

    is_text_alone: bool
    """A choice's chunks differ in nothing but their text once it has begun, until it ends."""

    def head(self, *, streamed: bool) -> dict[str, Any]:
        """id, object, created and model, the same in every chunk."""

    def chunks(self, delta: ChoiceDelta) -> Iterator[dict[str, Any]]:
        """The `choices` entries of the chunks that this delta makes."""

    def add(self, delta: ChoiceDelta) -> None:
        """Keeps a delta for `choices`."""

    def choices(self) -> list[dict[str, Any]]:
        """The whole answer's `choices`."""
