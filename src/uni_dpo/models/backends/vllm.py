"""Answers from vLLM in this process: it is handed many requests at once and batches them itself."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import AnswerLogprob, Backend, Failure, Request, Sample, Sampling, Usage
from uni_dpo.models.backends.base import first_tokens, logsumexp
from uni_dpo.models.backends.settings import VLLMOptions
from uni_dpo.models.checkpoint import find_checkpoint
from uni_dpo.models.loading import load_processor, one_line
from uni_dpo.models.prompt import load_pixels, patch_of, prompt_of, style_of

REPORTED_TOKENS = 20
"""The most alternatives per token that older versions of vLLM report unless told otherwise."""


class VLLMBackend(Backend):
    """See `Backend`."""

    Options = VLLMOptions
    comfortable_batch = 128
    """vLLM schedules them itself; this many are what a kill can cost."""

    def __init__(self, options: VLLMOptions) -> None:
        """Start the engine.

        Raises:
            UniDPOError: vLLM is not installed or cannot load the model, or the model is a LoRA adapter.
        """
        checkpoint = find_checkpoint(options.model, options.adapter)
        if checkpoint.adapter is not None:
            raise UniDPOError(
                f"backend vllm takes merged weights; {checkpoint.adapter} is a LoRA adapter: merge it with "
                "`llamafactory-cli export`, or use backend transformers"
            )
        try:
            import vllm
        except ImportError as error:
            raise UniDPOError(f"backend vllm: {error}; install vllm, or use backend transformers") from error
        self.options = options
        self.usage = Usage()
        self._vllm = vllm
        self.processor = load_processor(checkpoint, trust_remote_code=options.trust_remote_code)
        self.style = style_of(self.processor, options.prompt_style, options.model)
        self.patch = patch_of(self.processor)
        pixels = {"min_pixels": options.min_pixels, "max_pixels": options.max_pixels}
        settings: dict[str, Any] = {
            "model": str(checkpoint.base),
            "dtype": options.dtype,
            "max_model_len": options.max_model_len,
            "limit_mm_per_prompt": {"image": options.max_images},
            "mm_processor_kwargs": {name: value for name, value in pixels.items() if value is not None},
            "trust_remote_code": options.trust_remote_code,
            "tensor_parallel_size": options.tensor_parallel_size,
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "enforce_eager": options.enforce_eager,
        }
        with one_line(options.model, "vLLM: "):
            self.llm = vllm.LLM(**{**settings, **(options.more or {})})
        self.tokenizer = self.llm.get_tokenizer()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        """See `Backend.generate`."""
        asked = asdict(sampling) | {"detokenize": False}  # vLLM's names are ours
        params = [self._vllm.SamplingParams(seed=request.seed % 2**31, **asked) for request in requests]
        return [[self._sample(answer) for answer in output.outputs] for output in self._ask(requests, params)]

    def choice_logprobs(
        self, requests: Sequence[Request], choices: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Failure]:
        """See `Backend.choice_logprobs`; exact where vLLM reports tokens by id, else among the 20 likeliest."""
        tokens = first_tokens(self._token_ids, choices, self.options.model)
        wanted = [token for own in tokens.values() for token in own]
        by_id = "logprob_token_ids" in inspect.signature(self._vllm.SamplingParams).parameters
        reported_tokens = {"logprob_token_ids": wanted} if by_id else {"logprobs": REPORTED_TOKENS}
        params = self._vllm.SamplingParams(temperature=0.0, max_tokens=1, **reported_tokens)
        replies: list[dict[str, float] | Failure] = []
        for output in self._ask(requests, params):
            reported = output.outputs[0].logprobs[0]
            replies.append(
                {
                    name: logsumexp([reported[token].logprob for token in own if token in reported])
                    for name, own in tokens.items()
                }
            )
        return replies

    def answer_logprobs(self, requests: Sequence[Request], answers: Sequence[str]) -> list[AnswerLogprob | Failure]:
        """See `Backend.answer_logprobs`."""
        params = self._vllm.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        replies: list[AnswerLogprob | Failure] = []
        for output, answer in zip(self._ask(requests, params, answers), answers, strict=True):
            # Image tokens are expanded in the prompt, so the answer is found from the end.
            count = len(self._token_ids(answer))
            pairs = list(zip(output.prompt_token_ids, output.prompt_logprobs, strict=True))[-count:] if count else []
            replies.append(AnswerLogprob(sum(reported[token].logprob for token, reported in pairs), count))
        return replies

    def _ask(self, requests: Sequence[Request], params: Any, answers: Sequence[str] | None = None) -> list[Any]:
        """Put rendered prompts to vLLM, each followed by the beginning of its answer where there are `answers`."""
        begun = answers or [""] * len(requests)
        prompts = [self._prompt(request, answer) for request, answer in zip(requests, begun, strict=True)]
        outputs = list(self.llm.generate(prompts, params, use_tqdm=False))
        for output in outputs:
            made = sum(len(answer.token_ids) for answer in output.outputs)
            self.usage.add(Usage(requests=1, prompt_tokens=len(output.prompt_token_ids), completion_tokens=made))
        return outputs

    def _prompt(self, request: Request, answer: str) -> dict[str, Any]:
        images, videos, _ = load_pixels(request, self.patch)
        shown = {name: pixels for name, pixels in (("image", images), ("video", videos)) if pixels}
        text = prompt_of(self.processor, request.items(), self.style, request.system) + answer
        return {"prompt": text, **({"multi_modal_data": shown} if shown else {})}

    def _sample(self, answer: Any) -> Sample:
        # vLLM's running text holds back a character that the last token cuts in two; the tokens do not.
        text = self.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
        finished = answer.finish_reason == "stop"
        return Sample(text.strip(), len(answer.token_ids) - finished, finished=finished)

    def _token_ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


BACKEND = VLLMBackend
