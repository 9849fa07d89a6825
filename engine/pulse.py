"""The engine's heartbeat: whether its steps advance, told once a second.

A step that hangs shows as silence, work that does not advance as `step_age_s`.
"""

from __future__ import annotations

from ..ipc.messages import HEARTBEAT_INTERVAL_S, EngineHeartbeat
from .core import EngineCore


class Pulse:
    """Watches a core for its server."""

    def __init__(self, core: EngineCore, engine_boot_id: bytes, now_s: float) -> None:
        self._core = core
        self._engine_boot_id = engine_boot_id
        self._last_advance_s = now_s
        self._num_steps_seen = 0
        self.next_beat_s = now_s
        """When the next heartbeat is due."""

    def note(self, has_work: bool, now_s: float) -> None:
        """The loop has come round."""
        if not has_work or self._core.num_completed_steps != self._num_steps_seen:
            self._num_steps_seen = self._core.num_completed_steps
            self._last_advance_s = now_s

    def is_due(self, now_s: float) -> bool:
        """Whether it is time for a heartbeat."""
        return now_s >= self.next_beat_s

    def beat(self, now_s: float) -> EngineHeartbeat:
        """The heartbeat of this moment."""
        self.next_beat_s = now_s + HEARTBEAT_INTERVAL_S
        scheduler = self._core.scheduler
        return EngineHeartbeat(
            engine_boot_id=self._engine_boot_id,
            step_age_s=now_s - self._last_advance_s,
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            kv_usage=scheduler.blocks.usage,
        )
