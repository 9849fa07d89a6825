"""The model as this frontend serves it: what the engine said of it, its tokenizer and its chat template.

Long texts are tokenized and templates of long conversations rendered in a worker thread, so that they hold up nobody else's
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ipc.messages import Ready
from .chat_template import ChatTemplate, TemplateError
from .errors import BadRequest, ContextTooLong, ModelNotFound
from .escaped_pieces import EscapedPieces
from .off_loop import LONG_TEXT_CHARS, off_loop_if
from .prompt_encoder import PromptEncoder, TokenCounts
from .token_pieces import TextError
from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Everything that is the same for all requests to one model."""

    facts: Ready
    tokenizer: Tokenizer
    template: ChatTemplate | None
    encoder: PromptEncoder
    escaped_pieces: Mapping[bool, EscapedPieces]
    """For texts with (False) and without (True) special tokens."""

    @classmethod
    def load(cls, facts: Ready, counts: TokenCounts) -> ServedModel:
        """Reads the files that Ready points to; prompts are added to `counts`. Raises TextError, TemplateError, OSError."""
        path = Path(facts.model_dir)
        tokenizer = Tokenizer.from_dir(path)
        template = ChatTemplate.from_dir(path)
        named = set(tokenizer.special_tokens.values())
        cut_at = [token for token in tokenizer.boundary_tokens if token in named or (template and template.mentions(token))]
        encoder = PromptEncoder(tokenizer, cut_at, counts)
        pieces = {skip: EscapedPieces(tokenizer, skip_special_tokens=skip) for skip in (False, True)}
        return cls(facts, tokenizer, template, encoder, pieces)

    @property
    def name(self) -> str:
        """The name that answers carry."""
        return self.facts.served_model_names[0]

    def check_name(self, name: str | None) -> None:
        """Raises ModelNotFound unless the client asked for this model, or for none in particular."""
        if name is not None and name not in self.facts.served_model_names:
            raise ModelNotFound(name)

    async def encode(
        self, texts: Sequence[str], *, add_special_tokens: bool, param: str, cache_salt: str | None = None
    ) -> list[list[int]]:
        """The texts' ids. Raises BadRequest; ContextTooLong before tokenizing where a text's length alone shows it."""
        limit = self.facts.max_model_len
        for text in texts:
            at_least = len(text) // self.tokenizer.longest_token_chars
            if at_least > limit:
                raise ContextTooLong(f"The model's context is {limit} tokens, but the prompt has at least {at_least}.", param)
        try:
            return await self.encoder.encode(texts, add_special_tokens=add_special_tokens, cache_salt=cache_salt or "")
        except TextError as error:
            raise BadRequest(f"{param}: {error}", param) from error

    async def render(self, messages: list[dict[str, Any]], options: dict[str, Any]) -> str:
        """The conversation as the model was trained to read it. Raises BadRequest."""
        template = self.template
        if template is None:
            raise BadRequest("This model has no chat template. Use /v1/completions.", "messages")

        def render() -> str:
            return template.render(messages, **options)

        num_chars = sum(len(str(message.get("content") or "")) for message in messages)
        try:
            return await off_loop_if(num_chars > LONG_TEXT_CHARS, render)
        except TemplateError as error:
            raise BadRequest(f"messages: {error}", "messages") from error

    def check_token_ids(self, token_ids: list[int], param: str) -> None:
        """Raises BadRequest for an id the logits do not have."""
        vocab_size = self.facts.vocab_size
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
            raise BadRequest(f"{param}: token ids must be 0 to {vocab_size - 1}", param)
