"""`LLM` over real models: a tiny random one, where seeds show, and the demo model, where sense does."""

from __future__ import annotations

from pathlib import Path

import pytest

import penstock
from penstock.llm import LLM
from penstock.sampling_params import SamplingParams
from tests.checkpoints import make_checkpoint

DEMO_WEIGHTS = Path(penstock.__file__).parent / "demo_model" / "model.safetensors"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    path = make_checkpoint("llama", tmp_path_factory.mktemp("checkpoint") / "llama")
    return LLM(str(path), device="cpu", num_gpu_blocks_override=64)


def answers(llm: LLM, params: SamplingParams, prompt: str = "hello") -> list[list[int]]:
    [output] = llm.generate(prompt, params, use_tqdm=False)
    return [answer.token_ids for answer in output.outputs]


def test_a_seed_gives_the_same_answers_again(llm: LLM) -> None:
    params = SamplingParams(seed=5, n=3, max_tokens=12)
    first = answers(llm, params)
    assert answers(llm, params) == first
    assert len({tuple(token_ids) for token_ids in first}) == 3


def test_the_first_of_several_answers_is_the_only_one_asked_alone(llm: LLM) -> None:
    alone = answers(llm, SamplingParams(seed=5, max_tokens=12))
    assert answers(llm, SamplingParams(seed=5, n=3, max_tokens=12))[:1] == alone


def test_unseeded_requests_differ(llm: LLM) -> None:
    assert answers(llm, SamplingParams(max_tokens=12)) != answers(llm, SamplingParams(max_tokens=12))


def test_logprobs_rank_the_sampled_token_among_the_likeliest(llm: LLM) -> None:
    [output] = llm.generate("hello", SamplingParams(temperature=0, logprobs=3, prompt_logprobs=2, max_tokens=5), use_tqdm=False)
    [answer] = output.outputs
    assert answer.logprobs is not None
    assert [position[token_id].rank for position, token_id in zip(answer.logprobs, answer.token_ids, strict=True)] == [1] * 5
    assert [len(position) for position in answer.logprobs] == [3] * 5
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


@pytest.mark.skipif(not DEMO_WEIGHTS.exists(), reason="the demo model's weights are not in this checkout")
def test_the_demo_model_adds_two_numbers() -> None:
    llm = LLM(device="cpu", max_model_len=512)
    conversations = [[{"role": "user", "content": f"What is {a} + {b}?"}] for a, b in ((12, 30), (100, 23))]
    outputs = llm.chat(conversations, SamplingParams(temperature=0, max_tokens=40), use_tqdm=False)
    texts = [output.outputs[0].text for output in outputs]
    assert "42" in texts[0]
    assert "123" in texts[1]
    assert [output.outputs[0].finish_reason for output in outputs] == ["stop", "stop"]
