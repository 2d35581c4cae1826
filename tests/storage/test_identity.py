"""What files and settings are known by."""

from uni_dpo.storage.identity import digest


def test_a_lone_surrogate_has_a_digest() -> None:
    assert digest("a \ud83d") != digest("a ?")
