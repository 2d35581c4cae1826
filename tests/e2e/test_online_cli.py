"""`uni-dpo ppo` and `uni-dpo grpo`: the settings of their command lines."""

import sys
from pathlib import Path

import pytest

from uni_dpo import cli


@pytest.mark.parametrize("command", ["ppo", "grpo"])
def test_settings_after_the_file_take_the_place_of_its_own(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: m\noutput_dir: out\nreward: {function: exact}\n")
    monkeypatch.setattr(sys, "argv", ["uni-dpo", command, str(config), "seed=3", "reward.function=null"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == f"error: {config}:3: reward: set one of `model` and `function`"
