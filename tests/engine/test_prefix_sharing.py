"""What decodes share is found from the blocks they were given, and found anew when the rows change."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from penstock.engine.batch import Batch, Limits
from penstock.engine.plan import NewBlocks
from penstock.engine.prefix_sharing import (
    ITEMS_PER_ROW,
    PrefixSharing,
    make_shared_chunks,
    pack_shared,
    shared_chunks_of,
    write_shared_chunks,
)
from penstock.engine.staging import upload
from penstock.engine.step_sizes import StepSize
from tests.engine.runner_driver import Driver, make_prompts, requests_for
from tests.engine.tiny_model import is_greedy

LIMITS = Limits(num_blocks=400, block_size=16, max_blocks=40, num_groups=2, num_slots=4, vocab_size=9)
NONE = NewBlocks(slots=np.zeros(0, np.int32), columns=np.zeros(0, np.int32), block_ids=np.zeros(0, np.int32))
NUM_COMPUTED = np.array([400, 300, 290, 500], np.int64)


def blocks(rows: dict[int, Sequence[int]]) -> NewBlocks:
    entries = [(slot, column, block) for slot, row in rows.items() for column, block in enumerate(row)]
    slots, columns, block_ids = np.array(entries, np.int32).T
    return NewBlocks(slots=slots, columns=columns, block_ids=block_ids)


def batch(decode_slots: Sequence[int], new_blocks: NewBlocks = NONE) -> Batch:
    return Batch(np.array(decode_slots, np.int32), (), (NONE, new_blocks), 1, None, {})


def sharing_of_three() -> PrefixSharing:
    """Slots 0, 1 and 3 have their first 16 blocks in common."""
    sharing = PrefixSharing(LIMITS, 1, 4)
    common = range(100, 116)
    rows = {0: [*common, *range(9)], 1: [*common, 20, 21, 22], 2: range(30, 60), 3: [*common, *range(60, 80)]}
    assert sharing.find(batch([], blocks(rows)), NUM_COMPUTED) is None
    return sharing


def test_rows_that_read_the_same_blocks_are_found() -> None:
    found = sharing_of_three().find(batch([3, 2, 1]), NUM_COMPUTED)
    assert found is not None
    assert found.members.tolist() == [0, 2]
    assert found.items.tolist() == [[0, 2, 0, 256, 0]]
    assert found.shared_lens.tolist() == [256, 0, 256]


def test_nothing_is_found_where_nothing_is_shared() -> None:
    sharing = sharing_of_three()
    assert sharing.find(batch([3, 2]), NUM_COMPUTED) is None
    assert sharing.find(batch([3, 1]), np.array([0, 250, 0, 500])) is None


def test_a_slot_that_was_taken_over_shares_no_more() -> None:
    sharing = sharing_of_three()
    assert sharing.find(batch([3, 1]), NUM_COMPUTED) is not None
    assert sharing.find(batch([3], blocks({1: range(200, 220)})), NUM_COMPUTED) is None
    assert sharing.find(batch([3, 1]), NUM_COMPUTED) is None


def test_what_is_found_is_padded_to_the_size() -> None:
    found = sharing_of_three().find(batch([3, 2, 1]), NUM_COMPUTED)
    size = StepSize(4, 4, True, True)
    chunks = make_shared_chunks(8, torch.device("cpu"))
    for tensor in (chunks.members, chunks.items, chunks.shared_lens, chunks.num_chunks):
        tensor.fill_(99)
    write_shared_chunks(chunks, upload(pack_shared(found, size), torch.device("cpu")))
    part = shared_chunks_of(size, chunks)
    assert part.members[:2].tolist() == [0, 2]
    assert part.items.tolist() == [[0, 2, 0, 256, 0]] + [[0] * 5] * (4 * ITEMS_PER_ROW - 1)
    assert part.shared_lens.tolist() == [256, 0, 256, 0]
    assert part.num_chunks.tolist() == [1, 0, 1, 0]
    write_shared_chunks(chunks, upload(pack_shared(None, size), torch.device("cpu")))
    assert not part.items.any()
    assert not part.shared_lens.any()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_requests_that_were_given_the_same_blocks_say_what_they_say_alone(device: str) -> None:
    prompt = make_prompts((64,))[0]
    driver = Driver((None, 20), device)
    requests = requests_for([prompt + tail for tail in make_prompts((9, 3, 20))])
    driver.run(requests[:1])
    driver.share_prefix(requests[0], requests[1:], 64)
    outputs = driver.run(requests[1:])
    for request, output in zip(requests[1:], outputs, strict=True):
        assert is_greedy(driver.model, request.prompt, output, 1e-5 if device == "cpu" else 1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("uses_graphs", [True, False], ids=["graphs", "eager"])
def test_grouped_requests_say_what_they_say_ungrouped(uses_graphs: bool) -> None:
    """All read the first one's prefix, which they were given as if the cache had found it."""
    prefix = make_prompts((512,))[0]
    prompts = [prefix + tail for tail in make_prompts((9, 3, 20, 14))]
    outputs = []
    for shares in (True, False):
        driver = Driver(device="cuda", uses_graphs=uses_graphs, shares_prefixes=shares, max_model_len=576)
        requests = requests_for(prompts)
        driver.run(requests[:1], chunk=256)
        driver.share_prefix(requests[0], requests[1:], 512)
        first = requests_for(prompts)[0]
        first.slot = 4
        driver.share_prefix(requests[0], [first], 512)
        outputs.append(driver.run([first, *requests[1:]], steps_ahead=1))
        sharing = driver.runner._sharing
        assert (sharing is not None and sharing._found is not None) == shares
    assert all(is_greedy(driver.model, *pair, 1e-2) for pair in zip(prompts, outputs[0], strict=True))
    assert all(is_greedy(driver.model, *pair, 1e-2) for pair in zip(prompts, outputs[1], strict=True))
