"""Ranked answers: a question's pairs in one batch run its prompt, images and each different answer once."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from uni_dpo.demo.digits import QUESTION, Digit, answer

LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}
METRICS = (
    "loss",
    "grad_norm",
    "rewards/chosen",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


def ranked_pairs(digits: list[Digit], answers: int, images: int = 1) -> list[dict[str, Any]]:
    """All pairs of `answers` ranked answers to each digit."""
    rows = []
    for digit in digits:
        texts = [answer((digit.label + step) % 10) + " yes" * (step % 3) for step in range(answers)]
        for better, worse in itertools.combinations(range(answers), 2):
            rows.append(
                {
                    "instruction": "<image>" * images + QUESTION,
                    "chosen": texts[better],
                    "rejected": texts[worse],
                    "images": [str(digit.image)] * images,
                    "score_chosen": 5.0 - better,
                    "score_rejected": 5.0 - worse,
                }
            )
    return rows


@pytest.fixture
def register_ranked(pair_data: Any, digits: dict[str, list[Digit]]) -> Any:
    def add(answers: int, questions: int = 3, *, mixed: bool = False) -> str:
        name = f"ranked_{answers}_{questions}_{mixed}"
        rows = ranked_pairs(digits["preference"][:questions], answers)
        if mixed:
            rows += ranked_pairs(digits["preference"][questions : questions + 2], 3, images=2)
            rows += [
                {**row, "instruction": QUESTION, "images": []} for row in ranked_pairs(digits["preference"][:1], 3)
            ]
        pair_data.add(name, rows)
        return name

    return add


def trajectory(log: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([[line[name] for name in METRICS] for line in log if "grad_norm" in line], dtype=torch.float64)


def assert_same_run(train: Any, tolerance: float = 1e-4, **settings: Any) -> None:
    ordinary, shared = (trajectory(train(pair_forward=mode, **settings)) for mode in ("ordinary", "shared_prefix"))
    assert len(shared) == settings["max_steps"]
    torch.testing.assert_close(shared, ordinary, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("answers", [2, 3, 4, 5, 6])
def test_all_pairs_of_a_question_train_as_they_do_alone(train: Any, register_ranked: Any, answers: int) -> None:
    pairs = answers * (answers - 1) // 2
    assert_same_run(
        train,
        dataset=register_ranked(answers),
        max_steps=3,
        per_device_train_batch_size=pairs,
        disable_shuffling=True,
        learning_rate=1e-4,
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 20, "per_device_train_batch_size": 3, "num_train_epochs": 4},
        {"group_by_question": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"pref_loss": "sigmoid", "ld_alpha": 0.3, "disable_shuffling": True},
        {"pref_loss": "simpo", "group_by_question": True},
        {**LORA, "group_by_question": True},
        {"freeze_vision_tower": False, "disable_shuffling": True},
    ],
    ids=lambda settings: " ".join(f"{name}={value}" for name, value in settings.items()),
)
def test_mixed_batches_are_the_same(train: Any, register_ranked: Any, settings: dict[str, Any]) -> None:
    """Questions with one image, two images and none, whole and in parts, in one batch."""
    name = register_ranked(4, 2, mixed=True)
    defaults = {"max_steps": 3, "per_device_train_batch_size": 8, "learning_rate": 1e-4}
    assert_same_run(train, dataset=name, **(defaults | settings))


def test_evaluation_counts_pairs_not_questions(train: Any, register_ranked: Any) -> None:
    """The first batch holds six pairs of one question and the second two pairs of two."""
    settings = {"dataset": register_ranked(4, 3), "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"val_size": 8, "per_device_eval_batch_size": 6, "seed": 5}
    losses = []
    for mode in ("ordinary", "shared_prefix"):
        losses += [line["eval_loss"] for line in train(pair_forward=mode, **settings) if "eval_loss" in line]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_tower_and_the_files_are_looked_at_once_per_question(
    train: Any, register_ranked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llamafactory.data.mm_plugin import BasePlugin
    from transformers.models.qwen2_vl import modeling_qwen2_vl as modeling

    patches: list[int] = []
    opened: list[int] = []
    tower = modeling.Qwen2VisionTransformerPretrainedModel
    forward, prepare = tower.forward, BasePlugin._regularize_images
    monkeypatch.setattr(
        tower, "forward", lambda self, hidden, *a, **k: patches.append(len(hidden)) or forward(self, hidden, *a, **k)
    )
    monkeypatch.setattr(
        BasePlugin,
        "_regularize_images",
        lambda self, images, **k: opened.append(len(images)) or prepare(self, images, **k),
    )
    settings = {"dataset": register_ranked(4, 1), "max_steps": 1, "per_device_train_batch_size": 6, **LORA}
    train(pair_forward="ordinary", **settings)
    ordinary = patches[0], opened[-1]
    patches.clear()
    opened.clear()
    train(pair_forward="shared_prefix", **settings)
    assert patches == [ordinary[0] // 12]
    assert (opened[-1], ordinary[1]) == (1, 12)


def test_question_by_question_is_every_pair_once_and_the_same_each_time() -> None:
    from uni_dpo.llamafactory.question_pairs import QuestionSampler

    rows = [
        {"chosen_input_ids": [question, answers[0]], "chosen_labels": [-100, answers[0]],
         "rejected_input_ids": [question, answers[1]], "rejected_labels": [-100, answers[1]]}
        for question in range(5) for answers in itertools.combinations(range(10, 13), 2)
    ]  # fmt: skip
    sampler = QuestionSampler(rows, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(15))
    assert [rows[at]["chosen_input_ids"][0] for at in first[::3]] == [
        rows[at]["chosen_input_ids"][0] for at in first[2::3]
    ]
    assert list(QuestionSampler(rows, seed=1)) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(QuestionSampler(rows, seed=2)) != first


def test_a_run_resumes_inside_a_question_as_if_it_had_not_stopped(
    config: Any, train: Any, register_ranked: Any
) -> None:
    """Nine pairs of three questions, four to a step: the fourth step ends one pair into the second question.

    The last batch of an epoch has one pair, and its last step that batch alone.
    """
    settings = {"dataset": register_ranked(3, 3), "group_by_question": True, "num_train_epochs": 2}
    settings |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "learning_rate": 1e-4}
    ordinary = trajectory(train(**settings, pair_forward="ordinary"))
    whole = trajectory(train(**settings, save_strategy="steps", save_steps=4))
    assert len(whole) == 6
    torch.testing.assert_close(whole, ordinary, rtol=1e-4, atol=1e-5)
    folder = Path(config()["output_dir"])
    resumed = trajectory(train(**settings, resume_from_checkpoint=str(folder / "checkpoint-4")))
    torch.testing.assert_close(resumed[4:], whole[4:], rtol=1e-4, atol=1e-5)
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 6


def test_questions_of_like_length_follow_each_other_where_asked(train: Any, register_ranked: Any) -> None:
    """Two hundred questions of two pairs and lengths 3 … 202: half of what random order pads, or less."""
    from uni_dpo.llamafactory.question_pairs import QuestionSampler

    rows = []
    for question in range(200):
        for rejected in (1, 2):
            answers = {"chosen": [7] * (question + 1), "rejected": [rejected]}
            rows.append(
                {f"{side}_input_ids": [question, *answer] for side, answer in answers.items()}
                | {f"{side}_labels": [-100, *answer] for side, answer in answers.items()}
            )

    def padded(sampler: QuestionSampler) -> int:
        lengths = [len(rows[at]["chosen_input_ids"]) for at in sampler]
        batches = [lengths[start : start + 8] for start in range(0, len(lengths), 8)]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    grouped, drawn = QuestionSampler(rows, 3, like_lengths_of=8), QuestionSampler(rows, 3)
    assert sorted(grouped) == list(range(400))
    assert list(grouped) == list(QuestionSampler(rows, 3, like_lengths_of=8))
    assert 2 * padded(grouped) < padded(drawn)
    grouped.set_epoch(1)
    assert list(grouped) != list(QuestionSampler(rows, 3, like_lengths_of=8))

    settings = {"dataset": register_ranked(3, 4), "group_by_question": True, "max_steps": 2, "val_size": 3}
    log = train(**settings, train_sampling_strategy="group_by_length", eval_strategy="steps", eval_steps=2)
    assert any("eval_loss" in line for line in log)


@pytest.mark.slow
@pytest.mark.parametrize(("accumulation", "steps"), [pytest.param(1, 4, marks=pytest.mark.nightly), (2, 2)])
def test_two_ranks_train_as_one_does(
    accumulation: int, steps: int, config: Any, train: Any, register_ranked: Any, tmp_path: Path
) -> None:
    """A question's three pairs on each rank, against two questions on one, eight in all."""
    settings = {"dataset": register_ranked(3, 8), "group_by_question": True, "learning_rate": 1e-4, "max_steps": steps}
    settings["gradient_accumulation_steps"] = accumulation
    one = trajectory(train(**settings, per_device_train_batch_size=6))
    ranks = tmp_path / "ranks"
    described = tmp_path / "ranks.json"
    more = {"per_device_train_batch_size": 3, "output_dir": str(ranks), "ddp_find_unused_parameters": False}
    described.write_text(json.dumps(config(**settings, **more)))
    launch = f"from uni_dpo.llamafactory.launch import train; train([{str(described)!r}])"
    environment = os.environ | {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", launch], env=environment, check=True, capture_output=True)
    two = trajectory(json.loads((ranks / "trainer_state.json").read_text())["log_history"])
    assert len(two) == steps
    torch.testing.assert_close(two[:, :2], one[:, :2], rtol=1e-4, atol=1e-5)
