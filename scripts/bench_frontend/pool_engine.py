"""An engine without a model for any requests of any frontends: the real protocol, the real KV block pool, made-up tokens.

Every step, `--steps-per-s` times a second, each running request gets a token. Blocks are found, grown and registered as the
engine does, so `cached_tokens` and running out of blocks are real; prompts take one step. SIGTERM ends it: after an audit of
every block a JSON object on stdout says what was looked up and found.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from penstock.bench.prompts import WORDS
from penstock.engine.kv_blocks import BlockTable, KVBlocks, extend_block_hashes
from penstock.engine.metrics import EngineMetrics, Gauges
from penstock.frontend.tokenizer import Tokenizer
from penstock.ipc.messages import (
    Abort,
    Detail,
    FinishReason,
    Goodbye,
    Heartbeat,
    Metric,
    Outputs,
    Rejected,
    RejectReason,
    Submit,
)

from .link import BLOCK_SIZE, Link, facts

MAX_MODEL_LEN = 1 << 20
WORDS_ANSWER, LETTERS_ANSWER = "words", "letters"
_IDLE_MS = 100

Says = Callable[[int, int], list[int]]
"""(seed, number of tokens) -> the token ids of an answer."""


@dataclass(slots=True, eq=False)
class Running:
    """A request with its blocks."""

    identity: bytes
    submit: Submit
    token_ids: array[int]
    answer: list[int]
    """What it has still to say, last token first."""
    hashes: list[bytes] = field(default_factory=list)
    table: BlockTable | None = None
    num_output: int = 0
    num_cached: int | None = None
    """Until it was told."""


class PoolEngine:
    """All requests of all frontends."""

    def __init__(self, socket_dir: Path, model_dir: Path, num_blocks: int, step_s: float, letters: bool) -> None:
        tokenizer = Tokenizer.from_dir(model_dir)
        ready = facts(model_dir, tokenizer, max_model_len=MAX_MODEL_LEN, num_blocks=num_blocks)
        self._link = Link(socket_dir, ready, self._export)
        self._says: Says = partial(_letters if letters else _words, tokenizer)
        self._blocks = KVBlocks(
            num_blocks=num_blocks, block_size=BLOCK_SIZE, max_step_tokens=MAX_MODEL_LEN, caches_prefixes=True
        )
        self._metrics = EngineMetrics()
        self._step_s = step_s
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []
        self.is_ending = False

    def run(self) -> dict[str, int]:
        """Until `is_ending`; what was looked up in the prefix cache and found there."""
        due_s = time.perf_counter()
        while not self.is_ending:
            wait_s = due_s - time.perf_counter()
            self._receive(max(0, round(1e3 * wait_s)) if self._running or self._waiting else _IDLE_MS)
            if time.perf_counter() >= due_s:
                self._start_waiting()
                self._step()
                due_s = max(due_s + self._step_s, time.perf_counter() - self._step_s)
        self._blocks.check_integrity()
        metrics = self._metrics
        return {
            "num_requests": metrics.num_admitted,
            "num_prompt_tokens": metrics.num_prefix_queries,
            "num_prompt_tokens_found": metrics.num_prefix_hits,
            "num_output_tokens": metrics.num_generation_tokens,
            "num_blocks_cached": self._blocks.pool.num_cached,
        }

    def _receive(self, timeout_ms: int) -> None:
        for identity, message in self._link.receive(timeout_ms)[0]:
            if isinstance(message, Submit):
                self._take(identity, message)
            elif isinstance(message, Abort):
                gone = set(array("i", message.request_ids))
                self._drop(lambda one, who=identity, ids=gone: one.identity == who and one.submit.request_id in ids, tell=True)
            elif isinstance(message, Goodbye):
                self._link.frontends.discard(identity)
                self._drop(lambda one, who=identity: one.identity == who, tell=False)
            elif isinstance(message, Heartbeat):
                self._metrics.set_frontend_totals(identity, message.http_responses, message.prompt_tokens)

    def _take(self, identity: bytes, submit: Submit) -> None:
        token_ids = array("i", submit.token_ids)
        answer = self._says(submit.sampling.seed, submit.sampling.max_tokens)
        if self._blocks.num_blocks_for(len(token_ids) + len(answer)) > self._blocks.pool.num_blocks:
            message = f"{len(token_ids) + len(answer):,} tokens do not fit into {self._blocks.pool.num_blocks:,} blocks"
            self._link.send(identity, Rejected(submit.request_id, RejectReason.TOO_LONG, message, "max_tokens"))
            return
        self._metrics.num_admitted += 1
        self._waiting.append(Running(identity, submit, token_ids, answer[::-1]))

    def _start_waiting(self) -> None:
        """In the order of arrival, as long as there are blocks for prompt and answer."""
        while self._waiting:
            one = self._waiting[0]
            num_prompt = len(one.token_ids)
            extend_block_hashes(one.hashes, one.token_ids, BLOCK_SIZE, one.submit.cache_salt)
            hit = self._blocks.find_prefix(one.hashes, num_prompt - 1)
            if not self._blocks.can_start(num_prompt + len(one.answer), hit):
                return
            self._waiting.popleft()
            one.table = self._blocks.open(hit)
            self._blocks.grow(one.table, hit.num_tokens, num_prompt + len(one.answer))
            one.num_cached = hit.num_tokens
            self._metrics.num_prefix_queries += num_prompt
            self._metrics.num_prefix_hits += hit.num_tokens
            self._running.append(one)

    def _step(self) -> None:
        """A token for each request; one message to each frontend."""
        by_frontend: dict[bytes, list[Running]] = {}
        for one in self._running:
            by_frontend.setdefault(one.identity, []).append(one)
        for identity, members in by_frontend.items():
            self._link.send(identity, self._outputs(members))
        self._metrics.num_generation_tokens += len(self._running)
        for one in self._running:
            if one.num_output == 1:
                self._register(one)
            if not one.answer:
                self._close(one)
        self._running = [one for one in self._running if one.answer]
        if not self._running:
            self._blocks.check_idle()

    def _outputs(self, members: list[Running]) -> Outputs:
        positions, details, said = array("i"), [], array("i")
        for one in members:
            positions.append(one.num_output)
            said.append(one.answer.pop())
            one.token_ids.append(said[-1])
            one.num_output += 1
            if one.num_cached is not None:
                details.append(Detail(request_id=one.submit.request_id, num_cached_tokens=one.num_cached))
                one.num_cached = None
        return Outputs(
            engine_boot_id=self._link.boot_id,
            request_ids=array("i", (one.submit.request_id for one in members)).tobytes(),
            positions=positions.tobytes(),
            counts=array("i", [1]).tobytes() * len(members),
            token_ids=said.tobytes(),
            finish_reasons=bytes(0 if one.answer else FinishReason.LENGTH for one in members),
            details=tuple(details),
        )

    def _close(self, one: Running) -> None:
        assert one.table is not None
        if one.num_output:
            self._register(one)
        self._blocks.close(one.table)

    def _register(self, one: Running) -> None:
        """What has been computed, so all but the last token, can be found again."""
        assert one.table is not None
        extend_block_hashes(one.hashes, one.token_ids[:-1], BLOCK_SIZE, one.submit.cache_salt)
        self._blocks.register(one.table, one.hashes, min(len(one.hashes), (len(one.token_ids) - 1) // BLOCK_SIZE))

    def _drop(self, is_meant: Callable[[Running], bool], *, tell: bool) -> None:
        for one in [one for one in (*self._running, *self._waiting) if is_meant(one)]:
            if one.table is not None:
                self._running.remove(one)
                self._close(one)
            else:
                self._waiting.remove(one)
            if tell:
                self._link.send(one.identity, self._aborted(one))

    def _aborted(self, one: Running) -> Outputs:
        return Outputs(
            engine_boot_id=self._link.boot_id,
            request_ids=array("i", [one.submit.request_id]).tobytes(),
            positions=array("i", [one.num_output]).tobytes(),
            counts=array("i", [0]).tobytes(),
            token_ids=b"",
            finish_reasons=bytes([FinishReason.ABORT]),
        )

    def _export(self) -> tuple[Metric, ...]:
        pool = self._blocks.pool
        gauges = Gauges(
            num_running=len(self._running),
            num_waiting=len(self._waiting),
            num_free_blocks=pool.num_free,
            num_cached_blocks=pool.num_cached,
            num_owned_blocks=pool.num_owned,
            block_size=BLOCK_SIZE,
        )
        return self._metrics.export(gauges)


def _words(tokenizer: Tokenizer, seed: int, num_tokens: int) -> list[int]:
    """Random words as the tokenizer writes them."""
    text = " ".join(random.Random(seed).choices(WORDS, k=num_tokens))
    return tokenizer.encode(text, add_special_tokens=False)[:num_tokens]


def _letters(tokenizer: Tokenizer, seed: int, num_tokens: int) -> list[int]:
    """Random words letter by letter: tokens that the tokenizer would never write for this text."""
    text = " ".join(random.Random(seed).choices(WORDS, k=num_tokens))[:num_tokens]
    return [token_id for letter in text for token_id in tokenizer.encode(letter, add_special_tokens=False)[:1]]


def main() -> None:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("socket_dir", type=Path)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--num-blocks", type=int, required=True)
    parser.add_argument("--steps-per-s", type=float, required=True)
    parser.add_argument("--answers", choices=(WORDS_ANSWER, LETTERS_ANSWER), default=WORDS_ANSWER)
    arguments = parser.parse_args()
    letters = arguments.answers == LETTERS_ANSWER
    engine = PoolEngine(arguments.socket_dir, arguments.model_dir, arguments.num_blocks, 1 / arguments.steps_per_s, letters)

    def end(*_: object) -> None:
        engine.is_ending = True

    signal.signal(signal.SIGTERM, end)
    print(json.dumps(engine.run()), flush=True)


if __name__ == "__main__":
    main()
