"""The model card against what the run holds."""

import json
from pathlib import Path

import pytest
import yaml
from tests.report.runs import write_run
from typer.testing import CliRunner

from uni_dpo.cli.app import app
from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.columns import record_file
from uni_dpo.ledger.reading import log_series
from uni_dpo.report.card import CURVES, card_text, draw_curves, licence_of, write_card


def change(output: Path, **changed: object) -> None:
    record = json.loads(record_file(output).read_text())
    record_file(output).write_text(json.dumps(record | changed))


def test_a_card_says_what_was_trained_on_what(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    output = write_run(tmp_path / "run")
    (output / "preprocessor_config.json").write_text('{"image_processor_type": "Qwen2VLImageProcessor"}')
    change(output, model=str(base))
    text = card_text(output)
    head = yaml.safe_load(text.split("---")[1])
    assert head["license"] == "apache-2.0"
    assert head["pipeline_tag"] == "image-text-to-text"
    assert {"uni-dpo", "dpo"} <= {*head["tags"]}
    assert "base_model" not in head
    assert str(tmp_path) not in text
    assert "trained by Uni-DPO" in text
    assert "| score, margin | 3 | 4 | 5 |" in text
    assert "| loss | 0.69 | 0.46 |" in text
    assert "AutoModelForImageTextToText" in text
    assert "**good**, chosen answers" in text


def test_a_text_model_an_adapter_and_a_name_on_the_hub(tmp_path: Path) -> None:
    output = write_run(tmp_path / "run")
    (output / "adapter_config.json").write_text("{}")
    change(output, model="Qwen/Qwen2-0.5B", changed={"note": "a | b\n<script>"})
    text = card_text(output)
    head = yaml.safe_load(text.split("---")[1])
    assert (head["library_name"], head["pipeline_tag"], head["base_model"]) == (
        "peft",
        "text-generation",
        "Qwen/Qwen2-0.5B",
    )
    assert "license" not in head
    assert "AutoModelForCausalLM" in text
    assert "| note | a \\| b &lt;script> |" in text
    assert licence_of("Qwen/Qwen2-0.5B") is None


def test_an_evaluation_stands_in_the_card(tmp_path: Path) -> None:
    output, folder = write_run(tmp_path / "run"), tmp_path / "eval"
    folder.mkdir()
    rows = [
        {"benchmark": "POPE", "model": "before", "score": 50.0, "difference": None, "low": None, "high": None},
        {"benchmark": "POPE", "model": "after", "score": 60.5, "difference": 10.5, "low": 1.0, "high": 20.0},
    ]
    (folder / "results.json").write_text(json.dumps({"baseline": "before", "results": rows}))
    done = CliRunner().invoke(app, ["report", str(output), "--evaluation", str(folder)])
    assert done.exit_code == 0
    text = (output / "README.md").read_text()
    assert "| benchmark | model | score | difference from before [95 %] |" in text
    assert "| POPE | after | 60.50 | +10.50 [+1.00, +20.00] |" in text
    with pytest.raises(UniDPOError, match=r"results\.json: no readable results"):
        write_card(output, tmp_path / "nothing")


def test_a_figure_of_what_was_logged(tmp_path: Path) -> None:
    log = [{"step": step, **dict.fromkeys(CURVES, step / 10)} for step in range(5)]
    assert draw_curves(log_series(log), tmp_path / "curves.png")
    assert draw_curves(log_series([{"step": 1, "loss": 0.5}, {"train_runtime": 3.0}]), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    assert not draw_curves(log_series([{"train_runtime": 3.0}]), tmp_path / "none.png")
