from __future__ import annotations

import asyncio
from typing import Any

from tests.frontend.harness import Frontend

USER: list[Any] = [{"role": "user", "content": "hi"}]


async def test_unseeded_requests_get_different_seeds(frontend: Frontend) -> None:
    await asyncio.gather(frontend.chat(), frontend.chat())
    first, second = (submit.sampling.seed for submit in frontend.engine.submits)
    assert first != second
    assert 0 <= first < 2**63


async def test_each_of_n_choices_is_its_own_request_with_its_own_seed(frontend: Frontend) -> None:
    completion = await frontend.openai().chat.completions.create(model="toy", messages=USER, n=3, seed=7)
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 39
    assert completion.usage.prompt_tokens < 39
    seeds = [submit.sampling.seed for submit in frontend.engine.submits]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3


async def test_a_missing_max_tokens_means_the_context_left(frontend: Frontend) -> None:
    await frontend.chat()
    await frontend.chat(max_completion_tokens=5, max_tokens=9)
    first, second = frontend.engine.submits
    assert first.sampling.max_tokens == 256 - len(first.token_ids) // 4
    assert second.sampling.max_tokens == 5


async def test_generation_defaults_of_the_model_hold_where_the_request_is_silent(frontend: Frontend) -> None:
    frontend.engine.restart(generation_defaults={"temperature": 0.6, "top_k": 20, "top_p": 0.9})
    async with asyncio.timeout(10):
        while not (frontend.service.is_ready and frontend.service.client.facts == frontend.engine.ready()):
            await asyncio.sleep(0.01)
    await frontend.chat(top_p=0.5)
    await frontend.chat(temperature=0, top_k=-1)
    first, second = (submit.sampling for submit in frontend.engine.submits)
    assert (first.temperature, first.top_k, first.top_p) == (0.6, 20, 0.5)
    assert (second.temperature, second.top_k, second.top_p) == (0.0, 0, 0.9)


async def test_every_sampling_field_reaches_the_engine(frontend: Frontend) -> None:
    response = await frontend.chat(
        temperature=0.7, top_p=0.8, top_k=5, min_p=0.1, presence_penalty=0.3, frequency_penalty=-0.4,
        repetition_penalty=1.2, logit_bias={"65": -100, "66": 5}, min_tokens=2, max_tokens=9, stop_token_ids=[1, 2],
        ignore_eos=True, seed=-1, priority=3, cache_salt="tenant",
    )  # fmt: skip
    assert response.status_code == 200, response.text
    [submit] = frontend.engine.submits
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.7, 0.8, 5, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.3, -0.4, 1.2)
    assert sampling.logit_bias == {65: -100.0, 66: 5.0}
    assert (sampling.min_tokens, sampling.max_tokens, sampling.stop_token_ids) == (2, 9, (1, 2))
    assert sampling.ignore_eos
    assert sampling.seed == 2**63 - 1
    assert (submit.priority, submit.cache_salt) == (3, "tenant")
