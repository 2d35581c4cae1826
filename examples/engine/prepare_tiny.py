"""Models and questions for the `*_tiny.yaml` configs: trained here in a few minutes, nothing downloaded.

    python examples/engine/prepare_tiny.py outputs/engine_tiny

writes below the folder
    seer/        describes the digit in an image
    seer_early/  the same model at a third of its training: the reference of the DPO reward
    checker/     the seer, taught to answer yes/no questions about the image and to grade a description
    writer/      text only: splits a description into claims, turns a claim into a yes/no question
    questions.jsonl
All are 0.7-million-parameter Qwen2-VLs that start from random weights, taught by a plain training loop.
"""

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uni_dpo.cli import run
from uni_dpo.demo.digits import WORDS, Digit, write_digits
from uni_dpo.demo.tiny_model import IMAGE_SIDE, write_tiny_qwen2_vl
from uni_dpo.errors import UniDPOError
from uni_dpo.storage.writing import write_text

PROMPTS = Path(__file__).parent / "prompts_tiny"
QUESTION = "Describe the digit."
CORPUS = (
    QUESTION,
    *((PROMPTS / f"{name}.txt").read_text(encoding="utf-8") for name in ("split", "ask", "check", "grade")),
    *(f"The digit is {word}. It is odd. It is even. Is the digit {word}? - The digit is {word}." for word in WORDS),
    "Is the digit odd? Is the digit even? - The digit is odd. - The digit is even. Yes No yes no",
    *(f"Score: {number}" for number in range(11)),
)

GOOD = 0.85
"""Share of yes/no questions about held-out images that a checker must have right to be used."""
HELD_OUT = 100
"""Images that the checker is measured on."""
ROUNDS = 3

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


def check_example(digits: list[Digit], rng: random.Random) -> Example:
    """Say yes or no about an image, or grade a description of it; now and then describe, so as not to forget how."""
    digit = rng.choice(digits)
    true_word, true_kind = WORDS[digit.label], parity(digit.label)
    word = true_word if rng.random() < 0.5 else rng.choice([other for other in WORDS if other != true_word])
    kind = rng.choice(["odd", "even"])
    task = rng.choices(["describe", "word", "kind", "grade"], weights=[25, 45, 15, 15])[0]
    if task == "describe":
        return describe_example([digit], rng)
    if task == "grade":
        score = 5 * (word == true_word) + 5 * (kind == true_kind)
        return prompt("grade", answer=description(word, kind)), digit.image, f"Score: {score}"
    asked, truth = (word, true_word) if task == "word" else (kind, true_kind)
    return prompt("check", question=f"Is the digit {asked}?"), digit.image, "Yes" if asked == truth else "No"


def writer_example(rng: random.Random) -> Example:
    """Split or ask, on any description, right or wrong."""
    word, kind = rng.choice(WORDS), rng.choice(["odd", "even"])
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
) -> None:
    """Teach the checkpoint in `folder` what `draw` shows, and save it there (and at a third in `early`)."""
    import torch
    from tqdm import tqdm
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder).train()
    processor = AutoProcessor.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.1)
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
        if early and step == steps // 3:
            model.save_pretrained(early)
            processor.save_pretrained(early)
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


def share_right(folder: Path, digits: list[Digit]) -> float:
    """How many yes/no questions about these images, one true and one false each, the checker in `folder` has right."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    yes, no = (processor.tokenizer(word)["input_ids"][0] for word in ("Yes", "No"))
    right = 0
    for digit in digits:
        true, false = WORDS[digit.label], WORDS[(digit.label + 1 + digit.label % 3) % 10]
        asked = [(prompt("check", question=f"Is the digit {word}?"), digit.image, "Yes") for word in (true, false)]
        inputs = _encode(processor, asked)
        first = (inputs.pop("labels") != -100).int().argmax(dim=1)
        with torch.inference_mode():
            logits = model(**inputs).logits
        says_yes = [bool(row[at - 1, yes] > row[at - 1, no]) for row, at in zip(logits, first, strict=True)]
        right += says_yes[0] + (not says_yes[1])
    return right / (2 * len(digits))


def train_checker(folder: Path, seen: list[Digit], unseen: list[Digit], steps: int, good: float, seed: int) -> None:
    """Train the checker in rounds until it is good on images that it was not trained on, and print how good it is.

    Raises:
        UniDPOError: it is not after the last round.
    """
    for number in range(ROUNDS):
        train(folder, lambda rng: check_example(seen, rng), steps, lr=1e-3, seed=seed + number)
        right = share_right(folder, unseen)
        print(f"checker: {right:.0%} of {2 * len(unseen)} yes/no questions about held-out images right")
        if right >= good:
            return
    raise UniDPOError(
        f"after {ROUNDS * steps:,} steps the checker has {right:.0%} of its questions about held-out images "
        f"right, less than {good:.0%}: it is not kept. Run again with --seed {seed + ROUNDS}"
    )


def prepare(
    folder: Path,
    *,
    describe_steps: int = 300,
    check_steps: int = 700,
    write_steps: int = 200,
    questions: int = 60,
    good: float = GOOD,
    seed: int = 0,
) -> None:
    """Write everything below `folder`; a model that is there already is kept, a checker only if it was good."""
    digits = write_digits(folder / "digits", side=IMAGE_SIDE)
    seen = digits["train"] + digits["validation"] + digits["held_out"]
    seer, early, checker, writer = (folder / name for name in ("seer", "seer_early", "checker", "writer"))
    if not _complete(seer):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            started = write_tiny_qwen2_vl(Path(work) / "seer", seed=seed, corpus=CORPUS)
            train(started, lambda rng: describe_example(seen, rng), describe_steps, lr=3e-3, early=early, seed=seed)
            started.rename(seer)
    if not _complete(checker):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            started = shutil.copytree(seer, Path(work) / "checker")
            train_checker(started, seen, digits["preference"][-HELD_OUT:], check_steps, good, seed)
            started.rename(checker)
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
