"""How `uni-dpo train` reads its arguments and describes a cluster."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory import launch


def test_a_file_with_overrides(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("learning_rate: 6.0e-6\ndataset: a\n")
    assert launch.read_arguments([str(config), "dataset=b", "uni_dpo_perf_gamma=1"]) == {
        "learning_rate": 6e-6,
        "dataset": "b",
        "uni_dpo_perf_gamma": 1,
    }


def test_a_strategy_may_be_no(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("eval_strategy: no\nbf16: no\n")
    read = launch.read_arguments([str(config), "save_strategy=no", "logging_strategy=steps"])
    assert read == {"eval_strategy": "no", "bf16": False, "save_strategy": "no", "logging_strategy": "steps"}


def test_json_and_flags(tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    config.write_text('{"dataset": "a"}')
    assert launch.read_arguments([str(config)]) == {"dataset": "a"}
    assert launch.read_arguments(["--dataset", "a"]) == ["--dataset", "a"]


@pytest.mark.parametrize(("text", "why"), [("a: [", "not valid YAML"), ("- a\n- b\n", "key: value"), (None, "no such")])
def test_unreadable_files_are_named(tmp_path: Path, text: str | None, why: str) -> None:
    config = tmp_path / "c.yaml"
    if text is not None:
        config.write_text(text)
    with pytest.raises(UniDPOError, match=rf"c\.yaml.*{why}"):
        launch.read_arguments([str(config)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "model_name_or_path"),
        ({"model_name_or_path": "m", "output_dir": "o", "learning_rat": 1}, "learning_rat"),
        ({"model_name_or_path": "m", "output_dir": "o", "do_train": True, "report_to": "none"}, "dataset"),
    ],
    ids=["no model", "a slip of the pen", "no dataset"],
)
def test_settings_that_llamafactory_refuses_are_one_message(
    tmp_path: Path, settings: dict[str, object], words: str
) -> None:
    config = tmp_path / "c.json"
    if "output_dir" in settings:
        settings = settings | {"output_dir": str(tmp_path / "o")}
    config.write_text(json.dumps(settings))
    with pytest.raises(UniDPOError, match=words):
        launch.train([str(config)])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model_name_or_path": "saves/nope"}, "^model_name_or_path: this is no folder with a checkpoint"),
        ({"ref_model": "saves/nope"}, "^ref_model: this is no folder with a checkpoint"),
        ({"adapter_name_or_path": "saves/nope", "finetuning_type": "lora"}, "^adapter_name_or_path: this is no folder"),
        ({"lora_target": "nonsense", "finetuning_type": "lora"}, "target_modules"),
        ({"template": "qwen"}, "correct `template`"),
        ({"freeze_trainable_modules": "nonsense", "finetuning_type": "freeze"}, "Module nonsense is not found"),
        ({"val_size": 1000}, "^val_size=1000 should be"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"enable_liger_kernel": True}, "pip install liger-kernel"),
        ({"push_to_hub": True}, "^push_to_hub: the hub makes no repository: "),
    ],
    ids=[
        *("no checkpoint", "no reference", "no adapter", "no such modules", "a template without images"),
        *("no such module to freeze", "more held out than there is", "half a schedule", "no such package", "no hub"),
    ],
)
def test_what_comes_to_light_later_is_one_message_too(
    config: Any, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    described = tmp_path / "run.json"
    described.write_text(json.dumps(config(**settings)))
    with pytest.raises(UniDPOError, match=words):
        launch.train([str(described)])


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        ("[{", {}, "a file of data cannot be read: "),
        ("[]", {}, "corresponds to no data"),
        ([{"conversations": [{"from": "user", "value": "q"}, {"from": "gpt", "value": "a"}]}], {}, "valid samples"),
        ([{"conversations": [{"from": "human", "value": "<image>q"}, {"from": "gpt", "value": "a"}]}] * 4,
         {"preprocessing_num_workers": 2}, "number of images does not match"),
    ],
    ids=["cut off", "no row", "other roles", "an image too few, seen by a worker"],
)  # fmt: skip
def test_data_that_llamafactory_refuses_are_one_message(
    config: Any, tmp_path: Path, rows: Any, settings: dict[str, Any], words: str
) -> None:
    (tmp_path / "rows.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
    (tmp_path / "dataset_info.json").write_text(
        json.dumps({"rows": {"file_name": "rows.json", "formatting": "sharegpt"}})
    )
    stock = {"stage": "sft", "pref_loss": "sigmoid", "dataset": "rows", "dataset_dir": str(tmp_path)}
    described = tmp_path / "run.json"
    described.write_text(json.dumps(config(**stock, **settings)))
    with pytest.raises(UniDPOError, match=words):
        launch.train([str(described)])


def test_a_folder_that_was_not_tokenized_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text("cut o")
    with pytest.raises(ValueError, match="Expecting value") as caught:
        datasets.load_from_disk(str(tmp_path))
    assert (launch._fault_of_the_user(caught.value) or "").startswith("tokenized_path: does not hold")


def test_probabilities_that_do_not_sum_to_one_are_one_message() -> None:
    rows = datasets.Dataset.from_dict({"a": [1, 2]})
    with pytest.raises(ValueError, match="sum to 1") as caught:
        datasets.interleave_datasets([rows, rows], probabilities=[0.9, 0.9])
    assert (launch._fault_of_the_user(caught.value) or "").startswith("interleave_probs: ")


def test_no_arguments_at_all() -> None:
    with pytest.raises(UniDPOError, match="uni-dpo train CONFIG"):
        launch.train([])


def topology(monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[str]:
    for name in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NPROC_PER_NODE", "RDZV_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return launch._topology()


def flags(monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, str]:
    found = topology(monkeypatch, **environment)
    return dict(zip(found[::2], found[1::2], strict=True))


def test_one_machine_whose_port_torchrun_binds_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    found = topology(monkeypatch, NPROC_PER_NODE="4")
    assert found == ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "4"]


def test_one_machine_with_a_port_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    found = flags(monkeypatch, NPROC_PER_NODE="4", MASTER_PORT="29500")
    assert (found["--nnodes"], found["--nproc-per-node"]) == ("1", "4")
    assert (found["--master-addr"], found["--master-port"]) == ("127.0.0.1", "29500")


def test_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    found = flags(monkeypatch, NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", MASTER_PORT="29500")
    assert (found["--nnodes"], found["--node-rank"]) == ("2", "1")
    assert (found["--master-addr"], found["--master-port"]) == ("10.0.0.1", "29500")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("FORCE_TORCHRUN", raising=False)
    assert launch._wants_torchrun()  # with one GPU each, too
    with pytest.raises(UniDPOError, match="set MASTER_ADDR and MASTER_PORT too"):
        flags(monkeypatch, NNODES="2", MASTER_ADDR="10.0.0.1")


def test_elastic(monkeypatch: pytest.MonkeyPatch) -> None:
    found = flags(
        monkeypatch, RDZV_ID="job", MIN_NNODES="1", MAX_NNODES="4", MASTER_ADDR="10.0.0.1", MASTER_PORT="29500"
    )
    assert (found["--nnodes"], found["--rdzv-id"], found["--rdzv-endpoint"]) == ("1:4", "job", "10.0.0.1:29500")


def test_the_log_lies_where_transformers_expands_the_output_folder_to(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    launch._show({"output_dir": "~/run"}, lambda given, callbacks: print("words of LlamaFactory"))
    assert (tmp_path / "home" / "run" / "uni_dpo" / "train.log").is_file()
    assert not (tmp_path / "~").exists()
