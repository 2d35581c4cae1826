"""Text models and sums for `text_reward_model_tiny.yaml` and `math_tiny.yaml`: trained here in two minutes.

    python examples/engine/prepare_tiny_math.py outputs/engine_tiny_math

writes below the folder
    solver/     adds three numbers step by step, and is often wrong
    reward/     the solver as a sequence classifier: is this solution right?
    process/    the solver as a token classifier: is this step right?
    problems.jsonl
The solver is a Qwen2 of 0.2 million parameters that starts from random weights; nothing is downloaded.
"""

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.cli import run
from uni_dpo.demo.tiny_model import write_tiny_text_model
from uni_dpo.storage.writing import write_text

CORPUS = (
    "You are a helpful assistant. system user assistant",
    "What is the sum? The answer is boxed. + =",
    *(f"{number} + {number} = {number}" for number in range(18)),
)


@dataclass(frozen=True)
class Solution:
    """A sum with its steps, each right or wrong by itself."""

    question: str
    steps: tuple[str, ...]
    right: tuple[bool, ...]

    @property
    def text(self) -> str:
        """The steps with blank lines between them."""
        return "\n\n".join(self.steps)


def draw_solution(rng: random.Random, wrong: float) -> Solution:
    """A sum of three numbers, of which each step fails with probability `wrong`."""
    total, second, third = (rng.randint(1, 5) for _ in range(3))
    question = f"What is {total} + {second} + {third}?"
    steps, right = [], []
    for number in (second, third):
        result = total + number + (rng.choice([-2, -1, 1, 2]) if rng.random() < wrong else 0)
        steps.append(f"{total} + {number} = {result}")
        right.append(result == total + number)
        total = result
    return Solution(question, (*steps, f"The answer is \\boxed{{{total}}}."), (*right, True))


def train(name: str, model: Any, steps: int, loss: Callable[[], Any], *, lr: float) -> None:
    """Plain AdamW on what `loss` draws."""
    import torch
    from tqdm import tqdm

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.1)
    for _ in (bar := tqdm(range(steps), desc=name, unit="step")):
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{value.item():.3f}")


def padded(rows: list[list[int]], fill: int) -> Any:
    """Rows of tokens as one tensor, filled up on the right."""
    import torch

    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def chat(solution: Solution, reply: str | None = None) -> list[dict[str, str]]:
    """The question, and the reply where there is one."""
    turns = [{"role": "user", "content": solution.question}]
    return turns if reply is None else [*turns, {"role": "assistant", "content": reply}]


def write_solver(folder: Path, steps: int, rng: random.Random, batch: int = 32) -> None:
    """Shown right solutions only, and too few of them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_tiny_text_model(folder, "writer", corpus=CORPUS)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def loss() -> torch.Tensor:
        drawn = [draw_solution(rng, wrong=0.0) for _ in range(batch)]
        prompts = [tokenizer.apply_chat_template(chat(s), tokenize=False, add_generation_prompt=True) for s in drawn]
        begin = [tokenizer(text)["input_ids"] for text in prompts]
        reply = [tokenizer(f"{s.text}<|im_end|>")["input_ids"] for s in drawn]
        ids = padded([b + r for b, r in zip(begin, reply, strict=True)], tokenizer.pad_token_id)
        labels = padded([[-100] * len(b) + r for b, r in zip(begin, reply, strict=True)], -100)
        value: torch.Tensor = model(input_ids=ids, labels=labels, attention_mask=ids != tokenizer.pad_token_id).loss
        return value

    train(folder.name, model, steps, loss, lr=3e-3)
    model.save_pretrained(folder)


def write_reward_model(folder: Path, solver: Path, steps: int, rng: random.Random, batch: int = 64) -> None:
    """The logit says whether all steps are right."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(solver, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(solver)

    def loss() -> torch.Tensor:
        drawn = [draw_solution(rng, wrong=0.3) for _ in range(batch)]
        texts = [tokenizer.apply_chat_template(chat(s, s.text), tokenize=False) for s in drawn]
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
        truth = torch.tensor([float(all(s.right)) for s in drawn])
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, truth)

    train(folder.name, model, steps, loss, lr=1e-3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_process_model(folder: Path, solver: Path, steps: int, rng: random.Random, batch: int = 64) -> None:
    """The logits at each step token say whether that step is right; fed as the engine will feed it."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    from uni_dpo.models.rewards.classifiers import StepClassifier
    from uni_dpo.models.rewards.options import ProcessModelOptions

    with tempfile.TemporaryDirectory() as begun:  # the solver with a new head, which is what is taught here
        AutoModelForTokenClassification.from_pretrained(solver, num_labels=2).save_pretrained(begun)
        AutoTokenizer.from_pretrained(solver).save_pretrained(begun)
        reader = StepClassifier("AutoModelForTokenClassification", ProcessModelOptions(Path(begun)))

    def loss() -> torch.Tensor:
        drawn = [draw_solution(rng, wrong=0.3) for _ in range(batch)]
        encoded = [reader.encode(s.question, s.steps) for s in drawn]
        ids = padded([tokens for tokens, _ in encoded], reader.tokenizer.pad_token_id)
        labels = torch.full_like(ids, -100)
        for row, ((_, places), solution) in enumerate(zip(encoded, drawn, strict=True)):
            labels[row, places] = torch.tensor(solution.right, dtype=torch.long)
        logits = reader.model(input_ids=ids, attention_mask=ids != reader.tokenizer.pad_token_id).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    train(folder.name, reader.model, steps, loss, lr=1e-3)
    reader.model.save_pretrained(folder)
    reader.tokenizer.save_pretrained(folder)


def prepare(folder: Path, *, solver_steps: int, rater_steps: int, problems: int, seed: int = 0) -> None:
    """Write everything below `folder`."""
    rng = random.Random(seed)
    solver = folder / "solver"
    write_solver(solver, solver_steps, rng)
    write_reward_model(folder / "reward", solver, rater_steps, rng)
    write_process_model(folder / "process", solver, rater_steps, rng)
    drawn = {solution.question: solution for solution in (draw_solution(rng, 0.0) for _ in range(problems))}
    rows = [
        {"id": f"sum-{number:03d}", "problem": question, "solution": solution.text}
        for number, (question, solution) in enumerate(sorted(drawn.items()))
    ]
    write_text(folder / "problems.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("outputs/engine_tiny_math"))
    parser.add_argument("--problems", type=int, default=60)
    parser.add_argument("--solver-steps", type=int, default=150)
    parser.add_argument("--rater-steps", type=int, default=400)
    options = parser.parse_args()
    run(
        lambda: prepare(
            options.folder,
            solver_steps=options.solver_steps,
            rater_steps=options.rater_steps,
            problems=options.problems,
        )
    )
