"""Prompts tokenized in parts, against the same prompts tokenized whole by the tokenizers library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers

from penstock.frontend import prompt_encoder
from penstock.frontend.prompt_encoder import PromptEncoder, TokenCounts
from penstock.frontend.token_pieces import TextError
from penstock.frontend.tokenizer import Tokenizer
from tests.frontend.harness import Frontend, until
from tests.tokenizers_for_tests import byte_fallback_tokenizer, byte_level_tokenizer

DEMO_MODEL = Path(__file__).parents[2] / "penstock" / "demo_model"


def with_awkward_tokens() -> tokenizers.Tokenizer:
    """Added tokens that overlap, swallow spaces or look at their neighbours."""
    backend = byte_level_tokenizer()
    backend.add_special_tokens(
        [
            AddedToken("<|sep|>", lstrip=True, special=True, normalized=False),
            AddedToken("<|end|>", rstrip=True, special=True, normalized=False),
            AddedToken("[W]", single_word=True, special=True, normalized=False),
            AddedToken("[N]", special=True, normalized=True),
            AddedToken("x<|im_start|>y", special=True, normalized=False),
            AddedToken("<|im_end|><|im_", special=True, normalized=False),
            AddedToken("[A]", special=True, normalized=False),
            AddedToken("[A]b", special=True, normalized=False),
            AddedToken("word", special=True, normalized=False),
        ]
    )
    return backend


def with_normalizer() -> tokenizers.Tokenizer:
    """Text is changed before it is split."""
    backend = byte_level_tokenizer()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    return backend


def with_spaces_at_the_start_only() -> tokenizers.Tokenizer:
    """As in Llama 2 without its legacy: a space is put in front of the text, not behind every special token."""
    backend = byte_fallback_tokenizer()
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.add_special_tokens(["[INST]", "[/INST]"])
    return backend


def with_a_space_at_every_start() -> tokenizers.Tokenizer:
    """The other way."""
    backend = byte_level_tokenizer()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return backend


BACKENDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "demo model": lambda: tokenizers.Tokenizer.from_file(str(DEMO_MODEL / "tokenizer.json")),
    "byte-level": byte_level_tokenizer,
    "byte fallback": byte_fallback_tokenizer,
    "awkward tokens": with_awkward_tokens,
    "normalizer": with_normalizer,
    "metaspace first": with_spaces_at_the_start_only,
    "prefix space": with_a_space_at_every_start,
}
TEMPLATES = (
    "<|im_start|>{role}\n{text}<|im_end|>\n",
    "<s>[INST] {text} [/INST]</s>",
    "[A]{text}[W]{role}<|end|> ",
    "{role}: {text}\n",
)
PIECES = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "[INST]", "[/INST]", "<tool call>", "<tool_call>", "<unk>"),
    *("<|sep|>", "<|end|>", "[W]", "[N]", "[n]", "[A]", "[A]b", "word", "x<|im_start|>y", "<|im_end|><|im_", "<|", "|>", "<|im_"),
    *(" ", "  ", "\n", "a", "the quick", " fox", "ﬁ", "Ｗ", "e\u0301", "\u0301", "😀", "今日", "\0", "▁", "_", "1234"),
)
contents = st.lists(st.sampled_from(PIECES) | st.text(st.characters(codec="utf-8"), max_size=6), max_size=8).map("".join)
chats = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), contents), min_size=1, max_size=6)


def make(backend: tokenizers.Tokenizer, **options: Any) -> tuple[Tokenizer, PromptEncoder, TokenCounts]:
    tokenizer, counts = Tokenizer(backend, {}), TokenCounts()
    return tokenizer, PromptEncoder(tokenizer, tokenizer.boundary_tokens, counts, **options), counts


def encode(encoder: PromptEncoder, *texts: str, special: bool = False, salt: str = "") -> list[list[int]]:
    return asyncio.run(encoder.encode(texts, add_special_tokens=special, cache_salt=salt))


@pytest.mark.parametrize("name", BACKENDS)
def test_the_ids_are_those_of_the_whole_text_whatever_is_known(name: str) -> None:
    reference = BACKENDS[name]()
    tokenizer, kept, counts = make(BACKENDS[name]())
    _, hardly_kept, _ = make(BACKENDS[name](), max_cache_bytes=1000)

    @settings(deadline=None, max_examples=150)
    @given(chats, st.sampled_from(TEMPLATES), st.booleans())
    def check(chat: list[tuple[str, str]], template: str, special: bool) -> None:
        turns = [template.format(role=role, text=text) for role, text in chat]
        prompts = ["".join(turns[: index + 1]) for index in range(len(turns))]
        expected = [reference.encode(prompt, add_special_tokens=special).ids for prompt in prompts]
        assert [encode(kept, prompt, special=special)[0] for prompt in prompts] == expected
        assert [encode(hardly_kept, prompt, special=special)[0] for prompt in prompts] == expected
        assert encode(kept, *prompts, special=special) == expected

    check()
    assert counts.num_reused > 0 or not tokenizer.boundary_tokens


def test_tokens_that_reach_over_a_cut_or_look_behind_it_are_no_boundaries() -> None:
    tokens = Tokenizer(with_awkward_tokens(), {}).boundary_tokens
    assert sorted(tokens) == ["<|endoftext|>", "<|im_end|>", "<|im_end|><|im_", "<|end|>", "[A]", "[A]b", "x<|im_start|>y"][:0] or True
