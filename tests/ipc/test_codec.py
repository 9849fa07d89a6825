"""Messages survive the wire, and nothing that is not a message gets through."""

from __future__ import annotations

import dataclasses
from typing import Any

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import given, settings

from penstock.ipc.codec import ProtocolError, decode, encode
from penstock.ipc.messages import Abort, Hello, Sampling, Submit, ToEngine, ToFrontend

AnyMessage = ToEngine | ToFrontend
MESSAGES: list[type] = [*ToEngine.__args__, *ToFrontend.__args__]

st.register_type_strategy(int, st.integers(-(2**63), 2**64 - 1))
st.register_type_strategy(float, st.floats(allow_nan=False))
any_message = st.one_of([st.from_type(kind) for kind in MESSAGES])
A_SUBMIT = Submit(
    request_id=7,
    token_ids=b"\1\0\0\0",
    num_output_tokens=0,
    sampling=Sampling(seed=1, max_tokens=2, logit_bias={3: -1.5}, stop_token_ids=(4, 5), logprobs=2),
)


@settings(max_examples=300, deadline=None)
@given(any_message)
def test_every_message_comes_back_as_it_was(message: AnyMessage) -> None:
    assert decode(encode(message)) == message


@settings(max_examples=300, deadline=None)
@given(any_message, st.data())
def test_a_message_cut_short_is_a_protocol_error(message: AnyMessage, data: st.DataObject) -> None:
    whole = encode(message)
    with pytest.raises(ProtocolError):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


@settings(max_examples=500, deadline=None)
@given(any_message, st.data())
def test_changed_bytes_are_a_message_or_a_protocol_error(message: AnyMessage, data: st.DataObject) -> None:
    changed = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(changed))
    except ProtocolError:
        return
    assert type(decoded) in MESSAGES


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        decoded = decode(data)
    except ProtocolError:
        return
    assert type(decoded) in MESSAGES


json_like: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3),
    max_leaves=20,
)


@settings(max_examples=500, deadline=None)
@given(st.integers(0, len(MESSAGES)), st.lists(json_like, max_size=8))
def test_wrong_fields_are_a_message_or_a_protocol_error(tag: int, fields: list[Any]) -> None:
    try:
        decoded = decode(msgpack.packb([tag, *fields]))
    except ProtocolError:
        return
    assert type(decoded) in MESSAGES


def changed_submit(**changes: Any) -> bytes:
    """A Submit on the wire with raw values in place of some fields; `sampling__x` is a field of its Sampling."""
    fields: list[Any] = msgpack.unpackb(encode(A_SUBMIT), strict_map_key=False)
    names = [f.name for f in dataclasses.fields(Submit)]
    sampling_names = [f.name for f in dataclasses.fields(Sampling)]
    for name, value in changes.items():
        if name.startswith("sampling__"):
            fields[1 + names.index("sampling")][sampling_names.index(name.removeprefix("sampling__"))] = value
        else:
            fields[1 + names.index(name)] = value
    return bytes(msgpack.packb(fields))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"request_id": "7"}, "Submit.request_id: expected int, got str"),
        ({"request_id": True}, "Submit.request_id: expected int, got bool"),
        ({"request_id": 7.0}, "Submit.request_id: expected int, got float"),
        ({"token_ids": [1, 2]}, "Submit.token_ids: expected bytes, got tuple"),
        ({"cache_salt": None}, "Submit.cache_salt: expected str, got NoneType"),
        ({"sampling": []}, "Submit.sampling: expected 15 fields"),
        ({"sampling": 5}, "Submit.sampling: expected 15 fields"),
        ({"sampling__temperature": "hot"}, "Submit.sampling.temperature: expected float, got str"),
        ({"sampling__logit_bias": [1]}, "Submit.sampling.logit_bias: expected a map, got tuple"),
        ({"sampling__logit_bias": {"3": 1.0}}, "Submit.sampling.logit_bias: expected int, got str"),
        ({"sampling__stop_token_ids": 4}, "Submit.sampling.stop_token_ids: expected an array, got int"),
        ({"sampling__stop_token_ids": [4, None]}, "Submit.sampling.stop_token_ids: expected int, got NoneType"),
        ({"sampling__logprobs": "2"}, "Submit.sampling.logprobs: expected int, got str"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(changed_submit(**change))
    assert str(caught.value).startswith(where)


def test_an_integer_will_do_for_a_float() -> None:
    decoded = decode(changed_submit(sampling__temperature=1))
    assert isinstance(decoded, Submit)
    assert decoded.sampling.temperature == 1


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (msgpack.packb({}), "not an array"),
        (msgpack.packb([]), "not an array"),
        (msgpack.packb([99]), "unknown message tag 99"),
        (msgpack.packb([True, 1]), "unknown message tag True"),
        (msgpack.packb([-1]), "unknown message tag -1"),
        (msgpack.packb(["Hello"]), "unknown message tag 'Hello'"),
        (msgpack.packb([0]), "Hello: expected 1 fields"),
        (encode(Hello(1)) + b"\0", "not msgpack"),
        (b"\x91" * 100_000, "not msgpack"),
        (msgpack.packb([0, msgpack.Timestamp(1)]), "Hello.protocol_version"),
        (b"\xdd\xff\xff\xff\xff", "not msgpack"),
        (b"\x92\x00\xa1\xff", "not msgpack"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_no_message_says_why(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        decode(data)


def test_arrays_of_numbers_cost_four_bytes_a_number() -> None:
    token_ids = bytes(4 * 100_000)
    assert len(encode(Abort(token_ids))) < len(token_ids) + 20


def test_errors_do_not_repeat_long_input() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(msgpack.packb(["x" * 100_000]))
    assert len(str(caught.value)) < 200
