from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, processors

from penstock.frontend.token_pieces import TextError
from penstock.frontend.tokenizer import Tokenizer
from tests.tokenizers_for_tests import (
    byte_fallback_tokenizer,
    byte_level_tokenizer,
    write_byte_fallback_tokenizer,
    write_byte_level_tokenizer,
    write_tokenizer,
)

TEXTS = [
    "the quick fox",
    " leading",
    "trailing ",
    "a  b\n\tc",
    "ein großer Bär",
    "今日は",
    "😀😃 e\u0301",
    "",
    "▁",
    "<|im_end|>",
]
BYTE_LEVEL = byte_level_tokenizer()
BYTE_FALLBACK = byte_fallback_tokenizer()


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_dir(write_byte_level_tokenizer(tmp_path_factory.mktemp("byte_level")))


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_dir(write_byte_fallback_tokenizer(tmp_path_factory.mktemp("byte_fallback")))


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_text_survives_the_round_trip(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.decode(byte_level.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("text", [text for text in TEXTS if "▁" not in text])
def test_byte_fallback_text_survives_the_round_trip(byte_fallback: Tokenizer, text: str) -> None:
    assert byte_fallback.decode(byte_fallback.encode(text)) == text


@given(token_ids=st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() + 5), max_size=20), skip=st.booleans())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_byte_level_decoding_equals_the_librarys(byte_level: Tokenizer, token_ids: list[int], skip: bool) -> None:
    assert byte_level.decode(token_ids, skip_special_tokens=skip) == BYTE_LEVEL.decode(token_ids, skip_special_tokens=skip)


@given(
    parts=st.lists(
        st.one_of(
            st.sampled_from("€😀éa").map(lambda char: [byte + 3 for byte in char.encode()]),
            st.sampled_from([0, 1, 2, *range(259, 300)]).map(lambda token_id: [token_id]),
        ),
        max_size=12,
    ),
    skip=st.booleans(),
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_byte_fallback_decoding_of_whole_characters_equals_the_librarys(
    byte_fallback: Tokenizer, parts: list[list[int]], skip: bool
) -> None:
    token_ids = [token_id for part in parts for token_id in part]
    assert byte_fallback.decode(token_ids, skip_special_tokens=skip) == BYTE_FALLBACK.decode(
        token_ids, skip_special_tokens=skip
    )


@pytest.mark.parametrize("write", [write_byte_level_tokenizer, write_byte_fallback_tokenizer])
def test_encoding_and_decoding_equal_transformers(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(str(write(tmp_path)))
    tokenizer = Tokenizer.from_dir(tmp_path)
    for text in [*TEXTS, "<s> after", "a<|im_start|>b"]:
        for special in (True, False):
            token_ids = tokenizer.encode(text, add_special_tokens=special)
            assert token_ids == reference.encode(text, add_special_tokens=special)
            assert tokenizer.decode(token_ids, skip_special_tokens=special) == reference.decode(
                token_ids, skip_special_tokens=special
            )


def test_a_broken_byte_run_keeps_its_good_characters(byte_fallback: Tokenizer) -> None:
    euro = [byte + 3 for byte in "€".encode()]
    assert byte_fallback.decode([*euro, 0xE2 + 3]) == "€\ufffd"


def test_the_first_token_alone_loses_the_leading_space_of_sentencepiece(byte_fallback: Tokenizer) -> None:
    fox = byte_fallback.token_id("▁fox")
    assert fox is not None
    assert byte_fallback.decode([fox, fox]) == "fox fox"
    assert byte_fallback.decode([1, fox]) == "fox"
    assert byte_fallback.decode([1, fox], skip_special_tokens=False) == "<s> fox"
    assert byte_fallback.token_text(fox) == " fox"


@pytest.mark.parametrize("prepend_scheme", ["always", "first", "never"])
def test_metaspace_decoding_equals_the_librarys(prepend_scheme: str) -> None:
    backend = Backend(models.BPE(vocab={"▁": 0, "a": 1, "▁a": 2, "▁▁": 3}, merges=[("▁", "a"), ("▁", "▁")]))
    backend.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer = Tokenizer(backend, {})
    for token_ids in ([2, 2], [3, 1], [0, 0], [1, 2, 3], [0, 2], []):
        assert tokenizer.decode(token_ids) == backend.decode(token_ids)


def test_a_vocabulary_without_decoder_is_joined_with_spaces() -> None:
    backend = Backend(models.WordLevel({"one": 0, "two": 1, "[UNK]": 2}, unk_token="[UNK]"))
    assert Tokenizer(backend, {}).decode([0, 1, 1]) == backend.decode([0, 1, 1]) == "one two two"


@pytest.mark.parametrize(
    "decoder",
    [decoders.WordPiece(), decoders.BPEDecoder(), decoders.Sequence([decoders.Strip(" ", 2, 0)])],
    ids=["WordPiece", "BPEDecoder", "Strip"],
)
def test_a_decoder_whose_tokens_have_no_bytes_of_their_own_is_refused(decoder: decoders.Decoder) -> None:
    backend = Backend(models.WordLevel({"one": 0}, unk_token="one"))
    backend.decoder = decoder
    with pytest.raises(TextError, match="decoder is not supported"):
        Tokenizer(backend, {})


def test_token_bytes_are_exact_where_a_character_spans_tokens(byte_level: Tokenizer, byte_fallback: Tokenizer) -> None:
    for tokenizer in (byte_level, byte_fallback):
        token_ids = tokenizer.encode("a€", add_special_tokens=False)
        pieces = [tokenizer.token_bytes(token_id) for token_id in token_ids]
        assert b"".join(pieces).lstrip(b" ") == "a€".encode()
        assert b"\xe2" in pieces
        assert tokenizer.token_text(token_ids[pieces.index(b"\xe2")]) == "\ufffd"


def test_special_tokens_have_their_written_form_as_bytes(byte_level: Tokenizer) -> None:
    assert byte_level.eos_token_id is not None
    assert byte_level.token_bytes(byte_level.eos_token_id) == b"<|im_end|>"
    assert byte_level.decode([byte_level.eos_token_id]) == ""


def test_an_added_token_with_a_space_is_taken_as_it_is_written(byte_level: Tokenizer) -> None:
    token_id = byte_level.token_id("<tool call>")
    assert token_id is not None
    assert token_id not in byte_level.special_token_ids
    assert byte_level.token_bytes(token_id) == b"<tool call>"


@pytest.mark.parametrize("token_id", [-1, 10_000, 2**31, 2**40])
def test_ids_beyond_the_vocabulary_read_as_nothing(byte_level: Tokenizer, token_id: int) -> None:
    assert byte_level.decode([token_id]) == byte_level.token_text(token_id) == ""
    assert byte_level.token_bytes(token_id) == b""


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_lone_surrogates_are_refused(byte_level: Tokenizer, text: str) -> None:
    with pytest.raises(TextError, match="surrogate"):
        byte_level.encode(text)


def test_text_outside_a_vocabulary_without_unknown_token_is_refused() -> None:
    tokenizer = Tokenizer(Backend(models.WordLevel({"one": 0}, unk_token="[UNK]")), {})
    with pytest.raises(TextError, match="vocabulary"):
        tokenizer.encode("two")


def test_special_tokens_are_added_on_request(byte_fallback: Tokenizer) -> None:
    assert byte_fallback.encode("fox")[0] == byte_fallback.bos_token_id == 1
    assert byte_fallback.encode("fox", add_special_tokens=False) == byte_fallback.encode("fox")[1:]


@pytest.mark.parametrize("in_post_processor", [True, False])
def test_add_bos_token_adds_it_once(tmp_path: Path, in_post_processor: bool) -> None:
    backend = byte_fallback_tokenizer()
    if not in_post_processor:
        backend.post_processor = processors.Sequence([])
    path = write_tokenizer(tmp_path, backend, bos_token="<s>", eos_token="</s>", add_bos_token=True, add_eos_token=True)
    tokenizer = Tokenizer.from_dir(path)
    assert tokenizer.encode("fox") == [1, *tokenizer.encode("fox", add_special_tokens=False), 2]
    assert tokenizer.encode("") == [1, 2]


def test_the_config_may_describe_special_tokens_as_objects(byte_fallback: Tokenizer) -> None:
    assert byte_fallback.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert byte_fallback.eos_token_id == 2


def test_tokens_that_only_the_config_calls_special_are_special(tmp_path: Path) -> None:
    backend = Backend(models.BPE(vocab={"a": 0, "[END]": 1, "[X]": 2, "[Y]": 3}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    config = {
        "eos_token": "[END]",
        "extra_special_tokens": ["[X]"],
        "added_tokens_decoder": {"3": {"content": "[Y]", "special": True}},
        "pad_token": "[NOT IN THE VOCABULARY]",
    }
    tokenizer = Tokenizer.from_dir(write_tokenizer(tmp_path, backend, **config))
    assert tokenizer.special_token_ids == {1, 2, 3}
    assert tokenizer.encode("a[END]") == [0, 1]
    assert tokenizer.vocab_size == 4


def test_truncation_and_padding_of_tokenizer_json_are_ignored() -> None:
    backend = byte_level_tokenizer()
    backend.enable_truncation(2)
    backend.enable_padding(length=8)
    tokenizer = Tokenizer(backend, {})
    assert tokenizer.decode(tokenizer.encode("the quick brown fox jumps")) == "the quick brown fox jumps"


def test_a_missing_or_broken_tokenizer_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TextError, match="cannot read"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(TextError, match=r"tokenizer\.json is broken"):
        Tokenizer.from_dir(tmp_path)
    byte_level_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(["not an object"]))
    with pytest.raises(TextError, match="not a JSON object"):
        Tokenizer.from_dir(tmp_path)


def test_threads_may_share_a_tokenizer(byte_level: Tokenizer) -> None:
    text = "the quick brown fox " * 200
    expected = byte_level.encode(text)
    found: list[bool] = []

    def work() -> None:
        found.extend(byte_level.encode(text) == expected and byte_level.decode(expected) == text for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80


def test_encoding_and_decoding_equal_the_librarys_on_the_byte_alphabet() -> None:
    tokenizer = Tokenizer(byte_level_tokenizer(), {})
    for char in pre_tokenizers.ByteLevel.alphabet():
        token_id = tokenizer.token_id(char)
        assert token_id is not None
        assert len(tokenizer.token_bytes(token_id)) == 1
