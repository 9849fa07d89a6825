"""Trains the demo model's tokenizer on generated text and writes it, with the chat template, in Hugging Face's format.

Byte-level BPE: any text round-trips, every digit is a token by itself. The same code and seed give the same file.
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from .generate import SHORT_CHARS, conversations

VOCAB_SIZE = 2048
NUM_CONVERSATIONS = 30_000
CONTEXT = 4096
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, IM_START, IM_END)
TAGS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<tools>", "</tools>")  # stay in decoded text
MODEL_DIR = Path(__file__).parents[2] / "penstock" / "demo_model"


def train_tokenizer(num_conversations: int) -> Tokenizer:
    """A tokenizer for the generated conversations."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[*SPECIAL, *TAGS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = islice(conversations("tokenizer", SHORT_CHARS), num_conversations)
    tokenizer.train_from_iterator((without_markers(text) for text in texts), trainer)
    document = json.loads(tokenizer.to_str())
    for token in document["added_tokens"]:
        token["special"] = token["content"] in SPECIAL
    return Tokenizer.from_str(json.dumps(document))


def without_markers(text: str) -> str:
    """The text without special tokens, which are no text to learn merges from."""
    for marker in (*SPECIAL, *TAGS):
        text = text.replace(marker, "\n")
    return text


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must be there."""
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(token)
    return int(found)


def check(tokenizer: Tokenizer) -> None:
    """What training and serving rely on."""
    for digit in "0123456789":
        assert len(tokenizer.encode(digit).ids) == 1
        assert sum(digit in token for token in tokenizer.get_vocab() if not token.startswith("<")) == 1
    for role in ("system", "user", "assistant"):
        assert len(tokenizer.encode(role).ids) == 1, role
    text = "".join(map(chr, range(1, 0x300))) + "äöü 漢字 🚀 1234"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, object]:
    """The contents of tokenizer_config.json."""
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
            "special": token in SPECIAL,
        }
        for token in (*SPECIAL, *TAGS)
    }  # fmt: skip
    return {
        "added_tokens_decoder": added,
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8").rstrip("\n"),
    }


def main() -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=MODEL_DIR)
    parser.add_argument("--conversations", type=int, default=NUM_CONVERSATIONS)
    args = parser.parse_args()
    tokenizer = train_tokenizer(args.conversations)
    check(tokenizer)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out / "tokenizer.json"))
    text = json.dumps(tokenizer_config(tokenizer), indent=2, ensure_ascii=False)
    (args.out / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
