"""A reward model, untrained: what it says is arbitrary, and it is the same number each time."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only sequence classifier with one label."""
    from uni_dpo.demo.tiny_text_models import write_tiny_text_model

    return write_tiny_text_model(tmp_path_factory.mktemp("models") / "classifier", "reward_model", spread=0.5)
