"""The toy tells the truth: it says what the oracle says, and anything wrong with a plan shows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from penstock.engine.errors import EngineStartError
from penstock.engine.plan import NO_TOKEN, NewBlocks, ScheduledChunk, StartedRequest, StepPlan
from penstock.engine.toy_config import ToyConfig, expected_tokens, ranked_logprob
from penstock.engine.toy_runner import ToyFault, ToyRunner
from penstock.ipc.messages import Sampling
from tests.engine.toy_engine import make_core, make_submit, run_to_end
from tests.toy_model import make_toy_model

TOY = ToyConfig(vocab_size=300)
PROMPT = [5, 6, 7, 8, 9, 10]


def make_toy(config: ToyConfig = TOY, num_blocks: int = 8) -> ToyRunner:
    return ToyRunner(config, num_blocks=num_blocks, block_size=4)


def int32s(*values: int) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def entries(first_column: int = 0, block_ids: Sequence[int] = (), slot: int = 0) -> tuple[NewBlocks, ...]:
    columns = range(first_column, first_column + len(block_ids))
    return (NewBlocks(slots=int32s(*[slot] * len(block_ids)), columns=int32s(*columns), block_ids=int32s(*block_ids)),)


def chunk(
    start: int, token_ids: Sequence[int], blocks: Sequence[int] = (), position: int | None = 0, *, starts: bool = False
) -> StepPlan:
    """A chunk of the request in slot 0, with blocks from the first column it needs."""
    sampling = Sampling(seed=0, max_tokens=8)
    started = StartedRequest(slot=0, sampling=sampling, prompt_token_ids=PROMPT, output_token_ids=[])
    row = ScheduledChunk(slot=0, num_computed_tokens=start, token_ids=int32s(*token_ids), samples_position=position)
    first_column = 0 if starts else -(-start // 4)
    return StepPlan(
        started=(started,) if starts else (),
        decode_slots=int32s(),
        chunks=(row,),
        new_blocks=entries(first_column, blocks),
    )


def decode(num_steps: int = 1, new_blocks: tuple[NewBlocks, ...] | None = None) -> StepPlan:
    return StepPlan(
        started=(),
        decode_slots=int32s(0),
        chunks=(),
        new_blocks=entries() if new_blocks is None else new_blocks,
        num_decode_steps=num_steps,
    )


def run(runner: ToyRunner, plan: StepPlan) -> list[list[int]]:
    """The sampled tokens: [steps][rows]."""
    tokens: list[list[int]] = runner.launch(plan).wait().token_ids.tolist()
    return tokens


def started_toy(position: int | None = 0) -> ToyRunner:
    """With the whole prompt computed."""
    runner = make_toy()
    run(runner, chunk(0, PROMPT, (0, 1), position, starts=True))
    return runner


def test_it_says_what_the_oracle_says_whatever_the_chunks_and_blocks() -> None:
    expected = expected_tokens(PROMPT, 2, TOY)
    whole = run(make_toy(), chunk(0, PROMPT, (0, 1), starts=True))
    runner = make_toy()
    assert run(runner, chunk(0, PROMPT[:3], (7,), None, starts=True)) == [[NO_TOKEN]]
    assert whole == run(runner, chunk(3, PROMPT[3:], (2,))) == [expected[:1]]
    assert run(runner, decode()) == [expected[1:]]


def test_it_runs_ahead_of_its_host() -> None:
    runner = started_toy()
    expected = expected_tokens(PROMPT, 6, TOY)
    assert run(runner, decode(3, entries(2, (5,)))) == [[token_id] for token_id in expected[1:4]]
    assert run(runner, decode(2)) == [[token_id] for token_id in expected[4:6]]


def test_a_wrong_block_changes_what_it_says() -> None:
    runner = started_toy()
    expected = [expected_tokens(PROMPT, 1, TOY)]
    assert run(runner, chunk(4, PROMPT[4:], (0, 2), starts=True)) == expected
    assert run(runner, chunk(4, PROMPT[4:], (3, 2), starts=True)) != expected


@pytest.mark.parametrize(
    "plan",
    [
        chunk(5, [10]),
        chunk(7, [10]),
        chunk(6, [1], (2,), 1),
        decode(4),
        decode(1, entries(1, (2,))),
        decode(1, entries(2, (8,))),
        decode(1, entries(2, (3,), slot=1)),
        decode(1, (*entries(), *entries())),
        decode(0),
        dataclasses.replace(decode(), decode_slots=int32s(0, 0)),
        dataclasses.replace(decode(), decode_slots=int32s(1)),
        dataclasses.replace(decode(), decode_slots=np.array([0], np.int64)),
        dataclasses.replace(chunk(0, PROMPT, (0, 1), starts=True), num_decode_steps=2),
        chunk(0, PROMPT, (0, 1), 1, starts=True),
        chunk(0, PROMPT, (0,), starts=True),
        chunk(0, [], (0,), None, starts=True),
    ],
    ids=[
        "a position again",
        "a position left out",
        "a token of the host's where the device has its own",
        "beyond the last block",
        "another block in a column",
        "a block that does not exist",
        "a block for somebody else",
        "another number of groups",
        "no step",
        "a slot twice",
        "a slot that was never started",
        "another type",
        "several steps of a prompt",
        "another position",
        "a prompt longer than its blocks",
        "an empty chunk",
    ],
)
def test_a_plan_that_contradicts_the_device_or_itself_is_a_fault(plan: StepPlan) -> None:
    runner = started_toy()
    with pytest.raises(ToyFault):
        run(runner, plan)


@pytest.mark.parametrize("fields", [{"logprobs": 0}, {"min_tokens": 3}])
def test_nobody_runs_ahead_whose_tokens_depend_on_the_position(fields: dict[str, Any]) -> None:
    runner = make_toy()
    plan = chunk(0, PROMPT, (0, 1), starts=True)
    sampling = Sampling(seed=0, max_tokens=8, **fields)
    run(runner, dataclasses.replace(plan, started=(dataclasses.replace(plan.started[0], sampling=sampling),)))
    with pytest.raises(ToyFault, match="ahead"):
        run(runner, decode(2))


def test_a_token_that_was_never_sampled_cannot_be_read() -> None:
    runner = started_toy(None)
    with pytest.raises(ToyFault, match="sampled no token"):
        run(runner, decode())


def test_steps_run_in_the_order_of_their_launch_when_they_are_waited_for() -> None:
    runner = make_toy()
    first = runner.launch(chunk(0, PROMPT, (0, 1), starts=True))
    second = runner.launch(decode())
    tokens = second.wait().token_ids[0], first.wait().token_ids[0]
    assert [*tokens[1], *tokens[0]] == expected_tokens(PROMPT, 2, TOY)


def test_a_step_takes_its_time() -> None:
    now_s = [10.0]
    config = dataclasses.replace(TOY, step_time_s=0.5)

    def sleep(duration_s: float) -> None:
        now_s[0] += duration_s

    runner = ToyRunner(config, num_blocks=8, block_size=4, clock=lambda: now_s[0], sleep=sleep)
    first = runner.launch(chunk(0, PROMPT, (0, 1), starts=True))
    second = runner.launch(decode(2))
    first.wait()
    assert now_s[0] == 10.5
    second.wait()
    assert now_s[0] == 11.5


def test_a_window_hides_what_is_behind_it() -> None:
    config = ToyConfig(vocab_size=300, windows=(3,))
    assert expected_tokens([1, 2, 3, 4], 5, config) == expected_tokens([9, 9, 2, 3, 4], 5, config)
    both = ToyConfig(vocab_size=300, windows=(None, 3))
    assert expected_tokens([1, 2, 3, 4], 5, both) != expected_tokens([9, 9, 2, 3, 4], 5, both)


def test_the_end_of_sequence_comes_now_and_then_and_not_too_early() -> None:
    config = ToyConfig(vocab_size=300, eos_token_id=299, eos_one_in=4, output_range=(0, 100))
    lengths = {len(expected_tokens([start], 50, config)) for start in range(40)}
    assert min(lengths) == 1
    assert 2 < max(lengths) < 50
    for start in range(40):
        tokens = expected_tokens([start], 50, config, Sampling(seed=0, max_tokens=50, min_tokens=10))
        assert len(tokens) > 10
    tokens = expected_tokens([1], 50, config, Sampling(seed=0, max_tokens=50, ignore_eos=True))
    assert len(tokens) == 50
    assert 299 in tokens


def test_the_engine_stops_where_the_oracle_does() -> None:
    config = ToyConfig(vocab_size=300, eos_token_id=299, eos_one_in=5)
    stop = expected_tokens([3, 4], 3, config)[-1]
    fields: dict[str, dict[str, Any]] = {
        "plain": {},
        "min": {"min_tokens": 6},
        "ignore": {"ignore_eos": True},
        "stop": {"stop_token_ids": (stop,)},
    }
    submits = {name: make_submit([3, 4], 12, **values) for name, values in fields.items()}
    collected = run_to_end(make_core(config), submits)
    for name, submit in submits.items():
        assert collected.token_ids[name] == expected_tokens([3, 4], 12, config, submit.sampling), name


def test_logprobs_are_those_of_one_distribution() -> None:
    core = make_core(TOY)
    (output, *_) = run_to_end(core, {"a": make_submit(PROMPT, 2, logprobs=3, prompt_logprobs=2)}).outputs["a"]
    assert output.logprobs is not None
    token = expected_tokens(PROMPT, 1, TOY)[0]
    assert output.logprobs.token_ids == [[token, token, (token + 1) % 300, (token + 2) % 300]]
    assert output.logprobs.ranks == [1]
    assert output.logprobs.logprobs == [pytest.approx([-0.693147, -0.693147, -1.386294, -2.079442], abs=1e-5)]
    assert output.prompt_logprobs is not None
    assert [row[0] for row in output.prompt_logprobs.token_ids] == PROMPT[1:]
    for position, (row, rank) in enumerate(zip(output.prompt_logprobs.token_ids, output.prompt_logprobs.ranks, strict=True)):
        likeliest = expected_tokens(PROMPT[: position + 1], 1, TOY)[0]
        assert row[1] == likeliest
        assert rank == ranked_logprob(row[0], likeliest, TOY)[0]


def test_a_toy_model_directory_is_read_back(tmp_path: Path) -> None:
    config = ToyConfig.from_dir(make_toy_model(tmp_path, windows=[None, 8], step_time_s=0.01))
    assert (config.vocab_size, config.windows, config.output_range) == (272, (None, 8), (32, 127))
    assert all(32 <= token < 127 for token in expected_tokens([1], 30, config))


def test_an_output_range_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 10, "output_range": [5, 11]}))
    with pytest.raises(EngineStartError, match="output_range"):
        ToyConfig.from_dir(tmp_path)


def test_the_toy_tokenizer_reads_and_writes_bytes(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(make_toy_model(tmp_path) / "tokenizer.json"))
    text = "Hello, wörld\n<|im_end|>"
    ids = tokenizer.encode(text).ids
    assert ids == [*"Hello, wörld\n".encode(), 258]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
