import json
from pathlib import Path

import pytest

from uni_dpo.data.questions import InputOptions, read_questions
from uni_dpo.engine import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.graders import grading
from uni_dpo.graders.grading import check_references, exact, load_grader, without_reasoning
from uni_dpo.graders.multiple_choice import pick_option


def asked(reference, **options):
    return Question("q", "?", reference=reference, options=options)


@pytest.mark.parametrize("grade", ["1", 2, float("nan")])
def test_a_grader_of_ones_own_that_gives_no_grade_is_named(grade, monkeypatch):
    monkeypatch.setattr(grading, "find", lambda kind, name: lambda answer, question: grade)
    with pytest.raises(UniDPOError, match=r"grader mine:f: a grade lies in \[0, 1\], but 'a' got"):
        load_grader("mine:f")("a", asked("a"))


@pytest.mark.parametrize(
    ("answer", "grade"), [("A cat.", 1.0), (" a  CAT ", 1.0), ("“A cat”", 1.0), ("a cats", 0.0), ("", 0.0)]
)
def test_exact_ignores_case_outer_punctuation_and_white_space(answer, grade):
    assert exact(answer, asked("a cat")) == grade


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B. a dog", "B"),
        ("a dog", "B"),
        ("The answer is C", "C"),
        ("I see a dog there", "B"),
        ("a cat and a dog", None),
        ("A dog", "B"),
        ("A cat is there", "A"),
        ("neither", None),
        ("", None),
    ],
)
def test_picked_options(text, letter):
    assert pick_option(text, {"A": "a cat", "B": "a dog", "C": "a cow"}) == letter


def test_grading_without_reference_is_refused():
    with pytest.raises(UniDPOError, match="question q: grading needs a reference"):
        exact("x", asked(None))


@pytest.mark.parametrize("name", ["exact", "math"])
def test_a_question_without_reference_is_named_before_any_is_asked(name: str) -> None:
    with pytest.raises(UniDPOError, match=r"^question two: .*column `answer`, .* or `solution`$"):
        check_references(name, [Question("one", "1 + 1?", reference="2"), Question("two", "2 + 2?")])


def test_all_rows_that_cannot_be_graded_are_named_by_file_and_row(tmp_path: Path) -> None:
    """Rows 1 to 7 lack their `solution`, row 8 has no number in it."""
    path = tmp_path / "sums.jsonl"
    solutions = ["#### 2", *[None] * 7, "some"]
    rows = [{"id": row, "problem": "?", "solution": solution} for row, solution in enumerate(solutions)]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UniDPOError) as caught:
        check_references("numeric", read_questions(InputOptions(str(path)), tmp_path))
    head, *faults, rest = str(caught.value).splitlines()
    assert head == "8 questions cannot be graded:"
    assert [fault.partition(":")[0] for fault in faults] == [
        f"  {path}, row {row} (line {row + 1})" for row in range(1, 6)
    ]
    assert all("`solution`" in fault for fault in faults)
    assert rest == "  … and 3 more"
    with pytest.raises(UniDPOError, match="the reference 'some' holds no number"):
        check_references("numeric", read_questions(InputOptions(str(path)), tmp_path)[8:])


def test_a_grader_of_the_users_own_need_not_have_references() -> None:
    check_references("math:isfinite", [Question("one", "1 + 1?")])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("<think>It may be A.</think>B", " B"),
        ("It may be A.\n</think>\n\nB", "\n\nB"),
        ("<thinking>A?</thinking> B <think>or A", "  B "),
        ("<think>It is B, but wait", None),
        ("<think>It is B</think>", None),
        ("B", "B"),
        ("", ""),
        ("<thought>A</thought>B", " B"),
        ("<REASONING>A</REASONING><CONCLUSION>B</CONCLUSION>", " <CONCLUSION>B</CONCLUSION>"),
        ("<seed:think>A</seed:think>B", " B"),
        ("[THINK]A[/THINK]B", " B"),
        ("◁think▷A◁/think▷B", " B"),
        ("◁think▷A", None),
        ("<|channel>thought\nA<channel|>B", " B"),
        ("<|START_THINKING|>A<|END_THINKING|><|START_RESPONSE|>B<|END_RESPONSE|>", "B"),
        ("<|begin_of_thought|>A<|end_of_thought|><|begin_of_solution|>B<|end_of_solution|>", "B"),
        ("<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>", " B"),
        ("<|channel|>analysis<|message|>A", None),
        ("analysisIt may be A.assistantfinalB", "B"),
        ("[IMG] The mark <|x|>", "[IMG] The mark <|x|>"),
    ],
)
def test_reasoning_is_no_answer(answer, said):
    assert without_reasoning(answer) == said


@pytest.mark.parametrize(
    ("name", "wrong", "right", "question"),
    [
        ("exact", "dog", "cat", asked("cat")),
        ("numeric", "5", "7", asked("7")),
        ("math", "5", "7", asked("7")),
        ("multiple_choice", "A", "B", asked("B", A="cat", B="dog")),
    ],
)
def test_every_grader_reads_what_is_said_after_the_reasoning(name, wrong, right, question):
    grade = load_grader(name)
    assert grade(f"<think>{wrong}</think>{right}", question) == 1
    assert grade(f"It is {wrong}.</think>\n{right}", question) == 1
    assert grade(f"<think>{right}</think>{wrong}", question) == 0
    assert grade(f"<think>It is {right}", question) is None
