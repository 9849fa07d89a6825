"""The contract keeps its own rules."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from penstock.ipc import messages
from penstock.ipc.messages import HEARTBEAT_INTERVAL_S, LEASE_TIMEOUT_S, FinishReason, Sampling, ToEngine, ToFrontend

DATACLASSES = [value for value in vars(messages).values() if inspect.isclass(value) and dataclasses.is_dataclass(value)]


@pytest.mark.parametrize("kind", DATACLASSES, ids=lambda kind: kind.__name__)
def test_messages_are_frozen_and_explained(kind: type) -> None:
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert kind.__doc__
    assert not kind.__doc__.startswith(f"{kind.__name__}("), "the generated docstring explains nothing"


def test_every_dataclass_is_a_message_or_part_of_one() -> None:
    parts = {"Sampling", "TokenLogprobs", "Detail", "Sample", "Metric"}
    told = {kind.__name__ for kind in (*ToEngine.__args__, *ToFrontend.__args__)}
    assert {kind.__name__ for kind in DATACLASSES} == told | parts


def test_no_message_goes_both_ways() -> None:
    assert not set(ToEngine.__args__) & set(ToFrontend.__args__)


def test_zero_is_no_finish_reason() -> None:
    assert 0 not in set(FinishReason)


def test_a_lease_outlasts_a_few_lost_heartbeats() -> None:
    assert LEASE_TIMEOUT_S >= 3 * HEARTBEAT_INTERVAL_S


def test_sampling_by_default_is_plain() -> None:
    sampling = Sampling(seed=0, max_tokens=1)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.0, 0.0, 1.0)
    assert sampling.logit_bias == {}
