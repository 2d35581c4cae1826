"""vLLM inside this process: it is handed many requests at once and batches them itself."""

from collections.abc import Iterator, Sequence
from typing import Any

from uni_dpo.errors import UniDPOError
from uni_dpo.models.checkpoint import Checkpoint
from uni_dpo.models.vision import load_vision
from uni_dpo.vlmeval.backends import Request
from uni_dpo.vlmeval.settings import ModelSettings


class VLLMBackend:
    """One vLLM engine; greedy unless `do_sample` is set."""

    comfortable_batch = 128
    """vLLM schedules them itself; this many are what a kill can cost."""

    def __init__(self, checkpoint: Checkpoint, settings: ModelSettings, processor: Any) -> None:
        """Start the engine.

        Raises:
            UniDPOError: vLLM is not installed, or the model is a LoRA adapter.
        """
        if checkpoint.adapter is not None:
            raise UniDPOError(
                f"backend vllm takes merged weights; {checkpoint.adapter} is a LoRA adapter: merge it with "
                "`llamafactory-cli export`, or use backend transformers"
            )
        try:
            from vllm import LLM
        except ImportError as error:
            raise UniDPOError(f"backend vllm: {error}; install vllm, or use backend transformers") from error
        self.settings = settings
        self.tokenizer = processor.tokenizer
        self.patch = processor.image_processor.patch_size
        self.engine = LLM(
            model=str(checkpoint.base),
            tokenizer=str(checkpoint.processor),
            dtype=settings.dtype or "auto",
            seed=settings.seed,
            trust_remote_code=settings.trust_remote_code,
            **settings.vllm,
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """Yield the answers to `requests`, in their order."""
        from vllm import SamplingParams

        drawn = self.settings.sampling() or {"temperature": 0.0}
        sampling = SamplingParams(
            max_tokens=self.settings.max_new_tokens,
            repetition_penalty=self.settings.repetition_penalty,
            seed=self.settings.seed,
            detokenize=False,
            **drawn,
        )
        prompts = [self._prompt(request) for request in requests]
        for position, output in enumerate(self.engine.generate(prompts, sampling, use_tqdm=False)):
            # Its running text holds back a character that the last token cuts in two; the tokens do not.
            yield position, self.tokenizer.decode(output.outputs[0].token_ids, skip_special_tokens=True)

    def _prompt(self, request: Request) -> dict[str, Any]:
        images, videos, _ = load_vision(request.content, self.patch)
        shown = {name: data for name, data in (("image", images), ("video", videos)) if data}
        prompt: dict[str, Any] = {"prompt": request.prompt}
        return prompt | ({"multi_modal_data": shown} if shown else {})
