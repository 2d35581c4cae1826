"""`uni-dpo trl-dpo`: TRL's flags, files and folders of ours, and faults before any model is loaded."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.reading import read_ledger, read_texts
from uni_dpo.trl.launch import parse, train

Rows = list[dict[str, Any]]


def flags(model: Path | str, data: Path | str, out: Path) -> list[str]:
    """A short run on a CPU."""
    values = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": out,
        "dtype": "float32",
        "bf16": False,
        "use_cpu": True,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": "1e-3",
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
    }
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def log(out: Path) -> list[dict[str, float]]:
    return json.loads((out / "trainer_state.json").read_text())["log_history"]


def test_a_file_of_texts_trains_with_an_adapter(tiny_text: Path, text_rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, text_rows)))
    out = tmp_path / "out"
    train([*flags(tiny_text, tmp_path / "pairs.jsonl", out), "--use_peft", "--lora_r", "4"])
    assert "uni_dpo/w_perf" in log(out)[0]
    assert (out / "adapter_model.safetensors").is_file()


def test_losses_with_weights_train_from_a_file_and_what_bco_remembers_is_resumed(
    tiny_text: Path, text_rows: Rows, tmp_path: Path
) -> None:
    """The ledger has the weighted loss of each pair, and Uni-DPO's weights."""
    (tmp_path / "pairs.json").write_text(json.dumps(text_rows))
    given = dict(zip(*[iter(flags(tiny_text, tmp_path / "pairs.json", tmp_path / "out"))] * 2, strict=True))
    lines = [f"{name.removeprefix('--')}: {value}" for name, value in given.items() if name != "--save_strategy"]
    (tmp_path / "run.yaml").write_text("\n".join([*lines, "loss_type: {uni_dpo: 1, bco: 0.5}", "save_steps: 1"]))
    train([str(tmp_path / "run.yaml")])
    first, second = (line for line in log(tmp_path / "out") if "loss" in line)
    for line in (first, second):
        assert line["loss"] == pytest.approx(line["loss/uni_dpo"] + 0.5 * line["loss/bco_pair"], rel=1e-4)
    assert first["loss/bco_pair"] == pytest.approx(1.3862944, rel=1e-4)  # all ratios are 0: 2 log 2
    rows = read_ledger(tmp_path / "out").to_pylist()
    assert sum(row["loss"] for row in rows[:4]) / 4 == pytest.approx(first["loss"], rel=1e-4)
    assert all(0.5 < row["w_qual"] < 1 for row in rows)
    assert json.loads((tmp_path / "out/checkpoint-2/bco_shift.json").read_text())["batches"] == 2
    train([str(tmp_path / "run.yaml"), f"resume_from_checkpoint={tmp_path / 'out/checkpoint-1'}"])
    again = [line for line in log(tmp_path / "out") if "loss" in line][-1]
    assert again["loss/bco_pair"] == pytest.approx(second["loss/bco_pair"], rel=1e-5)


def test_two_ranks_follow_one(tiny_text: Path, text_rows: Rows, tmp_path: Path) -> None:
    """Two pairs on each of two ranks are the four pairs of one."""
    (tmp_path / "pairs.json").write_text(json.dumps(text_rows))
    one, two = tmp_path / "one", tmp_path / "two"
    train(flags(tiny_text, tmp_path / "pairs.json", one))
    arguments = [*flags(tiny_text, tmp_path / "pairs.json", two), "--per_device_train_batch_size", "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*torchrun, "-m", "uni_dpo.trl.launch", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    names = ("loss", "grad_norm", "rewards/margins", "uni_dpo/w_perf", "uni_dpo/score_margin")
    for line, expected in zip(log(two)[:2], log(one)[:2], strict=True):
        assert [line[name] for name in names] == pytest.approx([expected[name] for name in names], rel=1e-4, abs=1e-6)
    kept = [sorted(read_ledger(out).to_pylist(), key=lambda row: (row["step"], row["pair"])) for out in (one, two)]
    assert len(kept[0]) == len(kept[1]) == 8
    for row, expected in zip(kept[1], kept[0], strict=True):
        assert (row["step"], row["pair"]) == (expected["step"], expected["pair"])
        for name in ("policy_chosen", "reference_rejected", "w_perf", "loss", "tokens_chosen"):
            assert row[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_a_converted_folder_with_images_trains(
    tiny_qwen2_vl: Path, digits: dict[str, list[Any]], tmp_path: Path
) -> None:
    """`uni-dpo data convert --to trl` writes it, images and scores included."""
    from uni_dpo.data.convert import convert

    pairs = [
        {
            "instruction": "<image>Which digit is it?",
            "chosen": digit.answer,
            "rejected": "I cannot say",
            "images": [str(digit.image)],
            "score_chosen": 4.0,
            "score_rejected": 1.0,
        }
        for digit in digits["preference"][:8]
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    convert(tmp_path / "pairs.json", tmp_path / "folder", from_format="llamafactory", to_format="trl")
    out = tmp_path / "out"
    train(flags(tiny_qwen2_vl, tmp_path / "folder", out))
    first, second = (line for line in log(out) if "loss" in line)
    assert first["uni_dpo/score_margin"] == 3.0
    assert second["rewards/margins"] > 0
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("scored", [True, False])
def test_the_pairs_of_vqa_rad_train_as_they_were_saved(
    tiny_qwen2_vl: Path, digits: dict[str, list[Any]], tmp_path: Path, scored: bool
) -> None:
    """`image, question, chosen, rejected` in a DatasetDict, as `scripts/vqa_dpo_processing.py` writes it."""
    import datasets

    taken = digits["preference"][:8]
    columns: dict[str, list[Any]] = {
        "image": [{"bytes": Path(digit.image).read_bytes(), "path": None} for digit in taken],
        "question": ["Which digit is it?"] * 8,
        "chosen": [digit.answer for digit in taken],
        "rejected": ["I cannot say"] * 8,
    }
    if scored:
        columns |= {"score_chosen": [4.0] * 8, "score_rejected": [1.0] * 8}
    split = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    datasets.DatasetDict(train=split, test=split).save_to_disk(tmp_path / "vqa_rad")
    out = tmp_path / "out"
    loss = [] if scored else ["--loss_type", "sigmoid"]
    train([*flags(tiny_qwen2_vl, tmp_path / "vqa_rad", out), *loss])
    first = log(out)[0]
    assert ("uni_dpo/w_perf" in first) is scored
    # Δ = 0 at the first step: log 2 for DPO; w_qual · (1 − σ(β Δ_π − τ_ref))³ · log 2 is below it for Uni-DPO.
    assert first["loss"] < 0.69 if scored else first["loss"] == pytest.approx(0.6931, abs=1e-3)
    texts = read_texts(out).to_pylist()
    assert [text["pair"] for text in texts] == [f"vqa_rad/train, row {at}" for at in range(8)]
    for text in texts:
        (image,) = text["images"]
        assert Path(image).parent == out / "uni_dpo" / "images"
        assert text["question"] == "<image>Which digit is it?"
    shown = json.loads((out / "report.html").read_text().split('id="data">')[1].split("</script>")[0])
    assert all(image.startswith("data:image/jpeg") for image in shown["images"])
    assert all(len(images) == 1 for images in shown["pairs"]["images"])


def test_a_yaml_file_gives_defaults_and_flags_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model_name_or_path: a\nuni_dpo_qual_eta: 0.1\nlearning_rate: 1.0e-5\nbf16: false\n")
    _, settings, model, _ = parse(["--config", str(file), "--output_dir", "out", "--uni_dpo_qual_eta", "0.2"])
    assert (model.model_name_or_path, settings.uni_dpo_qual_eta, settings.learning_rate) == ("a", 0.2, 1e-5)


def test_the_documented_command_parses() -> None:
    """As it stands on the page; only the GPU is taken away."""
    page = (Path(__file__).parents[2] / "docs" / "trl.md").read_text(encoding="utf-8")
    command = page.split("```bash\n")[1].split("\naccelerate")[0].replace("\\\n", " ")
    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("uni-dpo", "trl-dpo")
    script, settings, model, _ = parse([*arguments, "--use_cpu", "true", "--bf16", "false"])
    assert script.dataset_name == "trl-lib/ultrafeedback_binarized"
    assert (settings.uses_uni_dpo, settings.beta, settings.learning_rate) == (True, 2.0, 5e-6)
    assert (model.use_peft, model.lora_r, model.lora_alpha) == (True, 32, 16)


def test_faults_are_named_before_a_model_is_looked_for(text_rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps([*text_rows, text_rows[0] | {"score_chosen": None}]))
    with pytest.raises(UniDPOError, match="row 8, score_chosen: None"):
        train(flags("no/such-model", tmp_path / "pairs.json", tmp_path / "out"))
    with pytest.raises(UniDPOError, match=r"dataset_name: there is no file .*nowhere\.json"):
        train(flags("no/such-model", tmp_path / "nowhere.json", tmp_path / "out"))
    (tmp_path / "number.json").write_text(json.dumps([*text_rows, 3]))
    with pytest.raises(UniDPOError, match=r"number\.json' cannot be loaded: .*int"):
        train(flags("no/such-model", tmp_path / "number.json", tmp_path / "out"))
    with pytest.raises(UniDPOError, match=r"nowhere\.yaml"):
        parse(["--config", str(tmp_path / "nowhere.yaml")])
    arguments = flags("no/such-model", tmp_path / "pairs.json", tmp_path / "out")
    with pytest.raises(UniDPOError, match="no split 'validation'; it has train"):
        train([*arguments, "--dataset_train_split", "validation"])


def test_a_dataset_that_is_a_script_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "pairs.py"
    script.write_text("raise SystemExit('ran')")
    with pytest.raises(UniDPOError, match=r"dataset '.*pairs\.py' cannot be loaded: Dataset scripts are no longer"):
        train(flags("no/such-model", script, tmp_path / "out"))
    config = tmp_path / "config.yaml"
    settings = {
        "datasets": [{"path": str(script)}],
        "output_dir": str(tmp_path / "out"),
        "use_cpu": True,
        "bf16": False,
    }
    config.write_text(json.dumps(settings | {"model_name_or_path": "no/such-model"}))
    with pytest.raises(UniDPOError, match="the mixture of datasets cannot be loaded: Dataset scripts are no longer"):
        train(["--config", str(config)])


def test_modules_that_are_not_there_are_named(tiny_text: Path, text_rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps([row | {"messages": [{"x": 1}]} for row in text_rows]))
    given = flags(str(tiny_text), tmp_path / "pairs.json", tmp_path / "out")
    with pytest.raises(UniDPOError, match="lora_target_modules: Target modules"):
        train([*given, "--use_peft", "true", "--lora_target_modules", "nonsense"])


def test_a_missing_model_is_named(text_rows: Rows, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps(text_rows))
    with pytest.raises(UniDPOError, match="model 'no/such-model' cannot be loaded"):
        train(flags("no/such-model", tmp_path / "pairs.json", tmp_path / "out"))


def test_the_tutorial_runs_with_one_line_changed(
    tiny_text: Path, text_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's own code, with the tiny model, this file, and a CPU in the places of the published ones."""
    page = (Path(__file__).parents[2] / "docs" / "trl.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    (tmp_path / "pairs.json").write_text(json.dumps(text_rows))
    for published, ours in {
        "Qwen/Qwen2-0.5B-Instruct": str(tiny_text),
        '"trl-lib/ultrafeedback_binarized"': f'"json", data_files="{tmp_path / "pairs.json"}"',
        'DPOConfig(output_dir="Qwen2-0.5B-DPO"': f'DPOConfig(output_dir="{tmp_path}", bf16=False, use_cpu=True, '
        'report_to="none", save_strategy="no"',
    }.items():
        assert published in code
        code = code.replace(published, ours)
    monkeypatch.setattr(sys, "argv", ["train_dpo.py"])
    names: dict[str, Any] = {}
    exec(compile(code, "tutorial", "exec"), names)
    assert type(names["trainer"]).__name__ == "UniDPOTrainer"
    assert names["trainer"].state.global_step == 3
