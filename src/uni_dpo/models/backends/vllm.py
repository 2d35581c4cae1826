"""Answers from vLLM in this process."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from vllm import LLM, SamplingParams

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import (
    AnswerLogprob,
    Failure,
    Request,
    Sample,
    Sampling,
    Usage,
    first_tokens,
    logsumexp,
)
from uni_dpo.models.backends.images import data_url
from uni_dpo.models.backends.settings import VLLMOptions

REPORTED_TOKENS = 20
"""The most alternatives per token that older versions of vLLM report unless told otherwise."""


class VLLMBackend:
    """See `Backend`."""

    Options = VLLMOptions

    def __init__(self, options: VLLMOptions) -> None:
        self.options = options
        self.usage = Usage()
        pixels = {"min_pixels": options.min_pixels, "max_pixels": options.max_pixels}
        try:
            self.llm = LLM(
                model=options.model,
                dtype=options.dtype,
                max_model_len=options.max_model_len,
                limit_mm_per_prompt={"image": options.max_images},
                mm_processor_kwargs={name: value for name, value in pixels.items() if value is not None},
                trust_remote_code=options.trust_remote_code,
                tensor_parallel_size=options.tensor_parallel_size,
                gpu_memory_utilization=options.gpu_memory_utilization,
                enforce_eager=options.enforce_eager,
            )
        except (OSError, ValueError) as error:
            raise UniDPOError(f"vLLM cannot load {options.model!r}: {error}") from error
        self.tokenizer = self.llm.get_tokenizer()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        """See `Backend.generate`."""
        params = [
            SamplingParams(
                n=sampling.n,
                seed=request.seed % 2**31,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                max_tokens=sampling.max_tokens,
            )
            for request in requests
        ]
        outputs = self._chat([_messages(request) for request in requests], params)
        return [
            [
                Sample(
                    answer.text.strip(),
                    len(answer.token_ids) - (answer.finish_reason == "stop"),
                    finished=answer.finish_reason == "stop",
                )
                for answer in output.outputs
            ]
            for output in outputs
        ]

    def choice_logprobs(
        self, requests: Sequence[Request], choices: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Failure]:
        """See `Backend.choice_logprobs`; exact where vLLM reports tokens by id, else among the 20 likeliest."""
        tokens = first_tokens(self._token_ids, choices, self.options.model)
        wanted = [token for own in tokens.values() for token in own]
        by_id = "logprob_token_ids" in inspect.signature(SamplingParams).parameters
        reported_tokens = {"logprob_token_ids": wanted} if by_id else {"logprobs": REPORTED_TOKENS}
        params = SamplingParams(temperature=0.0, max_tokens=1, **reported_tokens)
        replies: list[dict[str, float] | Failure] = []
        for output in self._chat([_messages(request) for request in requests], params):
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
        conversations = [
            [*_messages(request), {"role": "assistant", "content": answer}]
            for request, answer in zip(requests, answers, strict=True)
        ]
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        outputs = self._chat(conversations, params, add_generation_prompt=False, continue_final_message=True)
        replies: list[AnswerLogprob | Failure] = []
        for output, answer in zip(outputs, answers, strict=True):
            # Image tokens are expanded in the prompt, so the answer is found from the end.
            count = len(self._token_ids(answer))
            pairs = list(zip(output.prompt_token_ids, output.prompt_logprobs, strict=True))[-count:] if count else []
            replies.append(AnswerLogprob(sum(reported[token].logprob for token, reported in pairs), count))
        return replies

    def _chat(self, conversations: list[Any], params: Any, **settings: Any) -> list[Any]:
        outputs = list(self.llm.chat(conversations, params, use_tqdm=False, **settings))
        for output in outputs:
            made = sum(len(answer.token_ids) for answer in output.outputs)
            self.usage.add(Usage(requests=1, prompt_tokens=len(output.prompt_token_ids), completion_tokens=made))
        return outputs

    def _token_ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))


def _messages(request: Request) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(path)}} for path in request.images
    ]
    return [{"role": "user", "content": [*content, {"type": "text", "text": request.prompt}]}]
