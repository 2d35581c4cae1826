"""What the messages of all parts share."""

from uni_dpo.errors import did_you_mean


def test_a_near_name_is_offered() -> None:
    assert did_you_mean("lora_rnk", ["lora_rank", "seed"]) == "; did you mean 'lora_rank'?"
    assert did_you_mean("colour", ["lora_rank", "seed"]) == ""
