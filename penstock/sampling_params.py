"""`SamplingParams`: how the tokens of one prompt are drawn, with vLLM's field names and defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .frontend.seeds import SEED_LIMIT
from .ipc.messages import Sampling

MAX_LOGPROBS = 20


@dataclass(kw_only=True)
class SamplingParams:
    """Checked when it is made and again when it is used, so that fields may be assigned in between.

    Raises ValueError naming the field and what it takes. A field that vLLM has and Penstock has not is a TypeError, as any
    unknown keyword is.
    """

    n: int = 1
    """Answers per prompt."""
    presence_penalty: float = 0.0
    """-2 .. 2, taken off the logit of every token that is in the output."""
    frequency_penalty: float = 0.0
    """-2 .. 2, taken off for every time the token is in the output."""
    repetition_penalty: float = 1.0
    """> 0; above 1 makes tokens of prompt and output less likely."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """0 < top_p <= 1."""
    top_k: int = 0
    """0 or -1 is off."""
    min_p: float = 0.0
    """0 .. 1."""
    seed: int | None = None
    """0 .. 2**63 - 1. None: drawn from the LLM's own seed, so that a program gives the same answers every time it runs."""
    stop: str | Sequence[str] | None = None
    """Texts that end the answer."""
    stop_token_ids: Sequence[int] | None = None
    """Tokens that end the answer beside the model's end-of-sequence tokens."""
    ignore_eos: bool = False
    max_tokens: int | None = 16
    """None: as many as the context has left."""
    min_tokens: int = 0
    """Nothing ends the answer before this many tokens."""
    logprobs: int | None = None
    """Likeliest tokens to report for each position of the output, 0 .. 20; 0 reports the sampled token alone."""
    prompt_logprobs: int | None = None
    """The same for each position of the prompt."""
    detokenize: bool = True
    """False leaves the text of the answers empty."""
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    """Without effect: no tokenizer of Penstock puts spaces between them."""
    include_stop_str_in_output: bool = False
    logit_bias: dict[int, float] | None = None
    """Token id -> added to its logit, -100 .. 100."""

    def __post_init__(self) -> None:
        self.check()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def check(self) -> None:
        """Raises ValueError naming the first field that is out of range."""
        for name, takes, is_good in _CHECKS:
            value = getattr(self, name)
            if not is_good(value):
                raise ValueError(f"{name} must be {takes}, got {value!r}")
        if not all(isinstance(text, str) and text for text in self.stop_strings):
            raise ValueError("stop must be a text or a list of texts, none of them empty")
        if not all(map(_integer(0), self.stop_token_ids or ())):
            raise ValueError("stop_token_ids must be a list of token ids")
        _check_logit_bias(self.logit_bias)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens is {self.min_tokens}, more than max_tokens, which is {self.max_tokens}")
        if self.stop_strings and not self.detokenize:
            raise ValueError("stop strings need detokenize=True: they are looked for in the text")

    def to_sampling(self, *, seed: int, max_tokens: int) -> Sampling:
        """What the engine is told: with the seed of one answer and the number of tokens that the context allows it."""
        return Sampling(
            seed=seed,
            max_tokens=max_tokens,
            temperature=float(self.temperature),
            top_p=float(self.top_p),
            top_k=max(self.top_k, 0),
            min_p=float(self.min_p),
            presence_penalty=float(self.presence_penalty),
            frequency_penalty=float(self.frequency_penalty),
            repetition_penalty=float(self.repetition_penalty),
            logit_bias={token_id: float(bias) for token_id, bias in (self.logit_bias or {}).items()},
            min_tokens=min(self.min_tokens, max_tokens),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(low: int, high: float = math.inf, *, optional: bool = False) -> Callable[[Any], bool]:
    return lambda value: (optional and value is None) or (_is_int(value) and low <= value <= high)


def _number(low: float, high: float = math.inf, *, above_low: bool = False) -> Callable[[Any], bool]:
    def is_good(value: Any) -> bool:
        if not (_is_int(value) or isinstance(value, float)) or not math.isfinite(value):
            return False
        return low <= value <= high and not (above_low and value == low)

    return is_good


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


_CHECKS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("n", "an integer of at least 1", _integer(1)),
    ("presence_penalty", "between -2 and 2", _number(-2, 2)),
    ("frequency_penalty", "between -2 and 2", _number(-2, 2)),
    ("repetition_penalty", "a finite number above 0", _number(0, above_low=True)),
    ("temperature", "a finite number of at least 0", _number(0)),
    ("top_p", "above 0 and at most 1", _number(0, 1, above_low=True)),
    ("top_k", "an integer of at least 1, or 0 or -1 for off", _integer(-1)),
    ("min_p", "between 0 and 1", _number(0, 1)),
    ("seed", "None or an integer between 0 and 2**63 - 1", _integer(0, SEED_LIMIT - 1, optional=True)),
    ("max_tokens", "None or an integer of at least 1", _integer(1, optional=True)),
    ("min_tokens", "an integer of at least 0", _integer(0)),
    ("logprobs", f"None or an integer between 0 and {MAX_LOGPROBS}", _integer(0, MAX_LOGPROBS, optional=True)),
    ("prompt_logprobs", f"None or an integer between 0 and {MAX_LOGPROBS}", _integer(0, MAX_LOGPROBS, optional=True)),
    *(
        (name, "True or False", _flag)
        for name in (
            "ignore_eos",
            "detokenize",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "include_stop_str_in_output",
        )
    ),
)


def _check_logit_bias(logit_bias: Any) -> None:
    if logit_bias is None:
        return
    if not isinstance(logit_bias, dict) or not all(map(_integer(0), logit_bias)):
        raise ValueError("logit_bias must be a dictionary from token ids to numbers")
    if not all(map(_number(-100, 100), logit_bias.values())):
        raise ValueError("logit_bias must have values between -100 and 100")
