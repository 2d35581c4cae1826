import configs
import pytest
from fuzzing import fuzz


def test_broken_configurations_and_odd_options_end_in_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "parsers", False)
    outcomes = fuzz(configs.broken_config, range(250))
    assert not outcomes.failures, "\n\n".join(outcomes.failures[:5])
    assert outcomes.counts["engine: right"] > 3
    assert outcomes.counts["engine: refused"] > 20
