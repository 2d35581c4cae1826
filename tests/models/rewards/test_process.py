"""P(right) of steps against one unpadded forward pass per step, in float64."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from uni_dpo.errors import UniDPOError
from uni_dpo.models.rewards import load_process_model
from uni_dpo.models.rewards.options import ProcessModelOptions

SOLUTIONS = [
    ("What is 2 + 3?", ["2 + 3 = 5", "The answer is 5."]),
    ("one two three", ["four"]),
    ("What is 1 + 1 + 1?", ["1 + 1 = 2,\nas <extra_0> everybody knows", "2 + 1 = 4", "so 4", "The answer is 4."]),
]


def naive(folder: Path, text: str) -> float:
    """P(right) read at the last token of a text that ends with a step token; everything in float64."""
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    model = AutoModelForTokenClassification.from_pretrained(folder).double().eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        wrong, right = model(**ids).logits[0, -1].tolist()
    return float(torch.tensor([wrong, right], dtype=torch.float64).softmax(0)[1])


def chat(question: str, system: str = "You are a helpful assistant.") -> str:
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("system", ["", "Please reason step by step."])
def test_every_step_is_read_at_its_own_token(step_classifier: Path, system: str) -> None:
    """Three answers of different length and number of steps in one batch; one spells the step token in its text."""
    model = load_process_model(ProcessModelOptions(step_classifier, system=system))
    for (question, steps), probabilities in zip(SOLUTIONS, model.rate_steps(SOLUTIONS), strict=True):
        before = chat(question, system) if system else chat(question)
        expected = [
            naive(step_classifier, before + "".join(f"{s}<extra_0>" for s in steps[: n + 1])) for n in range(len(steps))
        ]
        assert probabilities == pytest.approx(expected, abs=1e-5)
    assert len({round(p, 3) for _, ps in zip(SOLUTIONS, model.rate_steps(SOLUTIONS), strict=True) for p in ps}) > 3


def test_batches_change_nothing(step_classifier: Path) -> None:
    model = load_process_model(ProcessModelOptions(step_classifier))
    together = model.rate_steps(SOLUTIONS)
    for solution, probabilities in zip(SOLUTIONS, together, strict=True):
        assert model.rate_steps([solution])[0] == pytest.approx(probabilities, abs=1e-5)


def test_the_plain_layout_is_that_of_trl(step_classifier: Path) -> None:
    from transformers import AutoTokenizer
    from trl import PRMTrainer

    question, steps = SOLUTIONS[2]
    model = load_process_model(ProcessModelOptions(step_classifier, step_token="\n", layout="plain"))
    row = PRMTrainer.tokenize_row(
        {"prompt": question, "completions": steps, "labels": [1] * len(steps)},
        AutoTokenizer.from_pretrained(step_classifier), "\n", None, None, None, False, True,
    )  # fmt: skip
    tokens, places = model.encode(question, steps)
    assert tokens == row["input_ids"]
    assert places == [place for place, label in enumerate(row["labels"]) if label != -100]


def changed(folder: Path, into: Path, **changes: object) -> ProcessModelOptions:
    copy = shutil.copytree(folder, into)
    config = json.loads((copy / "config.json").read_text()) | changes
    (copy / "config.json").write_text(json.dumps(config))
    return ProcessModelOptions(copy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, "is no process reward model; its architecture is Qwen2ForCausalLM"),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, "of 3 labels; one for steps has two"),
        (
            {"architectures": ["Own"], "auto_map": {"AutoModel": "own.Own"}},
            r"code of its own \(own.Own\), which runs only with trust_remote_code",
        ),
    ],
)
def test_what_is_no_process_model_is_refused(step_classifier: Path, tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UniDPOError, match=words):
        load_process_model(changed(step_classifier, tmp_path / "copy", **changes))


def test_a_step_token_that_is_none_is_refused(step_classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UniDPOError, match=r"the step token '<step>' is \d+ tokens to this model"):
        load_process_model(ProcessModelOptions(step_classifier, step_token="<step>"))
    with pytest.raises(UniDPOError, match="no such folder"):
        load_process_model(ProcessModelOptions(tmp_path / "nowhere"))
