"""What training did to every pair: one row each time that a pair is trained on or evaluated, and what the rows say."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class LedgerArguments:
    """The settings under the names that a trainer's arguments give them."""

    uni_dpo_ledger: bool = field(
        default=True,
        metadata={
            "help": "Record what training and evaluation do to every pair, whatever the preference loss, in "
            "OUTPUT/uni_dpo/pairs.parquet (docs/report.md)."
        },
    )
    uni_dpo_verdict_steps: int = field(
        default=100,
        metadata={"help": "Say every so many steps what the numbers of the run mean and what to set (0: never)."},
    )
    stop_on: Literal["nothing", "collapse"] = field(
        default="nothing",
        metadata={
            "help": "collapse ends a run whose chosen answers lost more than 0.3 nats per token, before the next "
            "checkpoint is written, so that the last good one stays."
        },
    )
