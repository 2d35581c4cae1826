"""What a GRPO config may say: the settings of every online recipe, and TRL's own."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from uni_dpo.online.config import OnlineConfig
from uni_dpo.settings.options import override, parse, read_mapping
from uni_dpo.storage.identity import digest

MAY_CHANGE = {"max_steps", "num_train_epochs", "save_steps", "save_total_limit", "logging_steps"}
"""Settings of TRL's that a resumed run need not share with the run that it goes on from."""


@dataclass(frozen=True)
class GRPOSettings(OnlineConfig):
    """One GRPO run.

    Attributes:
        training: everything else, by the names of TRL's `GRPOConfig`.
    """

    training: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "GRPOSettings":
        """Read a YAML file; paths in it are relative to the working directory.

        Args:
            overrides: `key=value`, put in the place of what the file says.

        Raises:
            UniDPOError: no such file, or a setting of ours that is missing or of the wrong type.
        """
        raw = override(read_mapping(path, "expected `key: value` lines"), overrides)
        shared = {name.name for name in fields(OnlineConfig)}
        training = {name: value for name, value in raw.items() if name not in shared}
        return parse(cls, {name: raw[name] for name in raw if name in shared} | {"training": training}, "")

    def digest(self) -> str:
        """A name for the settings that a resumed run must share with the run that it goes on from."""
        settings = asdict(self)
        del settings["output_dir"], settings["gradient_checkpointing"]
        settings["training"] = {name: value for name, value in self.training.items() if name not in MAY_CHANGE}
        return digest(settings)
