"""What docs/engine.md and docs/math_and_text.md show works as it stands there."""

import json
import re
from pathlib import Path

import pytest
import yaml

from uni_dpo.engine import EngineConfig, run_engine
from uni_dpo.engine.asking import Check, Template
from uni_dpo.engine.records import Aside
from uni_dpo.models.backends import Failure, Sample
from uni_dpo.settings.registry import find, load_plugins

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "engine.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path, monkeypatch, tiny_qwen2_vl, questions_file):
    """The page's files in a folder of their own, with a checkpoint and questions beside them."""
    for name, text in re.findall(r"<!-- test: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "checkpoint").symlink_to(tiny_qwen2_vl)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_pipeline_and_the_sampler_of_the_page_run(example):
    # A random model hardly ever says the same twice: give one answer a majority.
    path = example / "questions.jsonl"
    rows = [{**json.loads(line), "answers": ["a", "b", "a"]} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    spec = yaml.safe_load((example / "own.yaml").read_text())
    result = run_engine(spec, "sampled", run_stage=0)
    assert result.report["sample"]["answers"] > 40
    spec["sample"] = {"sampler": "given"}
    pairs = json.loads(run_engine(spec, "given").pairs.read_text())
    assert {(p["chosen"], p["rejected"], round(p["score_chosen"], 2)) for p in pairs} == {("a", "b", 6.67)}


class Model:
    def generate(self, requests, sampling):
        assert [r.prompt for r in requests] == ["A?", "B?", "C?", "D?"]
        return [[Sample(text, 1, True)] for text in ("Yes.", "no", "perhaps")] + [Failure("gone")]


def test_the_checker_of_the_page_checks(example):
    load_plugins(("own.py",))
    checker = find("checker", "in_words")({"checker": Model()}, Template("{question}"), 0)
    results = checker.check([Check(f"{letter}?") for letter in "ABCD"])
    assert results == [1.0, 0.0, Aside("neither yes nor no", "perhaps"), Failure("gone")]


def test_the_config_of_the_page_is_one():
    (text,) = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "plugins: []" in block]
    EngineConfig(yaml.safe_load(text))


def test_the_configs_of_the_text_page_are_some():
    page = (ROOT / "docs" / "math_and_text.md").read_text(encoding="utf-8")
    configs = [EngineConfig(yaml.safe_load(block)) for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)]
    assert [config.settings.pipeline for config in configs] == ["reward_model", "process_reward"]


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "engine").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_config_is_valid(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    EngineConfig.load(path)
