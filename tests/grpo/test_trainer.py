"""What TRL's trainer sees and computes of our questions, by hand and by the policy of `uni-dpo ppo`."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from uni_dpo.engine import Question
from uni_dpo.grpo.config import trl_arguments
from uni_dpo.grpo.trainer import make_trainer

Trainer = Callable[..., Any]


@pytest.fixture
def trainer(settings: Callable[..., Any]) -> Trainer:
    """`trainer(questions, reward, **settings)` is TRL's trainer, made as `train_grpo` makes it."""

    def make(questions: list[Question], reward: Any, **changes: Any) -> Any:
        chosen = settings(**changes)
        run = make_trainer(chosen, trl_arguments(chosen), questions, reward)
        run.model.train()
        return run

    return make


def rows(run: Any, count: int, generations: int) -> list[dict[str, Any]]:
    """The first questions as TRL's loader repeats them."""
    return [run.train_dataset[place] for place in range(count) for _ in range(generations)]


def test_rewards_are_of_each_answer_to_its_own_question_and_advantages_of_its_group(
    trainer: Trainer, questions: list[Question]
) -> None:
    """Groups of four earn 0, 1, 2, 3 and 5, 5, 5, 5: (r − 1.5) / 1.29099 (unbiased), and nothing."""
    asked: list[Question] = []

    def reward(those: Sequence[Question], answers: Sequence[str]) -> list[float]:
        assert all(isinstance(answer, str) and answer == answer.strip() for answer in answers)
        asked.extend(those)
        return [0.0, 1.0, 2.0, 3.0, 5.0, 5.0, 5.0, 5.0]

    run = trainer(questions[:6], reward)
    found = run._generate_and_score_completions(rows(run, 2, 4))
    assert asked == [questions[0]] * 4 + [questions[1]] * 4
    step = 1 / (1.6666667**0.5 + 1e-4)
    expected = torch.tensor([-1.5 * step, -0.5 * step, 0.5 * step, 1.5 * step, 0, 0, 0, 0])
    torch.testing.assert_close(found["advantages"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [6, 2])
def test_log_probabilities_are_those_of_the_policy_that_sees_the_images(
    trainer: Trainer, questions: list[Question], batch_size: int
) -> None:
    """Questions with one, no and two images, together or apart, at temperature 0.7: as each alone in PPO's model."""
    from uni_dpo.online import RewardOptions
    from uni_dpo.ppo.config import PPOConfig
    from uni_dpo.ppo.policy import answer_logps, collate, encode, load_policy

    mixed = [
        questions[0],
        Question("b", "one two three"),
        Question("c", "Which digit do you see in the image?", questions[1].images + questions[2].images),
    ]
    run = trainer(
        mixed,
        lambda those, answers: [float(place) for place, _ in enumerate(answers)],
        per_device_train_batch_size=batch_size,
        generation_batch_size=6,
        num_generations=2,
        num_iterations=2,
        temperature=0.7,
        beta=0.1,
    )
    batch = run._generate_and_score_completions(rows(run, 3, 2))
    config = PPOConfig(run.model.config._name_or_path, "", RewardOptions(function="exact"), finetuning="full")
    policy, _, processor = load_policy(config)
    for row in range(6):
        count = int(batch["completion_mask"][row].sum())
        answer = batch["completion_ids"][row, :count].tolist()
        prompt = encode(mixed[row // 2], processor)
        with torch.no_grad():
            alone, _ = answer_logps(policy.model, *collate([prompt], [answer], 0), temperature=0.7)
        for name in ("old_per_token_logps", "ref_per_token_logps"):
            torch.testing.assert_close(batch[name][row, :count], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("finetuning", ["full", "lora"])
def test_completions_of_one_prompt_run_it_once_and_score_as_they_do_alone(
    trainer: Trainer, questions: list[Question], monkeypatch: pytest.MonkeyPatch, finetuning: str
) -> None:
    """Log-probabilities, entropies and gradients as TRL's own pass makes them; the tower sees two images, not eight."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl as modeling

    run = trainer(questions[:2], lambda those, answers: [0.0] * len(answers), temperature=0.7, finetuning=finetuning)
    batch = run._generate_and_score_completions(rows(run, 2, 4))
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    media = {
        name: batch[name]
        for name in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
        if name in batch
    }
    grids: list[int] = []
    tower = modeling.Qwen2VisionTransformerPretrainedModel
    forward = tower.forward
    monkeypatch.setattr(
        tower,
        "forward",
        lambda self, pixels, grid_thw, **k: grids.append(len(grid_thw)) or forward(self, pixels, grid_thw, **k),
    )
    scored = batch["completion_mask"].bool()
    kept = scored.shape[1]
    found = []
    for score in (run._get_per_token_logps_and_entropies, super(type(run), run)._get_per_token_logps_and_entropies):
        run.model.zero_grad()
        logps, entropies, *_ = score(run.model, ids, mask, kept, compute_entropy=True, **media)
        (logps * scored).sum().backward()
        gradient = torch.cat([w.grad.flatten() for w in run.model.parameters() if w.grad is not None])
        found.append((logps[scored], entropies[scored], gradient))
    for shared, alone in zip(*found, strict=True):
        torch.testing.assert_close(shared, alone, atol=1e-4, rtol=1e-4)
    assert grids == [2, 8]


def test_completions_of_every_family_score_as_they_do_alone(
    trainer: Trainer, questions: list[Question], family_checkpoint: Any, unlike_images: Any, sequences_run: Any
) -> None:
    """Log-probabilities and entropies against the full logits of one completion at a time."""
    if family_checkpoint.name == "gemma4":
        pytest.skip("TRL 0.24 hands no mm_token_type_ids on, and Gemma 4 does not train without")
    if family_checkpoint.name == "minicpmv4_6":
        pytest.skip("TRL hands no target_sizes on, and MiniCPM-V does not see without")
    from uni_dpo.online import RewardOptions
    from uni_dpo.ppo.config import PPOConfig
    from uni_dpo.ppo.policy import collate, encode, load_policy

    run = trainer(questions[:2], lambda those, answers: [0.0] * len(answers), temperature=0.7)
    config = PPOConfig(str(family_checkpoint), "", RewardOptions(function="exact"), finetuning="full")
    policy, _, processor = load_policy(config)
    prompts = [encode(Question("a", "Which digit?", (unlike_images[i],)), processor) for i in (0, 0, 1, 0, 1)]
    answers = [[30, 31], [40], [50, 51, 52], [30, 31], [60]]
    counts = sequences_run(policy.model)

    inputs, labels = collate(prompts, answers, 0)
    kept = labels.shape[1] - 1
    media = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    media.pop("batch_num_images", None)  # TRL hands it on to no model
    with torch.no_grad():
        logps, entropies, *_ = run._get_per_token_logps_and_entropies(
            policy.model, inputs["input_ids"], inputs["attention_mask"], kept, compute_entropy=True, **media
        )
        assert counts == [2]
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            alone, _ = collate([prompt], [answer], 0)
            table = (policy.model(**alone).logits[0, -len(answer) - 1 : -1] / run.temperature).log_softmax(-1)
            expected = table.gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)
            torch.testing.assert_close(logps[row, : len(answer)], expected, atol=1e-5, rtol=1e-5)
            expected = -(table.exp() * table).sum(-1)
            torch.testing.assert_close(entropies[row, : len(answer)], expected, atol=1e-5, rtol=1e-5)


def test_what_stands_for_an_image_is_never_sampled_and_a_checkpoints_habits_are_set_aside(
    trainer: Trainer, questions: list[Question]
) -> None:
    """`min_p` 1 leaves the likeliest token only: four answers would be one."""
    from uni_dpo.online.policy import media_tokens

    run = trainer(questions[:2], lambda those, answers: [0.0] * len(answers))
    run.model.generation_config.min_p = 1.0
    batch = run._generate_and_score_completions(rows(run, 2, 4))
    assert len({tuple(answer.tolist()) for answer in batch["completion_ids"][:4]}) > 1
    assert run.model.generation_config.min_p == 1.0
    assert not set(media_tokens(run.model)) & set(batch["completion_ids"].flatten().tolist())


def test_an_adapter_leaves_the_vision_tower_alone(trainer: Trainer, questions: list[Question]) -> None:
    run = trainer(questions[:2], lambda those, answers: [], finetuning="lora", freeze_vision_tower=True)
    trained = [name for name, weight in run.model.named_parameters() if weight.requires_grad]
    assert trained
    assert all("lora" in name and "visual" not in name for name in trained)


def test_a_family_that_counts_no_images_gets_one_each(
    trainer: Trainer, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    from uni_dpo.errors import UniDPOError

    class Processor:
        model_input_names = ("input_ids", "pixel_values")

        def apply_chat_template(self, messages: Any, **_: Any) -> str:
            return str(messages)

    monkeypatch.setattr("uni_dpo.grpo.trainer.load_model", lambda settings: (None, Processor()))
    with pytest.raises(UniDPOError, match="one image at a time"):
        trainer([questions[0], Question("b", "Which digit?")], lambda those, answers: [])
