"""Models and questions for the `*_tiny.yaml` configs: trained here in a minute or two, nothing downloaded.

    python examples/engine/prepare_tiny.py outputs/engine_tiny

writes below the folder
    seer/        describes the digit in an image
    seer_early/  the same model at half of its training: the reference of the DPO reward
    checker/     the seer, taught to answer yes/no questions about the image and to grade a description
    writer/      text only: splits a description into claims, turns a claim into a yes/no question
    questions.jsonl
All are 0.7-million-parameter Qwen2-VLs that start from random weights, taught by a plain training loop, and know
four digits only: to tell all ten apart takes so small a model many minutes.
"""

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uni_dpo.cli import run
from uni_dpo.demo.digits import WORDS, Digit, write_digits
from uni_dpo.demo.tiny_model import IMAGE_SIDE, write_tiny_qwen2_vl
from uni_dpo.errors import UniDPOError
from uni_dpo.storage.writing import write_text

PROMPTS = Path(__file__).parent / "prompts_tiny"
QUESTION = "Describe the digit."
DIGITS = (0, 1, 4, 7)
"""The digits of the example, in the order in which the checker learns them: two even, two odd."""
CORPUS = (
    QUESTION,
    "You are a helpful assistant. system user assistant",
    *((PROMPTS / f"{name}.txt").read_text(encoding="utf-8") for name in ("split", "ask", "check", "grade")),
    *(f"The digit is {word}. It is odd. It is even. Is the digit {word}? - The digit is {word}." for word in WORDS),
    "Is the digit odd? Is the digit even? - The digit is odd. - The digit is even. Yes No yes no",
    *(f"Score: {number}" for number in range(11)),
)

GOOD = 0.85
"""Share of yes/no questions about held-out images that a checker must have right to be used."""
HELD_OUT = 100
"""Images that the checker is measured on."""
LOOK = 20
"""Steps between two looks at how good the checker is."""
TRIES = 3
"""Times that the checker begins anew, with another seed, before it is given up."""

Example = tuple[str, Path | None, str]
"""Prompt, image, reply."""


def parity(label: int) -> str:
    """`odd` or `even`."""
    return "odd" if label % 2 else "even"


def description(word: str, kind: str) -> str:
    """What a seer says of a digit: two claims."""
    return f"The digit is {word}. It is {kind}."


def prompt(name: str, **values: str) -> str:
    """The prompt that the engine will send for this task, from the same file."""
    text = (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").strip()
    for gap, value in values.items():
        text = text.replace(f"{{{gap}}}", value)
    return text


def describe_example(digits: list[Digit], rng: random.Random) -> Example:
    """Describe an image."""
    digit = rng.choice(digits)
    return QUESTION, digit.image, description(WORDS[digit.label], parity(digit.label))


def check_example(by_label: Mapping[int, list[Digit]], rng: random.Random, known: Sequence[int]) -> Example:
    """Say yes or no about an image of a known digit, or grade a description of it; now and then describe it."""
    digit = rng.choice(by_label[rng.choice(known)])
    true_word, true_kind = WORDS[digit.label], parity(digit.label)
    others = [WORDS[label] for label in known if label != digit.label]
    word = true_word if rng.random() < 0.5 else rng.choice(others)
    kind = rng.choice(["odd", "even"])
    task = rng.choices(["describe", "word", "kind", "grade"], weights=[10, 65, 12, 13])[0]
    if task == "describe":
        return describe_example([digit], rng)
    if task == "grade":
        score = 5 * (word == true_word) + 5 * (kind == true_kind)
        return prompt("grade", answer=description(word, kind)), digit.image, f"Score: {score}"
    asked, truth = (word, true_word) if task == "word" else (kind, true_kind)
    return prompt("check", question=f"Is the digit {asked}?"), digit.image, "Yes" if asked == truth else "No"


def writer_example(rng: random.Random) -> Example:
    """Split or ask, on any description, right or wrong."""
    word, kind = WORDS[rng.choice(DIGITS)], rng.choice(["odd", "even"])
    if rng.random() < 0.5:
        reply = f"- The digit is {word}.\n- The digit is {kind}."
        return prompt("split", answer=description(word, kind)), None, reply
    thing = rng.choice([word, kind])
    return prompt("ask", claim=f"The digit is {thing}."), None, f"Is the digit {thing}?"


def train(
    folder: Path,
    draw: Callable[[random.Random], Example],
    steps: int,
    *,
    lr: float,
    early: Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
    enough: Callable[[Any, Any], bool] | None = None,
) -> None:
    """Teach the checkpoint in `folder` what `draw` shows, and save it there (and at half in `early`).

    Args:
        enough: asked every `LOOK` steps with model and processor; it may end the training. With it the learning rate
            stays as it is after the first steps, since nobody knows the end.
    """
    import torch
    from tqdm import tqdm
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder).train()
    processor = AutoProcessor.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    if enough is None:
        schedule: Any = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.1)
    else:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 30))
    rng = random.Random(seed)
    bar = tqdm(range(steps), desc=folder.name, unit="step")
    for step in bar:
        inputs = _encode(processor, [draw(rng) for _ in range(batch_size)])
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
        if early and step == steps // 2:
            model.save_pretrained(early)
            processor.save_pretrained(early)
        if enough is not None and (step + 1) % LOOK == 0 and enough(model, processor):
            break
    model.save_pretrained(folder)


def _encode(processor: Any, examples: list[Example]) -> dict[str, Any]:
    """A left-padded batch whose labels are the replies, end-of-turn included."""
    import torch
    from PIL import Image

    texts, images, replies = [], [], []
    for text, image, reply in examples:
        content: list[dict[str, str]] = [{"type": "text", "text": text}]
        if image is not None:
            content.insert(0, {"type": "image"})
            with Image.open(image) as opened:
                images.append(opened.convert("RGB"))
        turns = [{"role": "user", "content": content}]
        begin = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        texts.append(f"{begin}{reply}<|im_end|>")
        replies.append(len(processor.tokenizer(f"{reply}<|im_end|>")["input_ids"]))
    processor.tokenizer.padding_side = "left"
    extra = {"images": images} if images else {}
    inputs = dict(processor(text=texts, padding=True, return_tensors="pt", **extra))
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, length in enumerate(replies):
        labels[row, -length:] = inputs["input_ids"][row, -length:]
    return {**inputs, "labels": labels}


def share_right(model: Any, processor: Any, digits: Sequence[Digit], known: Sequence[int]) -> float:
    """How many yes/no questions about images of known digits, one true and one false each, a checker has right."""
    import torch

    yes, no = (processor.tokenizer(word)["input_ids"][0] for word in ("Yes", "No"))
    asked, truths = [], []
    for digit in digits:
        if digit.label in known:
            other = known[(known.index(digit.label) + 1 + digit.label % (len(known) - 1)) % len(known)]
            for label in (digit.label, other):
                asked.append((prompt("check", question=f"Is the digit {WORDS[label]}?"), digit.image, "Yes"))
                truths.append(label == digit.label)
    inputs = _encode(processor, asked)
    first = (inputs.pop("labels") != -100).int().argmax(dim=1)
    model.eval()
    with torch.inference_mode():
        logits = model(**inputs).logits
    model.train()
    says_yes = [bool(row[at - 1, yes] > row[at - 1, no]) for row, at in zip(logits, first, strict=True)]
    return sum(said == truth for said, truth in zip(says_yes, truths, strict=True)) / len(truths)


def train_checker(folder: Path, seen: list[Digit], unseen: list[Digit], steps: int, good: float, seed: int) -> bool:
    """Train the checker until it is good on images that it was not trained on; print how good it is, and return it.

    It begins with two digits and gets two more when it can tell those apart: to compare all words with an image at once
    is a task that so small a model does not begin to learn.
    """
    by_label = {label: [digit for digit in seen if digit.label == label] for label in DIGITS}
    known = list(DIGITS[:2])
    right = 0.0

    def enough(model: Any, processor: Any) -> bool:
        nonlocal right
        right = share_right(model, processor, unseen, known)
        if len(known) == len(DIGITS):
            return right >= good
        if right >= GOOD:
            known.extend(DIGITS[len(known) : len(known) + 2])
        return False

    train(folder, lambda rng: check_example(by_label, rng, known), steps, lr=1e-3, seed=seed, enough=enough)
    print(f"checker: {right:.0%} of its yes/no questions about held-out images of {len(known)} digits right")
    return not good or (right >= good and len(known) == len(DIGITS))


def prepare(
    folder: Path,
    *,
    describe_steps: int = 100,
    check_steps: int = 400,
    write_steps: int = 150,
    questions: int = 60,
    good: float = GOOD,
    seed: int = 0,
) -> None:
    """Write everything below `folder`; a model that is there already is kept, a checker only if it was good.

    Raises:
        UniDPOError: the checker is not good, however often it begins.
    """
    splits = write_digits(folder / "digits", side=IMAGE_SIDE)
    digits = {name: [digit for digit in split if digit.label in DIGITS] for name, split in splits.items()}
    seen = digits["train"] + digits["validation"] + digits["held_out"]
    seer, early, checker, writer = (folder / name for name in ("seer", "seer_early", "checker", "writer"))
    if not _complete(seer):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            started = write_tiny_qwen2_vl(Path(work) / "seer", seed=seed, corpus=CORPUS)
            train(started, lambda rng: describe_example(seen, rng), describe_steps, lr=3e-3, early=early, seed=seed)
            started.rename(seer)
    if not _complete(checker):
        for attempt in range(TRIES):
            with tempfile.TemporaryDirectory(dir=folder) as work:
                started = shutil.copytree(seer, Path(work) / "checker")
                if train_checker(started, seen, digits["preference"][-HELD_OUT:], check_steps, good, seed + attempt):
                    started.rename(checker)
                    break
        else:
            raise UniDPOError(
                f"the checker began {TRIES} times and never had {good:.0%} of its questions right: it is not kept. "
                f"Run again with --seed {seed + TRIES}"
            )
    if not _complete(writer):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            started = write_tiny_qwen2_vl(Path(work) / "writer", seed=seed + 1, corpus=CORPUS)
            train(started, writer_example, write_steps, lr=3e-3, seed=seed)
            started.rename(writer)
    write_questions(folder, digits["preference"][:questions])


def write_questions(folder: Path, digits: list[Digit]) -> None:
    """Write `questions.jsonl`: one question per image, with the true description as `answer`."""
    rows = [
        {
            "question_id": digit.image.stem,
            "question": QUESTION,
            "image_path": digit.image.relative_to(folder).as_posix(),
            "answer": description(WORDS[digit.label], parity(digit.label)),
        }
        for digit in digits
    ]
    write_text(folder / "questions.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _complete(folder: Path) -> bool:
    return (folder / "config.json").is_file()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs/engine_tiny"))
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    run(lambda: prepare(options.folder, questions=options.questions, seed=options.seed))
