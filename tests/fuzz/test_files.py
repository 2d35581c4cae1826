from files import PAIRS, broken_file
from fuzzing import fuzz


def test_broken_files_end_in_one_line_or_come_out_right() -> None:
    """As many inputs as it takes for every pair of formats of `convert`, and as many for the other commands."""
    outcomes = fuzz(broken_file, range(2 * len(PAIRS)))
    assert not outcomes.failures, "\n\n".join(outcomes.failures[:5])
    assert outcomes.counts["convert: right"] > 10
