"""What tokenizing a growing conversation costs, with and without the parts known from earlier turns.

    python -m scripts.bench_tokenizing

An agent's conversation: a system prompt of 2,000 tokens with tools, then ten turns of +300 tokens (the user) and +150 (the
answer). Every turn's prompt is tokenized by `PromptEncoder` and, in turns, whole, by two tokenizers so that neither profits
from the other's cache of words; the ids are compared. Times are medians over conversations of different words, thread hops
included, rendering not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from penstock.frontend.chat_template import ChatTemplate
from penstock.frontend.off_loop import LONG_TEXT_CHARS, off_loop_if
from penstock.frontend.prompt_encoder import PromptEncoder, TokenCounts
from penstock.frontend.tokenizer import Tokenizer

DEMO_MODEL = Path(__file__).parents[1] / "penstock" / "demo_model"
NUM_TURNS = 10
SYSTEM_TOKENS, USER_TOKENS, ANSWER_TOKENS = 2000, 300, 150
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Looks up the {name.replace('_', ' ')} that a text names.",
            "parameters": {
                "type": "object",
                "properties": {"text": {"type": "string", "description": "What is looked for."}},
                "required": ["text"],
            },
        },
    }
    for name in ("train_times", "room_booking", "file_search", "unit_price")
]
_SYLLABLES = [start + vowel + end for start in "bdfgklmnprstvz" for vowel in "aeiou" for end in ("", "n", "r", "s", "l")]
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Encode = Callable[[str], Awaitable[list[int]]]


def made_up_word(draw: random.Random) -> str:
    """Of two to four syllables."""
    return "".join(draw.choices(_SYLLABLES, k=draw.randint(2, 4)))


WORDS = [made_up_word(random.Random(number)) for number in range(8000)]
"""What is talked about; the large tokenizer knows them all."""


def large_tokenizer(num_entries: int) -> Tokenizer:
    """Byte-level BPE with so many entries: bytes, and all beginnings of words; split as in Llama 3."""
    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = []
    draw = random.Random(1)
    listed = iter(WORDS)
    while len(vocab) < num_entries:
        word = next(listed, None) or made_up_word(draw)
        text = "\u0120" + word
        for end in range(2, len(text) + 1):
            if text[:end] not in vocab and len(vocab) < num_entries:
                vocab[text[:end]] = len(vocab)
                merges.append((text[: end - 1], text[end - 1]))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    split = pre_tokenizers.Split(tokenizers.Regex(_SPLIT), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return Tokenizer(backend, {})


def text_of(num_tokens: int, tokenizer: Tokenizer, draw: random.Random) -> str:
    """Words that make about so many tokens."""
    many = draw.choices(WORDS, k=num_tokens)
    num_words = num_tokens * len(many) // len(tokenizer.encode(" ".join(many)))
    return " ".join(many[:num_words])


def prompts(tokenizer: Tokenizer, template: ChatTemplate, draw: random.Random) -> list[str]:
    """The prompt of every turn of one conversation."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": ""}]
    num_missing = SYSTEM_TOKENS - len(tokenizer.encode(template.render(messages, tools=TOOLS)))
    messages[0]["content"] = text_of(max(num_missing, 1), tokenizer, draw)
    found = []
    for _ in range(NUM_TURNS):
        messages.append({"role": "user", "content": text_of(USER_TOKENS, tokenizer, draw)})
        found.append(template.render(messages, tools=TOOLS))
        messages.append({"role": "assistant", "content": text_of(ANSWER_TOKENS, tokenizer, draw)})
    return found


async def microseconds(encode: Encode, text: str) -> tuple[float, list[int]]:
    """How long it took, and the ids."""
    start_s = time.perf_counter()
    token_ids = await encode(text)
    return (time.perf_counter() - start_s) * 1e6, token_ids


async def measure(name: str, make: Callable[[], Tokenizer], template: ChatTemplate, num_rounds: int) -> None:
    """Prints a line for every turn."""
    tokenizer, other, draws_with = make(), make(), make()
    counts = TokenCounts()
    encoder = PromptEncoder(tokenizer, tokenizer.boundary_tokens, counts)

    async def whole(text: str) -> list[int]:
        return await off_loop_if(len(text) > LONG_TEXT_CHARS, lambda: other.encode(text, add_special_tokens=False))

    async def in_parts(text: str) -> list[int]:
        return (await encoder.encode([text], add_special_tokens=False))[0]

    rows: list[list[tuple[float, ...]]] = [[] for _ in range(NUM_TURNS)]
    for number in range(num_rounds):
        for row, text in zip(rows, prompts(draws_with, template, random.Random(number)), strict=True):
            num_encoded = counts.num_encoded
            if number % 2:
                whole_us, expected = await microseconds(whole, text)
            parts_us, token_ids = await microseconds(in_parts, text)
            if not number % 2:
                whole_us, expected = await microseconds(whole, text)
            assert token_ids == expected
            row.append((len(token_ids), counts.num_encoded - num_encoded, whole_us, parts_us))
    print(f"{name}: {tokenizer.vocab_size} entries, medians of {num_rounds} conversations")
    print("| turn | tokens | encoded | us, whole | us, in parts | whole/parts |")
    print("|---|---|---|---|---|---|")
    for turn, row in enumerate(rows, 1):
        num_tokens, num_encoded, whole_us, parts_us = (statistics.median(column) for column in zip(*row, strict=True))
        ratio = whole_us / parts_us
        print(f"| {turn} | {num_tokens:.0f} | {num_encoded:.0f} | {whole_us:.0f} | {parts_us:.0f} | {ratio:.1f} |")


def main() -> None:
    """Measures the demo model's tokenizer and a large one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="conversations per tokenizer (default: 15)")
    num_rounds = parser.parse_args().rounds
    template = ChatTemplate.from_dir(DEMO_MODEL)
    assert template is not None, "the demo model has a chat template"
    for name, make in (("demo model", lambda: Tokenizer.from_dir(DEMO_MODEL)), ("large", lambda: large_tokenizer(128_000))):
        asyncio.run(measure(name, make, template, num_rounds))


if __name__ == "__main__":
    main()
