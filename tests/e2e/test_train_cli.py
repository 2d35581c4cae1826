"""`uni-dpo train` as a user runs it: alone, on two ranks, under DeepSpeed, and on faulty input."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from uni_dpo import cli
from uni_dpo.demo.digits import QUESTION, Digit, answer
from uni_dpo.ledger.reading import read_ledger

STEPS = 3


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_qwen2_vl: Path, digits: dict[str, list[Digit]]) -> Path:
    """A folder with twelve good pairs, a configuration in YAML, and the model's place in it."""
    folder = tmp_path_factory.mktemp("train")
    rows = [
        {
            "instruction": f"<image>{QUESTION}",
            "chosen": digit.answer,
            "rejected": answer((digit.label + 1 + at % 9) % 10) + " yes" * (at % 3),
            "images": [str(digit.image)],
            "score_chosen": 4.0 + at / 7,
            "score_rejected": 1.0,
        }
        for at, digit in enumerate(digits["preference"][: 4 * STEPS])
    ]
    write_data(folder, rows)
    settings = {
        "model_name_or_path": str(tiny_qwen2_vl),
        "stage": "dpo",
        "do_train": True,
        "finetuning_type": "full",
        "pref_loss": "uni_dpo",
        "dataset_dir": str(folder),
        "dataset": "pairs",
        "template": "qwen2_vl",
        "cutoff_len": 512,
        "overwrite_cache": True,
        "overwrite_output_dir": True,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    (folder / "config.yaml").write_text(json.dumps(settings))
    for stage in (2, 3):
        zero = {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": stage},
        }
        (folder / f"zero{stage}.json").write_text(json.dumps(zero))
    return folder


def write_data(folder: Path, rows: list[dict[str, Any]]) -> None:
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    entry = {"file_name": "pairs.json", "ranking": True, "columns": columns}
    (folder / "pairs.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"pairs": entry}))


def trajectory(folder: Path, name: str, *overrides: str, ranks: int = 0) -> list[tuple[float, ...]]:
    """Loss, gradient norm and score margin of every step of one run in processes of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if ranks:
        environment |= {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": str(ranks)}
    command = [sys.executable, "-c", "from uni_dpo.cli import main; main()", "train", str(folder / "config.yaml")]
    command += [f"output_dir={folder / name}", *overrides]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    log = json.loads((folder / name / "trainer_state.json").read_text())["log_history"]
    names = ("loss", "grad_norm", "uni_dpo/score_margin")
    return [tuple(line[name] for name in names) for line in log if "loss" in line]


@pytest.fixture(scope="module")
def one_rank(workspace: Path) -> list[tuple[float, ...]]:
    return trajectory(workspace, "one")


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (2, ["per_device_train_batch_size=2"]),
        pytest.param(2, ["per_device_train_batch_size=2", "zero2.json"], marks=pytest.mark.nightly),
        (1, ["zero3.json"]),
    ],
    ids=["two ranks", "ZeRO-2 on two ranks", "ZeRO-3 on one rank"],
)
def test_ranks_and_zero_follow_the_one_rank_trajectory(
    workspace: Path, one_rank: list[tuple[float, ...]], ranks: int, overrides: list[str]
) -> None:
    settings = [f"deepspeed={workspace / item}" if item.endswith(".json") else item for item in overrides]
    name = "-".join(map(str, [ranks, *overrides]))
    found = trajectory(workspace, name, *settings, ranks=ranks)
    assert len(one_rank) == STEPS
    rows, expected_rows = (read_ledger(workspace / folder).to_pylist() for folder in (name, "one"))
    assert sorted(row["pair"] for row in rows) == sorted(row["pair"] for row in expected_rows)
    for step in range(1, STEPS + 1):
        losses = [[row["loss"] for row in part if row["step"] == step] for part in (rows, expected_rows)]
        assert sorted(losses[0]) == pytest.approx(sorted(losses[1]), rel=1e-3)
    for step, expected in zip(found, one_rank, strict=True):
        assert step == pytest.approx(expected, rel=1e-4)


def test_a_sharded_reference_that_is_the_policy_without_adapters_is_precomputed(workspace: Path) -> None:
    lora = ["finetuning_type=lora", "lora_rank=4", "lora_target=q_proj,v_proj"]
    cached = ["precompute_ref_log_probs=true", f"ref_cache_dir={workspace / 'cache'}"]
    carried = trajectory(workspace, "lora", *lora)
    found = trajectory(workspace, "cached", *lora, *cached, f"deepspeed={workspace / 'zero3.json'}", ranks=1)
    for step, expected in zip(found, carried, strict=True):
        assert step == pytest.approx(expected, rel=1e-4)


def refused(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What `uni-dpo train` says when it exits with a fault of the input; the message is its exit code's."""
    monkeypatch.setattr(sys, "argv", ["uni-dpo", "train", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert isinstance(exit_.value.code, str)
    return exit_.value.code


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "null score": ({"score_chosen": None}, "row 1, score_chosen"),
    "NaN score": ({"score_rejected": float("nan")}, "row 1, score_rejected"),
    "infinite score": ({"score_chosen": float("inf")}, "row 1, score_chosen"),
    "textual score": ({"score_chosen": "good"}, "row 1, score_chosen"),
    "missing score": ({"score_chosen": ...}, "row 1, score_chosen"),
    "missing image": ({"images": ["nowhere.png"]}, "row 1, images[0]"),
    "unreadable image": ({"images": ["not_an_image.png"]}, "row 1, images[0]"),
    "zero-byte image": ({"images": ["empty.png"]}, "row 1, images[0]"),
    "no <image>": ({"instruction": QUESTION}, "row 1"),
    "empty chosen": ({"chosen": ""}, "row 1, chosen"),
    "empty rejected": ({"rejected": ""}, "row 1, rejected"),
}


def faulty(workspace: Path, folder: Path, faults: list[dict[str, Any]]) -> list[str]:
    """A copy of the good data whose rows 1, 2, … have these faults; returns the overrides that use it."""
    rows = json.loads((workspace / "pairs.json").read_text())
    for row, fault in zip(rows[1:], faults, strict=False):
        row.update(fault)
    write_data(folder, [{name: value for name, value in row.items() if value is not ...} for row in rows])
    (folder / "not_an_image.png").write_text("plain text")
    (folder / "empty.png").touch()
    return [str(workspace / "config.yaml"), f"dataset_dir={folder}", f"output_dir={folder / 'out'}"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_before_any_model_is_loaded(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    change, place = FAULTS[fault]
    overrides = faulty(workspace, tmp_path, [change])
    message = refused(monkeypatch, *overrides, "model_name_or_path=no-such-model")
    assert f"{tmp_path / 'pairs.json'}, {with_line(place)}" in message
    assert "1 fault" in message


def with_line(place: str) -> str:
    """The place as messages name it: the file is one line long."""
    return place.replace("row 1,", "row 1 (line 1),")


def test_all_faults_of_a_file_are_listed_at_once(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refused(monkeypatch, *faulty(workspace, tmp_path, [change for change, _ in FAULTS.values()]))
    for row, (_, place) in enumerate(FAULTS.values(), start=1):
        assert with_line(place).replace("row 1", f"row {row}") in message


def test_swapped_score_columns_are_an_error(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = [{"score_chosen": 1.0, "score_rejected": 4.0}] * 7
    assert "score_chosen" in refused(monkeypatch, *faulty(workspace, tmp_path, swapped))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset=nope", "nope"),
        ("dpo_label_smoothing=0.1", "dpo_label_smoothing"),
        ("pref_bco_weight=0.5", "pref_bco_weight"),
        ("cutoff_len=16", "image tokens"),
        ("pair_attention=flex_attention", "set it to sdpa"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, words: str
) -> None:
    arguments = [str(workspace / "config.yaml"), f"output_dir={tmp_path}", override]
    assert words in refused(monkeypatch, *arguments)


def test_what_is_odd_but_trainable_is_a_warning(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two inverted pairs, one identical pair, and a τ_good that no answer reaches: four warnings, and it trains."""
    odd = [{"score_chosen": 0.5}, {"score_chosen": 0.25}, {"chosen": "The same.", "rejected": "The same."}]
    overrides = faulty(workspace, tmp_path, odd)
    monkeypatch.setattr(sys, "argv", ["uni-dpo", "train", *overrides, "uni_dpo_tau_good=9", "max_steps=1"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code in (None, 0)
    words = capsys.readouterr().err
    assert "below the rejected one in 2 of 12 rows" in words
    assert "identical in 1 of 12 rows" in words
    assert words.count("can never be active") == 1


def test_no_traceback_and_status_one_in_a_process_of_its_own(workspace: Path, tmp_path: Path) -> None:
    overrides = faulty(workspace, tmp_path, [{"score_chosen": None}])
    command = [sys.executable, "-c", "from uni_dpo.cli import main; main()", "train", *overrides]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert "Traceback" not in run.stdout + run.stderr
    assert "row 1 (line 1), score_chosen" in run.stderr
