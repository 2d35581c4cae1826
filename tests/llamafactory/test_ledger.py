"""The ledger of real LlamaFactory runs, against the checkpoint, the data and the formula by independent code."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.llamafactory.test_trainer import NaiveRun

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.columns import ledger_folder
from uni_dpo.ledger.reading import read_ledger, read_texts

LOSSES = ("uni_dpo", "sigmoid", "hinge", "ipo", "simpo", "orpo")


def rows_of(output: Path) -> list[dict[str, Any]]:
    return read_ledger(output).to_pylist()


@pytest.mark.parametrize("loss", LOSSES)
def test_every_pair_has_a_row_and_every_number_is_what_the_log_averages(train: Any, tmp_path: Path, loss: str) -> None:
    log = train(pref_loss=loss, num_train_epochs=2, gradient_accumulation_steps=2)
    rows = rows_of(tmp_path / "out")
    texts = read_texts(tmp_path / "out").to_pylist()
    assert len(texts) == 16
    assert sorted(row["pair"] for row in rows) == sorted(2 * [text["pair"] for text in texts])
    assert {row["epoch"] for row in rows} == {1, 2}
    lines = [line for line in log if "loss" in line]
    for line in lines:
        seen = [row for row in rows if row["step"] == line["step"]]
        assert len(seen) == 8

        def mean(name: str, seen: list[dict[str, Any]] = seen) -> float:
            return sum(row[name] for row in seen) / len(seen)

        assert line["logps/chosen"] == pytest.approx(mean("policy_chosen"), rel=1e-4)
        assert line["logps/rejected"] == pytest.approx(mean("policy_rejected"), rel=1e-4)
        assert line["loss"] == pytest.approx(mean("loss"), rel=1e-4)
        if loss == "uni_dpo":
            assert line["uni_dpo/w_perf"] == pytest.approx(mean("w_perf"), rel=1e-4)
            assert line["uni_dpo/nll_active"] == pytest.approx(mean("nll_active"), rel=1e-4, abs=1e-6)
    assert all((row["reference_chosen"] is None) == (loss in ("simpo", "orpo")) for row in rows)
    assert all((row["w_qual"] is None) == (loss != "uni_dpo") for row in rows)


def test_first_step_is_the_formula_in_float64(train: Any, tiny_qwen2_vl: Path, pair_data: Any, tmp_path: Path) -> None:
    train(tokenized_path=str(tmp_path / "tokens"), disable_shuffling=True, learning_rate=3e-4)
    rows = [row for row in rows_of(tmp_path / "out") if row["step"] == 1]
    naive = NaiveRun(tiny_qwen2_vl, tmp_path / "tokens", average=True, lr=3e-4)
    source = json.loads((pair_data.folder / "mixed.json").read_text())
    texts = {text["pair"]: text for text in read_texts(tmp_path / "out").to_pylist()}
    tokenized = naive.rows
    with torch.no_grad():
        for at, row in enumerate(rows):
            assert row["pair"] == f"mixed.json, row {at}"
            example, text = source[at], texts[row["pair"]]
            assert (text["chosen"], text["rejected"]) == (example["chosen"], example["rejected"])
            assert text["images"] == example["images"]
            chosen, rejected = (
                naive.answer_logp(naive.policy, tokenized[at], side).item() for side in ("chosen", "rejected")
            )
            assert row["policy_chosen"] == pytest.approx(chosen, rel=1e-4)
            assert row["reference_rejected"] == pytest.approx(rejected, rel=1e-4)
            assert row["policy_margin"] == pytest.approx(chosen - rejected, abs=1e-4)
            for side in ("chosen", "rejected"):
                assert row[f"score_{side}"] == pytest.approx(example[f"score_{side}"], rel=1e-6)
                assert row[f"tokens_{side}"] == sum(label != -100 for label in tokenized[at][f"{side}_labels"])


def test_a_resumed_run_has_the_rows_of_one_that_was_not_stopped(train: Any, tmp_path: Path) -> None:
    every = {"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3, "eval_dataset": "mixed"}
    every |= {"eval_strategy": "steps", "eval_steps": 2, "do_eval": True}
    train(**every, output_dir=str(tmp_path / "whole"))
    train(**every, output_dir=str(tmp_path / "cut"))
    train(
        **every,
        output_dir=str(tmp_path / "cut"),
        overwrite_output_dir=False,
        resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"),
    )
    whole, cut = (
        [(row["split"], row["step"], row["epoch"], row["pair"]) for row in rows_of(tmp_path / name)]
        for name in ("whole", "cut")
    )
    assert sorted(whole) == sorted(cut)
    assert len(set(whole)) == len(whole) == 2 * 16 + 4 * 16
    assert {split for split, *_ in whole} == {"train", "eval"}


@pytest.mark.parametrize("loss", ["sigmoid", "simpo", "uni_dpo"])
def test_without_a_ledger_nothing_is_written_and_every_number_is_the_same(
    train: Any, tmp_path: Path, loss: str
) -> None:
    with_one = train(pref_loss=loss, output_dir=str(tmp_path / "with"))
    without = train(pref_loss=loss, output_dir=str(tmp_path / "without"), uni_dpo_ledger=False)
    timed = ("runtime", "per_second", "memory_gib")
    with_one, without = (
        [{k: v for k, v in line.items() if not k.endswith(timed)} for line in log] for log in (with_one, without)
    )
    assert with_one == without
    assert ledger_folder(tmp_path / "with").is_dir()
    assert not (tmp_path / "without" / "uni_dpo").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"group_by_question": True},
        {"precompute_ref_log_probs": True},
        {"pref_loss": "sigmoid", "pair_forward": "shared_prefix"},
    ],
)
def test_shared_sequences_and_kept_references_leave_the_same_rows(
    train: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    common = {"learning_rate": 0.0, "ref_cache_dir": str(tmp_path / "cache")}
    train(
        **common,
        pref_loss=settings.get("pref_loss", "uni_dpo"),
        pair_forward="ordinary",
        output_dir=str(tmp_path / "plain"),
    )
    train(**(common | settings), output_dir=str(tmp_path / "shared"))
    plain, shared = ({row["pair"]: row for row in rows_of(tmp_path / name)} for name in ("plain", "shared"))
    assert plain.keys() == shared.keys()
    for pair, row in plain.items():
        for name in ("policy_chosen", "reference_rejected", "loss", "tokens_chosen", "score_rejected"):
            assert shared[pair][name] == pytest.approx(row[name], rel=1e-4, abs=1e-5), name


def test_a_run_has_a_page_that_says_what_was_trained_and_keeps_keys_to_itself(train: Any, tmp_path: Path) -> None:
    train(num_train_epochs=4, save_strategy="steps", save_steps=8, hub_token="hf_secret", uni_dpo_verdict_steps=4)
    output = tmp_path / "out"
    record = json.loads((output / "uni_dpo" / "run.json").read_text())
    assert record["changed"]["pref_loss"] == "uni_dpo"
    assert record["changed"]["learning_rate"] == 1e-3
    assert "lora_rank" not in record["changed"]
    assert record["evidence"]["nll_lambda"] == 0.2
    assert (record["pairs"], len(record["fingerprint"])) == (16, 16)
    page, card = (output / "report.html").read_text(), (output / "README.md").read_text()
    assert "hf_secret" not in page + card + json.dumps(record)
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n")
    assert f"16 pairs, fingerprint `{record['fingerprint']}`" in card
    assert str(tmp_path) not in card
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    (run,) = data["runs"]
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    assert run["log"]["loss"] == [
        [line["step"] for line in log if "loss" in line],
        [line["loss"] for line in log if "loss" in line],
    ]
    assert {verdict["state"] for verdict in run["verdicts"]} <= {"good", "watch", "bad"}
    rows = rows_of(output)
    for at, name in enumerate(data["pairs"]["pair"]):
        visits = [row for row in rows if row["pair"] == name]
        margins = [row["policy_margin"] - row["reference_margin"] for row in visits]
        assert data["pairs"]["reward_margins"][at] == pytest.approx(margins, abs=1e-4)
        assert data["pairs"]["first_w_perf"][at] == pytest.approx(visits[0]["w_perf"], rel=1e-4)
        assert bool(data["pairs"]["groups"][at] & 1) == (margins[-1] > 0)


def test_a_run_whose_chosen_answers_fall_ends_before_it_saves_that(train: Any, tmp_path: Path) -> None:
    settings = {"pref_loss": "sigmoid", "learning_rate": 3e-2, "per_device_train_batch_size": 1, "num_train_epochs": 6}
    with pytest.raises(
        UniDPOError, match=r"stop_on: collapse: at step \d+ chosen .* last good checkpoint is .*checkpoint-"
    ):
        train(**settings, stop_on="collapse", save_strategy="steps", save_steps=4)
    checkpoints = sorted(int(folder.name.split("-")[1]) for folder in (tmp_path / "out").glob("checkpoint-*"))
    assert checkpoints
    last = max(row["step"] for row in rows_of(tmp_path / "out"))
    assert checkpoints[-1] < last < 6 * 16
    assert not list((tmp_path / "out").glob("*.safetensors"))
