"""The prompt budget: up to the knee while little waits, more as the queue grows, never above the ceiling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.engine.cost_model import MIN_PROMPT_TOKENS, ProductTimes, PromptBudgetByCost, knee_tokens, product_counts
from penstock.engine.model_config import ModelConfig
from penstock.engine.model_memory import count_parameters
from tests.checkpoints import make_checkpoint

BYTES_PER_MICROSECOND = 4e6
OPERATIONS_PER_MICROSECOND = 700e6
SIZES = [1, 16, 128, 256, 512, 1024]


def ideal_microseconds(shape: tuple[int, int], num_tokens: int) -> float:
    num_weights = shape[0] * shape[1]
    return max(2 * num_weights / BYTES_PER_MICROSECOND, 2 * num_weights * num_tokens / OPERATIONS_PER_MICROSECOND)


def ideal_times(shapes: list[tuple[int, int]]) -> ProductTimes:
    return ProductTimes({shape: {size: ideal_microseconds(shape, size) for size in SIZES} for shape in shapes})


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    return ModelConfig.from_dir(make_checkpoint("llama", tmp_path_factory.mktemp("llama")))


def test_the_products_of_a_step_are_the_models_weights(config: ModelConfig) -> None:
    num_weights = sum(shape[0] * shape[1] * count for shape, count in product_counts(config).items())
    num_norms = (2 * config.num_layers + 1) * config.hidden_size
    num_embedding = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    assert num_weights + num_norms + num_embedding == count_parameters(config)


def test_the_knee_is_where_arithmetic_takes_as_long_as_reading_the_weights(config: ModelConfig) -> None:
    expected = OPERATIONS_PER_MICROSECOND / BYTES_PER_MICROSECOND
    assert knee_tokens(config, ideal_times(list(product_counts(config)))) == pytest.approx(expected, abs=1)


def test_shapes_that_were_not_measured_are_estimated_from_those_that_were(config: ModelConfig) -> None:
    expected = OPERATIONS_PER_MICROSECOND / BYTES_PER_MICROSECOND
    assert knee_tokens(config, ideal_times([(4096, 4096), (1024, 8192)])) == pytest.approx(expected, abs=1)


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"products": [{"in": 8, "out": 16, "microseconds": {"1": 2.5, "4": 3.0}}]}))
    times = ProductTimes.from_file(path)
    assert times.sizes == [1, 4]
    assert times.microseconds((8, 16), 4) == 3.0


def test_a_device_nobody_measured_has_no_table() -> None:
    assert ProductTimes.for_device("Abacus 9") is None


def test_steps_are_filled_up_to_the_knee_while_little_waits() -> None:
    budget = PromptBudgetByCost(knee=176, max_num_batched_tokens=2048)
    assert budget.prompt_tokens(0, 300) == 176
    assert budget.prompt_tokens(40, 300) == 136


def test_a_long_queue_gets_a_share_of_itself() -> None:
    assert PromptBudgetByCost(knee=176, max_num_batched_tokens=2048).prompt_tokens(40, 8000) == 1000


def test_beyond_the_knee_everything_that_waits_is_taken() -> None:
    assert PromptBudgetByCost(knee=176, max_num_batched_tokens=2048).prompt_tokens(200, 900) == 900


def test_the_ceiling_holds_for_decodes_and_prompts_together() -> None:
    budget = PromptBudgetByCost(knee=176, max_num_batched_tokens=512)
    assert budget.prompt_tokens(200, 9000) == 312
    assert budget.prompt_tokens(100, 90_000) == 412
    assert budget.prompt_tokens(600, 90_000) == 0


def test_a_prefill_always_gets_a_piece_worth_a_step() -> None:
    assert PromptBudgetByCost(knee=176, max_num_batched_tokens=2048).prompt_tokens(175, 10) == MIN_PROMPT_TOKENS


def test_the_table_of_the_reference_gpu_gives_plausible_knees(config: ModelConfig) -> None:
    times = ProductTimes.for_device("NVIDIA H200")
    assert times is not None
    assert {1, 128, 1024} <= set(times.sizes)
    assert 128 <= knee_tokens(config, times) <= 512, "bandwidth and arithmetic of the card meet at about 170"
