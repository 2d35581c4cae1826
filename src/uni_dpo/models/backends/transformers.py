"""Answers from a Hugging Face checkpoint in this process, on a CPU or a GPU, in batches.

Sampling draws from each request's own random stream: what a request gets does not depend on which
other requests share its batch.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import AnswerLogprob, Backend, Failure, Request, Sample, Sampling, Usage, first_tokens
from uni_dpo.models.backends.logits import OwnStreams, SoundLogits, sound_logits
from uni_dpo.models.backends.settings import TransformersOptions
from uni_dpo.models.checkpoint import find_checkpoint
from uni_dpo.models.loading import load_model, load_processor
from uni_dpo.models.prompt import (
    by_request,
    load_pixels,
    patch_of,
    placeholder,
    prompt_of,
    sees_images,
    style_of,
)
from uni_dpo.shared_prefix.families import unwrapped
from uni_dpo.shared_prefix.forward import projection
from uni_dpo.shared_prefix.rows import share_rows, sharing_rows


class TransformersBackend(Backend):
    """See `Backend`."""

    Options = TransformersOptions

    def __init__(self, options: TransformersOptions) -> None:
        """Load weights and processor.

        Raises:
            UniDPOError: they cannot be loaded, or the chat template takes neither turns nor content items.
        """
        self.options = options
        self.usage = Usage()
        checkpoint = find_checkpoint(options.model, options.adapter)
        trust = options.trust_remote_code
        self.processor = load_processor(
            checkpoint, min_pixels=options.min_pixels, max_pixels=options.max_pixels, trust_remote_code=trust
        )
        self.style = style_of(self.processor, options.prompt_style, options.model)
        self.model = load_model(
            checkpoint,
            dtype=options.dtype,
            device=options.device,
            attention=options.attn_implementation,
            quantization=options.quantization,
            device_map=options.device_map,
            trust_remote_code=trust,
        )
        self.device = self.model.device
        self.comfortable_batch = 16 if self.device.type == "cpu" else 64
        self._fits = sys.maxsize
        """The most requests that are not known to be too many for one pass."""
        self.sees_images = sees_images(self.processor)
        self.tokenizer = self.processor.tokenizer if self.sees_images else self.processor
        self.tokenizer.padding_side = "left"
        own = self.model.generation_config
        # The checkpoint's sampling habits (Qwen's repetition penalty, top_k 1) would distort what was asked.
        self.model.generation_config = GenerationConfig(
            eos_token_id=own.eos_token_id or self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=own.bos_token_id,
        )
        ends = self.model.generation_config.eos_token_id
        self.end_tokens = set(ends if isinstance(ends, list) else [ends]) | {self.tokenizer.eos_token_id}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        """See `Backend.generate`."""
        return [samples for _, samples in self.stream(requests, sampling)]

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """See `Backend.stream`; in order, a batch at a time, smaller where one does not fit into memory."""
        start = 0
        while start < len(requests):
            size = min(self._fits, max(1, self.options.batch_size // sampling.n))
            batch = self._together(requests, start, size)
            try:
                replies = self._batch(batch, sampling)
            except torch.cuda.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise UniDPOError(
                        "one request alone does not fit into memory; lower max_pixels or max_tokens"
                    ) from error
                torch.cuda.empty_cache()
                self._fits = len(batch) // 2
                continue
            yield from enumerate(replies, start)
            start += len(batch)

    def _together(self, requests: Sequence[Request], start: int, size: int) -> Sequence[Request]:
        """The next requests to go through the model at once; one where videos of unlike lengths can't be stacked."""
        batch = requests[start : start + size]
        stacks = "video_grid_thw" in self.processor.model_input_names
        return batch if stacks or not any(request.videos for request in batch) else batch[:1]

    @torch.inference_mode()
    def _batch(self, batch: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        inputs = self._encode(batch)
        processors: list[LogitsProcessor] = [SoundLogits(self.options.model)]
        draw: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            # The processor leaves one token per row, so "sampling" takes that one; it is only asked
            # for because greedy search refuses num_return_sequences.
            draw = {
                "do_sample": True,
                "temperature": 1.0,
                "top_k": 0,
                "top_p": 1.0,
                "num_return_sequences": sampling.n,
            }
            seeds = [request.seed for request in batch]
            processors.append(OwnStreams(seeds, inputs["input_ids"].shape[1], sampling))
        if sampling.repetition_penalty != 1:
            draw["repetition_penalty"] = sampling.repetition_penalty
        draw["logits_processor"] = LogitsProcessorList(processors)
        output = self.model.generate(**inputs, max_new_tokens=sampling.max_tokens, **draw)
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        samples = [self._sample(tokens) for tokens in new]
        self._count(len(batch), int(inputs["attention_mask"].sum()), sum(s.tokens for s in samples))
        return [samples[start : start + sampling.n] for start in range(0, len(samples), sampling.n)]

    @torch.inference_mode()
    def choice_logprobs(
        self, requests: Sequence[Request], choices: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Failure]:
        """See `Backend.choice_logprobs`; exact, over the whole vocabulary."""
        tokens = first_tokens(self._token_ids, choices, self.options.model)
        replies: list[dict[str, float] | Failure] = []
        while len(replies) < len(requests):
            batch = self._together(requests, len(replies), self.options.batch_size)
            inputs = self._encode(batch)
            output = self.model.generate(
                **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            logprobs = sound_logits(output.logits[0], self.options.model).double().log_softmax(-1)
            for row in logprobs:
                replies.append({name: float(row[ids].logsumexp(-1)) for name, ids in tokens.items()})
            self._count(len(batch), int(inputs["attention_mask"].sum()), len(batch))
        return replies

    @torch.inference_mode()
    def answer_logprobs(self, requests: Sequence[Request], answers: Sequence[str]) -> list[AnswerLogprob | Failure]:
        """See `Backend.answer_logprobs`."""
        replies: list[AnswerLogprob | Failure] = []
        while len(replies) < len(requests):
            batch = self._together(requests, len(replies), self.options.batch_size)
            replies += self._answer_logprobs(batch, answers[len(replies) : len(replies) + len(batch)])
        return replies

    def _answer_logprobs(self, requests: Sequence[Request], answers: Sequence[str]) -> list[AnswerLogprob]:
        inputs = self._encode(requests)
        ids = [self._token_ids(answer) for answer in answers]
        starts = inputs["attention_mask"].sum(1).tolist()
        inputs = _append(inputs, ids, self.tokenizer.pad_token_id)
        with sharing_rows(self.model) as shares:
            spans = self._shared_logits(inputs, starts, ids) if shares else None
        if spans is None:
            first = min(starts) - 1
            keep = torch.arange(first, inputs["input_ids"].shape[1], device=self.device)
            logits = self.model(**inputs, logits_to_keep=keep, use_cache=False).logits[:, -len(keep) :]  # some keep all
            spans = [
                row[start - 1 - first : start - 1 - first + len(answer)]
                for row, start, answer in zip(logits, starts, ids, strict=True)
            ]
        self._count(len(requests), sum(starts) + sum(map(len, ids)), 0)
        replies = []
        for row, answer in zip(spans, ids, strict=True):
            span = sound_logits(row, self.options.model).double().log_softmax(-1)
            target = torch.tensor(answer, device=self.device, dtype=torch.long)
            total = span.gather(-1, target[:, None]).sum()
            replies.append(AnswerLogprob(float(total), len(answer)))
        return replies

    def _shared_logits(
        self, inputs: dict[str, Any], starts: Sequence[int], ids: Sequence[Sequence[int]]
    ) -> list[torch.Tensor] | None:
        """The logits that predict each answer, from one run of each prompt; None where no two prompts are the same."""
        answers = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
        for row, (start, answer) in enumerate(zip(starts, ids, strict=True)):
            answers[row, start : start + len(answer)] = True
        shared = share_rows(self.model, inputs, answers)
        if shared is None:
            return None
        language = unwrapped(self.model)
        hidden = shared.rows(language.base_model(**shared.inputs, use_cache=False).last_hidden_state)
        project = projection(language)
        return [
            project(row[start - 1 : start - 1 + len(answer)])
            for row, start, answer in zip(hidden, starts, ids, strict=True)
        ]

    def _encode(self, requests: Sequence[Request]) -> dict[str, Any]:
        patch = patch_of(self.processor)
        images: list[list[Any]] = []
        videos: list[Any] = []
        told: dict[str, Any] = {}
        for request in requests:
            more_images, more_videos, more_told = load_pixels(request, patch, self.options.video_limits())
            images.append(more_images)
            videos += more_videos
            for key, value in more_told.items():
                told[key] = told.get(key, []) + value if isinstance(value, list) else value
        if any(images) and not self.sees_images:
            raise UniDPOError(f"{self.options.model} cannot see images, but its requests carry some")
        if videos and placeholder(self.processor, "video") is None:
            raise UniDPOError(f"{self.options.model} takes no videos, but its requests carry some")
        shown = {"images": by_request(self.processor, images)} if any(images) else {}
        shown |= {"videos": videos} if videos else {}
        texts = [prompt_of(self.processor, request.items(), self.style, request.system) for request in requests]
        try:
            inputs = self.processor(text=texts, padding=True, return_tensors="pt", **shown, **told)
        except (ValueError, RuntimeError) as error:
            if not videos:
                raise
            why = str(error).splitlines()[0]
            raise UniDPOError(
                f"{self.options.model}: its processor does not take these videos together: {why}"
            ) from error
        return dict(inputs.to(self.device))

    def _sample(self, tokens: list[int]) -> Sample:
        end = next((index for index, token in enumerate(tokens) if token in self.end_tokens), None)
        kept = tokens[:end]
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        return Sample(text, len(kept), finished=end is not None)

    def _token_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _count(self, requests: int, prompt_tokens: int, completion_tokens: int) -> None:
        self.usage.add(Usage(requests=requests, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens))


def _append(inputs: dict[str, Any], answers: Sequence[Sequence[int]], pad: int) -> dict[str, Any]:
    """Left-padded prompts and answers → right-padded prompt + answer, for every per-token input."""
    mask = inputs["attention_mask"].bool()
    joined = dict(inputs)
    for name, value in inputs.items():
        if not isinstance(value, torch.Tensor) or value.shape != mask.shape:
            continue
        rows = []
        for tokens, kept, answer in zip(value, mask, answers, strict=True):
            behind = answer if name == "input_ids" else [int(name == "attention_mask")] * len(answer)
            rows.append(torch.cat([tokens[kept], value.new_tensor(behind)]))
        joined[name] = pad_sequence(rows, batch_first=True, padding_value=pad if name == "input_ids" else 0)
    return joined


BACKEND = TransformersBackend
