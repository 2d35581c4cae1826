"""The ledger of real LlamaFactory runs, against the checkpoint, the data and the formula by independent code."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tests.llamafactory.test_trainer import NaiveRun

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.columns import ledger_folder
from uni_dpo.ledger.reading import read_ledger, read_texts
from uni_dpo.ledger.verdicts import METRICS

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


def test_every_number_of_an_epoch_is_the_formulas_in_float64(
    train: Any, tiny_qwen2_vl: Path, pair_data: Any, tmp_path: Path
) -> None:
    """Checkpoint and data are trained again one sequence at a time; every column is worked out from that."""
    train(tokenized_path=str(tmp_path / "tokens"), disable_shuffling=True, learning_rate=3e-4)
    naive = NaiveRun(tiny_qwen2_vl, tmp_path / "tokens", average=True, lr=3e-4)
    source = json.loads((pair_data.folder / "mixed.json").read_text())
    texts = {text["pair"]: text for text in read_texts(tmp_path / "out").to_pylist()}
    found, tokenized = rows_of(tmp_path / "out"), list(naive.rows)
    assert len(found) == len(tokenized) == 16
    for at, row in enumerate(found):
        example, text = source[at], texts[row["pair"]]
        assert (row["pair"], row["step"], row["epoch"], row["split"]) == (
            f"mixed.json, row {at}", at // 4 + 1, 1, "train"
        )  # fmt: skip
        assert (text["chosen"], text["rejected"]) == (example["chosen"], example["rejected"])
        assert text["images"] == example["images"]
        with torch.no_grad():
            w, lose, ref_w, ref_l = (
                naive.answer_logp(model, tokenized[at], side).item()
                for model in (naive.policy, naive.reference)
                for side in ("chosen", "rejected")
            )
        good, bad = example["score_chosen"], example["score_rejected"]
        w_qual, w_perf = sigmoid(0.7 * (good - bad)), (1 - sigmoid(2 * (w - lose) - 2)) ** 3
        active = ref_w > w + 1e-7 and good >= 2.5
        expected = {
            "policy_chosen": w, "policy_rejected": lose, "reference_chosen": ref_w, "reference_rejected": ref_l,
            "policy_margin": w - lose, "reference_margin": ref_w - ref_l, "score_chosen": good, "score_rejected": bad,
            "w_qual": w_qual, "w_perf": w_perf,
            "loss": -w_qual * w_perf * math.log(sigmoid(2 * (w - lose - ref_w + ref_l))) - 0.2 * active * w,
        }  # fmt: skip
        if at >= 4:  # at the first step policy and reference are equal but for rounding
            assert row["nll_active"] == active
        for name, value in expected.items():
            if name != "loss" or row["nll_active"] == active:
                assert row[name] == pytest.approx(value, rel=1e-3, abs=1e-4), (at, name)
        for side in ("chosen", "rejected"):
            assert row[f"tokens_{side}"] == sum(label != -100 for label in tokenized[at][f"{side}_labels"])
        if at % 4 == 3:
            naive.step(tokenized[at - 3 : at + 1], beta=2.0, nll_lambda=0.2)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_every_number_of_the_page_is_that_of_the_files(train: Any, pair_data: Any, tmp_path: Path) -> None:
    """Worked out again by pandas and plain loops from ledger, log and data."""
    train(num_train_epochs=3, per_device_train_batch_size=2)
    output = tmp_path / "out"
    data = json.loads((output / "report.html").read_text().split('id="data">')[1].split("</script>")[0])
    (run,), pairs = data["runs"], data["pairs"]
    rows = pd.read_parquet(output / "uni_dpo" / "pairs.parquet")
    rows["reward_margin"] = rows.policy_margin - rows.reference_margin
    rows["chosen_drift"] = rows.policy_chosen - rows.reference_chosen
    rows["rejected_drift"] = rows.policy_rejected - rows.reference_rejected
    rows["score_margin"] = rows.score_chosen - rows.score_rejected
    rows["length_gap"] = rows.tokens_chosen - rows.tokens_rejected
    rows["nll_active"] = rows.nll_active.astype(float)
    steps = rows.groupby("step")
    assert [window["step"] for window in run["windows"]] == sorted(steps.groups)
    for window in run["windows"]:
        inside = steps.get_group(window["step"])
        assert window["pairs"] == len(inside) == 2
        assert window["accuracy"] == pytest.approx((inside.reward_margin > 0).mean())
        assert window["chosen_longer"] == pytest.approx((inside.length_gap > 0).mean())
        for name in set(window) - {"step", "pairs", "accuracy", "chosen_longer"}:
            assert window[name]["mean"] == pytest.approx(inside[name].mean(), rel=1e-5, abs=1e-6), name
            spread = inside[name].quantile([0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
            assert window[name]["q"] == pytest.approx(spread, rel=1e-5, abs=1e-6), name
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    for metric, (at, values) in run["log"].items():
        points = [(line["step"], line[metric]) for line in log if metric in line]
        assert [*zip(at, values, strict=True)] == points, metric
    source = json.loads((pair_data.folder / "mixed.json").read_text())
    firm = rows.policy_margin.abs().median()
    middle = sorted(abs(row["score_chosen"] - row["score_rejected"]) for row in source)
    middle_gap = (middle[7] + middle[8]) / 2
    for at, name in enumerate(pairs["pair"]):
        visits, example = rows[rows.pair == name].sort_values("step"), source[int(name.split()[-1])]
        assert (pairs["chosen"][at], pairs["rejected"][at]) == (example["chosen"], example["rejected"])
        assert (pairs["score_chosen"][at], pairs["score_rejected"][at]) == pytest.approx(
            (example["score_chosen"], example["score_rejected"]), rel=1e-4
        )
        assert pairs["paths"][at] == ", ".join(example["images"])
        assert pairs["visits"][at] == 3
        for when, place in (("first", 0), ("last", -1)):
            for number in ("w_qual", "w_perf", "reward_margin", "policy_margin", "chosen_drift"):
                value = visits[number].iloc[place]
                assert pairs[f"{when}_{number}"][at] == pytest.approx(value, rel=1e-4, abs=1e-6), number
        margins = visits.reward_margin.tolist()
        assert pairs["reward_margins"][at] == pytest.approx(margins, abs=1e-4)
        last, ever = margins[-1] > 0, max(margins) > 0
        still = not ever and margins[-1] > margins[0]
        longest, shortest = sorted(visits[["tokens_chosen", "tokens_rejected"]].iloc[-1], reverse=True)
        expected = [
            last,
            still,
            not ever and not still,
            ever and not last,
            visits.policy_margin.max() < 0 and visits.policy_margin.mean() < -firm,
            longest > 2 * shortest and abs(visits.score_margin.iloc[-1]) <= middle_gap + 1e-6,
        ]
        assert [bool(pairs["groups"][at] >> bit & 1) for bit in range(6)] == expected, name
    for bit, group in enumerate(data["groups"]):
        assert run["groups"][group] == sum(bits >> bit & 1 for bits in pairs["groups"])
    accuracy = next(one["en"] for one in run["verdicts"] if one["metric"]["en"] == METRICS["accuracy"]["en"])
    late = [window["accuracy"] for window in run["windows"]][-4:]
    assert accuracy.startswith(f"{sum(late) / 4:.0%} of pairs")


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
