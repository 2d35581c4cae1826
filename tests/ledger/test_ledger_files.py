"""Recording, cutting and reading a ledger, and what its rows say, against numbers worked out by hand."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.columns import ledger_folder
from uni_dpo.ledger.reading import read_ledger, read_record
from uni_dpo.ledger.summary import GROUPS, group_pairs, pair_history, windows
from uni_dpo.ledger.writing import PairLedger, PairNames, fingerprint, names_of, pair_key, pair_texts

NAMES = PairNames(np.array([30, 10, 20]), pa.array(["c", "a", "b"]))


def open_at(output: Path, rank: int = 0, ranks: int = 1) -> PairLedger:
    return PairLedger(ledger_folder(output), NAMES, rank, ranks)


def add(ledger: PairLedger, step: int, margins: dict[int, float], *, split: str = "train", epoch: int = 1) -> None:
    keys = torch.tensor(list(margins))
    values = torch.tensor(list(margins.values()))
    zeros = torch.zeros_like(values)
    numbers = {
        "policy_chosen": values, "policy_rejected": zeros, "reference_chosen": zeros, "reference_rejected": zeros,
        "loss": -values, "tokens_chosen": zeros + 4, "tokens_rejected": zeros + 5,
    }  # fmt: skip
    ledger.add(split, step, epoch, keys, numbers)


def steps(output: Path) -> list[tuple[int, str]]:
    return [(row["step"], row["pair"]) for row in read_ledger(output).to_pylist()]


def test_rows_come_back_with_names_and_margins(tmp_path: Path) -> None:
    ledger = open_at(tmp_path)
    add(ledger, 1, {10: 0.5, 99: -1.0})
    ledger.flush()
    first, unknown = read_ledger(tmp_path).to_pylist()
    assert (first["pair"], unknown["pair"]) == ("a", f"{99:016x}")
    assert (first["policy_margin"], first["reference_margin"], first["tokens_rejected"]) == (0.5, 0.0, 5)
    assert first["w_qual"] is None
    assert first["nll_active"] is None


def test_a_resumed_run_drops_what_lies_behind_its_checkpoint(tmp_path: Path) -> None:
    ledger = open_at(tmp_path)
    add(ledger, 1, {10: 0.1})
    add(ledger, 2, {20: 0.1})
    ledger.flush()
    add(ledger, 3, {30: 0.1})
    ledger.flush()
    open_at(tmp_path).cut(1)
    assert steps(tmp_path) == [(1, "a")]
    assert len(list(ledger_folder(tmp_path).glob("*.parquet"))) == 1


def test_an_evaluation_done_again_replaces_the_first_also_of_more_processes(tmp_path: Path) -> None:
    for rank in range(3):
        ledger = open_at(tmp_path, rank, 3)
        add(ledger, 5, {10 * (rank + 1): 0.1}, split="eval")
        add(ledger, 5, {10 * (rank + 1): 0.1})
        ledger.flush()
    for rank in range(2):
        open_at(tmp_path, rank, 2).forget("eval", 5)
    assert steps(tmp_path) == [(5, "a"), (5, "b"), (5, "c")]


def test_waiting_rows_are_written_before_they_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uni_dpo.ledger.writing.WAITING", 3)
    ledger = open_at(tmp_path)
    add(ledger, 1, {10: 0.1, 20: 0.1})
    assert not ledger_folder(tmp_path).exists()
    add(ledger, 2, {30: 0.1})
    assert len(steps(tmp_path)) == 3
    assert len(ledger.waiting()) == 0


def test_groups_follow_their_rules(tmp_path: Path) -> None:
    ledger = open_at(tmp_path)
    for epoch, margins in enumerate([{10: -0.1, 20: 0.4, 30: -2.0}, {10: 0.3, 20: -0.2, 30: -2.5}], 1):
        add(ledger, epoch, margins, epoch=epoch)
    ledger.flush()
    history = pair_history(read_ledger(tmp_path))
    assert history.pairs == ["a", "b", "c"]
    assert history.reward_margins == pytest.approx(np.array([[-0.1, 0.3], [0.4, -0.2], [-2.0, -2.5]]))
    members = {name: found.tolist() for name, found in group_pairs(history).items()}
    assert members["learnt"] == [True, False, False]
    assert members["forgotten"] == [False, True, False]
    assert members["never learnt"] == [False, False, True]
    assert members["suspect label"] == [False, False, True]
    assert members["still to learn"] == [False, False, False]


def test_no_rows_make_no_groups_and_no_windows(tmp_path: Path) -> None:
    rows = read_ledger(tmp_path)
    assert windows(rows) == []
    members = group_pairs(pair_history(rows))
    assert set(members) == set(GROUPS)
    assert all(len(found) == 0 for found in members.values())


def test_windows_are_numpys_quantiles(tmp_path: Path) -> None:
    ledger = open_at(tmp_path)
    for step in range(1, 9):
        add(ledger, step, {10: step / 10, 20: -step / 10})
    ledger.flush()
    first, second = windows(read_ledger(tmp_path), count=2)
    values = [sign * step / 10 for step in range(1, 5) for sign in (1, -1)]
    assert (first["step"], second["step"], first["pairs"], first["accuracy"]) == (4, 8, 8, 0.5)
    assert first["reward_margin"]["q"] == pytest.approx(np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)))
    assert "w_qual" not in first


def test_pairs_of_one_name_are_told_apart_and_the_fingerprint_knows_no_order() -> None:
    class Pairs:
        def __init__(self, rows: list[dict[str, object]]) -> None:
            self.rows = rows

        def texts(self) -> list[dict[str, object]]:
            return self.rows

    def row(chosen: str) -> dict[str, object]:
        key = pair_key("f, row 1", "q", chosen, "r")
        texts = {"question": "q", "chosen": chosen, "rejected": "r", "images": [{"path": "a.png"}]}
        return {"pair_key": key, "pair_name": "f, row 1", **texts, "score_chosen": 1.0, "score_rejected": 0.0}

    texts = pair_texts([Pairs([row("a"), row("b"), row("a")])])
    assert texts["pair"].to_pylist() == ["f, row 1", "f, row 1, pair 2"]
    assert texts["images"].to_pylist() == [["a.png"], ["a.png"]]
    assert names_of(texts).of(np.array([pair_key("f, row 1", "q", "b", "r")])).to_pylist() == ["f, row 1, pair 2"]
    assert fingerprint(texts) == fingerprint(pair_texts([Pairs([row("b"), row("a")])]))
    assert fingerprint(texts) != fingerprint(pair_texts([Pairs([row("b")])]))


def test_a_folder_without_a_training_and_a_broken_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UniDPOError, match=r"run\.json is missing"):
        read_record(tmp_path)
    part = ledger_folder(tmp_path) / "rank-0000-part-000001.parquet"
    part.parent.mkdir(parents=True)
    part.write_text("no parquet")
    with pytest.raises(UniDPOError, match=r"rank-0000-part-000001\.parquet: cannot be read"):
        read_ledger(tmp_path)
