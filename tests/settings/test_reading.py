"""Files of settings: what is read, and the place of what is not."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.settings.options import Count, Positive, load
from uni_dpo.settings.reading import FaultCollector, SettingsError, override, read_mapping


@dataclass(frozen=True)
class Sampler:
    temperature: Positive = 1.0


@dataclass(frozen=True)
class Command:
    name: str
    steps: Count = 1
    sampler: Sampler = field(default_factory=Sampler)


def write(folder: Path, text: str, name: str = "c.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_and_json_say_the_same(tmp_path: Path) -> None:
    yaml = write(tmp_path, "name: x\nsteps: 2\nsampler:\n  temperature: 5e-1\n")
    json = write(tmp_path, '{"name": "x", "steps": 2,\n\t"sampler": {"temperature": 5e-1}}', "c.json")
    assert load(Command, yaml) == load(Command, json) == Command("x", 2, Sampler(0.5))


def test_numbers_are_those_of_json_and_dates_are_texts(tmp_path: Path) -> None:
    path = write(tmp_path, "a: 1e-3\nb: 1.0e-3\nc: 2024-01-31\nd: 1e5\ne: '1e-3'\nf: -3E+2\ng: 3e-5_run\n")
    given = {"a": 1e-3, "b": 1e-3, "c": "2024-01-31", "d": 1e5, "e": "1e-3", "f": -300.0, "g": "3e-5_run"}
    assert read_mapping(path) == given
    assert override({}, ["g=3e-5_run", "h=2024-13-45", "a=1e-3"]) == {"g": "3e-5_run", "h": "2024-13-45", "a": 1e-3}


def test_nested_settings_of_the_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\n")
    assert load(Command, path, ["sampler.temperature=0.7", "steps=3"]) == Command("x", 3, Sampler(0.7))
    with pytest.raises(UniDPOError, match=r"^command line: sampler.temprature: unknown setting; did you mean"):
        load(Command, path, ["sampler.temprature=0.7"])


def test_every_fault_has_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "nme: x\n\nsteps: 0\nsampler:\n  temperature: .nan\n")
    with pytest.raises(UniDPOError) as refused:
        load(Command, path)
    assert str(refused.value).splitlines() == [
        f"{path}:1: nme: unknown setting; did you mean 'name'?",
        f"{path}:3: steps: 0 is out of range; it can be 1 or more",
        f"{path}:5: sampler.temperature: nan is not a finite number",
        f"{path}: name: this setting is required",
    ]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("name: x\nsteps: 1\nname: y\n", "c.yaml", "c.yaml:3: name: is given twice; keep one"),
        ("sampler:\n  a: 1\n  a: 2\nname: x\nname: y\n", "c.yaml", "c.yaml:3: sampler.a: is given twice"),
        ('{"name": "x",\n "name": "y"}', "c.json", "c.json:2: name: is given twice; keep one"),
        ('{"name": "x",\n\t"name": "y"}', "c.json", "c.json: name: is given twice; keep one"),
        ("name: x\nsteps: [1\n", "c.yaml", "c.yaml:3: not valid YAML: expected"),
        ("name: x\n\tsteps: 1\n", "c.yaml", "c.yaml:2: not valid YAML: found character"),
        ('{"name": "x",}', "c.json", "c.json:1: not valid JSON"),
        ("a: &b\n  c: *b\n", "c.yaml", "not valid YAML: a value that contains itself"),
        ("- name\n", "c.yaml", "expected `key: value` lines; found a list"),
        ("", "c.yaml", "expected `key: value` lines; found nothing"),
        ("!!python/object/apply:os.getcwd []\n", "c.yaml", "not valid YAML: could not determine a constructor"),
    ],
)
def test_what_is_no_file_of_settings_is_one_line_per_fault(tmp_path: Path, text: str, name: str, message: str) -> None:
    with pytest.raises(UniDPOError) as refused:
        read_mapping(write(tmp_path, text, name))
    assert message in str(refused.value).splitlines()[0]
    assert "Traceback" not in str(refused.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UniDPOError, match=r"gone.yaml: there is no such configuration file"):
        read_mapping(tmp_path / "gone.yaml")
    with pytest.raises(UniDPOError, match=r"cannot be read: Is a directory"):
        read_mapping(tmp_path)
    (tmp_path / "c.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(UniDPOError, match=r"c.yaml: is not UTF-8 text \(byte 6\)"):
        read_mapping(tmp_path / "c.yaml")


def test_many_references_to_one_anchor_end_soon(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    assert len(read_mapping(write(tmp_path, "\n".join(lines)))) == 30


def test_an_override_reaches_names_with_dots() -> None:
    given = {"model": {"Qwen2.5-VL": {"seed": 0}, "Qwen2": {}}}
    assert override(given, ["model.Qwen2.5-VL.seed=1"])["model"]["Qwen2.5-VL"] == {"seed": 1}
    assert override(given, ["model.Qwen2.seed=2"])["model"]["Qwen2"] == {"seed": 2}


def test_faults_of_several_parts_are_collected() -> None:
    faults = FaultCollector()
    with faults.collecting("first"):
        raise UniDPOError("is missing")
    with faults.collecting():
        raise SettingsError([("second.third", "is wrong")])
    with pytest.raises(SettingsError, match=r"^first: is missing\nsecond.third: is wrong$"):
        faults.raise_any()
