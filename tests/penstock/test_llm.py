"""The toy model says what the oracle says, so every text here is known beforehand."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from array import array
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import penstock
from penstock.engine.core import RequestOutput as EngineOutput
from penstock.engine.core import StepOutputs
from penstock.engine.plan import StepPlan
from penstock.engine.toy_config import ToyConfig, expected_tokens
from penstock.frontend.seeds import child_seed
from penstock.ipc.messages import FinishReason, Submit
from penstock.llm import LLM
from penstock.outputs import GenerationError
from penstock.sampling_params import SamplingParams
from tests.toy_model import EOS_TOKEN_ID, make_toy_model

PROMPTS = ["hello", "What is 2 + 2?", "x"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_model(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def llm(model_dir: Path) -> LLM:
    return LLM(str(model_dir), max_num_seqs=8, max_num_batched_tokens=64)


def said(model_dir: Path, prompt: str | Sequence[int], num_tokens: int) -> str:
    """What the model says to this prompt."""
    token_ids = list(prompt.encode()) if isinstance(prompt, str) else prompt
    return bytes(expected_tokens(token_ids, num_tokens, ToyConfig.from_dir(model_dir))).decode()


def generate(llm: LLM, prompts: Any, params: Any = None) -> list[penstock.RequestOutput]:
    return llm.generate(prompts, params, use_tqdm=False)


def submits_of(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[Submit]:
    """Collects what the engine is given from now on."""
    submits: list[Submit] = []
    submit = llm._core.submit

    def collect(key: Hashable, message: Submit, handle: int) -> None:
        submits.append(message)
        submit(key, message, handle)

    monkeypatch.setattr(llm._core, "submit", collect)
    return submits


def assert_idle_and_usable(llm: LLM, model_dir: Path) -> None:
    assert not llm._core.has_work
    [output] = generate(llm, "again", SamplingParams(max_tokens=8))
    assert output.outputs[0].text == said(model_dir, "again", 8)


def test_the_package_hands_out_the_names() -> None:
    assert penstock.LLM is LLM
    assert penstock.SamplingParams is SamplingParams


def test_answers_come_in_the_order_of_the_prompts(llm: LLM, model_dir: Path) -> None:
    prompts = [f"prompt {number}" * (number % 5 + 1) for number in range(40)]
    params = [SamplingParams(max_tokens=number % 7 + 1) for number in range(40)]
    outputs = generate(llm, prompts, params)
    assert [output.prompt for output in outputs] == prompts
    assert [output.request_id for output in outputs] == [str(number) for number in range(40)]
    for prompt, one, output in zip(prompts, params, outputs, strict=True):
        assert output.finished
        assert output.prompt_token_ids == list(prompt.encode())
        [answer] = output.outputs
        assert answer.text == said(model_dir, prompt, one.max_tokens or 0)
        assert answer.token_ids == list(answer.text.encode())
        assert (answer.index, answer.finish_reason, answer.stop_reason) == (0, "length", None)
        assert (answer.logprobs, answer.cumulative_logprob, output.prompt_logprobs) == (None, None, None)


@pytest.mark.parametrize(
    ("prompts", "texts"),
    [
        ("hello", ["hello"]),
        (["hello", "x"], ["hello", "x"]),
        ([104, 105], ["hi"]),
        ([[104, 105], [120]], ["hi", "x"]),
        ({"prompt": "hello"}, ["hello"]),
        ([{"prompt_token_ids": [104, 105]}, "x", [120], {"prompt": "x", "cache_salt": "s"}], ["hi", "x", "x", "x"]),
        ([], []),
    ],
)
def test_prompts_come_in_many_shapes(llm: LLM, model_dir: Path, prompts: Any, texts: list[str]) -> None:
    outputs = generate(llm, prompts, SamplingParams(max_tokens=6))
    assert [output.outputs[0].text for output in outputs] == [said(model_dir, text, 6) for text in texts]


def test_a_prompt_of_token_ids_may_bring_its_text(llm: LLM) -> None:
    outputs = generate(llm, [{"prompt_token_ids": [104], "prompt": "h"}, {"prompt_token_ids": [104]}, [104]])
    assert [output.prompt for output in outputs] == ["h", None, None]


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ("", ValueError, "prompt 0 is empty"),
        (["a", ""], ValueError, "prompt 1 is empty"),
        ([[104], []], ValueError, "prompt 1 is empty"),
        ([[104], [272]], ValueError, "prompt 1 has token id 272; the model has ids 0 to 271"),
        ([-1], ValueError, "token id -1"),
        (["a", "b" * 4096], ValueError, "prompt 1 has 4096 tokens; the context holds 4096"),
        ("\ud800", ValueError, "surrogate"),
        ({"text": "a"}, ValueError, "'text'"),
        ({"cache_salt": "a"}, ValueError, "needs prompt or prompt_token_ids"),
        (["a", {"prompt": "b", "multi_modal_data": {}}], ValueError, "multi_modal_data"),
        (7, TypeError, "got int"),
        (b"abc", TypeError, "got bytes"),
        (["a", 7], TypeError, "text, a list of token ids or a dictionary"),
        ([["a"]], TypeError, "text, a list of token ids or a dictionary"),
        ({"prompt": 7}, TypeError, "must be str"),
    ],
)
def test_a_bad_prompt_is_refused_before_anything_runs(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, prompts: Any, error: type[Exception], message: str
) -> None:
    submits = submits_of(llm, monkeypatch)
    with pytest.raises(error, match=message):
        generate(llm, prompts)
    assert submits == []


def test_each_prompt_needs_its_sampling_params(llm: LLM) -> None:
    with pytest.raises(ValueError, match="2 prompts but 1 sampling_params"):
        generate(llm, ["a", "b"], [SamplingParams()])


def test_parameters_changed_for_the_worse_are_refused(llm: LLM) -> None:
    params = SamplingParams()
    params.temperature = -1
    with pytest.raises(ValueError, match="temperature"):
        generate(llm, "a", params)


def test_what_the_engine_refuses_is_a_value_error_and_leaves_nothing(model_dir: Path) -> None:
    llm = LLM(str(model_dir), num_gpu_blocks_override=4)
    with pytest.raises(ValueError, match="context holds 64"):
        generate(llm, ["fine", "x" * 100])
    with pytest.raises(ValueError, match="stop_token_ids"):
        generate(llm, ["fine", "x"], SamplingParams(stop_token_ids=[272]))
    assert_idle_and_usable(llm, model_dir)


def test_without_max_tokens_the_context_is_used_up(model_dir: Path) -> None:
    llm = LLM(str(model_dir), max_model_len=50)
    for max_tokens in (None, 49, 1000):
        [output] = generate(llm, "hello", SamplingParams(max_tokens=max_tokens))
        assert output.outputs[0].text == said(model_dir, "hello", 45)
        assert output.outputs[0].finish_reason == "length"


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("async_scheduling", [False, True])
def test_a_stop_string_ends_the_answer_and_its_request(model_dir: Path, include: bool, async_scheduling: bool) -> None:
    llm = LLM(str(model_dir), async_scheduling=async_scheduling)
    text = said(model_dir, "hello", 40)
    stop = text[10:13]
    assert text.index(stop) == 10
    params = SamplingParams(max_tokens=3000, stop=["no such text", stop], include_stop_str_in_output=include, logprobs=0)
    [stopped, other] = generate(llm, ["hello", "x"], [params, SamplingParams(max_tokens=30)])
    [answer] = stopped.outputs
    assert answer.text == text[: 13 if include else 10]
    assert answer.token_ids == list(text[:13].encode())
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 13
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    assert other.outputs[0].text == said(model_dir, "x", 30)
    assert_idle_and_usable(llm, model_dir)


def test_a_stop_string_does_not_count_before_min_tokens(llm: LLM, model_dir: Path) -> None:
    text = said(model_dir, "hello", 40)
    [output] = generate(llm, "hello", SamplingParams(max_tokens=40, stop=[*text[:5], text[20]], min_tokens=6))
    cut = min(text.index(char, 6) for char in (*text[:5], text[20]) if char in text[6:])
    assert output.outputs[0].text == text[:cut]


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_token_ends_the_answer_and_is_named(llm: LLM, model_dir: Path, include: bool) -> None:
    text = said(model_dir, "hello", 20)
    params = SamplingParams(max_tokens=20, stop_token_ids=[ord(text[7])], include_stop_str_in_output=include)
    [output] = generate(llm, "hello", params)
    [answer] = output.outputs
    end = text.index(text[7]) + 1
    assert answer.token_ids == list(text[:end].encode())
    assert answer.text == text[: end if include else end - 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", ord(text[7]))


@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_the_models_own_end_has_no_stop_reason(tmp_path: Path, skip_special_tokens: bool) -> None:
    path = make_toy_model(tmp_path, eos_one_in=8)
    [output] = generate(LLM(str(path)), "hello", SamplingParams(max_tokens=500, skip_special_tokens=skip_special_tokens))
    [answer] = output.outputs
    assert answer.token_ids[-1] == EOS_TOKEN_ID
    assert answer.text == bytes(answer.token_ids[:-1]).decode()
    assert (answer.finish_reason, answer.stop_reason) == ("stop", None)


def test_text_can_be_left_out(llm: LLM, model_dir: Path) -> None:
    [output] = generate(llm, "hello", SamplingParams(detokenize=False))
    assert output.outputs[0].text == ""
    assert bytes(output.outputs[0].token_ids).decode() == said(model_dir, "hello", 16)


def test_logprobs_are_told_for_answer_and_prompt(llm: LLM) -> None:
    [output] = generate(llm, "hello", SamplingParams(max_tokens=4, logprobs=2, prompt_logprobs=1))
    [answer] = output.outputs
    assert answer.logprobs is not None
    assert answer.cumulative_logprob == pytest.approx(
        sum(position[token_id].logprob for position, token_id in zip(answer.logprobs, answer.token_ids, strict=True))
    )
    for position, token_id in zip(answer.logprobs, answer.token_ids, strict=True):
        assert next(iter(position)) == token_id
        assert [logprob.rank for logprob in position.values()] == [1, 2]
        assert position[token_id].decoded_token == chr(token_id)
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [next(iter(position)) for position in output.prompt_logprobs[1:] if position] == list(b"ello")


def test_a_prompt_of_one_token_has_no_prompt_logprobs_to_tell(llm: LLM) -> None:
    [output] = generate(llm, "x", SamplingParams(max_tokens=1, prompt_logprobs=0))
    assert output.prompt_logprobs == [None]


def test_several_answers_have_seeds_of_their_own(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    submits = submits_of(llm, monkeypatch)
    [output] = generate(llm, "hello", SamplingParams(n=3, seed=5, prompt_logprobs=0))
    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    assert [submit.sampling.seed for submit in submits] == [child_seed(5, index) for index in range(3)]
    assert [submit.sampling.prompt_logprobs for submit in submits] == [0, None, None]
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == 5


def test_unseeded_requests_draw_from_the_llms_seed(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for seed in (1, 1, 2):
        llm = LLM(str(model_dir), seed=seed)
        submits = submits_of(llm, monkeypatch)
        generate(llm, ["a", "b"])
        drawn.append([submit.sampling.seed for submit in submits])
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]


def test_the_prefix_cache_is_told(llm: LLM) -> None:
    prompt = "the same beginning " * 4
    assert [generate(llm, prompt)[0].num_cached_tokens for _ in range(2)] == [0, 64]
    [salted] = generate(llm, {"prompt": prompt, "cache_salt": "mine"})
    assert salted.num_cached_tokens == 0


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
RENDERED = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_chat_renders_the_models_template(llm: LLM) -> None:
    [output] = llm.chat(MESSAGES, SamplingParams(max_tokens=5), use_tqdm=False)
    assert output.prompt == RENDERED
    assert output.prompt_token_ids == llm.get_tokenizer().encode(RENDERED, add_special_tokens=False)
    assert output.outputs == generate(llm, RENDERED, SamplingParams(max_tokens=5))[0].outputs


def test_chat_takes_several_conversations(llm: LLM) -> None:
    outputs = llm.chat([MESSAGES, MESSAGES[1:]], use_tqdm=False)
    assert [output.prompt for output in outputs] == [RENDERED, RENDERED[RENDERED.index("<|im_start|>user") :]]
    assert llm.chat([], use_tqdm=False) == []


def test_chat_passes_its_options_to_the_template(llm: LLM) -> None:
    template = "{{ tools | tojson }} {{ style }} {{ add_generation_prompt }} {{ eos_token }}"
    [output] = llm.chat(
        MESSAGES,
        chat_template=template,
        tools=[{"type": "function"}],
        chat_template_kwargs={"style": "dry"},
        add_generation_prompt=False,
        use_tqdm=False,
    )
    assert output.prompt == '[{"type": "function"}] dry False <|im_end|>'


def test_chat_can_continue_the_last_message(llm: LLM) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "The answer"}]
    [output] = llm.chat(messages, add_generation_prompt=False, continue_final_message=True, use_tqdm=False)
    assert output.prompt == RENDERED + "The answer"


@pytest.mark.parametrize(
    ("messages", "error"),
    [("hi", TypeError), (["hi"], TypeError), ([[]], ValueError), ([MESSAGES, []], ValueError), ([7], TypeError)],
)
def test_chat_refuses_what_is_no_conversation(llm: LLM, messages: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        llm.chat(messages, use_tqdm=False)


def test_chat_needs_a_template(tmp_path: Path) -> None:
    path = make_toy_model(tmp_path)
    (path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        LLM(str(path)).chat(MESSAGES)


def test_the_default_parameters_are_the_models(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    assert llm.get_default_sampling_params() == SamplingParams()
    recommended = {"temperature": 0.6, "top_p": 0.95, "top_k": 20.0, "repetition_penalty": 1.1}
    monkeypatch.setattr(llm, "_facts", replace(llm._facts, generation_defaults=recommended))
    params = llm.get_default_sampling_params()
    assert params == SamplingParams(temperature=0.6, top_p=0.95, top_k=20, repetition_penalty=1.1)
    submits = submits_of(llm, monkeypatch)
    generate(llm, "hello")
    assert submits[0].sampling.top_k == 20
    params.max_tokens = 3
    assert generate(llm, "hello", params)[0].outputs[0].token_ids[3:] == []


@pytest.fixture
def slow_llm(tmp_path: Path) -> LLM:
    return LLM(str(make_toy_model(tmp_path, step_time_s=0.005)))


def test_ctrl_c_leaves_the_engine_usable(slow_llm: LLM, model_dir: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        generate(slow_llm, PROMPTS, SamplingParams(max_tokens=4000, n=2))
    timer.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert_idle_and_usable(slow_llm, model_dir)


def test_an_error_of_the_progress_bar_leaves_the_engine_usable(llm: LLM, model_dir: Path) -> None:
    def bar(**options: Any) -> Any:
        raise RuntimeError("no terminal")

    with pytest.raises(RuntimeError, match="no terminal"):
        llm.generate(PROMPTS, use_tqdm=bar)
    assert_idle_and_usable(llm, model_dir)


def test_two_threads_get_their_own_answers(llm: LLM, model_dir: Path) -> None:
    found: dict[str, list[str]] = {}

    def work(name: str) -> None:
        prompts = [f"{name} {number}" for number in range(10)]
        found[name] = [output.outputs[0].text for output in generate(llm, prompts, SamplingParams(max_tokens=20))]

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [said(model_dir, f"{name} {i}", 20) for i in range(10)] for name in ("one", "two")}


def test_an_answer_the_engine_failed_on_is_an_error_with_the_others_in_it(
    llm: LLM, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch: Callable[[StepPlan], Any] = llm._core.runner.launch

    def fails_on_x(plan: StepPlan) -> Any:
        """Fails the one request whose prompt is "x", as a runner may."""
        pending = launch(plan)
        slots = {started.slot for started in plan.started if list(started.prompt_token_ids) == list(b"x")}
        rows = [*plan.decode_slots.tolist(), *(chunk.slot for chunk in plan.chunks)]
        errors = {index: "no memory" for index, slot in enumerate(rows) if slot in slots}
        return _Failing(pending, errors)

    monkeypatch.setattr(llm._core.runner, "launch", fails_on_x)
    with pytest.raises(GenerationError, match="1 answers failed; request 2: no memory") as raised:
        generate(llm, PROMPTS, SamplingParams(max_tokens=8))
    answers = [output.outputs[0] for output in raised.value.outputs]
    assert [answer.text for answer in answers[:2]] == [said(model_dir, prompt, 8) for prompt in PROMPTS[:2]]
    assert answers[2].finish_reason == "error"
    assert_idle_and_usable(llm, model_dir)


class _Failing:
    def __init__(self, pending: Any, errors: dict[int, str]) -> None:
        self._pending = pending
        self._errors = errors

    def wait(self) -> Any:
        return replace(self._pending.wait(), errors=self._errors)


class Bar:
    """Stands in for tqdm."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.format_dict = {"elapsed": 2.0}
        self.num_done = 0
        self.postfix = ""
        self.is_closed = False

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.postfix = text

    def update(self, num: int) -> None:
        self.num_done += num

    def close(self) -> None:
        self.is_closed = True


def test_the_progress_bar_counts_prompts_and_speed(llm: LLM) -> None:
    bars: list[Bar] = []

    def make_bar(**options: Any) -> Bar:
        bars.append(Bar(**options))
        return bars[-1]

    llm.generate(["hello", "hi"], SamplingParams(max_tokens=10, n=2), use_tqdm=make_bar)
    [bar] = bars
    assert (bar.options["total"], bar.options["desc"]) == (2, "Processed prompts")
    assert (bar.num_done, bar.is_closed) == (2, True)
    assert bar.postfix == "est. speed input: 3.50 toks/s, output: 20.00 toks/s"


def test_progress_is_shown_unless_told_otherwise(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    generate(llm, "hello")
    assert "Processed prompts" not in capsys.readouterr().err
    llm.generate("hello")
    assert "Processed prompts: 100%" in capsys.readouterr().err


def test_token_ids_travel_as_int32(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    submits = submits_of(llm, monkeypatch)
    generate(llm, [[1, 2, 271]])
    assert array("i", submits[0].token_ids).tolist() == [1, 2, 271]
    assert submits[0].num_output_tokens == 0


def test_an_engine_output_of_nobody_is_ignored(llm: LLM, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = llm._core.step
    stray = EngineOutput(key="stray", position=0, token_ids=[1], finish_reason=FinishReason.ABORT)

    def step_and_more() -> StepOutputs:
        outputs = step()
        return dataclasses.replace(outputs, special=[stray, *outputs.special])

    monkeypatch.setattr(llm._core, "step", step_and_more)
    assert generate(llm, "x")[0].outputs[0].text == said(model_dir, "x", 16)
