"""Runs whole requests through an in-process engine, for tests that compare what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penstock.engine.build import load_engine
from penstock.engine.config import EngineConfig
from penstock.engine.core import EngineCore
from penstock.ipc.messages import FinishReason, Sampling, Submit


@dataclass
class Generated:
    """All that came out of one request."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[list[float]] = field(default_factory=list)
    top_token_ids: list[list[int]] = field(default_factory=list)
    prompt_logprobs: list[list[float]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_cached_tokens: int | None = None


def engine_for(model_dir: Path, **config: Any) -> EngineCore:
    """An engine on the CPU in float32 for the checkpoint in `model_dir`."""
    settings: dict[str, Any] = {"device": "cpu", "dtype": "float32", "num_gpu_blocks_override": 256, "max_num_seqs": 32}
    return load_engine(EngineConfig(model=str(model_dir), **{**settings, **config})).core


def submission(request_id: int, prompt: Sequence[int], **sampling: Any) -> Submit:
    """A request for greedy tokens, unless `sampling` says otherwise."""
    settings: dict[str, Any] = {"seed": request_id, "temperature": 0.0, "max_tokens": 64, "ignore_eos": True}
    return Submit(
        request_id=request_id,
        token_ids=np.asarray(prompt, dtype="<i4").tobytes(),
        num_output_tokens=0,
        sampling=Sampling(**{**settings, **sampling}),
    )


def generate(core: EngineCore, prompts: Sequence[Sequence[int]], **sampling: Any) -> list[Generated]:
    """Submits all prompts at once and steps until all are done."""
    results = [Generated() for _ in prompts]
    for index, prompt in enumerate(prompts):
        core.submit(index, submission(index + 1, prompt, **sampling))
    while core.has_work:
        for output in core.step():
            assert isinstance(output.key, int)
            result = results[output.key]
            assert output.error is None, output.error
            assert output.position == len(result.token_ids)
            assert result.finish_reason is None, "an output after the end"
            result.token_ids += output.token_ids
            result.finish_reason = output.finish_reason
            if output.num_cached_tokens is not None:
                result.num_cached_tokens = output.num_cached_tokens
            if output.logprobs is not None:
                result.logprobs += output.logprobs.logprobs
                result.top_token_ids += output.logprobs.token_ids
            if output.prompt_logprobs is not None:
                result.prompt_logprobs += output.prompt_logprobs.logprobs
    return results


def assert_same_tokens(actual: Generated, expected: Generated, tie: float = 1e-5) -> None:
    """Equal tokens; a difference may stand only where the two candidates are closer than `tie` in logprob (it is printed).

    `expected` must carry logprobs with at least two likeliest tokens.
    """
    for position, (mine, theirs) in enumerate(zip(actual.token_ids, expected.token_ids, strict=True)):
        if mine == theirs:
            continue
        ids, values = expected.top_token_ids[position], expected.logprobs[position]
        candidates = dict(zip(ids, values, strict=True))
        gap = abs(candidates[theirs] - candidates.get(mine, -np.inf))
        assert gap < tie, f"position {position}: {mine} instead of {theirs}, {gap:.2e} apart in logprob"
        print(f"near-tie at position {position}: {mine} instead of {theirs}, {gap:.2e} apart in logprob")
        return


def assert_same_logprobs(actual: Generated, expected: Generated, tolerance: float) -> None:
    """The generated tokens' logprobs are close, as far as the tokens are the same. Both must carry them."""
    for position, (mine, theirs) in enumerate(zip(actual.token_ids, expected.token_ids, strict=True)):
        if mine != theirs:
            return
        difference = abs(actual.logprobs[position][0] - expected.logprobs[position][0])
        assert difference <= tolerance, f"position {position}: logprobs are {difference:.2e} apart"


def transformers_tokens(
    model_dir: Path, prompts: Sequence[Sequence[int]], num_output_tokens: int, device: str = "cpu"
) -> list[Generated]:
    """transformers' own greedy tokens and logprobs in float32, each prompt alone and unpadded."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    model.to(device)
    results = []
    with torch.inference_mode():
        for prompt in prompts:
            result, cache = Generated(), None
            fed = torch.tensor([prompt], device=device)
            for _ in range(num_output_tokens):
                output = model(fed, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                logprobs = output.logits[0, -1].float().log_softmax(-1)
                top = logprobs.topk(20)
                token = int(top.indices[0])
                result.token_ids.append(token)
                result.top_token_ids.append([token, *top.indices.tolist()])
                result.logprobs.append([float(logprobs[token]), *top.values.tolist()])
                fed = torch.tensor([[token]], device=device)
            results.append(result)
    return results
