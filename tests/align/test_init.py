"""A first configuration for what lies in a folder, and what of it will not work."""

import json
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from uni_dpo.align import doctor
from uni_dpo.align.config import AlignConfig
from uni_dpo.align.doctor import examine
from uni_dpo.align.init import write_config
from uni_dpo.align.stages import AlignStages
from uni_dpo.cli import main
from uni_dpo.data.questions import InputOptions, questions_in_order
from uni_dpo.errors import UniDPOError
from uni_dpo.settings.training import check_early


@pytest.fixture
def place(tmp_path: Path, digits: dict, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images with questions beside them, named relative to it."""
    folder = tmp_path / "mine"
    (folder / "images").mkdir(parents=True)
    rows = []
    for digit in digits["preference"][:20]:
        name = f"images/{digit.image.name}"
        (folder / name).write_bytes(digit.image.read_bytes())
        rows.append({"id": digit.image.stem, "image": name, "question": "Which digit?", "answer": digit.answer})
    write_rows(folder / "questions.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return Path("mine")


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_questions_with_answers_are_graded(place, tiny_qwen2_vl, language):
    path, follow = write_config(place, language=language, model=str(tiny_qwen2_vl))
    assert follow == [f"uni-dpo doctor {path}", f"uni-dpo align {path} --plan", f"uni-dpo align {path}"]
    config = AlignConfig.load(path)
    assert config.settings.engine["pipeline"] == "verifiable"
    assert config.settings.evaluate.by == "answers"
    assert config.image_root == str(place.absolute())
    assert config.settings.train["image_max_pixels"] == 56 * 56  # as the tiny model's own processor sees images
    text = path.read_text(encoding="utf-8")
    assert ("20 questions, 20 with images, 20 with a right answer" in text) is (language == "en")
    assert ("20 个问题" in text) is (language == "zh")
    assert "$" not in text
    with pytest.raises(UniDPOError, match="is there already"):
        write_config(place)


def test_both_languages_say_the_same_settings(place, tiny_qwen2_vl):
    read = []
    for language in ("en", "zh"):
        path, _ = write_config(place, language=language, model=str(tiny_qwen2_vl))
        read.append(yaml.safe_load(path.read_text(encoding="utf-8")))
        path.unlink()
    assert read[0] == read[1]


@pytest.mark.parametrize("moved", [False, True])
def test_the_parts_of_the_questions_find_their_images(place, tiny_qwen2_vl, tmp_path, monkeypatch, moved):
    path, _ = write_config(place, model=str(tiny_qwen2_vl))
    work = tmp_path / "elsewhere" / "work"
    config = AlignConfig.load(path, [f"work_dir={work}"] if moved else [])
    (command,) = next(iter(AlignStages(config))).commands()
    monkeypatch.setattr(sys, "argv", ["uni-dpo", *command.words])
    with suppress(SystemExit):
        main()
    if moved:
        work.rename(tmp_path / "work")
    for part in ((tmp_path / "work" if moved else config.work) / "questions").iterdir():
        asked = list(questions_in_order(InputOptions(str(part), image_root=config.image_root), tmp_path / "images"))
        assert asked
        assert all(Path(question.images[0]).parent == (place / "images").resolve() for question, _ in asked)


def test_without_answers_a_judge_scores(place, tiny_qwen2_vl):
    rows = [{key: row[key] for key in ("id", "image", "question")} for row in read_rows(place / "questions.jsonl")]
    write_rows(place / "questions.jsonl", rows)
    path, _ = write_config(place, model=str(tiny_qwen2_vl), judge="http://localhost:9/v1", judge_model="big")
    config = AlignConfig.load(path)
    assert config.settings.engine["models"]["judge"]["base_url"] == "http://localhost:9/v1"
    assert config.settings.engine["models"]["judge"]["model"] == "big"
    assert config.settings.evaluate.by == "score"


@pytest.mark.parametrize(
    ("answer", "more", "grader"),
    [("A", {"choices": {"A": "one", "B": "two"}}, "multiple_choice"), ("7", {}, "numeric"), ("seven", {}, "exact")],
)
def test_the_grader_fits_the_answers(place, answer, more, grader):
    rows = [{**row, "answer": answer, **more} for row in read_rows(place / "questions.jsonl")]
    write_rows(place / "questions.jsonl", rows)
    assert AlignConfig.load(write_config(place)[0]).settings.evaluate.grader == grader


@pytest.mark.parametrize("name", ["mine", "-my $HOME #1: 数据"])
def test_pairs_get_a_training(place, tiny_qwen2_vl, name):
    (place / "questions.jsonl").unlink()
    pair = {"instruction": "?", "chosen": "a", "rejected": "b", "score_chosen": 2.0, "score_rejected": 1.0}
    write_rows(place / "pairs.jsonl", [pair])
    place = place.rename(name)
    path, follow = write_config(place, model=str(tiny_qwen2_vl))
    assert path.name == "train.yaml"
    words = [shlex.split(line) for line in follow]
    assert [line[1] for line in words] == ["data", "data", "train"]
    assert Path(words[2][2]) == path
    assert Path(words[1][-1]) == place
    settings = yaml.safe_load(path.read_text())
    assert Path(settings["dataset_dir"]) == place
    assert Path(settings["output_dir"]) == place / "outputs"
    assert settings["image_max_pixels"] == 56 * 56
    check_early({k: v for k, v in settings.items() if k not in ("dataset", "dataset_dir")})


def test_a_file_that_is_called_after_a_test_is_not_learnt_from(place):
    rows = read_rows(place / "questions.jsonl")
    (place / "questions.jsonl").unlink()
    write_rows(place / "test-00.jsonl", rows[:5])
    write_rows(place / "validation.jsonl", rows[5:8])
    path, _ = write_config(place)
    assert AlignConfig.load(path).questions.path == str(place / "test-00.jsonl")  # there is no other
    path.unlink()
    write_rows(place / "train.jsonl", rows[8:])
    assert AlignConfig.load(write_config(place)[0]).questions.path == str(place / "train.jsonl")


def test_a_folder_with_nothing_to_use_says_what_was_looked_at(tmp_path):
    with pytest.raises(UniDPOError, match="there is no such folder"):
        write_config(tmp_path / "gone")
    write_rows(tmp_path / "prices.jsonl", [{"price": 3}])
    with pytest.raises(UniDPOError, match=r"no file of questions .*\n.*prices.jsonl"):
        write_config(tmp_path)
    (tmp_path / "questions.jsonl").write_text('{"question": "Which?", "answer": "7"}\n{cut', encoding="utf-8")
    with pytest.raises(UniDPOError, match=r"questions\.jsonl, row 1 \(line 2\).*is not JSON"):
        write_config(tmp_path)


def faults(path, *given):
    return {finding.what: finding.found for finding in examine(path, given) if finding.verdict == "fault"}


def test_a_sound_configuration_has_no_faults(place, tiny_qwen2_vl):
    assert faults(None) == {}
    assert faults(write_config(place, model=str(tiny_qwen2_vl))[0]) == {}


def test_questions_about_too_few_images_cannot_be_divided(place, tiny_qwen2_vl):
    rows = read_rows(place / "questions.jsonl")
    write_rows(place / "questions.jsonl", [{**row, "image": rows[n % 2]["image"]} for n, row in enumerate(rows)])
    found = faults(write_config(place, model=str(tiny_qwen2_vl))[0])
    assert "into 3 files of which no two share an image" in found["split"]
    assert "2 groups" in found["split"]


def test_every_fault_is_found_at_once(place, tiny_qwen2_vl, tmp_path, monkeypatch):
    path, _ = write_config(place, model=str(tiny_qwen2_vl), judge="http://127.0.0.1:9/v1")
    next((place / "images").iterdir()).unlink()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "qwen2_vl"}')
    monkeypatch.setattr(doctor, "_weights", lambda config: 10**15)
    found = faults(path, "model=broken", "launcher=no-such-launcher {command}")
    assert "weights are missing" in found["model"]
    assert "questions.jsonl, " in found["questions"]
    assert "no OpenAI-compatible server answers" in found["server"]
    assert "no-such-launcher is not on this machine's PATH" in found["launcher"]
    assert {"disk", "memory"} <= found.keys()
    assert "trian: unknown setting; did you mean 'train'?" in faults(path, "trian=1")["configuration"]
