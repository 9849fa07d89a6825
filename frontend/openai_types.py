"""What both generation endpoints take: types, ranges and limits of the fields they share.

Fields are checked strictly (true is not a number, "1" neither). Fields that are not declared here or in an endpoint's own
model are looked up in `known_fields`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

MAX_CHOICES = 128
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGPROBS = 20

Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_CHARS)]
StopStrings = Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class RequestModel(BaseModel):
    """Base of all request bodies: strict types, no NaN or infinity, undeclared fields kept aside."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())


class StreamOptions(RequestModel):
    include_usage: bool = False
    """A last chunk without choices carries the usage."""
    continuous_usage_stats: bool = False
    """Every chunk carries the usage so far."""


class GenerationFields(RequestModel):
    """Sampling and delivery. None means the default of the model's generation_config.json, then of the API."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: Int32 | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: Int32 | None = Field(None, ge=-1)
    """0 and -1: off."""
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=100)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    """Token id, as a string, -> added to its logit."""
    min_tokens: Int32 | None = Field(None, ge=0)
    stop: Annotated[StopStrings | None, BeforeValidator(_as_list)] = None
    """A string or a list of them."""
    stop_token_ids: list[int] | None = Field(None, max_length=MAX_STOP_TOKEN_IDS)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool | None = None
    priority: Int32 = 0
    """Lower is sooner."""
    cache_salt: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    """Requests share cached prefixes only with requests of the same salt."""
