"""Small benchmarks in VLMEvalKit's own shapes, made of digits, and a backend that answers as a test says."""

import base64
import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import QUESTION, WORDS, Digit
from uni_dpo.models.backends import Request, Sample, Sampling

ROWS = 8


@pytest.fixture(scope="session")
def kit() -> str:
    """VLMEvalKit, imported once per process."""
    from uni_dpo.vlmeval.kit import import_kit

    return import_kit()


def write_tsv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def tsv() -> Callable[[Path, Sequence[dict[str, Any]]], Path]:
    """Writes rows as a TSV."""
    return write_tsv


def _options(digit: Digit) -> dict[str, str]:
    return {"A": WORDS[digit.label], "B": WORDS[(digit.label + 3) % 10], "C": WORDS[(digit.label + 6) % 10]}


def _mmbench(rows: list[dict[str, Any]], question: str) -> list[dict[str, Any]]:
    """Circular: each question twice, the second time with its options rotated and its image named by index."""
    again = [
        {**row, "index": row["index"] + 1_000_000, "image": str(row["index"]), "A": row["C"], "B": row["A"],
         "C": row["B"], "answer": "B"}
        for row in rows
    ]  # fmt: skip
    return [
        {**row, "question": question, "split": "dev", "l2-category": "logic_reasoning", "category": "digits"}
        for row in [*rows, *again]
    ]


def benchmark_rows(digits: Sequence[Digit]) -> dict[str, list[dict[str, Any]]]:
    """The nine benchmarks of `config.json`, a few rows each."""
    seen = [
        {"index": i, "question": QUESTION, "image": base64.b64encode(digit.image.read_bytes()).decode()}
        for i, digit in enumerate(digits[:ROWS])
    ]
    word = [WORDS[digit.label] for digit in digits[:ROWS]]
    yes = ["Yes" if digit.label % 2 == 0 else "No" for digit in digits[:ROWS]]
    mcq = [{**row, **_options(digit), "answer": "A"} for row, digit in zip(seen, digits, strict=False)]
    mme = []
    for i, row in enumerate(seen):
        for answer, claim in (("Yes", word[i]), ("No", word[i] + "teen")):
            mme.append({"index": len(mme), "question": f"Is it {claim}? Please answer yes or no.", "answer": answer,
                        "category": "OCR" if i % 2 else "code_reasoning", "image": row["image"],
                        "image_path": f"{i}.png"})  # fmt: skip
    ocr = ("Regular Text Recognition", "Handwritten Mathematical Expression Recognition", "Doc-oriented VQA")
    return {
        "ChartQA_TEST": [
            {**r, "answer": i * 10, "split": ("test_human", "test_augmented")[i % 2]} for i, r in enumerate(seen)
        ],
        "MMBench_DEV_CN": _mmbench(mcq[:4], "这是哪个数字?"),
        "MMBench_DEV_EN": _mmbench(mcq[:4], QUESTION),
        "MME": mme,
        "OCRBench": [{**r, "answer": repr([word[i]]), "category": ocr[i % 3]} for i, r in enumerate(seen)],
        "POPE": [
            {
                **r,
                "question": "Is the digit even?",
                "answer": yes[i],
                "category": ("random", "popular", "adversarial")[i % 3],
            }
            for i, r in enumerate(seen)
        ],
        "ScienceQA_TEST": [{**r, "hint": "Look closely." if r["index"] % 2 else ""} for r in mcq],
        "SEEDBench_IMG": [{**r, "category": "Instance Identity"} for r in mcq],
        "TextVQA_VAL": [{**r, "answer": repr([word[i]] * 7 + ["a digit"] * 3)} for i, r in enumerate(seen)],
    }


@pytest.fixture(scope="session")
def lmu_data(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, list[Digit]]) -> Path:
    """A folder with the nine benchmarks."""
    folder = tmp_path_factory.mktemp("LMUData")
    for name, rows in benchmark_rows(digits["held_out"]).items():
        write_tsv(folder / f"{name}.tsv", rows)
    return folder


@pytest.fixture(scope="session")
def nine() -> dict[str, Any]:
    """The `data` section of the overlay's `config.json`."""
    path = Path(__file__).parents[2] / "VLMEvalKit" / "config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["data"])


@dataclass
class Scripted:
    """A backend without weights."""

    answer: Callable[[Request], str]
    comfortable_batch: int = 3
    asked: list[Request] = field(default_factory=list)

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, list[Sample]]]:
        for position, request in enumerate(requests):
            answer = self.answer(request)
            self.asked.append(request)
            yield position, [Sample(answer, 0, finished=True)]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, kit: str) -> Callable[[Callable[[Request], str]], Scripted]:
    """Replace every model's weights by a function from request to answer."""
    from uni_dpo.vlmeval import qwen2_vl

    def script(answer: Callable[[Request], str]) -> Scripted:
        backend = Scripted(answer)
        monkeypatch.setattr(qwen2_vl, "_make_backend", lambda model: backend)
        return backend

    return script
