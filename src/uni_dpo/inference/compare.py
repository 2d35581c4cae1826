"""Both models' answers to the same prompts, by id; a run that was stopped goes on where it stopped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from uni_dpo.inference.compare_models import Models
from uni_dpo.inference.compare_prompts import Prompt
from uni_dpo.models.backends import Request, Sampling
from uni_dpo.storage.identity import derive_seed, digest
from uni_dpo.storage.rowlog import RowLog

ORIGINAL, TRAINED = "response_from_original_model", "response_from_trained_model"


def compare(
    prompts: Sequence[Prompt],
    models: Models,
    folder: str | Path,
    sampling: Sampling,
    *,
    seed: int = 0,
    batch_size: int = 8,
    **options: Any,
) -> list[dict[str, Any]]:
    """Let both models answer every prompt, with the same random numbers where answers are drawn.

    Args:
        prompts: what to ask, each in a conversation of its own.
        models: before and after.
        folder: keeps the answers of an unfinished run; those given already are not asked for again while prompts,
            models and settings are the same.
        sampling: how answers are drawn; `n` is 1.
        seed: of what is drawn.
        batch_size: prompts at once.
        options: further settings of the engine's `transformers` backend.

    Returns:
        One row per prompt, in their order: `id`, `prompt`, both responses (only what the model wrote, without the
        prompt and without special tokens), and `images` where the prompt has some.
    """
    asked = [[prompt.id, prompt.text, prompt.images] for prompt in prompts]
    logs = [
        RowLog(Path(folder) / f"{name}-{digest([asked, version, vars(sampling), seed, options])}.jsonl")
        for name, version in zip(("original", "trained"), models.versions(), strict=True)
    ]
    if any(_missing(prompts, log) for log in logs):
        _ask_both(prompts, models, logs, sampling, seed, batch_size, options)
    return [_row(prompt, *(log.rows[str(prompt.id)]["response"] for log in logs)) for prompt in prompts]


def _ask_both(
    prompts: Sequence[Prompt],
    models: Models,
    logs: Sequence[RowLog],
    sampling: Sampling,
    seed: int,
    batch_size: int,
    options: dict[str, Any],
) -> None:
    backend = models.load_original(batch_size=batch_size, **options)
    _ask("original", backend, _missing(prompts, logs[0]), logs[0], sampling, seed, batch_size)
    if models.adapter is not None:
        models.add_adapter(backend)
    else:
        del backend  # two whole models need not fit into memory
        backend = models.load_trained(batch_size=batch_size, **options)
    _ask("trained", backend, _missing(prompts, logs[1]), logs[1], sampling, seed, batch_size)


def _missing(prompts: Sequence[Prompt], log: RowLog) -> list[Prompt]:
    return [prompt for prompt in prompts if str(prompt.id) not in log.rows]


def _ask(
    name: str, backend: Any, prompts: Sequence[Prompt], log: RowLog, sampling: Sampling, seed: int, batch_size: int
) -> None:
    with tqdm(total=len(prompts), desc=f"The {name} model answers", unit=" prompts", disable=not prompts) as progress:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            requests = [Request(prompt.text, prompt.images, derive_seed(seed, str(prompt.id))) for prompt in batch]
            replies = backend.generate(requests, sampling)
            rows = [
                {"id": str(prompt.id), "response": reply[0].text} for prompt, reply in zip(batch, replies, strict=True)
            ]
            log.append(rows)
            progress.update(len(batch))


def _row(prompt: Prompt, original: str, trained: str) -> dict[str, Any]:
    row = {"id": prompt.id, "prompt": prompt.text, ORIGINAL: original, TRAINED: trained}
    return row | ({"images": list(prompt.images)} if prompt.images else {})
