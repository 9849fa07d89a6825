from __future__ import annotations

import codecs
import itertools
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.frontend.detokenizer import Detokenizer
from penstock.frontend.escaped_pieces import EscapedPieces, escape
from penstock.frontend.tokenizer import Tokenizer
from tests.tokenizers_for_tests import byte_fallback_tokenizer, byte_level_tokenizer

BYTE_LEVEL = Tokenizer(byte_level_tokenizer(), {"eos_token": "<|im_end|>"})
BYTE_FALLBACK = Tokenizer(byte_fallback_tokenizer(), {"bos_token": "<s>", "eos_token": "</s>"})

BOTH = st.sampled_from([BYTE_LEVEL, BYTE_FALLBACK])
RAW_IDS = st.lists(st.integers(0, 405), max_size=24)
"""Any tokens: half characters, special tokens, ids outside the vocabulary."""
STOPS = st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), max_size=4)


def shown(tokenizer: Tokenizer, token_ids: list[int], skip: bool) -> str:
    """The text of a prompt without a character it leaves unfinished."""
    data = b"".join(tokenizer.token_bytes(i) for i in token_ids if not (skip and i in tokenizer.special_token_ids))
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    whole = tokenizer.decode(token_ids, skip_special_tokens=skip)
    unfinished = decoder.decode(b"", final=True)  # a surrogate's beginning, ED A0, reads as two U+FFFD
    return whole.removesuffix(unfinished)


def expected_cut(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The slow twin: the stop string that ends first, the longest of those that end together."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """One token per character or byte: the finest way to write a text."""
    if tokenizer is BYTE_FALLBACK:
        return [byte + 3 for byte in text.encode()]
    return [token_id for char in text for token_id in tokenizer.encode(char)]


@given(tokenizer=BOTH, prompt=RAW_IDS, output=RAW_IDS, skip=st.booleans())
@example(tokenizer=BYTE_FALLBACK, prompt=[240, 163], output=[], skip=False)
@settings(max_examples=600, deadline=None)
def test_deltas_add_up_to_decoding_the_whole(tokenizer: Tokenizer, prompt: list[int], output: list[int], skip: bool) -> None:
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=skip)
    joined = "".join(detokenizer.push([token_id]).text for token_id in output) + detokenizer.finish()
    assert shown(tokenizer, prompt, skip) + joined == tokenizer.decode(prompt + output, skip_special_tokens=skip)


@given(tokenizer=BOTH, output=RAW_IDS, cuts=st.lists(st.integers(0, 24), max_size=4))
@settings(max_examples=200, deadline=None)
def test_pushing_several_tokens_at_once_makes_no_difference(tokenizer: Tokenizer, output: list[int], cuts: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer, [])
    borders = sorted({0, len(output), *(cut for cut in cuts if cut < len(output))})
    pushes = [output[start:end] for start, end in itertools.pairwise(borders)]
    assert "".join(detokenizer.push(push).text for push in pushes) + detokenizer.finish() == tokenizer.decode(output)


@given(
    tokenizer=BOTH,
    prompt=RAW_IDS,
    pushes=st.lists(st.lists(st.integers(0, 405), min_size=1, max_size=3), max_size=16),
    skip=st.booleans(),
    stops=STOPS,
)
@settings(max_examples=600, deadline=None)
def test_looking_tokens_up_yields_what_reading_them_does(
    tokenizer: Tokenizer, prompt: list[int], pushes: list[list[int]], skip: bool, stops: list[str]
) -> None:
    pieces = EscapedPieces(tokenizer, skip_special_tokens=skip)
    fast = Detokenizer(tokenizer, prompt, stop=stops, skip_special_tokens=skip, escaped_pieces=pieces)
    slow = Detokenizer(tokenizer, prompt, stop=stops, skip_special_tokens=skip)
    for token_ids in pushes:
        escaped = fast.push_escaped(token_ids)
        if escaped is None:
            escaped = escape(fast.push(token_ids).text)
        assert escaped == escape(slow.push(token_ids).text)
    assert fast.finish() == slow.finish()


def test_whole_characters_are_looked_up_and_parts_of_them_read() -> None:
    pieces = EscapedPieces(BYTE_LEVEL, skip_special_tokens=True)
    detokenizer = Detokenizer(BYTE_LEVEL, [], escaped_pieces=pieces)
    a, euro = ids_of(BYTE_LEVEL, "a"), ids_of(BYTE_LEVEL, "€")
    assert detokenizer.push_escaped(a) is None  # the beginning of a text may read differently
    detokenizer.push(a)
    assert detokenizer.push_escaped(a + a) == b"aa"
    assert detokenizer.push_escaped(euro[:1]) is None
    assert detokenizer.push(euro[:1]).text == ""
    assert detokenizer.push_escaped(a) is None
    assert escape('"\n€') == b'\\"\\n' + "€".encode()


@given(tokenizer=BOTH, text=st.text(alphabet="a€😀é\ufffd", max_size=12))
@settings(max_examples=200, deadline=None)
def test_no_replacement_character_for_an_unfinished_one(tokenizer: Tokenizer, text: str) -> None:
    detokenizer = Detokenizer(tokenizer, ids_of(tokenizer, "a"))
    so_far = ""
    for token_id in ids_of(tokenizer, text):
        so_far += detokenizer.push([token_id]).text
        assert text.startswith(so_far)
    assert so_far == text
    assert detokenizer.finish() == ""


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK], ids=["byte_level", "byte_fallback"])
def test_an_unfinished_character_appears_when_the_text_ends(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, [])
    assert detokenizer.push(ids_of(tokenizer, "a€")[:-1]).text == "a"
    assert detokenizer.finish() == "\ufffd"


def test_a_character_that_the_prompt_began_belongs_to_the_output() -> None:
    token_ids = ids_of(BYTE_FALLBACK, "a€b")
    detokenizer = Detokenizer(BYTE_FALLBACK, token_ids[:2])
    assert detokenizer.push(token_ids[2:]).text == "€b"


def test_the_leading_space_of_sentencepiece_stays_after_a_prompt() -> None:
    fox = BYTE_FALLBACK.token_id("▁fox")
    assert fox is not None
    assert Detokenizer(BYTE_FALLBACK, [1, fox]).push([fox]).text == " fox"
    assert Detokenizer(BYTE_FALLBACK, [1]).push([fox]).text == "fox"
    assert Detokenizer(BYTE_FALLBACK, [1], skip_special_tokens=False).push([fox]).text == " fox"


@given(tokenizer=BOTH, text=st.text(alphabet="ab€", max_size=30), stops=STOPS)
@settings(max_examples=600, deadline=None)
def test_the_text_is_cut_at_the_stop_string_that_ends_first(tokenizer: Tokenizer, text: str, stops: list[str]) -> None:
    prompt = ids_of(tokenizer, "a")
    token_ids = ids_of(tokenizer, text)
    kept, stop = expected_cut(text, stops)
    detokenizer = Detokenizer(tokenizer, prompt, stop=stops)
    so_far, num_used, found = "", 0, None
    for token_id in token_ids:
        delta = detokenizer.push([token_id])
        so_far += delta.text
        num_used += delta.num_tokens_used
        assert kept.startswith(so_far)  # nothing is given out that a stop string takes back
        if delta.stop_string is not None:
            found = delta.stop_string
            break
    assert (so_far + detokenizer.finish(), found) == (kept, stop)
    assert num_used == len(ids_of(tokenizer, kept + (stop or "")))


@given(tokenizer=BOTH, text=st.text(alphabet="ab€", max_size=30), stops=STOPS, include=st.booleans())
@settings(max_examples=200, deadline=None)
def test_one_push_finds_the_same_stop_as_many(tokenizer: Tokenizer, text: str, stops: list[str], include: bool) -> None:
    kept, stop = expected_cut(text, stops)
    detokenizer = Detokenizer(tokenizer, ids_of(tokenizer, "a"), stop=stops, include_stop=include)
    delta = detokenizer.push(ids_of(tokenizer, text))
    assert delta.stop_string == stop
    assert delta.num_tokens_used == len(ids_of(tokenizer, kept + (stop or "")))
    assert delta.text + detokenizer.finish() == kept + (stop or "" if include else "")


@given(tokenizer=BOTH, text=st.text(alphabet="ab€", max_size=30), stops=STOPS)
@settings(max_examples=200, deadline=None)
def test_no_more_is_held_back_than_a_stop_string_may_take(tokenizer: Tokenizer, text: str, stops: list[str]) -> None:
    detokenizer = Detokenizer(tokenizer, ids_of(tokenizer, "a"), stop=stops)
    delta = detokenizer.push(ids_of(tokenizer, text))
    if delta.stop_string is None:
        beginnings = [end for stop in stops for end in range(1, len(stop)) if text.endswith(stop[:end])]
        assert delta.text == text[: len(text) - max(beginnings, default=0)]


def test_after_a_stop_string_nothing_is_used() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL, [], stop=["b"])
    assert detokenizer.push(ids_of(BYTE_LEVEL, "abc")).text == "a"
    delta = detokenizer.push(ids_of(BYTE_LEVEL, "d"))
    assert (delta.text, delta.num_tokens_used, delta.stop_string) == ("", 0, "b")
    assert detokenizer.finish() == ""


def test_a_stop_string_is_found_across_the_rest_of_its_last_token() -> None:
    token_ids = BYTE_LEVEL.encode("the quick")
    detokenizer = Detokenizer(BYTE_LEVEL, [], stop=["e q"])
    delta = detokenizer.push(token_ids)
    assert (delta.text, delta.stop_string) == ("th", "e q")
    assert BYTE_LEVEL.decode(token_ids[: delta.num_tokens_used]).startswith("the q")


def test_stop_strings_do_not_count_within_the_first_min_tokens() -> None:
    detokenizer = Detokenizer(BYTE_LEVEL, [], stop=["b"], min_tokens=3)
    delta = detokenizer.push(ids_of(BYTE_LEVEL, "abaab"))
    assert (delta.text, delta.num_tokens_used, delta.stop_string) == ("abaa", 5, "b")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Detokenizer(BYTE_LEVEL, [], stop=["a", ""])


def _seconds(num_tokens: int, stop: list[str]) -> float:
    token_ids = ids_of(BYTE_LEVEL, "a") * num_tokens
    detokenizer = Detokenizer(BYTE_LEVEL, [], stop=stop)
    started_s = time.process_time()
    for token_id in token_ids:
        detokenizer.push([token_id])
    return time.process_time() - started_s


def test_many_long_stop_strings_cost_no_more_than_few() -> None:
    """The worst case for searching: almost-matches all the way."""
    few = _seconds(20_000, ["b"])
    many = _seconds(20_000, ["a" * 5_000 + "b", *("a" * length + "c" for length in range(1, 200))])
    assert many < 5 * few + 0.5
