"""The toy model's shape and its arithmetic: the next token is a hash of the prefix. Used by the runner and by the oracle."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..ipc.messages import Sampling
from .errors import EngineStartError

TOY_ARCHITECTURE = "PenstockToyForCausalLM"


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyConfig:
    """config.json of a toy model."""

    vocab_size: int = 512
    max_position_embeddings: int = 4096
    windows: tuple[int | None, ...] = (None,)
    """One KV group per entry: the hash runs over the last `window` tokens of the prefix, None over all of them."""
    output_range: tuple[int, int] | None = None
    """First and last + 1 of the ids it says; None: all of the vocabulary."""
    eos_token_id: int | None = None
    eos_one_in: int | None = None
    """Every so many-th prefix is followed by the end of sequence; None: never on purpose."""
    step_time_s: float = 0.0
    """How long a step takes on the pretended device."""

    @classmethod
    def from_dir(cls, path: Path) -> ToyConfig:
        """Reads config.json; raises EngineStartError for a value that is none."""
        raw: dict[str, Any] = json.loads((path / "config.json").read_text())
        known = {name: raw[name] for name in cls.__dataclass_fields__ if name in raw}
        for name in ("windows", "output_range"):
            if known.get(name) is not None:
                known[name] = tuple(known[name])
        config = cls(**known)
        if not 0 < config.first_output < config.end_output <= config.vocab_size and config.output_range is not None:
            raise EngineStartError(f"{path / 'config.json'}: output_range {config.output_range} is outside the vocabulary")
        return config

    @property
    def first_output(self) -> int:
        """The lowest id it says beside the end of sequence."""
        return self.output_range[0] if self.output_range else 0

    @property
    def end_output(self) -> int:
        """One above the highest id it says."""
        return self.output_range[1] if self.output_range else self.vocab_size


def next_token(visible: Sequence[bytes], config: ToyConfig, is_banned: Callable[[int], bool]) -> int:
    """The token after a prefix; `visible` has for each KV group the int32 `kv_entry`s it still sees."""
    digest = blake2b(digest_size=8)
    for token_ids in visible:
        digest.update(token_ids)
        digest.update(b"|")
    number = int.from_bytes(digest.digest(), "little")
    eos, one_in = config.eos_token_id, config.eos_one_in
    if eos is not None and one_in is not None and number % one_in == 0 and not is_banned(eos):
        return eos
    size = config.end_output - config.first_output
    start = number // 2**20 % size
    allowed = (config.first_output + (start + step) % size for step in range(size))
    return next((token_id for token_id in allowed if not is_banned(token_id)), config.first_output)


def kv_entry(token_id: int, group: int) -> int:
    """What a KV group keeps of a token: groups differ, as layers do, so that another group's block is a wrong one."""
    return token_id + (group << 24)


def stop_ids(sampling: Sampling, config: ToyConfig) -> frozenset[int]:
    """The ids that end a request."""
    eos = () if config.eos_token_id is None or sampling.ignore_eos else (config.eos_token_id,)
    return frozenset((*sampling.stop_token_ids, *eos))


def banned_at(position: int, sampling: Sampling, config: ToyConfig) -> frozenset[int]:
    """Ids that output token `position` must not be: the stop ids before min_tokens."""
    return stop_ids(sampling, config) if position < sampling.min_tokens else frozenset()


def expected_tokens(
    prompt_token_ids: Sequence[int], num_tokens: int, config: ToyConfig, sampling: Sampling | None = None
) -> list[int]:
    """The oracle: what a correct engine says after this prompt, at most `num_tokens` tokens, a stop token included.

    Without `sampling`: no stop ids of its own, no min_tokens, the end of sequence ends it.
    """
    sampling = sampling or Sampling(seed=0, max_tokens=num_tokens)
    output: list[int] = []
    entries = [array("i", [kv_entry(token_id, group) for token_id in prompt_token_ids]) for group in range(len(config.windows))]
    ends = stop_ids(sampling, config)
    while len(output) < num_tokens and (not output or output[-1] not in ends):
        pairs = zip(entries, config.windows, strict=True)
        visible = [(kept if window is None else kept[-window:]).tobytes() for kept, window in pairs]
        output.append(next_token(visible, config, banned_at(len(output), sampling, config).__contains__))
        for group, kept in enumerate(entries):
            kept.append(kv_entry(output[-1], group))
    return output


def ranked_logprob(token_id: int, likeliest: int, config: ToyConfig) -> tuple[int, float]:
    """(rank, log-probability) of a token where `likeliest` comes next: ids fall off by half each, going up and around."""
    rank = (token_id - likeliest) % config.vocab_size + 1
    return rank, -math.log(2) * rank
