"""The ledger of real TRL runs, against checkpoint and data by independent code, with either TRL."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset

from uni_dpo.data.marked import apply_marks
from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.columns import ledger_folder
from uni_dpo.ledger.reading import read_ledger, read_texts
from uni_dpo.trl import UniDPOTrainer
from uni_dpo.trl.launch import train

Settings = Callable[..., Any]
Rows = list[dict[str, Any]]
TRL_1 = trl.__version__.startswith("1.")


def rows_of(config: Any) -> Rows:
    return read_ledger(config.output_dir).to_pylist()


def log_of(trainer: Any) -> Rows:
    return [line for line in trainer.state.log_history if "loss" in line]


def mean(rows: Rows, name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


@pytest.fixture(params=["text", "images"])
def trained(
    request: pytest.FixtureRequest, tiny_text: Path, tiny_qwen2_vl: Path, text_rows: Rows, image_rows: Rows
) -> tuple[Path, Rows]:
    """A checkpoint and rows that it can train on."""
    return (tiny_text, text_rows) if request.param == "text" else (tiny_qwen2_vl, image_rows)


@pytest.mark.parametrize("loss", ["uni_dpo", "sigmoid", "hinge", "ipo"])
def test_every_pair_has_a_row_and_the_log_averages_them(
    trained: tuple[Path, Rows], settings: Settings, loss: str
) -> None:
    model, rows = trained
    config = settings(loss_type=[loss], num_train_epochs=2, eval_strategy="epoch")
    data = Dataset.from_list(rows)
    trainer = UniDPOTrainer(str(model), args=config, train_dataset=data, eval_dataset=data.select(range(4)))
    trainer.train()
    found, texts = rows_of(config), read_texts(config.output_dir).to_pylist()
    assert [text["pair"] for text in texts] == [f"train, row {at}" for at in range(8)] + [
        f"eval, row {at}" for at in range(4)
    ]
    assert sorted((row["split"], row["epoch"], row["pair"]) for row in found) == sorted(
        (split, epoch, f"{split}, row {at}")
        for split, count in (("train", 8), ("eval", 4))
        for epoch in (1, 2)
        for at in range(count)
    )
    for line in log_of(trainer):
        seen = [row for row in found if row["split"] == "train" and row["step"] == line["step"]]
        assert line["logps/chosen"] == pytest.approx(mean(seen, "policy_chosen"), rel=1e-4)
        gain = [row["policy_margin"] - row["reference_margin"] for row in seen]
        assert line["rewards/margins"] == pytest.approx(config.beta * sum(gain) / len(gain), rel=1e-3, abs=1e-5)
        if loss == "uni_dpo":
            assert line["uni_dpo/w_perf"] == pytest.approx(mean(seen, "w_perf"), rel=1e-4)
        if loss == "uni_dpo" or not TRL_1:
            assert line["loss"] == pytest.approx(mean(seen, "loss"), rel=1e-4, abs=1e-6)
        else:
            assert all(row["loss"] is None for row in seen)  # TRL 1.x keeps the losses of pairs to itself
        assert min(line["pairs_per_second"], line["tokens_per_second"], line["memory_gib"]) > 0
    for row in found:
        source = rows[int(row["pair"].rpartition(" ")[2])]
        assert row["score_chosen"] == pytest.approx(source["score_chosen"])
        assert row["score_rejected"] == pytest.approx(source["score_rejected"])


def test_the_numbers_are_those_of_the_checkpoint(
    trained: tuple[Path, Rows], settings: Settings, pairs_in: Callable[..., Any]
) -> None:
    """Log-probabilities of the untrained model in float64, one sequence at a time; lengths; weights by the formula."""
    model, rows = trained
    config = settings(learning_rate=0.0)
    trainer = UniDPOTrainer(str(model), args=config, train_dataset=Dataset.from_list(rows))
    trainer.train()
    found = {row["pair"]: row for row in rows_of(config)}
    policy = trainer.model.double().eval()
    features = [trainer.train_dataset[at] for at in range(8)]
    for at, feature in enumerate(features):
        batch = trainer.data_collator([feature])
        (pair,) = pairs_in(batch)
        row = found[f"train, row {at}"]
        for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            ids = torch.cat([pair.prompt, answer])[None]
            inputs = {name: batch[name] for name in ("pixel_values", "image_grid_thw") if name in batch}
            if inputs:
                inputs["pixel_values"] = inputs["pixel_values"].double()
                token = policy.config.image_token_id
                inputs["mm_token_type_ids"] = (ids == token).int()
                images, patches = _one_side(ids, token, batch)
                inputs["image_grid_thw"], inputs["pixel_values"] = (
                    inputs["image_grid_thw"][:images],
                    inputs["pixel_values"][:patches],
                )
            with torch.no_grad():
                logits = policy(input_ids=ids, **inputs).logits[0, len(pair.prompt) - 1 : -1]
            expected = logits.log_softmax(-1).gather(1, answer[:, None]).mean().item()
            assert row[f"policy_{side}"] == pytest.approx(expected, rel=1e-4)
            assert row[f"reference_{side}"] == pytest.approx(expected, rel=1e-4)
            assert row[f"tokens_{side}"] == len(answer)
        gap = rows[at]["score_chosen"] - rows[at]["score_rejected"]
        assert row["w_qual"] == pytest.approx(torch.tensor(0.7 * gap).sigmoid().item(), rel=1e-5)
        margin = torch.tensor(2 * row["policy_margin"] - 2)
        assert row["w_perf"] == pytest.approx(((1 - margin.sigmoid()) ** 3).item(), rel=1e-4)


def _one_side(ids: torch.Tensor, token: int, batch: dict[str, Any]) -> tuple[int, int]:
    """Images and patches of one answer's sequence; TRL 1.x gives them for both."""
    images, left = 0, int((ids == token).sum()) * 4
    patches = 0
    while left > 0:
        size = int(batch["image_grid_thw"][images].prod())
        images, patches, left = images + 1, patches + size, left - size
    return images, patches


def test_a_resumed_run_has_the_rows_of_one_that_was_not_stopped(
    tiny_text: Path, text_rows: Rows, settings: Settings, tmp_path: Path
) -> None:
    data = Dataset.from_list(text_rows)
    found = []
    for name in ("whole", "cut"):
        config = settings(
            output_dir=str(tmp_path / name), num_train_epochs=2, save_strategy="steps", save_steps=3,
            eval_strategy="steps", eval_steps=2,
        )  # fmt: skip

        def trainer(config: Any = config) -> Any:
            return UniDPOTrainer(str(tiny_text), args=config, train_dataset=data, eval_dataset=data)

        trainer().train()
        if name == "cut":
            trainer().train(resume_from_checkpoint=str(tmp_path / name / "checkpoint-3"))
        found.append(sorted((row["split"], row["step"], row["epoch"], row["pair"]) for row in rows_of(config)))
    assert found[0] == found[1]
    assert len({*found[0]}) == len(found[0]) == 2 * 8 + 2 * 8


@pytest.mark.parametrize("loss", ["uni_dpo", "sigmoid"])
def test_without_a_ledger_nothing_is_written_and_every_number_is_the_same(
    trained: tuple[Path, Rows], settings: Settings, tmp_path: Path, loss: str
) -> None:
    model, rows = trained
    logs = []
    for keeps in (True, False):
        config = settings(loss_type=[loss], output_dir=str(tmp_path / str(keeps)), uni_dpo_ledger=keeps)
        trainer = UniDPOTrainer(str(model), args=config, train_dataset=Dataset.from_list(rows))
        trainer.train()
        logs.append(
            [{k: v for k, v in line.items() if not k.endswith(("_second", "_gib"))} for line in log_of(trainer)]
        )
    assert logs[0] == logs[1]
    assert ledger_folder(tmp_path / "True").is_dir()
    assert not (tmp_path / "False" / "uni_dpo").exists()


def test_a_collator_of_the_users_keeps_no_ledger(
    tiny_text: Path, text_rows: Rows, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    data, config = Dataset.from_list(text_rows), settings()
    own = UniDPOTrainer(str(tiny_text), args=settings(uni_dpo_ledger=False), train_dataset=data).data_collator
    trainer = UniDPOTrainer(str(tiny_text), args=config, train_dataset=data, data_collator=own)
    assert trainer.ledger is None
    trainer.train()
    assert len(log_of(trainer)) == 2
    assert not (Path(config.output_dir) / "uni_dpo").exists()


def test_streamed_pairs_are_known_by_their_keys(tiny_text: Path, text_rows: Rows, settings: Settings) -> None:
    config = settings(max_steps=2)
    data = Dataset.from_list(text_rows).to_iterable_dataset()
    UniDPOTrainer(str(tiny_text), args=config, train_dataset=data).train()
    rows = rows_of(config)
    assert len({row["pair"] for row in rows}) == len(rows) == 8
    assert all(int(row["pair"], 16) for row in rows)


def test_a_run_whose_chosen_answers_fall_ends_before_it_saves_that(
    tiny_text: Path, text_rows: Rows, settings: Settings
) -> None:
    config = settings(
        loss_type=["sigmoid"], stop_on="collapse", learning_rate=0.3, lr_scheduler_type="constant",
        num_train_epochs=16, save_strategy="steps", save_steps=4,
    )  # fmt: skip
    trainer = UniDPOTrainer(str(tiny_text), args=config, train_dataset=Dataset.from_list(text_rows))
    with pytest.raises(UniDPOError, match=r"stop_on: collapse: at step \d+ chosen answers have lost"):
        trainer.train()
    last = max(row["step"] for row in rows_of(config))
    saved = [int(folder.name.split("-")[1]) for folder in Path(config.output_dir).glob("checkpoint-*")]
    assert 12 <= last < 32
    assert max(saved, default=0) < last


def test_the_command_leaves_a_page_a_card_and_lines(
    tiny_text: Path, text_rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.delenv("UNI_DPO_VERBOSE", raising=False)
    data, out = tmp_path / "pairs.json", tmp_path / "out"
    data.write_text(json.dumps(text_rows))
    arguments = [
        *("--model_name_or_path", str(tiny_text), "--dataset_name", str(data), "--output_dir", str(out)),
        *("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--logging_steps", "1", "--seed", "3"),
        *("--per_device_train_batch_size", "2", "--num_train_epochs", "4", "--learning_rate", "1e-3"),
        *("--uni_dpo_verdict_steps", "6", "--gradient_checkpointing", "false"),
    ]
    train(arguments)
    shown = capsys.readouterr()
    steps = [line for line in shown.err.splitlines() if line.startswith("step ") and "loss" in line]
    assert len(steps) == 16
    assert all(word in steps[-1] for word in ("acc", "margin", "logp", "w_qual", "w_perf", "nll", "pairs/s", "left"))
    assert any(line.startswith(("step 16, ", "step 16: ")) for line in shown.err.splitlines())
    assert "{'loss'" not in shown.err + shown.out
    record = json.loads((out / "uni_dpo" / "run.json").read_text())
    assert record["library"] == "trl"
    assert record["datasets"]["train"] == ["pairs.json"]
    assert record["changed"]["model_name_or_path"] == str(tiny_text)
    assert (record["pairs"], record["evidence"]["pref_loss"]) == (8, "uni_dpo")
    page = (out / "report.html").read_text()
    shown_pairs = json.loads(page.split('id="data">')[1].split("</script>")[0])["pairs"]
    assert sorted(shown_pairs["pair"]) == sorted(f"pairs.json, row {at}" for at in range(8))
    first = shown_pairs["pair"].index("pairs.json, row 0")
    assert (shown_pairs["question"][first], shown_pairs["chosen"][first]) == ("Is 0 plus one 1?", "Yes.")
    assert "- trl" in (out / "README.md").read_text().split("---")[1]
    marks = tmp_path / "marked.jsonl"
    marks.write_text(json.dumps({"pair": "pairs.json, row 3", "action": "drop"}))
    assert apply_marks(data, marks, tmp_path / "better.json").rows["drop"] == 1


def test_verbose_shows_what_trl_shows(
    tiny_text: Path, text_rows: Rows, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setenv("UNI_DPO_VERBOSE", "")
    data = tmp_path / "pairs.json"
    data.write_text(json.dumps(text_rows))
    train(
        [
            *("--model_name_or_path", str(tiny_text), "--dataset_name", str(data), "--output_dir", str(tmp_path / "o")),
            *("--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--logging_steps", "1", "--verbose"),
            *("--max_steps", "1", "--gradient_checkpointing", "false"),
        ]
    )
    assert "'loss'" in capsys.readouterr().out
