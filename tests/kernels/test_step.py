"""The kernels that set a step up and finish it: by hand where it matters, and Triton's against their twins, word by word."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from penstock.kernels import reference_step, triton_step, triton_step_updates
from penstock.kernels.step_state import (
    FROM_DEVICE,
    INVALID_TOKEN,
    NO_TOKEN,
    NUM_OUTPUT_STEPS,
    SlotState,
    StepTensors,
    StepUpdates,
    make_slot_state,
    make_step_tensors,
)
from tests.kernels.comparing import TRITON_DEVICE
from tests.kernels.compiling import check_launches

NUM_SLOTS, NUM_GROUPS, MAX_BLOCKS, BLOCK_SIZE = 9, 2, 100, 4
MAX_TOKENS, MAX_ROWS = 400, 12
POISON = 2**30
Everything = tuple[SlotState, StepTensors]


def fresh(device: str) -> Everything:
    """Slots that have come some way, and a step full of what must not be read."""
    state = make_slot_state(NUM_SLOTS, NUM_GROUPS, MAX_BLOCKS, torch.device(device))
    step = make_step_tensors(state, MAX_TOKENS, MAX_ROWS, torch.device(device))
    generator = torch.Generator().manual_seed(7)
    for target, end in ((state.num_computed, 300), (state.last_token, 1000), (state.output_positions, 50)):
        target[:-1] = torch.randint(0, end, (NUM_SLOTS,), generator=generator, dtype=torch.int32)
    state.block_tables.copy_(torch.randint(0, 10**6, state.block_tables.shape, generator=generator, dtype=torch.int32))
    for tensor in (step.positions, step.kv_slots, step.context_lens, step.last_tokens, step.sampled, step.token_ids):
        tensor.fill_(POISON)
    return state, step


def rows_words(rows: list[tuple[int, int, int, int]], num_rows: int) -> Tensor:
    """(slot, tokens, start, output position) of each row, padded to num_rows."""
    padded = rows + [(NUM_SLOTS, 0, FROM_DEVICE, NO_TOKEN)] * (num_rows - len(rows))
    slots, lengths, starts, samples = (list(column) for column in zip(*padded, strict=True))
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return torch.tensor([*slots, 0, *ends, *starts, *samples], dtype=torch.int32)


def updates(rows: list[tuple[int, int, int, int]], num_rows: int, num_blocks: int = 0, num_started: int = 0) -> StepUpdates:
    """Random block entries and records, these rows, and token ids for the chunks among them."""
    rng = random.Random(num_blocks)
    places = rng.sample(range(NUM_GROUPS * (NUM_SLOTS + 1) * MAX_BLOCKS), num_blocks)
    block_ids = [rng.randrange(10**6) for _ in places]
    floats = torch.rand(num_started, 6).view(torch.int32).tolist()
    seeds = [rng.randrange(2**63) for _ in range(num_started)]
    seed_words = torch.tensor(seeds, dtype=torch.int64).view(torch.int32).view(-1, 2).tolist()
    records = [[slot, *floats[slot], 40 + slot, *seed_words[slot]] for slot in range(num_started)]
    token_ids = [rng.randrange(1000) for _, length, start, _ in rows if start != FROM_DEVICE for _ in range(length)]
    flat = [*places, *block_ids, *(word for record in records for word in record)]
    words = torch.cat((torch.tensor(flat, dtype=torch.int32), rows_words(rows, num_rows), torch.tensor(token_ids).int()))
    return StepUpdates(
        words=words,
        num_blocks=num_blocks,
        num_started=num_started,
        num_rows=num_rows,
        num_token_ids=len(token_ids),
        first_token=sum(start == FROM_DEVICE for _, _, start, _ in rows),
    )


def assert_same(actual: Everything, expected: Everything) -> None:
    for ours, theirs in ((actual[0], expected[0]), (actual[1], expected[1])):
        for field in dataclasses.fields(ours):
            found, wanted = getattr(ours, field.name).cpu(), getattr(theirs, field.name)
            assert torch.equal(found, wanted), field.name


STEPS = {
    "decodes": ([(4, 1, FROM_DEVICE, NO_TOKEN), (0, 1, FROM_DEVICE, NO_TOKEN), (8, 1, FROM_DEVICE, NO_TOKEN)], 3, 3),
    "padded decodes": ([(4, 1, FROM_DEVICE, NO_TOKEN), (2, 1, FROM_DEVICE, NO_TOKEN)], 8, 8),
    "mixed": ([(4, 1, FROM_DEVICE, NO_TOKEN), (1, 300, 5, 0), (3, 7, 0, NO_TOKEN), (6, 1, 90, 13)], 12, 400),
    "chunks alone, unpadded": ([(7, 9, 12, 2), (1, 3, 0, NO_TOKEN)], 2, 12),
    "nothing but padding": ([], 4, 64),
}


@pytest.mark.parametrize(("rows", "num_rows", "num_tokens"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(("num_blocks", "num_started"), [(0, 0), (1, 2), (300, 7)])
def test_triton_does_to_every_word_what_the_twin_does(
    rows: list[tuple[int, int, int, int]], num_rows: int, num_tokens: int, num_blocks: int, num_started: int
) -> None:
    ours, theirs = fresh(TRITON_DEVICE), fresh("cpu")
    news = updates(rows, num_rows, num_blocks, num_started)
    triton_step_updates.apply_step_updates(*ours, dataclasses.replace(news, words=news.words.to(TRITON_DEVICE)))
    reference_step.apply_step_updates(*theirs, news)
    assert_same(ours, theirs)
    for _ in range(3):
        triton_step.prepare_step(*ours, num_tokens, num_rows, BLOCK_SIZE)
        reference_step.prepare_step(*theirs, num_tokens, num_rows, BLOCK_SIZE)
        assert_same(ours, theirs)
        token_ids, is_valid = torch.randint(0, 1000, (num_rows,)), torch.rand(num_rows) < 0.7
        triton_step.advance_step(*ours, token_ids.to(TRITON_DEVICE), is_valid.to(TRITON_DEVICE))
        reference_step.advance_step(*theirs, token_ids, is_valid)
        assert_same(ours, theirs)


def test_a_mixed_step_is_prepared_and_advanced_as_planned() -> None:
    state, step = fresh("cpu")
    state.num_computed[4], state.last_token[4], state.output_positions[4] = 10, 77, 5
    state.block_tables[1, 4, 2] = 31
    news = updates([(4, 1, FROM_DEVICE, NO_TOKEN), (1, 3, 6, 2), (3, 2, 0, NO_TOKEN)], 4)
    reference_step.apply_step_updates(state, step, news)
    reference_step.prepare_step(state, step, 8, 4, BLOCK_SIZE)
    assert step.token_ids[:8].tolist() == [77, *news.words[-5:].tolist(), 0, 0]
    assert step.positions[:8].tolist() == [10, 6, 7, 8, 0, 1, 0, 0]
    assert step.kv_slots[1, [0, 6, 7]].tolist() == [31 * BLOCK_SIZE + 2, -1, -1]
    assert step.context_lens[:4].tolist() == [11, 9, 2, 0]
    assert step.last_tokens[:3].tolist() == [0, 3, 5]
    assert state.output_positions[[4, 1]].tolist() == [5, 2]
    last_of_3 = int(state.last_token[3])
    reference_step.advance_step(state, step, torch.tensor([50, 60, 70, 80]), torch.tensor([True, False, True, True]))
    assert state.num_computed[[4, 1, 3, NUM_SLOTS]].tolist() == [11, 9, 2, 0]
    assert state.last_token[[4, 1, 3]].tolist() == [50, 0, last_of_3]
    assert state.output_positions[[4, 1]].tolist() == [6, 3]
    assert step.sampled[0, :4].tolist() == [50, INVALID_TOKEN, NO_TOKEN, NO_TOKEN]


def test_the_latest_steps_are_kept_in_turn() -> None:
    state, step = fresh("cpu")
    reference_step.apply_step_updates(state, step, updates([(4, 1, FROM_DEVICE, NO_TOKEN)], 1))
    for token_id in range(NUM_OUTPUT_STEPS + 3):
        state.num_computed[4] = 0
        reference_step.prepare_step(state, step, 1, 1, BLOCK_SIZE)
        reference_step.advance_step(state, step, torch.tensor([token_id]), torch.tensor([True]))
    assert step.sampled[:, 0].tolist() == [*range(NUM_OUTPUT_STEPS, NUM_OUTPUT_STEPS + 3), *range(3, NUM_OUTPUT_STEPS)]


def launch_steps() -> None:
    state = make_slot_state(256, 2, 8192, torch.device("meta"))
    step = make_step_tensors(state, 2048, 256, torch.device("meta"))
    news = StepUpdates(
        words=torch.empty(9000, dtype=torch.int32, device="meta"),
        num_blocks=300,
        num_started=3,
        num_rows=256,
        num_token_ids=100,
        first_token=7,
    )
    triton_step_updates.apply_step_updates(state, step, news)
    for num_tokens, num_rows in ((1, 1), (256, 256), (2048, 64)):
        triton_step.prepare_step(state, step, num_tokens, num_rows, 16)
        token_ids = torch.empty(num_rows, dtype=torch.int64, device="meta")
        triton_step.advance_step(state, step, token_ids, token_ids.bool())


def test_step_kernels_compile_once_for_all_sizes() -> None:
    """Whatever the batch: three kernels, the one that prepares for decodes and for mixed steps."""
    launches = check_launches(launch_steps)
    assert sorted(launch.kernel for launch in launches if launch.arch == 90) == [
        "_advance_kernel",
        "_apply_updates_kernel",
        "_prepare_kernel",
        "_prepare_kernel",
    ]
