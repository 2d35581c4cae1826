"""Which checkpoint is taken, and when a run stops."""

import pytest

from uni_dpo.align.choice import Choice, choose, gain, read_choice, read_grades, write_choice
from uni_dpo.errors import UniDPOError

BEFORE = {"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0}
PATHS = {"checkpoint-1": "one", "checkpoint-2": "two", "final": "end"}


def chosen(*, go_on="better", **grades) -> Choice:
    found = {name.replace("_", "-"): dict(zip("abcd", values, strict=True)) for name, values in grades.items()}
    return choose(BEFORE, found, PATHS, "start", go_on=go_on, seed=0, unit=100.0)


def test_the_best_is_taken_and_of_equals_the_earliest():
    choice = chosen(checkpoint_1=(0, 1, 1, 1), checkpoint_2=(1, 1, 1, 1), final=(1, 1, 1, 1))
    assert (choice.candidate, choice.model) == ("checkpoint-2", "two")
    assert choice.means == {"checkpoint-1": 75.0, "checkpoint-2": 100.0, "final": 100.0}
    assert (choice.before, choice.gain, choice.questions) == (50.0, 50.0, 4)
    assert choice.low <= 50.0 <= choice.high
    assert choice.kept
    assert choice.goes_on


def test_a_round_that_does_not_help_ends_the_run_and_keeps_the_model_before():
    choice = chosen(final=(0, 0, 1, 1))
    assert (choice.gain, choice.low, choice.high) == (0.0, 0.0, 0.0)
    assert choice.model == "start"
    assert not choice.kept
    assert not choice.goes_on
    assert "did not help: +0.00 on 4 validation questions (95 % interval +0.00 … +0.00)" in choice.reason


def test_an_unsure_gain_is_kept_and_ends_the_run_where_it_has_to_be_sure():
    choice = chosen(go_on="surely_better", final=(1, 0, 1, 1))
    assert choice.low <= 0 < choice.gain
    assert (choice.kept, choice.goes_on, choice.model) == (True, False, "end")
    assert "not sure" in choice.reason


def test_always_keeps_what_came_of_the_round():
    choice = chosen(go_on="always", final=(0, 0, 0, 0))
    assert (choice.gain, choice.kept, choice.goes_on, choice.model) == (-50.0, True, True, "end")


def test_a_choice_is_read_as_it_was_written(tmp_path):
    choice = chosen(final=(1, 1, 1, 1))
    write_choice(tmp_path / "choice.json", choice)
    assert read_choice(tmp_path / "choice.json") == choice
    assert read_choice(tmp_path / "none.json") is None


def test_the_interval_is_that_of_the_paired_difference():
    """Where every question gains the same, redrawing them changes nothing: 0.25 · 100."""
    after = {key: value + 0.25 for key, value in BEFORE.items()}
    difference, interval, count = gain(BEFORE, {**after, "elsewhere": 1.0}, unit=100.0, seed=3)
    assert difference == pytest.approx(25.0)
    assert interval == pytest.approx((25.0, 25.0))
    assert count == 4
    with pytest.raises(UniDPOError, match="share no graded question"):
        gain(BEFORE, {"elsewhere": 1.0}, unit=1.0, seed=0)


def test_grades_come_from_predictions_and_from_scored_answers(tmp_path):
    rows = '{"id": "a", "correct": 1.0}\n{"id": "b", "correct": 0.25}\n{"id": "c", "prediction": "x"}\n'
    (tmp_path / "model.jsonl").write_text(rows)
    assert read_grades(tmp_path / "model", "answers") == {"a": 1.0, "b": 0.25}
    (tmp_path / "model").mkdir()
    sampled = "".join(f'{{"id": "{name}", "answers": []}}\n' for name in "abc")
    (tmp_path / "model" / "0-sample.jsonl").write_text(sampled)
    row = '{{"id": "{}", "answers": [{{"text": "x", "score": {}}}]}}\n'
    scored = row.format("a", 7.5) + row.format("b", 6.5)
    file = tmp_path / "model" / "1-reward.jsonl"
    file.write_text('{"id": "b", "failed": "HTTP 500"}\n{"commit": {}}\n' + scored)
    assert read_grades(tmp_path / "model", "score") == {"a": 7.5, "b": 6.5, "c": 6.5}  # c: the empty answer
    file.write_text(scored + '{"id": "b", "failed": "HTTP 500"}\n')
    with pytest.raises(UniDPOError, match=r"1 questions got no reply \(HTTP 500\); run again"):
        read_grades(tmp_path / "model", "score")
    (tmp_path / "none.jsonl").write_text('{"id": "c", "prediction": "x"}\n')
    with pytest.raises(UniDPOError, match="no question in it has a grade"):
        read_grades(tmp_path / "none", "answers")
