import pytest

from uni_dpo.engine.asking import PROMPTS, Template, load_template
from uni_dpo.errors import UniDPOError


def test_gaps_are_filled_once_and_other_braces_stay():
    template = Template("{question} {json: 1} {answer}")
    assert template.render(question="{answer}", answer="b") == "{answer} {json: 1} b"


def test_a_user_file_replaces_a_built_in_prompt(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("Claim? {claim}\n", encoding="utf-8")
    assert load_template(str(path), gaps=("claim",)).render(claim="c") == "Claim? c"


def test_a_prompt_that_windows_saved_is_read_or_named(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("é {claim}", encoding="utf-8-sig")
    assert load_template(str(path), gaps=()).text == "é {claim}"
    path.write_text("é {claim}", encoding="cp1252")
    with pytest.raises(UniDPOError, match=r"mine\.txt is not UTF-8 .*; save it as UTF-8"):
        load_template(str(path), gaps=())


def test_a_missing_gap_and_a_missing_file_are_named(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("no gap", encoding="utf-8")
    with pytest.raises(UniDPOError, match=r"\{claim\} has to stand"):
        load_template(str(path), gaps=("claim",))
    with pytest.raises(UniDPOError, match="built-in prompts: answer, ask, ask_rlaif_v, check"):
        load_template("nothing", gaps=())


@pytest.mark.parametrize(
    ("name", "gaps"),
    [
        ("answer", ("question",)),
        ("math", ("question",)),
        ("split", ("question", "answer")),
        ("ask", ("claim",)),
        ("split_rlaif_v", ("question", "answer")),
        ("ask_rlaif_v", ("claim",)),
        ("check", ("question",)),
        ("grade", ("question", "answer")),
        ("compare", ("question", "first", "second")),
    ],
)
def test_built_in_prompts_have_their_gaps(name, gaps):
    load_template(name, gaps=gaps)
    assert {path.stem for path in PROMPTS.glob("*.txt")} == {
        "answer", "math", "split", "ask", "check", "grade", "compare", "split_rlaif_v", "ask_rlaif_v",
    }  # fmt: skip
