"""The recipes for text and mathematics as published, from rows in the published layout to a tiny model's training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ASKED = "<|im_start|>system\nReason.<|im_end|>\n<|im_start|>user\nWhat is {n} + 1?<|im_end|>\n<|im_start|>assistant\n"


def messages(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def math_rows():
    for n in range(8):
        right, wrong = f"It is \\boxed{{{n + 1}}}.", f"It is \\boxed{{{n}}}."
        scores = {"score_chosen": 9.5, "score_rejected": 1.0}
        yield {"prompt": ASKED.format(n=n), "chosen": right, "rejected": wrong, **scores}


def text_rows():
    for n in range(8):
        question = f"What is {n} + 1?"
        pair = {"chosen": messages(question, f"It is {n + 1}."), "rejected": messages(question, "No idea.")}
        yield {"prompt": question, **pair, "score_chosen": 4.0, "score_rejected": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layout", "rows"), [("math", "math", math_rows), ("text", "trl-text", text_rows)])
def test_the_recipe_trains_on_rows_in_the_published_layout(tmp_path, name, layout, rows):
    from uni_dpo.demo.tiny_model import write_tiny_text_model

    recipe = ROOT / "examples" / "uni_dpo" / f"{name}.yaml"
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    model = write_tiny_text_model(tmp_path / "model", "writer")
    (tmp_path / "published.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    pairs = f"{settings['dataset_dir']}/pairs.json"
    run(tmp_path, "data", "convert", "--format", layout, "published.jsonl", pairs)
    run(tmp_path, "data", "register", settings["dataset"], pairs, "--dataset-dir", settings["dataset_dir"])
    tiny = [
        "deepspeed=null",
        "bf16=false",
        "use_cpu=true",
        "template=qwen",
        "gradient_accumulation_steps=1",
        "max_steps=2",
        "logging_steps=1",
    ]
    run(tmp_path, "train", recipe, f"model_name_or_path={model}", *tiny)
    log = json.loads((tmp_path / settings["output_dir"] / "trainer_state.json").read_text())["log_history"]
    assert log[-1]["step"] == 2
    # σ(η · gap): 0.7 · 8.5 for mathematics, 0.7 · 2 for text.
    weights = [entry["uni_dpo/w_qual"] for entry in log if "uni_dpo/w_qual" in entry]
    assert weights
    assert all(weight == pytest.approx(0.9974 if name == "math" else 0.8022, abs=1e-4) for weight in weights)
    # τ_good lies where the published scores of good answers begin: the NLL term may act on these pairs.
    assert settings["uni_dpo_tau_good"] < (9.5 if name == "math" else 4.0)


def test_the_published_script_converts_the_pairs_of_mathematics(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "convert_jsonl_to_llamafactory.py")]
    (tmp_path / "Train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in math_rows()))
    subprocess.run([*script, "--input", "Train.jsonl"], cwd=tmp_path, check=True, capture_output=True)
    rows = json.loads((tmp_path / "Train_llama_factory.json").read_text())
    assert len(rows) == 8
    assert rows[3] == {
        "system": "Reason.",
        "instruction": "What is 3 + 1?",
        "chosen": "It is \\boxed{4}.",
        "rejected": "It is \\boxed{3}.",
        "score_chosen": 9.5,
        "score_rejected": 1.0,
    }
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "--input, or INPUT at the top of this script" in done.stderr


def run(folder, *arguments):
    done = subprocess.run(
        [Path(sys.executable).with_name("uni-dpo"), *map(str, arguments)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
