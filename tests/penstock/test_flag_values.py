from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable

import pytest

from penstock import flag_values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8192", 8192),
        ("8k", 8000),
        ("8K", 8192),
        ("32K", 32768),
        ("1.5K", 1536),
        ("25.6k", 25600),
        ("4G", 4 << 30),
        ("4g", 4_000_000_000),
        ("4GiB", 4 << 30),
        ("4gib", 4 << 30),
        ("4GB", 4_000_000_000),
        ("2Ki", 2048),
        (" 7 ", 7),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, value: int) -> None:
    assert flag_values.size(text) == value


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "x", "8x", "1e3", "nan", "inf", "1.5", "0.0001k", "9223372036854775808", "9" * 5000, "٣"]
)
def test_what_is_no_positive_whole_number_is_no_size(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        flag_values.size(text)


@pytest.mark.parametrize("text", ["auto", "AUTO", "-1"])
def test_an_automatic_size_is_none(text: str) -> None:
    assert flag_values.size_or_auto(text) is None


@pytest.mark.parametrize(
    ("parse", "good", "bad"),
    [
        (flag_values.port, ["0", "65535"], ["-1", "65536", "http", "1.0", "9" * 5000]),
        (flag_values.fraction, ["0.9", "1", "1e-3"], ["0", "1.1", "-0.5", "nan", "inf", "x"]),
        (flag_values.seconds, ["0", "2.5"], ["-1", "nan", "inf", "1e9", "soon"]),
        (flag_values.token_count, ["1", "65536"], ["0", "65537"]),
        (flag_values.process_count, ["1", "16"], ["0", "257"]),
        (flag_values.seed, ["0", str(2**63 - 1)], ["-1", str(2**63)]),
        (flag_values.api_key, ["sk-1_2.3~"], ["", "a b", "a,b", "a\nb", "schlüssel"]),
    ],
)
def test_values_have_limits(parse: Callable[[str], object], good: list[str], bad: list[str]) -> None:
    for text in good:
        parse(text)
    for text in bad:
        with pytest.raises(ArgumentTypeError):
            parse(text)
