"""What a benchmark is asked to do: which server, which requests, at which load. Plain data; it travels to the clients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

COMPLETIONS = "completions"
CHAT = "chat"


class BenchError(Exception):
    """The benchmark cannot work as asked; the message says why, for the person who started it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The server, and what every request to it has in common."""

    base_url: str
    """Ends in /v1 (see `api_url`)."""
    model: str
    endpoint: str = COMPLETIONS
    """COMPLETIONS: prompts of token ids; CHAT: messages of text."""
    api_key: str | None = None
    temperature: float = 0.0
    ignore_eos: bool = True
    """Asks for exactly as many tokens as the list says; needs a server that knows the field."""
    include_usage: bool = True
    extra_body: dict[str, Any] = field(default_factory=dict)
    """Fields added to every request."""
    request_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The requests, the same for the same values: every server gets exactly the same work."""

    lengths: str
    """See `lengths.parse`."""
    num_prompts: int
    """Requests, or conversations where there are several turns."""
    shared_prefix_tokens: int = 0
    """Tokens that every prompt begins with, beside its own; of a chat its system message."""
    turns: int = 1
    """Requests of a conversation: each sends all that was said before."""
    vocab_size: int
    """Prompts of token ids stay below."""
    think_time_s: float = 0.0
    """Mean pause of a conversation before its next turn."""
    has_tools: bool = False
    """The system message begins with the definitions of tools."""
    tokens_per_word: float = 1.0
    """What the server's tokenizer makes of the words that texts consist of."""
    tokens_per_tool: float = 64.0
    """The same for the definition of a tool."""
    seed: int = 0
    variant: str = ""
    """Other prompts of the same lengths: of a warm-up, a repetition, or another load of a sweep. The prefix stays the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How many requests at once. At least one of the two is set."""

    concurrency: int | None = None
    """Requests (or conversations) in flight together: when one ends the next begins."""
    request_rate: float | None = None
    """Mean arrivals per second of a Poisson process."""

    def __str__(self) -> str:
        parts = [] if self.request_rate is None else [f"{self.request_rate:g} requests/s"]
        if self.concurrency is not None:
            parts.append(f"concurrency {self.concurrency}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """What a good request keeps below, in milliseconds. None: not asked for."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None


def api_url(text: str) -> str:
    """The address that `/completions` is appended to: with a scheme and /v1, no slash at the end. BenchError if it is none."""
    url = (text if "://" in text else f"http://{text}").rstrip("/")
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and bool((parts.hostname or "").encode("idna")) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise BenchError(f"{text!r} is not an address such as http://127.0.0.1:8000 or https://example.org/v1")
    return url if parts.path.endswith("/v1") else f"{url}/v1"
