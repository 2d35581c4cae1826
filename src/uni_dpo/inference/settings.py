"""What `predict`, `score` and `compare` may be told, on the command line or in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uni_dpo.models.rewards.options import RewardModelOptions
from uni_dpo.settings.options import Argument, Count, Dtype, ImageRoot, NotNegative, Seed, TopP


@dataclass(frozen=True)
class PredictSettings:
    """Write every question with its answer and label. A stopped run resumes.

    Attributes:
        source: rows of `question`, `images`, and maybe `id` and `answer`.
        output: a .json, .jsonl or .parquet file.
        model: folder or hub name of a checkpoint, or its name on the server.
        backend: what asks the model; `package.module:Class` for one of your own.
        base_url: of the server, for backend openai; ends in /v1.
        model_options: more about the model, as the engine's `models:` has it: dtype, quantization, max_pixels, …
        grader: exact, numeric, multiple_choice, math, vqa, or package.module:function.
        system: system prompt; without it what the chat template does.
        prompt: math, or a file with the gap {question}.
        samples: answers per question; their mean and pass@k are printed.
        max_tokens: of an answer.
        temperature: 0 takes the likeliest token each time.
        top_p: share of the probability that tokens are drawn from.
        image_root: where image paths start; none may leave it.
        limit: only the first N questions by id.
        batch_size: questions at once.
        seed: of everything drawn.
    """

    source: Argument
    output: Argument
    model: str
    backend: str = "transformers"
    base_url: str | None = None
    model_options: Mapping[str, Any] = field(default_factory=dict)
    grader: str = "exact"
    system: str | None = None
    prompt: str | None = None
    samples: Count = 1
    max_tokens: Count = 256
    temperature: NotNegative = 0.0
    top_p: TopP = 1.0
    image_root: Path | None = None
    limit: Count | None = None
    batch_size: Count = 64
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(RewardModelOptions):
    """Write score_chosen and score_rejected (or score). A stopped run resumes.

    Attributes:
        source: pairs, or questions with answers; see docs/vision_alignment.md.
        output: a .json, .jsonl or .parquet file.
        answer_column: rate this column's answers.
        image_root: where image paths start; none may leave it.
    """

    source: Argument
    output: Argument
    answer_column: str | None = None
    image_root: ImageRoot = None


@dataclass(frozen=True)
class CompareSettings:
    """Let the original and the trained model answer the same prompts; print and write the answers side by side.

    Attributes:
        prompts: a table of questions, as `predict` reads them.
        trained: what training wrote: a LoRA adapter or a whole model.
        output: folder for comparison.json and comparison.html.
        original: the model before training; an adapter names its own.
        pairs: what it was trained on, to print size and ratio.
        image_root: where image paths start; none may leave it.
        system: system prompt of rows without a `system` of their own.
        max_tokens: longest answer.
        temperature: 0 takes the likeliest token each time.
        top_p: share of the probability that tokens are drawn from.
        seed: fixes what is drawn.
        batch_size: prompts at once.
        dtype: of the weights; auto is the checkpoint's own.
        device: auto takes the GPU if there is one.
        model_options: more about both models, as the engine's `models:` has it: quantization, max_pixels, …
    """

    prompts: Argument
    trained: str
    output: Path
    original: str | None = None
    pairs: Path | None = None
    image_root: Path | None = None
    system: str | None = None
    max_tokens: Count = 256
    temperature: NotNegative = 0.0
    top_p: TopP = 1.0
    seed: Seed = 0
    batch_size: Count = 8
    dtype: Dtype = "auto"
    device: str = "auto"
    model_options: Mapping[str, Any] = field(default_factory=dict)
