"""`LLM`: a model in this process, with vLLM's methods and result objects.

    llm = LLM("path/or/hub-id")
    for output in llm.generate(["Hello"], SamplingParams(max_tokens=32)):
        print(output.outputs[0].text)

Without a model it is the bundled demo model. One batch runs at a time; a call from another thread waits for it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack

from tqdm import tqdm  # type: ignore[import-untyped]

from .engine.build import load_engine
from .engine_options import EngineOptions, engine_config
from .frontend.chat_template import ChatTemplate
from .frontend.tokenizer import Tokenizer
from .generation import Generation, Job
from .outputs import RequestOutput
from .prompts import AnyPrompt, Prompt, as_list, check_prompt, read_prompt
from .sampling_params import SamplingParams

Message = Mapping[str, Any]


class LLM:
    """A loaded model. Raises EngineStartError when it cannot be loaded, TypeError and ValueError for options."""

    def __init__(self, model: str | None = None, **options: Unpack[EngineOptions]) -> None:
        """`model` is a local directory or a Hugging Face id; the options are EngineConfig's fields, named as in vLLM."""
        config = engine_config(model, options)
        engine = load_engine(config)
        self._core = engine.core
        self._facts = engine.facts
        self._tokenizer = Tokenizer.from_dir(self._facts.model_dir)
        self._chat_template = ChatTemplate.from_dir(self._facts.model_dir)
        self._seeds = random.Random(config.seed)
        self._num_requests = 0
        self._lock = threading.Lock()

    def get_tokenizer(self) -> Tokenizer:
        """Encodes and decodes as `generate` does."""
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """New parameters as the model's generation_config.json recommends them; what `generate` uses when given none."""
        defaults: dict[str, Any] = dict(self._facts.generation_defaults)
        if "top_k" in defaults:
            defaults["top_k"] = int(defaults["top_k"])
        return SamplingParams(**defaults)

    def generate(
        self,
        prompts: AnyPrompt | Sequence[AnyPrompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
    ) -> list[RequestOutput]:
        """Answers the prompts together and returns the answers in their order.

        A prompt is a text, a list of token ids, or a dictionary with `prompt` or `prompt_token_ids`; `sampling_params` is
        one for all or one for each. `use_tqdm` shows progress; a callable is used in tqdm's place. Everything is checked
        first: ValueError or TypeError mean that nothing ran. GenerationError carries what succeeded.
        """
        return self._run(
            [read_prompt(prompt, self._tokenizer.encode) for prompt in as_list(prompts)], sampling_params, use_tqdm
        )

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[dict[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one conversation or a list of them, each a list of messages with `role` and `content`.

        Messages become a prompt through the model's chat template or the given one, which also sees `tools` and
        `chat_template_kwargs`; the rest is as in `generate`. Raises ValueError without a template.
        """
        template = self._chat_template
        if chat_template is not None:
            template = ChatTemplate(chat_template, self._tokenizer.special_tokens)
        if template is None:
            raise ValueError("this model has no chat template: use generate, or give chat_template")
        prompts = []
        for conversation in _conversations(messages):
            text = template.render(
                conversation,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **(chat_template_kwargs or {}),
            )
            token_ids = self._tokenizer.encode(text, add_special_tokens=False)
            prompts.append(Prompt(text=text, token_ids=token_ids))
        return self._run(prompts, sampling_params, use_tqdm)

    def _run(
        self,
        prompts: list[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool | Callable[..., Any],
    ) -> list[RequestOutput]:
        params = self._params_for(prompts, sampling_params)
        for index, prompt in enumerate(prompts):
            check_prompt(prompt, index, vocab_size=self._facts.vocab_size, max_model_len=self._facts.max_model_len)
        with self._lock:
            jobs = [self._job(prompt, one) for prompt, one in zip(prompts, params, strict=True)]
            with _Progress(len(jobs), use_tqdm) as progress:
                return Generation(self._core, self._tokenizer, jobs).run(progress.add)

    def _params_for(
        self, prompts: list[Prompt], sampling_params: SamplingParams | Sequence[SamplingParams] | None
    ) -> Sequence[SamplingParams]:
        if sampling_params is None:
            return [self.get_default_sampling_params()] * len(prompts)
        params = [sampling_params] * len(prompts) if isinstance(sampling_params, SamplingParams) else list(sampling_params)
        if len(params) != len(prompts):
            raise ValueError(f"there are {len(prompts)} prompts but {len(params)} sampling_params")
        for one in params:
            one.check()
        return params

    def _job(self, prompt: Prompt, params: SamplingParams) -> Job:
        num_left = self._facts.max_model_len - len(prompt.token_ids)
        self._num_requests += 1
        return Job(
            request_id=self._num_requests - 1,
            prompt=prompt,
            params=params,
            seed=self._seeds.getrandbits(63) if params.seed is None else params.seed,
            max_tokens=num_left if params.max_tokens is None else min(params.max_tokens, num_left),
        )


def _conversations(messages: Sequence[Any]) -> list[Sequence[Message]]:
    """Raises TypeError unless `messages` is a list of messages or of lists of messages."""
    conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
    for conversation in conversations:
        if not isinstance(conversation, Sequence) or not all(isinstance(message, Mapping) for message in conversation):
            raise TypeError("messages must be a list of dictionaries, or a list of such lists")
        if not conversation:
            raise ValueError("a conversation needs at least one message")
    return list(conversations)


class _Progress:
    """The bar that vLLM shows."""

    def __init__(self, num_prompts: int, use_tqdm: bool | Callable[..., Any]) -> None:
        make_bar = use_tqdm if callable(use_tqdm) else tqdm
        self._num_input_tokens = self._num_output_tokens = 0
        self._bar = make_bar(total=num_prompts, desc="Processed prompts", dynamic_ncols=True) if use_tqdm else None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, output: RequestOutput) -> None:
        """One more prompt is answered."""
        if self._bar is None:
            return
        self._num_input_tokens += len(output.prompt_token_ids)
        self._num_output_tokens += sum(len(answer.token_ids) for answer in output.outputs)
        elapsed_s = self._bar.format_dict["elapsed"] or 1e-9
        self._bar.set_postfix_str(
            f"est. speed input: {self._num_input_tokens / elapsed_s:.2f} toks/s, "
            f"output: {self._num_output_tokens / elapsed_s:.2f} toks/s",
            refresh=False,
        )
        self._bar.update(1)
