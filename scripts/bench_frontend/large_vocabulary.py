"""Writes a model directory with a trained tokenizer of 128,256 entries: byte-level BPE, as large models have.

    python -m scripts.bench_frontend.large_vocabulary DIR

It learns from the sources of Python's installed packages, so it differs a little from machine to machine; there are no weights.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 128_256
MAX_CHARACTERS = 64 << 20
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Llama 3 and Qwen cut text before they look for pairs."""
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most so many entries, special ones included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS), min_frequency=1, show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def sources() -> Iterator[str]:
    """Python files of this machine, in a fixed order."""
    num_characters = 0
    for root in dict.fromkeys((sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))):
        for path in sorted(Path(root).rglob("*.py")):
            text = path.read_text(errors="replace")
            num_characters += len(text)
            if num_characters > MAX_CHARACTERS:
                return
            yield text


def write(directory: Path, tokenizer: Tokenizer) -> None:
    """tokenizer.json and the chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"eos_token": SPECIAL_TOKENS[2], "chat_template": _TEMPLATE, "clean_up_tokenization_spaces": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def main() -> None:
    """Trains and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    tokenizer = train(sources(), VOCAB_SIZE)
    write(parser.parse_args().directory, tokenizer)
    print(f"{tokenizer.get_vocab_size():,} entries")


if __name__ == "__main__":
    main()
