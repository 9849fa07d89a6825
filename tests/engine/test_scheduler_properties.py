"""Random schedules over the truthful toy: whatever happens, every token is right and every block is accounted for."""

from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.engine.core import EngineCore
from penstock.engine.errors import Refused
from penstock.engine.toy_config import ToyConfig, expected_tokens
from penstock.ipc.messages import FinishReason, RejectReason, Submit
from tests.engine.toy_engine import Collected, FixedPromptBudget, FixedRunAhead, finish, make_core, make_submit, run_to_end

WINDOWS = [(None,), (None,), (6,), (None, 5), (3, 9)]


class EngineMachine(RuleBasedStateMachine):
    """Arrivals, aborts and steps in any order, over pools that are too small for what arrives."""

    core: EngineCore
    toy: ToyConfig

    @initialize(
        windows=st.sampled_from(WINDOWS),
        overlap=st.booleans(),
        caches_prefixes=st.booleans(),
        num_blocks=st.integers(12, 40),
        max_num_seqs=st.integers(1, 5),
        max_num_batched_tokens=st.integers(1, 24),
        eos_one_in=st.sampled_from([None, 7]),
        num_steps=st.lists(st.integers(1, 8), min_size=1, max_size=3),
        prompt_budget=st.sampled_from([1000, 0, 6]),
    )
    def start(
        self,
        windows: tuple[int | None, ...],
        overlap: bool,
        caches_prefixes: bool,
        num_blocks: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        eos_one_in: int | None,
        num_steps: list[int],
        prompt_budget: int,
    ) -> None:
        self.toy = ToyConfig(vocab_size=50, windows=windows, eos_token_id=49, eos_one_in=eos_one_in, output_range=(0, 40))
        self.core = make_core(
            self.toy,
            overlap=overlap,
            caches_prefixes=caches_prefixes,
            num_blocks=num_blocks,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=60,
            run_ahead=FixedRunAhead(*num_steps),
            prompt_budget=FixedPromptBudget(prompt_budget),
        )
        self.collected = Collected()
        self.submits: dict[int, Submit] = {}
        self.expected: dict[int, list[int]] = {}
        self.aborted: set[int] = set()
        self.refusals: list[Refused] = []

    @rule(
        parent=st.integers(0, 5),
        num_shared=st.integers(0, 30),
        tail=st.lists(st.integers(0, 49), min_size=1, max_size=30),
        max_tokens=st.integers(0, 25),
        min_tokens=st.integers(0, 4),
        priority=st.integers(-1, 1),
        salt=st.sampled_from(["", "", "a"]),
        num_resumed=st.integers(0, 3),
        ignore_eos=st.booleans(),
        prompt_logprobs=st.sampled_from([None, None, 2]),
    )
    def submit(
        self,
        parent: int,
        num_shared: int,
        tail: list[int],
        max_tokens: int,
        min_tokens: int,
        priority: int,
        salt: str,
        num_resumed: int,
        ignore_eos: bool,
        prompt_logprobs: int | None,
    ) -> None:
        key = len(self.submits)
        shared = self._prompt_of(key - 1 - parent)[:num_shared]
        prompt = [*shared, *tail]
        sampling = make_submit(
            prompt,
            max_tokens,
            min_tokens=min(min_tokens, max_tokens),
            ignore_eos=ignore_eos,
            prompt_logprobs=prompt_logprobs,
        ).sampling
        num_tokens = min(max_tokens, 60 - len(prompt))
        expected = expected_tokens(prompt, num_tokens, self.toy, sampling)
        resumed = expected[: min(num_resumed, len(expected))]
        submit = make_submit(
            prompt,
            max_tokens,
            output=resumed,
            priority=priority,
            cache_salt=salt,
            min_tokens=sampling.min_tokens,
            ignore_eos=ignore_eos,
            prompt_logprobs=prompt_logprobs,
        )
        self.submits[key] = submit
        try:
            self.core.submit(key, submit)
        except Refused as refused:
            self.refusals.append(refused)
            return
        self.expected[key] = expected
        self.collected.expect(key, len(resumed))
        self.collected.token_ids[key] = list(resumed)

    def _prompt_of(self, key: int) -> list[int]:
        """What was said in an earlier request, its answer included: a conversation goes on."""
        if key not in self.expected:
            return []
        submit = self.submits[key]
        token_ids = memoryview(submit.token_ids).cast("i").tolist()
        return token_ids[: len(token_ids) - submit.num_output_tokens] + self.expected[key]

    @precondition(lambda self: self.submits)
    @rule(back=st.integers(0, 6))
    def abort(self, back: int) -> None:
        key = max(0, len(self.submits) - 1 - back)
        if key in self.expected and key not in self.collected.finish_reasons:
            self.aborted.add(key)
        self.core.abort(key)

    @rule(num_steps=st.integers(1, 6))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            if self.core.has_work:
                self.collected.take(self.core.step())
                self.core.scheduler.check_integrity()

    @invariant()
    def tokens_are_right_so_far(self) -> None:
        if not hasattr(self, "core"):
            return
        self.core.scheduler.check_integrity()
        for key, token_ids in self.collected.token_ids.items():
            assert token_ids == self.expected[key][: len(token_ids)]

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        finish(self.core, self.collected)
        assert all(refused.reason is RejectReason.TOO_LONG for refused in self.refusals)
        assert self.collected.finish_reasons.keys() == self.expected.keys()
        for key, reason in self.collected.finish_reasons.items():
            if reason is FinishReason.ABORT:
                assert key in self.aborted
            else:
                assert self.collected.token_ids[key] == self.expected[key]
                self._check_prompt_logprobs(key)

    def _check_prompt_logprobs(self, key: int) -> None:
        submit = self.submits[key]
        if submit.sampling.prompt_logprobs is None or not self.collected.outputs[key]:
            return
        prompt_logprobs = self.collected.outputs[key][0].prompt_logprobs
        if prompt_logprobs is None:  # a resumed request that had nothing left to say
            assert submit.num_output_tokens
            return
        prompt = memoryview(submit.token_ids).cast("i").tolist()
        num_prompt_tokens = len(prompt) - submit.num_output_tokens
        computed_now = [row[0] for row in prompt_logprobs.token_ids]
        assert computed_now in (prompt[1:num_prompt_tokens], []) if submit.num_output_tokens else prompt[1:] == computed_now


EngineMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestRandomSchedules = EngineMachine.TestCase


@pytest.mark.parametrize("windows", [(None,), (None, 7)], ids=["full", "full and window"])
@pytest.mark.parametrize("overlap", [True, False], ids=["overlapped", "synchronous"])
def test_a_storm_of_preemptions_changes_no_token(overlap: bool, windows: tuple[int | None, ...]) -> None:
    toy = ToyConfig(vocab_size=300, windows=windows)
    dice = random.Random(5)
    prompts = [[dice.randrange(300) for _ in range(dice.randrange(1, 60))] for _ in range(60)]
    submits = {key: make_submit(prompt, dice.randrange(1, 60)) for key, prompt in enumerate(prompts)}
    # The pool holds 1.2 requests of the longest kind.
    core = make_core(toy, overlap=overlap, num_blocks=36 * len(windows), max_num_batched_tokens=16, max_model_len=120)
    collected = run_to_end(core, submits)
    assert core.scheduler.metrics.num_preemptions > 10
    for key, submit in submits.items():
        assert collected.token_ids[key] == expected_tokens(prompts[key], submit.sampling.max_tokens, toy)
        assert collected.finish_reasons[key] is FinishReason.LENGTH


def test_prompt_logprobs_are_whole_when_their_request_is_preempted_before_its_first_token_is_read() -> None:
    toy = ToyConfig(vocab_size=300)
    core = make_core(toy, num_blocks=3)
    submits = {"old": make_submit([1, 2, 3, 4], 5), "new": make_submit([*range(8)], 3, prompt_logprobs=1)}
    collected = run_to_end(core, submits)
    assert core.scheduler.metrics.num_preemptions == 1
    assert collected.token_ids["new"] == expected_tokens([*range(8)], 3, toy)
    prompt_logprobs = collected.outputs["new"][0].prompt_logprobs
    assert prompt_logprobs is not None
    assert [row[0] for row in prompt_logprobs.token_ids] == [*range(1, 8)]
