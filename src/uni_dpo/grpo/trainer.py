"""`uni-dpo grpo`: questions and reward in, TRL's trainer on them, a checkpoint out."""

import uni_dpo.trl  # noqa: F401  # makes TRL importable

# isort: split
import json
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers.trainer_utils import get_last_checkpoint
from trl.trainer.grpo_trainer import GRPOTrainer

from uni_dpo.data.questions import Question, read_questions, refuse_videos
from uni_dpo.errors import UniDPOError
from uni_dpo.grpo.config import GRPOSettings, trl_arguments
from uni_dpo.logprobs import IGNORE_INDEX, ResponseTokens, response_logps
from uni_dpo.models.prompt import PromptStyle, detect_style, open_image
from uni_dpo.online.policy import (
    Reward,
    adapter,
    base_dtype,
    check_model,
    check_reward,
    freeze_vision_tower,
    load_model,
    make_reward,
    media_tokens,
    messages,
    plain_sampling,
    prompt_text,
)
from uni_dpo.shared_prefix.families import unwrapped
from uni_dpo.shared_prefix.forward import in_place_of_head
from uni_dpo.shared_prefix.rows import SharedBatch, share_rows, shares_rows
from uni_dpo.storage import read_json
from uni_dpo.storage.writing import write_text
from uni_dpo.trainer_mixins import EndsTogether, LoadsByPublishedNames, process_group
from uni_dpo.trl.trainer import SeeingSampler

RUN = "grpo_run.json"
"""Names, in the output folder, the settings of the run that it holds."""
MEDIA = ("pixel_values", "image_grid_thw", "image_sizes", "mm_token_type_ids", "token_type_ids")
"""What of the media inputs can be shared; others leave the pass to TRL."""
COUNTS = ("num_images", "compute_aux_loss")
GIVES_AUX_LOSS = "compute_aux_loss" in signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters
"""TRL 1.x gives a third thing, the loss of a router, which none of the models that share has."""
TOKENS_AT_ONCE = 256
"""Positions whose logits are made at once for their entropies."""


@process_group()
def train_grpo(settings: GRPOSettings) -> list[dict[str, Any]]:
    """Train the policy of `settings`; checkpoint and TRL's log stand in its output folder.

    Returns:
        TRL's log, one line of numbers per logged step.

    Raises:
        UniDPOError: a setting, question, model or reward that cannot be used, or an output folder of another run.
    """
    arguments = trl_arguments(settings)
    output = Path(settings.output_dir)
    questions = read_questions(settings.questions, output / "images")
    refuse_videos(questions, "grpo")
    _check_images(questions, processes=arguments.world_size)
    check_reward(settings.reward, questions)
    check_model(settings)
    checkpoint = _checkpoint_of(settings, output)
    say = PartialState().on_main_process(print)
    if checkpoint and (finished := _finished(output, arguments.max_steps)) is not None:
        say(f"{output}: all {arguments.max_steps:,} steps are done; nothing is trained")
        return finished
    if checkpoint:
        say(f"resuming from {checkpoint}")
    reward = make_reward(
        settings.reward,
        batch_size=arguments.per_device_train_batch_size,
        trust_remote_code=settings.trust_remote_code,
    )
    trainer = make_trainer(settings, arguments, questions, reward)
    if trainer.is_world_process_zero():
        write_text(output / RUN, json.dumps({"run": settings.digest()}) + "\n")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()  # last: it says that the run is whole
    log: list[dict[str, Any]] = trainer.state.log_history
    return log


def reward_line(log: Sequence[Mapping[str, Any]]) -> str:
    """Return what a run's log says of the reward; the summary that TRL puts at its end is no step."""
    rewards = [line["reward"] for line in log if "reward" in line and "train_runtime" not in line]
    if not rewards:
        return "reward: no step was logged (see logging_steps)"
    return f"reward: {rewards[0]:.3f} in the first line of the log, {rewards[-1]:.3f} in the last"


def make_trainer(
    settings: GRPOSettings, arguments: Any, questions: Sequence[Question], reward: Reward
) -> "VisionGRPOTrainer":
    """Return TRL's trainer of the policy on the questions; `arguments` are those of `trl_arguments`.

    Raises:
        UniDPOError: the model cannot be loaded, or cannot be asked these questions.
    """
    model, processor = load_model(settings)
    if "image_grid_thw" not in processor.model_input_names and any(len(asked.images) != 1 for asked in questions):
        raise UniDPOError("TRL's GRPO asks this family about one image at a time: give every question one image")
    if detect_style(processor, settings.model) is PromptStyle.BASE:
        raise UniDPOError(
            f"{settings.model}: has the template of a base checkpoint, which TRL's GRPO cannot fill; take the instruct "
            "checkpoint, or `uni-dpo ppo`"
        )
    for question in questions[:1]:
        prompt_text(question, processor)
    lora = settings.finetuning == "lora"
    if not lora and settings.freeze_vision_tower:
        freeze_vision_tower(model)
    if not lora and arguments.beta:
        arguments.model_init_kwargs = {"dtype": base_dtype(settings)}  # of the reference, which TRL loads by itself
    return VisionGRPOTrainer(
        model,
        args=arguments,
        reward_funcs=reward_function(reward, questions),
        train_dataset=dataset(questions),
        processing_class=processor,
        peft_config=adapter(settings) if lora else None,
    )


def dataset(questions: Sequence[Question]) -> Any:
    """Return the questions as TRL reads them; `question` is a question's place, for the reward.

    Returns:
        a `datasets.Dataset` of `prompt`, `images` (decoded when they are asked for) and `question`.
    """
    import datasets

    rows = [
        {"prompt": messages(asked), "images": list(asked.images), "question": place}
        for place, asked in enumerate(questions)
    ]
    table = datasets.Dataset.from_list(rows)
    if not any(asked.images for asked in questions):
        return table.remove_columns("images")
    return table.with_transform(_with_pixels)


def _with_pixels(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Open the images of rows as every other command does; `datasets.Image` would turn some (`data.odd_images`)."""
    return rows | {"images": [[open_image(path) for path in paths] for paths in rows["images"]]}


def reward_function(reward: Reward, questions: Sequence[Question]) -> Callable[..., list[float]]:
    """Return a reward as TRL calls one, with the columns of the dataset repeated for every completion."""

    def rewarded(completions: Sequence[list[dict[str, str]]], question: Sequence[int], **_: Any) -> list[float]:
        answers = [turns[-1]["content"].strip() for turns in completions]
        return reward([questions[place] for place in question], answers)

    return rewarded


def _check_images(questions: Sequence[Question], *, processes: int) -> None:
    """TRL gathers images from all processes where one has some; one without would make the others wait for ever."""
    seeing = sum(bool(question.images) for question in questions)
    if processes > 1 and 0 < seeing < len(questions):
        raise UniDPOError(
            f"{seeing:,} of {len(questions):,} questions have images: on several processes TRL's GRPO needs all or none"
        )


def _finished(output: Path, max_steps: int) -> list[dict[str, Any]] | None:
    """The log of a run that has all its steps, which Trainer, resumed, would go beyond; None for any other."""
    state = read_json(output / "trainer_state.json")
    return state["log_history"] if state and 0 < max_steps <= state["global_step"] else None


def _checkpoint_of(settings: GRPOSettings, output: Path) -> str | None:
    """The checkpoint that a stopped run left in its output folder."""
    found: str | None = get_last_checkpoint(str(output)) if output.is_dir() else None
    if found is None:
        return None
    if read_json(output / RUN).get("run") != settings.digest():
        raise UniDPOError(f"{output} holds a run of other settings: name another output_dir, or delete it")
    return found


class VisionGRPOTrainer(EndsTogether, LoadsByPublishedNames, SeeingSampler, GRPOTrainer):
    """Sample, normalise and learn as TRL's trainer does; only what goes into the model differs."""

    def __init__(self, model: Any, *, args: Any, **kwargs: Any) -> None:
        args.generation_kwargs = _never(media_tokens(model), args.use_vllm) | (args.generation_kwargs or {})
        super().__init__(model, args=args, **kwargs)
        for scored in (self.model, self.ref_model):
            if scored is not None:
                shares_rows(scored)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **media: Any,
    ) -> Any:
        """Score completions, those of one prompt in one run of it; TRL's own way where that cannot be."""
        media = {name: value for name, value in media.items() if not isinstance(value, Tensor) or len(value)}
        known = {name: media.get(name) for name in MEDIA if media.get(name) is not None}
        others = [name for name, value in media.items() if value is not None and name not in (*MEDIA, *COUNTS)]
        others += ["compute_aux_loss"] * bool(media.get("compute_aux_loss"))
        answers = attention_mask.bool()
        answers[:, :-logits_to_keep] = False
        shared = None
        if not others and answers[:, -logits_to_keep].all():
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **known}
            shared = share_rows(model, inputs, answers)
        if shared is None:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **media
            )
        labels = torch.where(answers, input_ids, IGNORE_INDEX)[:, -logits_to_keep - 1 :]
        found = _completion_scores(model, shared, labels, self.temperature, compute_entropy)
        return (*found, None) if GIVES_AUX_LOSS else found

    def _generate_single_turn(self, *asked: Any, **options: Any) -> Any:
        with plain_sampling(self.accelerator.unwrap_model(self.model)):
            return super()._generate_single_turn(*asked, **options)


def _never(tokens: list[int], vllm: bool) -> dict[str, Any]:
    """The setting of transformers' sampler, or of vLLM's, that keeps tokens out of the answers."""
    return {"logit_bias": dict.fromkeys(tokens, -100.0)} if vllm else {"suppress_tokens": tokens or None}


def _completion_scores(
    model: Any, shared: SharedBatch, labels: Tensor, temperature: float, compute_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities, and entropies if asked for, (rows, T) each, 0 on padding.

    Args:
        labels: (rows, T + 1) the completions' tokens after one ignored column.
    """
    tokens = ResponseTokens.from_labels(labels)
    entropies: list[Tensor] = []

    def score(hidden: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        rows = shared.rows(hidden)[:, -labels.shape[1] :]
        if compute_entropy:
            with torch.no_grad():
                entropies.append(_entropies(rows.flatten(0, 1)[tokens.predictor], project, temperature))
        return response_logps(rows, head, tokens, project=lambda states: project(states) / temperature)

    head = unwrapped(model).get_output_embeddings()
    logps = in_place_of_head(model, shared.inputs, score)
    width = labels.shape[1] - 1
    return tokens.table(logps, width), tokens.table(entropies[0], width) if entropies else None


def _entropies(hidden: Tensor, project: Callable[[Tensor], Tensor], temperature: float) -> Tensor:
    found = []
    for part in hidden.split(TOKENS_AT_ONCE):
        logps = (project(part).float() / temperature).log_softmax(-1)
        found.append(-(logps.exp() * logps).sum(-1))
    return torch.cat(found)
