"""What the messages of all parts share."""

from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError, did_you_mean, naming_the_model


def test_a_near_name_is_offered() -> None:
    assert did_you_mean("lora_rnk", ["lora_rank", "seed"]) == "; did you mean 'lora_rank'?"
    assert did_you_mean("colour", ["lora_rank", "seed"]) == ""


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (OSError("no weights\nsee …"), "no weights"),
        (KeyError("qwen9"), "'qwen9'"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_named_in_one_line(raised: Exception, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UniDPOError) as caught, naming_the_model(str(tmp_path)):
        raise raised
    assert str(caught.value) == f"model {str(tmp_path)!r} cannot be loaded: {reason}"
    with (
        pytest.raises(UniDPOError, match="'gone' cannot be loaded; there is no such folder here: "),
        naming_the_model("gone"),
    ):
        raise raised


def test_what_has_a_message_of_its_own_keeps_it() -> None:
    with pytest.raises(UniDPOError, match=r"^it has no chat template$"), naming_the_model("gone"):
        raise UniDPOError("it has no chat template")
