"""Reading a model's JSON files field by field, with errors that name the file and the field.

Values come from a file somebody else wrote: every one is checked for its type and range before use.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import EngineStartError


@dataclass(frozen=True, slots=True)
class JsonFields:
    """One JSON object and where it came from. A field that is null counts as absent, as transformers reads it."""

    where: str
    """File, and the path inside it, for messages."""
    values: Mapping[str, Any]

    @classmethod
    def from_file(cls, path: Path) -> JsonFields:
        """Reads a file that must hold one JSON object; raises EngineStartError."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise EngineStartError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise EngineStartError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise EngineStartError(f"{path} must hold a JSON object, not {_kind(values)}")
        return cls(str(path), values)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def error(self, name: str, problem: str) -> EngineStartError:
        """An error about one field, to be raised by the caller."""
        return EngineStartError(f"{self.where}: {name} {problem}")

    def integer(self, name: str, default: int | None = None, *, minimum: int = 1, maximum: int = 2**31 - 1) -> int:
        """An int in minimum .. maximum; `default` where it is absent, an error where there is no default either."""
        value = self._get(name, default)
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise self.error(name, f"must be an integer, not {_kind(value)}")
        if value < minimum:
            raise self.error(name, f"must be at least {minimum}, not {value}")
        if value > maximum:
            raise self.error(name, f"must be at most {maximum}, not {value}")
        return value

    def number(
        self, name: str, default: float | None = None, *, above: float | None = None, minimum: float = -math.inf
    ) -> float:
        """A finite float > above and >= minimum."""
        value = self._get(name, default)
        if type(value) not in (int, float):
            raise self.error(name, f"must be a number, not {_kind(value)}")
        if not abs(value) <= sys.float_info.max or value < minimum or (above is not None and value <= above):
            raise self.error(name, f"is out of range: {value!s:.40}")
        return float(value)

    def boolean(self, name: str, default: bool | None = None) -> bool:
        value = self._get(name, default)
        if type(value) is not bool:
            raise self.error(name, f"must be true or false, not {_kind(value)}")
        return value

    def string(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if type(value) is not str:
            raise self.error(name, f"must be a string, not {_kind(value)}")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        value = self._get(name, None)
        if not isinstance(value, list) or not all(type(item) is str for item in value):
            raise self.error(name, "must be a list of strings")
        return tuple(value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One id or a list of ids; absent: none."""
        value = self.values.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(item) is int and item >= 0 for item in ids):
            raise self.error(name, "must be a token id or a list of token ids")
        return tuple(dict.fromkeys(ids))

    def nested(self, name: str) -> JsonFields | None:
        """The object in this field; None where it is absent or empty."""
        value = self.values.get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            raise self.error(name, f"must be an object, not {_kind(value)}")
        return JsonFields(f"{self.where}: {name}", value)

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise self.error(name, "is missing")
        return default


def _kind(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "null")
