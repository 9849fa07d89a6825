"""Tiny tokenizers in the two kinds that open-weight models use, written as model directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CHATML_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TRAINING_TEXT = (
    "the quick brown fox jumps over the lazy dog",
    "what is 12 plus 30? the answer is 42.",
    "ein großer Bär trägt süße Früchte; 今日は天気がいいですね; 😀😃 naïve café",
)


def byte_level_tokenizer(vocab_size: int = 400) -> Tokenizer:
    """Byte-level BPE as in Qwen or Llama 3, with `<|endoftext|>`, `<|im_start|>` and `<|im_end|>` behind the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT * 3, trainer)
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens([AddedToken("<tool call>", normalized=False)])
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """SentencePiece-like BPE as in Llama 2 and Mistral: `▁` for spaces, `<0xE2>` for bytes, `<s>` put in front."""
    words = ("the", "quick", "fox", "dog", "is", "café")
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{byte:02X}>": byte + 3 for byte in range(256)}
    merges: list[tuple[str, str]] = []
    for text in (*sorted({char for word in words for char in word} | {"▁"}), *(f"▁{word}" for word in words)):
        for end in range(1, len(text) + 1):
            if text[:end] not in vocab:
                vocab[text[:end]] = len(vocab)
                if end > 1:
                    merges.append((text[: end - 1], text[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def write_tokenizer(path: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    """Writes tokenizer.json and, from `config`, tokenizer_config.json into the directory `path`."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


def write_byte_level_tokenizer(path: Path) -> Path:
    """A byte-level tokenizer with a ChatML template; `<|im_end|>` ends a turn."""
    return write_tokenizer(path, byte_level_tokenizer(), bos_token=None, eos_token="<|im_end|>", chat_template=CHATML_TEMPLATE)


def write_byte_fallback_tokenizer(path: Path) -> Path:
    """A SentencePiece-like tokenizer without a chat template."""
    return write_tokenizer(
        path,
        byte_fallback_tokenizer(),
        bos_token="<s>",
        eos_token={"__type": "AddedToken", "content": "</s>"},
        unk_token="<unk>",
    )
