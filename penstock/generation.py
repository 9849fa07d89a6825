"""Drives the engine until a batch of prompts is answered: submit, step, collect; whatever happens, nothing stays behind."""

from __future__ import annotations

import signal
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType

import numpy as np

from .answers import Answer, position_logprobs
from .engine.core import EngineCore, Refused, StepOutputs
from .engine.core import RequestOutput as EngineOutput
from .frontend.seeds import child_seed
from .frontend.tokenizer import Tokenizer
from .ipc.messages import Submit
from .outputs import GenerationError, RequestOutput
from .prompts import Prompt
from .sampling_params import SamplingParams
from .token_store import TokenStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One prompt to answer."""

    request_id: int
    prompt: Prompt
    params: SamplingParams
    seed: int
    """Of its first answer; the others' follow from it."""
    max_tokens: int
    """Of each answer: as asked, or what the context has left."""


class Generation:
    """A batch of jobs on an engine that does nothing else meanwhile."""

    def __init__(self, core: EngineCore, tokenizer: Tokenizer, jobs: Sequence[Job]) -> None:
        self._core = core
        self._tokenizer = tokenizer
        self._jobs = jobs
        self._answers: list[list[Answer]] = []
        self._submits: list[Submit] = []
        self._running: dict[int, tuple[int, Answer]] = {}
        """Key, the submit's request_id -> index of its job, its answer."""
        for index, job in enumerate(jobs):
            answers = [Answer(tokenizer, job.prompt.token_ids, job.params, child) for child in range(job.params.n)]
            self._answers.append(answers)
            for child, answer in enumerate(answers):
                submit = _submit_of(job, len(self._submits) + 1, child)
                self._submits.append(submit)
                self._running[submit.request_id] = (index, answer)

        self._tokens = TokenStore([submit.sampling.max_tokens for submit in self._submits])
        self._is_watched = np.zeros(len(self._submits) + 1, np.bool_)
        """By request_id: whether each token may complete a stop string."""
        for request_id, (index, _) in self._running.items():
            self._is_watched[request_id] = bool(jobs[index].params.stop_strings)

    def run(self, on_finished: Callable[[RequestOutput], None]) -> list[RequestOutput]:
        """The outputs in the order of the jobs; `on_finished` hears of each as its last answer ends.

        Raises ValueError when the engine refuses a request, before any of them runs, and GenerationError when it failed on
        some. Ctrl-C is heeded between two steps, so that the engine stays whole.
        """
        num_open = [job.params.n for job in self._jobs]
        outputs: dict[int, RequestOutput] = {}
        with _interrupts_between_steps() as heed_interrupt:
            try:
                self._submit_all()
                while self._running:
                    for index in self._step():
                        num_open[index] -= 1
                        if num_open[index] == 0:
                            outputs[index] = self._output(index)
                            on_finished(outputs[index])
                    heed_interrupt()
            finally:
                self._leave()
        in_order = [outputs[index] for index in range(len(self._jobs))]
        self._raise_errors(in_order)
        return in_order

    def _submit_all(self) -> None:
        try:
            for submit in self._submits:
                self._core.submit(submit.request_id, submit, handle=submit.request_id)
        except Refused as refused:
            raise ValueError(refused.message) from refused

    def _step(self) -> list[int]:
        """One step of the engine; the jobs of the answers that ended with it."""
        assert self._core.has_work, "the engine forgot a request"
        ended = []
        for output in self._outputs_to_read(self._core.step()):
            if output.handle not in self._running:
                continue
            index, answer = self._running[output.handle]
            if output.position > answer.num_tokens:
                token_ids = self._tokens.get(output.handle, answer.num_tokens, output.position)
                output = replace(output, position=answer.num_tokens, token_ids=token_ids + output.token_ids)
            answer.take(output)
            if answer.has_ended:
                del self._running[output.handle]
                ended.append(index)
                if output.finish_reason is None:
                    self._core.abort(output.key)
        return ended

    def _outputs_to_read(self, outputs: StepOutputs) -> Iterable[EngineOutput]:
        """Tokens that can wait for their answer's end are only kept; those that may complete a stop string cannot."""
        if outputs.plain is None:
            return outputs.special
        self._tokens.put(outputs.plain)
        if not self._is_watched[outputs.plain.handles].any():
            return outputs.special
        return [*outputs.special, *(output for output in outputs.plain_outputs() if self._is_watched[output.handle])]

    def _leave(self) -> None:
        """Ends what still runs, and takes from the engine what it has to say about it."""
        for key in self._running:
            self._core.abort(key)
        while self._core.has_work:
            self._core.step()

    def _output(self, index: int) -> RequestOutput:
        job, answers = self._jobs[index], self._answers[index]
        found = answers[0].prompt_logprobs
        wants_prompt = job.params.prompt_logprobs is not None
        of_prompt = [] if found is None else position_logprobs(self._tokenizer, found)
        return RequestOutput(
            request_id=str(job.request_id),
            prompt=job.prompt.text,
            prompt_token_ids=job.prompt.token_ids,
            prompt_logprobs=[None, *of_prompt] if wants_prompt else None,
            outputs=[answer.output() for answer in answers],
            finished=all(answer.has_ended for answer in answers),
            num_cached_tokens=answers[0].num_cached_tokens,
        )

    def _raise_errors(self, outputs: list[RequestOutput]) -> None:
        errors = [
            (job.request_id, answer.error)
            for job, answers in zip(self._jobs, self._answers, strict=True)
            for answer in answers
            if answer.error is not None
        ]
        if errors:
            raise GenerationError(f"{len(errors)} answers failed; request {errors[0][0]}: {errors[0][1]}", outputs)


def _submit_of(job: Job, request_id: int, child: int) -> Submit:
    sampling = job.params.to_sampling(seed=child_seed(job.seed, child), max_tokens=job.max_tokens)
    if child > 0:
        sampling = replace(sampling, prompt_logprobs=None)  # the first answer's are everyone's
    return Submit(
        request_id=request_id,
        token_ids=array("i", job.prompt.token_ids).tobytes(),
        num_output_tokens=0,
        sampling=sampling,
        cache_salt=job.prompt.cache_salt,
    )


@contextmanager
def _interrupts_between_steps() -> Iterator[Callable[[], None]]:
    """Keeps Ctrl-C until the yielded function is called; the second one in a row is not kept.

    Python delivers signals to the main thread only, and only there can their handler be set.
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield lambda: None
        return
    kept: list[tuple[int, FrameType | None]] = []

    def keep(signal_number: int, frame: FrameType | None) -> None:
        if kept:
            previous(signal_number, frame)
        kept.append((signal_number, frame))

    def heed() -> None:
        if kept:
            previous(*kept.pop())

    signal.signal(signal.SIGINT, keep)
    try:
        yield heed
    finally:
        signal.signal(signal.SIGINT, previous)
