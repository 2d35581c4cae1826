"""Answers to one question rated in one run of it, against each rated alone."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from uni_dpo.demo.digits import QUESTION, Digit
from uni_dpo.models.rewards import load_process_model, load_reward_model
from uni_dpo.models.rewards.options import Conversation, ProcessModelOptions, RewardModelOptions

ANSWERS = ("The digit is two.", "The digit is two", "zero", "The digit is three, one two three.", "zero")
LONG = "one two three four five six seven eight nine " * 6


@contextmanager
def rows_run(model: Any) -> Iterator[list[int]]:
    """The number of sequences of every run of the language model in the block."""
    counts: list[int] = []
    layer = getattr(model, "language_model", model).layers[0]
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    try:
        yield counts
    finally:
        hook.remove()


def alone(rate: Callable[[list[Any]], list[Any]], items: list[Any]) -> list[Any]:
    """What each item gets in a batch of its own."""
    return [rate([item])[0] for item in items]


def test_a_value_head_rates_as_it_does_one_by_one(value_head: Path, digits: dict[str, list[Digit]]) -> None:
    """Five answers to one image, two of the same words to another, one with two images, one without."""
    first, second, third = (str(digit.image) for digit in digits["held_out"][:3])
    ask = f"<image>{QUESTION}"
    conversations = [
        *(Conversation(ask, answer, (first,)) for answer in ANSWERS),
        *(Conversation(ask, answer, (second,)) for answer in ANSWERS[1:3]),
        Conversation(f"<image>{ask}", "one", (first, third)),
        Conversation("one two", "three"),
    ]
    model = load_reward_model(RewardModelOptions(value_head))
    expected = alone(model.rate, conversations)
    with rows_run(model.model.pretrained_model.model) as counts:
        assert model.rate(conversations) == pytest.approx(expected, abs=1e-5)
    assert counts == [4]
    assert max(expected) - min(expected) > 1e-3


def test_a_value_head_rates_answers_about_videos(
    value_head: Path, digits: dict[str, list[Digit]], write_video: Callable[..., Path], tmp_path: Path
) -> None:
    """Two films of unlike sizes, one as its frames, and one beside an image; then one film alone."""
    image, frame = (str(digit.image) for digit in digits["held_out"][:2])
    films: list[Any] = [str(write_video(tmp_path / "film.mp4", 4)), (frame, frame, image)]
    conversations = [
        *(Conversation("<video>What?", answer, videos=(films[0],)) for answer in ANSWERS[:3]),
        *(Conversation("<video>What?", answer, videos=(films[1],)) for answer in ANSWERS[1:3]),
        Conversation("<image><video>What?", "one", (image,), videos=(films[0],)),
    ]
    model = load_reward_model(RewardModelOptions(value_head))
    for rated, sequences in ((conversations, 3), (conversations[:3], 1)):
        expected = alone(model.rate, rated)
        with rows_run(model.model.pretrained_model.model) as counts:
            assert model.rate(rated) == pytest.approx(expected, abs=1e-5)
        assert counts == [sequences]
    assert max(expected) - min(expected) > 1e-4


def test_a_value_head_of_every_family_rates_as_it_does_one_by_one(
    family_checkpoint: Path, family_template: str, unlike_images: tuple[str, str], tmp_path: Path
) -> None:
    """Images of unlike sizes and words alone; then words alone, where LlamaFactory adds an image that nobody sees."""
    folder = shutil.copytree(family_checkpoint, tmp_path / "value_head")
    head = {
        "v_head.summary.weight": torch.randn(1, 32, generator=torch.Generator().manual_seed(0)),
        "v_head.summary.bias": torch.zeros(1),
    }
    save_file(head, folder / "value_head.safetensors")
    asked = [(f"<image>{QUESTION}", (image,)) for image in unlike_images]
    asked += [*asked, asked[0], (LONG, ()), (LONG, ())]
    conversations = [
        Conversation(ask, answer, images) for (ask, images), answer in zip(asked, (*ANSWERS, *ANSWERS[:2]), strict=True)
    ]
    model = load_reward_model(RewardModelOptions(folder, template=family_template))
    for rated, sequences in ((conversations, 3), (conversations[-2:], 1)):
        expected = alone(model.rate, rated)
        with rows_run(model.model.pretrained_model.model) as counts:
            assert model.rate(rated) == pytest.approx(expected, abs=1e-5)
        assert counts == [sequences]


def test_a_value_head_shares_questions_without_images(value_head: Path) -> None:
    """LlamaFactory adds an image, which nobody attends, to such a batch; the second question has an earlier turn."""
    conversations = [
        *(Conversation(LONG, answer, system="Answer the question.") for answer in ANSWERS),
        *(Conversation(LONG, answer, history=(("zero", "one"),)) for answer in ANSWERS[:2]),
    ]
    model = load_reward_model(RewardModelOptions(value_head))
    expected = alone(model.rate, conversations)
    with rows_run(model.model.pretrained_model.model) as counts:
        assert model.rate(conversations) == pytest.approx(expected, abs=1e-5)
    assert counts == [2]


def test_paths_of_equal_pixels_are_one_image(value_head: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path, colour in zip(paths, ("red", "red", "blue"), strict=True):
        Image.new("RGB", (56, 56), colour).save(path)
    conversations = [Conversation("<image>one", "two", (str(path),)) for path in paths]
    model = load_reward_model(RewardModelOptions(value_head))
    expected = alone(model.rate, conversations)
    with rows_run(model.model.pretrained_model.model) as counts:
        assert model.rate(conversations) == pytest.approx(expected, abs=1e-5)
    assert counts == [2]


@pytest.mark.parametrize("padding", [None, "<|im_end|>"])
def test_a_classifier_rates_as_it_does_one_by_one(classifier: Path, padding: str | None) -> None:
    """Also where the padding token closes the conversation, and transformers reads the token before it."""
    conversations = [
        *(Conversation(LONG, answer) for answer in ANSWERS),
        Conversation(LONG, "one", history=(("zero", "one"),)),
        Conversation("one two", "three"),
    ]
    model = load_reward_model(RewardModelOptions(classifier))
    if padding is not None:
        model.tokenizer.pad_token = padding
        model.model.config.pad_token_id = model.tokenizer.pad_token_id
    expected = alone(model.rate, conversations)
    with rows_run(model.model.model) as counts:
        assert model.rate(conversations) == pytest.approx(expected, abs=1e-5)
    assert counts == [3]


def test_steps_are_rated_as_they_are_one_by_one(step_classifier: Path) -> None:
    solutions = [(LONG, ["one two", "three"]), (LONG, ["one two", "four", "five"]), ("one", ["two"]), (LONG, ["zero"])]
    model = load_process_model(ProcessModelOptions(step_classifier))
    expected = alone(model.rate_steps, solutions)
    with rows_run(model.model.model) as counts:
        rated = model.rate_steps(solutions)
    for ours, theirs in zip(rated, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert counts == [2]


def test_long_answers_to_a_short_text_run_alone(classifier: Path) -> None:
    """Eight times 200 words behind three: a shared sequence would attend to four times as much as it saves."""
    model = load_reward_model(RewardModelOptions(classifier))
    with rows_run(model.model.model) as counts:
        model.rate([Conversation("one", f"{word} {LONG * 3}") for word in ("one", "two", "three", "four") * 2])
    assert counts == [8]
