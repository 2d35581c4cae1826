"""A conversation in the terminal: the model sees what was said and shown, and answers as it does elsewhere."""

import io
import sys

import pytest
from PIL import Image

from uni_dpo.cli import main
from uni_dpo.inference.chat import Chat
from uni_dpo.models.backends.base import Request, Sampling
from uni_dpo.models.backends.settings import TransformersOptions


@pytest.fixture
def images(tmp_path):
    paths = [tmp_path / "red.png", tmp_path / "blue.png"]
    for path, colour in zip(paths, ("red", "blue"), strict=True):
        Image.new("RGB", (56, 56), colour).save(path)
    return paths


def test_the_first_answer_is_that_of_predict_and_later_ones_see_what_was_said(tiny_qwen2_vl, images):
    talk = Chat(TransformersOptions(str(tiny_qwen2_vl)), Sampling(temperature=0, max_tokens=8), system=None, seed=0)
    pieces = list(talk.say("Which digit?", images[:1]))
    (expected,) = talk.backend.generate([Request("Which digit?", (str(images[0]),))], talk.sampling)
    assert "".join(pieces).strip() == expected[0].text
    assert talk.cut is not expected[0].finished
    encoded = talk._encode(
        [*talk.turns, [{"type": "image", "image": str(images[1])}, {"type": "text", "text": "And?"}]]
    )
    prompt = talk.backend.tokenizer.decode(encoded["input_ids"][0])
    assert prompt.index("Which digit?") < prompt.index("And?")
    assert prompt.count("<|im_start|>assistant") == 2
    assert len(encoded["image_grid_thw"]) == 2
    talk.begin_anew()
    assert talk.turns == []


def test_a_text_model_talks_and_sees_nothing(original, images, monkeypatch, capsys):
    code, shown = chat(monkeypatch, capsys, "Hello.\n\nAnd then?\n", str(original), "--max-tokens", "5")
    assert code == 0
    assert len(shown.out.splitlines()) >= 2
    assert "cut at 5 tokens" in shown.err
    code, shown = chat(monkeypatch, capsys, "Hello.\n", str(original), str(images[0]))
    assert (code, shown.out) == (0, "")
    assert "cannot see images" in shown.err


def test_a_base_model_is_given_the_turns_in_a_row(base_checkpoint, images):
    talk = Chat(TransformersOptions(str(base_checkpoint)), Sampling(temperature=0, max_tokens=4), system=None, seed=0)
    list(talk.say("Which digit?", images[:1]))
    encoded = talk._encode([*talk.turns, [{"type": "text", "text": "And now?"}]])
    prompt = talk.backend.tokenizer.decode(encoded["input_ids"][0])
    assert prompt.endswith("\nAnd now?")
    assert "Which digit?" in prompt


def test_commands_and_faults_of_a_line_leave_the_conversation(tiny_qwen2_vl, images, monkeypatch, capsys):
    names = f"/image ~nosuch/a.png\n/image {'x' * 300}\n\udcff?\n/image gone.png\n"
    lines = f"{names}/image {images[0]}\nWhich digit?\n/new\n/image {images[1]}\nAnd?\n/what\n/exit\nlost\n"
    code, shown = chat(monkeypatch, capsys, lines, str(tiny_qwen2_vl), "--max-tokens", "4")
    assert code == 0
    for name in ("gone.png", "~nosuch/a.png", "xxx"):
        assert f"there is no image file {name}" in shown.err
    assert "/what is unknown" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone"),
        (["{model}", "gone.png"], "there is no image file gone.png"),
        (["{model}", "--dtype", "x"], "dtype"),
    ],
)
def test_what_is_not_there_is_one_line_before_anything_is_loaded(
    tiny_qwen2_vl, monkeypatch, capsys, arguments, message
):
    code, _ = chat(monkeypatch, capsys, "", *(word.format(model=tiny_qwen2_vl) for word in arguments))
    assert message in str(code)
    assert "\n" not in str(code)


def chat(monkeypatch, capsys, said, *arguments):
    """Exit status (or message) of `uni-dpo chat`, and what it printed."""
    monkeypatch.setattr(sys, "argv", ["uni-dpo", "chat", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(said.encode(errors="surrogateescape"))))
    try:
        main()
    except SystemExit as end:
        return end.code or 0, capsys.readouterr()
    return 0, capsys.readouterr()
