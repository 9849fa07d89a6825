"""The table that the HTTP path is measured by: its loads, what one H200 could do, what vLLM 0.26 does, and what is aimed at.

Figures of one H200, 16 cores, 2026-11-23: random weights in bf16, greedy, token-id prompts. `ideal` is the card with no host at
all, simulated on the same requests. vLLM's is the better of its default server and of eight API servers: its window where
that was recorded, else its whole run.
"""

from __future__ import annotations

from dataclasses import dataclass

SHAREGPT, SHAREGPT_TOKENS = "sharegpt", 206.0
SHARED_PREFIX = 2048
SHARED, SHARED_TOKENS = "300x150", 150.0
REQUESTS_OF_ONE_CLIENT = 40
SHORT_REQUESTS_A_CLIENT = {1: 8, 16: 12, 64: 8, 256: 4, 1024: 3}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One load. Of one client TPOT counts, of several the output tokens/s in the window; and TTFT p50 of both."""

    model: str
    clients: int
    num_requests: int
    ideal: float
    """Like `vllm` and `goal`: ms a token for one client, else tokens/s."""
    vllm: float
    vllm_ttft_ms: float
    goal: float
    goal_ttft_ms: float
    shared_prefix: int = 0

    @property
    def lengths(self) -> str:
        """In the load generator's words."""
        return SHARED if self.shared_prefix else SHAREGPT

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model}, {self.clients} clients" + (", shared prefix" if self.shared_prefix else "")

    def requests(self, *, short: bool) -> int:
        """How many are sent: enough for a window in which every client is busy."""
        return SHORT_REQUESTS_A_CLIENT[self.clients] * self.clients if short else self.num_requests

    def seconds(self, num_requests: int, margin: float) -> float:
        """How long a run takes that is `margin` times slower than the goal."""
        tokens = num_requests * (SHARED_TOKENS if self.shared_prefix else SHAREGPT_TOKENS)
        per_token_s = self.goal / 1e3 if self.clients == 1 else 1 / self.goal
        return margin * (tokens * per_token_s + num_requests * self.goal_ttft_ms / 1e3 / self.clients)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A shape: what identifies its config.json."""

    name: str
    hidden_size: int
    num_layers: int
    vocab_size: int


MODELS = (
    Model(name="Qwen3-0.6B", hidden_size=1024, num_layers=28, vocab_size=151_936),
    Model(name="Llama-3.1-8B", hidden_size=4096, num_layers=32, vocab_size=128_256),
    Model(name="Llama-3.2-1B", hidden_size=2048, num_layers=16, vocab_size=128_256),
)


def _row(model: str, clients: int, requests: int, figures: tuple[float, ...], shared_prefix: int = 0) -> Row:
    ideal, vllm, vllm_ttft_ms, goal, goal_ttft_ms = figures
    return Row(
        model=model,
        clients=clients,
        num_requests=requests,
        ideal=ideal,
        vllm=vllm,
        vllm_ttft_ms=vllm_ttft_ms,
        goal=goal,
        goal_ttft_ms=goal_ttft_ms,
        shared_prefix=shared_prefix,
    )


ROWS = (
    _row("Qwen3-0.6B", 1024, 8000, (74_319, 22_675, 138, 52_000, 70)),
    _row("Qwen3-0.6B", 1, REQUESTS_OF_ONE_CLIENT, (0.30, 1.64, 20, 0.58, 5)),
    _row("Qwen3-0.6B", 64, 2560, (64_369, 10_888, 62, 40_000, 12)),
    _row("Qwen3-0.6B", 256, 5120, (71_878, 18_437, 51, 52_000, 20)),
    _row("Llama-3.1-8B", 256, 5120, (19_137, 12_385, 66, 15_500, 50)),
    _row("Llama-3.1-8B", 64, 2560, (14_688, 8_174, 26, 11_500, 20)),
    _row("Llama-3.1-8B", 1, REQUESTS_OF_ONE_CLIENT, (3.4, 4.76, 20, 3.95, 10)),
    _row("Llama-3.1-8B", 64, 1280, (13_736, 5_175, 436, 10_000, 60), SHARED_PREFIX),
    _row("Llama-3.1-8B", 16, 640, (4_389, 1_920, 25, 3_500, 15)),
    _row("Llama-3.1-8B", 1, REQUESTS_OF_ONE_CLIENT, (3.5, 5.16, 25, 4.0, 14), SHARED_PREFIX),
    _row("Llama-3.1-8B", 256, 2560, (14_192, 6_720, 1_455, 11_500, 300), SHARED_PREFIX),
    _row("Llama-3.2-1B", 256, 5120, (108_576, 27_550, 604, 78_000, 20)),
    _row("Llama-3.2-1B", 64, 2560, (82_223, 16_856, 36, 50_000, 12)),
    _row("Llama-3.2-1B", 1, REQUESTS_OF_ONE_CLIENT, (0.57, 1.46, 10, 0.75, 5)),
)
"""In the order of importance; a model's first row says when its turn is."""
