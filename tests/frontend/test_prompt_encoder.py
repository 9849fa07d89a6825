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
    *("<|sep|>", "<|end|>", "[W]", "[N]", "[n]", "[A]", "[A]b", "word", "x<|im_start|>y", "<|im_end|><|im_"),
    *("<|", "|>", "<|im_"),
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
    boundaries = Tokenizer(with_awkward_tokens(), {}).boundary_tokens
    assert boundaries == ["<|endoftext|>", "<|end|>", "[A]", "[A]b"]


def test_a_turn_tokenizes_what_is_new_and_nothing_else() -> None:
    tokenizer, encoder, counts = make(byte_level_tokenizer())
    prompt = "<|im_start|>system\n" + "the quick brown fox " * 50 + "<|im_end|>\n"
    encode(encoder, prompt)
    for turn in range(5):
        new = f"<|im_start|>user\nwhat is {turn} plus 30?<|im_end|>\n<|im_start|>assistant\nthe answer is 4{turn}.<|im_end|>\n"
        before = counts.num_encoded
        prompt += new
        [token_ids] = encode(encoder, prompt)
        # What closes a turn, "<|im_end|>\n", is known from the first one.
        num_known = 2 * len(tokenizer.encode("<|im_end|>\n"))
        assert counts.num_encoded - before == len(tokenizer.encode(new)) - num_known
        assert token_ids == tokenizer.encode(prompt)
    before = counts.num_encoded
    encode(encoder, prompt)
    assert counts.num_encoded == before


def test_what_is_known_under_one_salt_is_not_under_another() -> None:
    _, encoder, counts = make(byte_level_tokenizer())
    prompt = "<|im_start|>a<|im_end|>b"
    num_tokens = len(encode(encoder, prompt)[0])
    for salt, num_encoded, num_reused in [("a", 2, 0), ("a", 2, 1), ("b", 3, 1), ("", 3, 2)]:
        encode(encoder, prompt, salt=salt)
        assert (counts.num_encoded, counts.num_reused) == (num_encoded * num_tokens, num_reused * num_tokens)


def test_a_text_without_special_tokens_is_tokenized_whole_and_not_kept() -> None:
    _, encoder, counts = make(byte_level_tokenizer())
    for _ in range(2):
        encode(encoder, "the quick brown fox", "")
    assert counts.num_reused == 0
    assert encoder._cache.num_bytes == 0


@pytest.mark.parametrize(("limit", "value"), [("MAX_CUT_CHARS", 10), ("MAX_PARTS", 2)])
def test_a_text_too_long_to_cut_is_tokenized_whole(monkeypatch: pytest.MonkeyPatch, limit: str, value: int) -> None:
    monkeypatch.setattr(prompt_encoder, limit, value)
    tokenizer, encoder, counts = make(byte_level_tokenizer())
    text = "<|im_start|>" * 3
    assert [encode(encoder, text) for _ in range(2)] == [[tokenizer.encode(text)]] * 2
    assert counts.num_reused == 0


def test_what_was_not_used_for_longest_is_dropped_first() -> None:
    _, encoder, counts = make(byte_level_tokenizer(), max_cache_bytes=4000)
    for index in range(100):
        encode(encoder, f"<|im_start|>the dog<|im_end|>{index}")
        assert encoder._cache.num_bytes <= 4000
    before = counts.num_encoded
    encode(encoder, "<|im_start|>the dog<|im_end|>99")
    assert counts.num_encoded == before
    encode(encoder, "<|im_start|>the dog<|im_end|>0")
    assert counts.num_encoded > before


def test_text_that_is_not_unicode_is_refused_and_nothing_of_it_stays() -> None:
    tokenizer, encoder, _ = make(byte_level_tokenizer())
    for _ in range(2):
        with pytest.raises(TextError, match="not valid Unicode"):
            encode(encoder, "<|im_start|>\ud83d<|im_end|>")
    assert encode(encoder, "<|im_start|>a<|im_end|>") == [tokenizer.encode("<|im_start|>a<|im_end|>")]


async def test_a_conversation_over_http_is_tokenized_turn_by_turn(frontend: Frontend) -> None:
    messages = [{"role": "system", "content": "be brief"}]
    for turn in range(3):
        messages.append({"role": "user", "content": f"turn {turn}"})
        text = (await frontend.chat(messages=messages, max_tokens=4)).json()["choices"][0]["message"]["content"]
        messages.append({"role": "assistant", "content": text})
    counts = frontend.service.token_counts
    num_prompt = sum(len(submit.token_ids) // 4 for submit in frontend.engine.submits)
    assert counts.num_encoded + counts.num_reused == num_prompt
    rendered = "".join(f"<|im_start|>{one['role']}\n{one['content']}<|im_end|>\n" for one in messages[:-1])
    tokenizer = frontend.service.ready_model().tokenizer
    assert frontend.engine.submits[-1].token_ids == b"".join(
        token_id.to_bytes(4, "little") for token_id in tokenizer.encode(rendered + "<|im_start|>assistant\n")
    )
    assert counts.num_encoded <= len(tokenizer.encode(rendered)) + len(tokenizer.encode("<|im_start|>assistant\n"))
    await until(lambda: frontend.engine.prompt_tokens.get("reused") == counts.num_reused)
    assert frontend.engine.prompt_tokens["encoded"] == counts.num_encoded


async def test_a_salted_conversation_leaves_nothing_to_others(frontend: Frontend) -> None:
    await frontend.chat(cache_salt="mine")
    num_tokens = len(frontend.engine.submits[0].token_ids) // 4
    for fields, num_reused in [({}, 0), ({"cache_salt": "yours"}, 0), ({"cache_salt": "mine"}, num_tokens)]:
        await frontend.chat(**fields)
        assert frontend.service.token_counts.num_reused == num_reused
    await frontend.complete(prompt="<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", cache_salt="mine", max_tokens=1)
    assert frontend.service.token_counts.num_reused == 2 * num_tokens


async def test_templates_are_compiled_once(frontend: Frontend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jinja2.Environment.compile", lambda *args, **kwargs: pytest.fail("compiled again"))
    for _ in range(2):
        assert (await frontend.chat()).status_code == 200
