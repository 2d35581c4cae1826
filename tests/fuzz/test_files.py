from files import PAIRS, fuzz


def test_broken_files_end_in_one_line_or_come_out_right() -> None:
    """As many inputs as it takes for every pair of formats of `convert`, and as many for the other commands."""
    outcomes = fuzz(range(2 * len(PAIRS)))
    assert not outcomes.failures, "\n\n".join(outcomes.failures[:5])
    assert outcomes.counts["convert: right"] > 10
