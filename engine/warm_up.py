"""A real generation before the engine says it is ready: what a first request would have to wait for is done by then."""

from __future__ import annotations

from array import array

from ..ipc.messages import FinishReason, Sampling, Submit
from .core import EngineCore
from .errors import EngineStartError, Refused

NUM_PROMPT_TOKENS = 4
NUM_OUTPUT_TOKENS = 3
SAMPLINGS = ({"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9, "top_k": 50})
"""One request each, at once."""


def warm_up(core: EngineCore) -> None:
    """Generates a few tokens with a core that has nothing else to do; raises EngineStartError when that fails.

    The core's figures and prefix cache know of it afterwards: use another core, over the same runner, for what follows.
    """
    limits = core.scheduler.limits
    num_prompt_tokens = min(NUM_PROMPT_TOKENS, limits.max_model_len - 1)
    if num_prompt_tokens < 1:
        return  # there is no room for an output token
    token_ids = array("i", [index % limits.vocab_size for index in range(num_prompt_tokens)]).tobytes()
    max_tokens = min(NUM_OUTPUT_TOKENS, limits.max_model_len - num_prompt_tokens)
    for key, fields in enumerate(SAMPLINGS):
        sampling = Sampling(seed=key, max_tokens=max_tokens, ignore_eos=True, **fields)  # type: ignore[arg-type]
        try:
            core.submit(key, Submit(request_id=key + 1, token_ids=token_ids, num_output_tokens=0, sampling=sampling))
        except Refused as error:
            raise EngineStartError(f"the engine refuses its own first request: {error}") from error
    while core.has_work:
        for output in core.step():
            if output.finish_reason is FinishReason.ERROR:
                raise EngineStartError(f"the first generation failed: {output.error}")
