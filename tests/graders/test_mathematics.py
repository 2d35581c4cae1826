"""Final results found, and compared as mathematics; what cannot be computed stops nothing."""

import signal
import subprocess
import sys
import threading

import pytest

from uni_dpo.engine import Question
from uni_dpo.graders import mathematics
from uni_dpo.graders.mathematics import final_result, grade


def graded(reference: str, answer: str) -> float | None:
    return grade(answer, Question("q", "?", reference=reference))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{12}.", "12"),
        (r"first \boxed{1}, no: \boxed{\frac{1}{\sqrt{2}}} it is", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{1, 2\right\}} and", r"\left\{1, 2\right\}"),
        (r"\boxed{7} cut off: \boxed{8", "7"),
        (r"\fbox { $x$ }", "x"),
        ("2 + 2 = 4\n#### 4", "4"),
        ("#### $1,200 \nmore", "1,200"),
        ("It is 5.", None),
    ],
)
def test_the_final_result_is_found(text: str, found: str | None) -> None:
    assert final_result(text) == found


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("7", "<answer>7</answer>"),
        ("0", "+0"),
        ("-7", "−7"),
        ("25%", r"25\%"),
        ("1/2", r"\boxed{0.5}"),
        (r"\frac{1}{2}", r"\boxed{\dfrac12}"),
        ("1234567", r"\boxed{1,234,567}"),
        ("1,234", r"\boxed{1{,}234}"),
        ("3000", r"\boxed{3.0e3}"),
        (r"2\sqrt{2}", r"\boxed{\sqrt{8}}"),
        ("12", r"\boxed{12\text{ cm}}"),
        ("90", r"\boxed{90^\circ}"),
        ("18", r"\boxed{\$18}"),
        ("50%", r"\boxed{50}"),
        ("0.5", r"\boxed{50\%}"),
        (r"50\%", r"\boxed{\frac{1}{2}}"),
        ("(1, 2)", r"\boxed{\left(1,\frac{4}{2}\right)}"),
        ("[0,1)", r"\boxed{[0, 1)}"),
        (r"\{1,2\}", r"\boxed{\{2, 1\}}"),
        ("(x+1)^2", r"\boxed{x^2+2x+1}"),
        ("5", r"\boxed{x = 5}"),
        (r"\text{(B)}", r"\boxed{B}"),
        ("11:00", r"\boxed{11:00}"),
        ("They have 3 + 4 = 7 apples.\n#### 7", "In total that makes 7 apples."),
        (r"Thus \boxed{\frac{3}{4}}.", r"So the answer is $\frac{3}{4}$."),
        ("1250", "That makes $1,250."),
        ("1/2", r"\boxed{½}"),
        ("2.5", "The result is 2½."),
        (r"\sqrt{2}", r"\boxed{√2}"),
        (r"2\sqrt{3}", "So it is 2√3."),
        ("100", "It is 10²"),
        ("x²", r"\boxed{x^{2}}"),
        ("300000000", "The speed is 3 × 10⁸ m/s"),
        ("90", r"\boxed{90°}"),
        ("90", r"\boxed{90\degree}"),
        ("5", r"\boxed{5 cm^2}"),
        ("5 km/h", r"\boxed{5}"),
        ("12", r"\boxed{12 个}"),
        ("50000", r"\boxed{5万}"),
        ("12", "3 × 4 = 12 m²"),
        ("12", "所以面积为12平方厘米"),
        ("-5", "答案是-5。"),
        ("50000", "共5万元"),
        ("3", "这段路长3千米。"),
        ("3", r"\boxed{3 千克}"),
        ("3000", "共3千人"),
        ("2000000000000", "共2万亿元"),
        ("30000000", r"\boxed{3千万}"),
    ],
)
def test_equal_results(reference: str, answer: str) -> None:
    assert graded(reference, answer) == 1.0


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("3", r"\boxed{4}"),
        ("1/3", r"\boxed{0.33}"),
        ("50%", r"\boxed{5000\%}"),
        ("50%", r"\boxed{0.05}"),
        ("(1,2)", r"\boxed{(2,1)}"),
        ("[0,1)", r"\boxed{[0,1]}"),
        ("(x+1)^2", r"\boxed{x^2+1}"),
        ("A", r"\boxed{B}"),
        ("3", "First 3, then 4."),
        ("2", "The result is 2½."),
        ("10", "It is 10²"),
        ("3", "So 3×10⁸ m/s"),
        ("2", r"\boxed{√2}"),
        ("5", r"\boxed{5x}"),
        ("5", r"\boxed{5万}"),
        ("5", "共5万元"),
    ],
)
def test_unequal_results(reference: str, answer: str) -> None:
    assert graded(reference, answer) == 0.0


def test_an_answer_without_a_result_has_no_grade() -> None:
    assert graded("3", "I do not know.") is None


def test_what_takes_for_ever_or_all_memory_has_no_grade_and_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics, "SECONDS", 2)
    comparer = mathematics._Comparer()
    monkeypatch.setattr(mathematics, "_comparer", comparer)
    mathematics._compare.cache_clear()
    assert graded("7", r"\boxed{\sum_{k=1}^{10^{9}} \gcd(k, 9^{9^{7}})}") in (None, 0.0)
    assert graded("7", r"\boxed{9^{9^{9^{9}}} - 9^{9^{9^{9}} + 1}}") in (None, 0.0)
    assert graded("7", r"\boxed{" + "(" * 3000 + "7" + ")" * 3000 + "}") in (None, 0.0, 1.0)
    assert comparer.compare("7", "10!!", False) in (None, False)
    assert graded("7", r"\boxed{\frac{14}{2}}") == 1.0
    comparer.close()


def test_a_process_that_an_expression_ended_is_replaced() -> None:
    comparer = mathematics._Comparer()
    assert comparer.compare("1", "2", False) is False
    assert comparer.process is not None
    first = comparer.process
    first.send_signal(signal.SIGALRM)
    assert first.wait() == -signal.SIGALRM
    assert comparer.compare("2", r"\frac{4}{2}", False) is True
    assert comparer.process is not first
    comparer.close()


def test_it_grades_in_any_thread() -> None:
    """math-verify's own time limits work in the main thread only."""
    found: list[float | None] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(graded(str(n), rf"\boxed{{\frac{{{2 * n}}}{{2}}}}")))
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [1.0] * 6


def test_without_math_verify_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['math_verify'] = None\n"
        "from uni_dpo.errors import UniDPOError\n"
        "from uni_dpo.engine import EngineConfig\n"
        "spec = {'pipeline': 'verifiable', 'models': {'sampler': {'model': 'm'}}, 'reward': {'grader': 'math'}}\n"
        "try: EngineConfig(spec)\n"
        "except UniDPOError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "the extra `math` of uni-dpo brings: pip install math-verify" in done.stdout
