"""What can go wrong in the engine, one class each.

EngineStartError   the engine cannot start; the text is one clear line for the person who started it
Refused            a request the engine will not run; becomes a Rejected message
IntegrityError     the KV bookkeeping contradicts itself; stops the engine
"""

from __future__ import annotations

from ..ipc.messages import RejectReason


class EngineStartError(Exception):
    """The engine cannot start: a bad model, too little memory, a taken socket. The text says what to do."""


class Refused(Exception):
    """A request was refused at the door; nothing of it was computed."""

    def __init__(self, reason: RejectReason, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.param = param
        """The field to blame, in the API's words."""


class IntegrityError(Exception):
    """free + cached + owned != total, or two parts of the bookkeeping disagree."""
