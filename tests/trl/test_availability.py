"""TRL learns which optional packages are missing, whatever transformers answers it."""

import importlib

import pytest

from uni_dpo.trl import correct_availability


def test_a_pair_that_says_no_becomes_false_and_the_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    import_utils = importlib.import_module("trl.import_utils")
    if not hasattr(import_utils, "_mergekit_available"):
        pytest.skip("this TRL asks by itself")
    monkeypatch.setattr(import_utils, "_mergekit_available", (False, None))
    monkeypatch.setattr(import_utils, "_requests_available", (True, "2.0"))
    monkeypatch.setattr(import_utils, "_weave_available", False)
    correct_availability()
    assert import_utils.is_mergekit_available() is False
    assert import_utils.is_requests_available() is True
    assert import_utils.is_weave_available() is False


def test_the_trainer_can_be_imported() -> None:
    from uni_dpo.trl import UniDPOTrainer

    assert "DPOTrainer" in [parent.__name__ for parent in UniDPOTrainer.__mro__]
