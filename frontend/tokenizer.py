"""Text to token ids and back, for one model, over its tokenizer.json.

Every method may be called from several threads at once; `encode` releases the interpreter lock while it works. Ids that
the vocabulary does not have, which a model with a padded vocabulary can produce, read as nothing.
`clean_up_tokenization_spaces` is ignored, as transformers 5 does for BPE: it would eat spaces the model wrote.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import tokenizers

from .boundaries import Boundaries, boundary_tokens, ids_at_boundaries
from .token_pieces import PieceRules, TextError, piece_rules

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Frame = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids in front of a text's own, and behind them."""
NO_FRAME: Frame = (), ()


class Tokenizer:
    """One model's tokenizer; make it with `from_dir`."""

    def __init__(self, backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
        """`config` is the content of tokenizer_config.json. Raises TextError for a tokenizer that cannot be used."""
        backend.no_truncation()
        backend.no_padding()
        self.special_tokens = named_special_tokens(config)
        """The named ones: "bos_token", "eos_token", ... -> how they are written."""
        _mark_special(backend, self.special_tokens.values(), config)
        self._backend = backend
        self._rules: PieceRules = piece_rules(_decoder_of(backend))
        self._piece_of: dict[int, bytes] = {}
        self.special_token_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        """One more than the largest id with a meaning; the model's logits may be wider."""
        self.longest_token_chars = max(map(len, vocab), default=1)
        """No token stands for more characters: a bound on how few tokens a text can have."""
        self.bos_token_id = self._named_id("bos_token")
        self.eos_token_id = self._named_id("eos_token")
        self._prefix_ids, self._suffix_ids = self._missing_affixes(config)
        self.frame = self._frame()
        """What `add_special_tokens` puts around a text's ids; None: something that depends on the text."""
        self.boundary_tokens = boundary_tokens(backend)
        """The special tokens in front of which a text can be cut: the parts' ids are those of the whole."""

    @classmethod
    def from_dir(cls, path: Path | str) -> Tokenizer:
        """The tokenizer of a model directory. Raises TextError when tokenizer.json is missing or broken."""
        directory = Path(path)
        try:
            # from_file would report a missing file and a broken one alike.
            backend = tokenizers.Tokenizer.from_buffer((directory / "tokenizer.json").read_bytes())
            config = read_tokenizer_config(directory)
        except OSError as error:
            raise TextError(f"cannot read the tokenizer: {error}") from error
        except Exception as error:  # the library raises Exception itself
            raise TextError(f"tokenizer.json is broken: {error}") from error
        return cls(backend, config)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`; with `add_special_tokens` framed as the model was trained (usually a beginning-of-text token).

        Raises TextError for text that is not Unicode (lone surrogates) or that the vocabulary cannot express.
        """
        try:
            ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError as error:
            raise TextError("the text is not valid Unicode: it has a surrogate without its other half") from error
        except Exception as error:  # the library raises Exception itself
            raise TextError("the text cannot be expressed in the model's vocabulary") from error
        return [*self._prefix_ids, *ids, *self._suffix_ids] if add_special_tokens else ids

    def boundaries(self, tokens: Collection[str]) -> Boundaries:
        """Cuts texts in front of these tokens, which are of `boundary_tokens`."""
        return Boundaries(tokens, ids_at_boundaries(self._backend, tokens))

    def decode(self, token_ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `token_ids`, malformed UTF-8 read as U+FFFD."""
        reader = PieceReader(self, skip_special_tokens=skip_special_tokens, at_start=True)
        return b"".join(map(reader.read, token_ids)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes this token stands for inside a text: with its leading space, and written out if it is a special token."""
        data = self._piece_of.get(token_id)
        if data is None:
            data = self._piece_of[token_id] = self._rules.piece(written) if (written := self._written(token_id)) else b""
        return data

    def first_token_bytes(self, token_id: int) -> bytes:
        """The bytes this token stands for at the start of a text."""
        return self._rules.first_piece(self._written(token_id))

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text; part of a character reads as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary entry as it is written in tokenizer.json, None if there is none."""
        return self._backend.token_to_id(token)

    def _written(self, token_id: int) -> str:
        try:
            return self._backend.id_to_token(token_id) or ""
        except OverflowError:  # negative, or more than 32 bits
            return ""

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_id(token)

    def _frame(self) -> Frame | None:
        try:
            bare, framed = (self.encode("a", add_special_tokens=special) for special in (False, True))
        except TextError:
            return None
        num_more = len(framed) - len(bare)
        at = next((start for start in range(num_more + 1) if framed[start : start + len(bare)] == bare), None)
        if at is None or not self.special_token_ids.issuperset([*framed[:at], *framed[at + len(bare) :]]):
            return None
        return tuple(framed[:at]), tuple(framed[at + len(bare) :])

    def _missing_affixes(self, config: dict[str, Any]) -> tuple[list[int], list[int]]:
        """What add_bos_token and add_eos_token ask for where tokenizer.json's post-processor does not do it already."""
        framed: list[int] = self._backend.encode("", add_special_tokens=True).ids
        bos, eos = self.bos_token_id, self.eos_token_id
        needs_bos = config.get("add_bos_token") is True and bos is not None and framed[:1] != [bos]
        needs_eos = config.get("add_eos_token") is True and eos is not None and framed[-1:] != [eos]
        return [bos] if needs_bos and bos is not None else [], [eos] if needs_eos and eos is not None else []


class PieceReader:
    """Reads one text's tokens in order, as the bytes each of them adds to the text."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool, at_start: bool) -> None:
        """`at_start`: nothing of the text came before."""
        self._tokenizer = tokenizer
        self._skipped_ids = tokenizer.special_token_ids if skip_special_tokens else frozenset()
        self.is_at_start = at_start
        """Nothing of the text was read yet, and nothing came before."""

    def read(self, token_id: int) -> bytes:
        """What this token adds; nothing if it is skipped or unknown."""
        if token_id in self._skipped_ids:
            return b""
        data = self._tokenizer.token_bytes(token_id)
        if self.is_at_start and data:
            self.is_at_start = False
            return self._tokenizer.first_token_bytes(token_id)
        return data


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json of a model directory, empty if there is none. Raises OSError, ValueError."""
    path = directory / "tokenizer_config.json"
    if not path.exists():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("tokenizer_config.json is not a JSON object")
    return config


def named_special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """ "bos_token" and the like -> how the token is written. The file has either the text or an object with `content`."""
    found = {name: _token_text(config.get(name)) for name in _NAMED_TOKENS}
    return {name: text for name, text in found.items() if text is not None}


def _token_text(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) and content else None


def _decoder_of(backend: tokenizers.Tokenizer) -> dict[str, Any] | None:
    if backend.decoder is None:
        return None
    # The decoder's part of tokenizer.json; Tokenizer.to_str would write out the whole vocabulary for it.
    decoder: dict[str, Any] = json.loads(backend.decoder.__getstate__())
    return decoder


def _mark_special(backend: tokenizers.Tokenizer, named: Iterable[str], config: dict[str, Any]) -> None:
    """Special tokens that only tokenizer_config.json names, as transformers does it; only those the vocabulary has."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    listed = [text for value in extra if (text := _token_text(value)) is not None] if isinstance(extra, list) else []
    described = config.get("added_tokens_decoder") or {}
    listed += [value["content"] for value in described.values() if value.get("special") and _token_text(value)]
    known = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    missing = [text for text in dict.fromkeys([*named, *listed]) if text not in known]
    backend.add_special_tokens([text for text in missing if backend.token_to_id(text) is not None])
