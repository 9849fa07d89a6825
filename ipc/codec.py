"""Messages to bytes and back: one msgpack array `[tag, field, ...]` per message.

`decode` is the one place where what arrives is validated: every field's type is checked against the dataclass, and a
`ProtocolError` names the message and the field. Values' ranges are the receiver's business.
"""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import msgpack

from . import messages

if sys.byteorder != "little":
    raise ImportError("Penstock's wire format is little-endian, this machine is not")

MAX_MESSAGE_BYTES = 64 << 20
"""Longest message either side takes; a prompt of a million tokens has 4 MB."""


class ProtocolError(ValueError):
    """Bytes that are not one of our messages."""


_MESSAGES: tuple[type, ...] = (
    messages.Hello,
    messages.Ready,
    messages.Submit,
    messages.Abort,
    messages.Heartbeat,
    messages.Goodbye,
    messages.StatsRequest,
    messages.Outputs,
    messages.Rejected,
    messages.EngineHeartbeat,
    messages.Stats,
)
_TAG_OF = {cls: tag for tag, cls in enumerate(_MESSAGES)}


def encode(message: messages.ToEngine | messages.ToFrontend) -> bytes:
    """One message as bytes."""
    return bytes(msgpack.packb([_TAG_OF[type(message)], *_pack_fields(message)]))


def decode(data: bytes) -> messages.ToEngine | messages.ToFrontend:
    """One message from bytes; raises ProtocolError for anything that is not exactly one of ours."""
    try:
        fields = msgpack.unpackb(data, strict_map_key=False, use_list=False)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise ProtocolError(f"not msgpack: {type(error).__name__}") from error
    if not isinstance(fields, tuple) or not fields:
        raise ProtocolError("not an array")
    tag = fields[0]
    if type(tag) is not int or not 0 <= tag < len(_MESSAGES):
        raise ProtocolError(f"unknown message tag {tag!r:.40}")
    return _READERS[tag](fields[1:], _MESSAGES[tag].__name__)  # type: ignore[no-any-return]


def _pack_fields(message: Any) -> list[Any]:
    return [_pack(getattr(message, name)) for name in message.__dataclass_fields__]


def _pack(value: Any) -> Any:
    if type(value) in _AS_THEY_ARE:
        return value
    if dataclasses.is_dataclass(value):
        return _pack_fields(value)
    if type(value) is tuple:
        return [_pack(item) for item in value]
    return value


_AS_THEY_ARE = frozenset((bytes, int, str, float, type(None)))

_Reader = Callable[[Any, str], Any]


def _reader(kind: Any) -> _Reader:
    """A function that checks a raw value against the type `kind` and returns it, nested dataclasses rebuilt."""
    if dataclasses.is_dataclass(kind):
        return _dataclass_reader(typing.cast(type, kind))
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        read_inner = _reader(inner[0])
        return lambda raw, where: None if raw is None else read_inner(raw, where)
    if origin is tuple:
        read_item = _reader(typing.get_args(kind)[0])

        def read_tuple(raw: Any, where: str) -> tuple[Any, ...]:
            if type(raw) is not tuple:
                raise ProtocolError(f"{where}: expected an array, got {type(raw).__name__}")
            return tuple(read_item(item, where) for item in raw)

        return read_tuple
    if origin is dict:
        read_key, read_value = (_reader(arg) for arg in typing.get_args(kind))

        def read_dict(raw: Any, where: str) -> dict[Any, Any]:
            if type(raw) is not dict:
                raise ProtocolError(f"{where}: expected a map, got {type(raw).__name__}")
            return {read_key(key, where): read_value(value, where) for key, value in raw.items()}

        return read_dict
    return _scalar_reader(kind)


def _scalar_reader(kind: type) -> _Reader:
    accepted = (float, int) if kind is float else (kind,)

    def read(raw: Any, where: str) -> Any:
        if type(raw) not in accepted:
            raise ProtocolError(f"{where}: expected {kind.__name__}, got {type(raw).__name__}")
        return raw

    return read


def _dataclass_reader(cls: type) -> _Reader:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    readers = [(name, _reader(hints[name])) for name in names]

    def read(raw: Any, where: str) -> Any:
        if type(raw) is not tuple or len(raw) != len(readers):
            raise ProtocolError(f"{where}: expected {len(readers)} fields")
        values = {name: read_one(value, f"{where}.{name}") for (name, read_one), value in zip(readers, raw, strict=True)}
        return cls(**values)

    return read


_READERS = [_dataclass_reader(cls) for cls in _MESSAGES]
