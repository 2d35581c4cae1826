"""What is done in a work dir, and what of it the configuration has made stale."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.align.stages import AlignStage
from uni_dpo.errors import UniDPOError
from uni_dpo.storage import read_json
from uni_dpo.storage.identity import difference, digest
from uni_dpo.storage.writing import write_text


@dataclass(frozen=True)
class Standing:
    """How a stage stands.

    Attributes:
        word: `done`, `stale`, `begun` or `to do`.
        why: of a stale one, what changed.
    """

    word: str
    why: str = ""


class AlignState:
    """`state.json` of a work dir: stage → fingerprint, the settings behind it, whether it is done, seconds taken."""

    def __init__(self, work: Path) -> None:
        self.path = work / "state.json"
        content = read_json(self.path)
        self.stages: dict[str, dict[str, Any]] = content.get("stages", {})
        self.restart: str | None = content.get("restart")
        """The stage from which on outputs are being put aside, where a kill broke into that."""
        if not isinstance(self.stages, dict):
            raise UniDPOError(f"{self.path} is damaged; take another work_dir")
        self.fingerprints: dict[str, str] = {}

    def write(self) -> None:
        """Replace the file as a whole."""
        content = {"stages": self.stages, **({"restart": self.restart} if self.restart else {})}
        write_text(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def begin(self, stage: AlignStage) -> None:
        """Note what a stage's outputs are made by from now on."""
        self.stages[stage.name] = {
            "fingerprint": self.fingerprint(stage),
            "settings": _json(stage.settings),
            "after": list(stage.after),
            "done": False,
            "seconds": self.stages.get(stage.name, {}).get("seconds", 0.0),
        }
        self.write()

    def end(self, stage: AlignStage, seconds: float) -> None:
        """Note that a stage is done."""
        entry = self.stages[stage.name]
        entry["done"] = True
        entry["seconds"] = round(entry["seconds"] + seconds, 1)
        self.write()

    def fingerprint(self, stage: AlignStage) -> str:
        """Return the digest of a stage's settings and of the fingerprints of the stages before it, asked for before."""
        before = [self.fingerprints[name] for name in stage.after]
        self.fingerprints[stage.name] = digest([stage.name, _json(stage.settings), before])
        return self.fingerprints[stage.name]

    def standing(self, stage: AlignStage) -> Standing:
        """Tell how a stage stands; stages are asked about in their order."""
        known, fingerprint = self.stages.get(stage.name), self.fingerprint(stage)
        if known is None:
            return Standing("to do")
        if known["fingerprint"] == fingerprint:
            return Standing("done" if known["done"] else "begun")
        if stage.follows:
            return Standing("to do")
        changed = difference(known["settings"], _json(stage.settings))
        return Standing("stale", changed or "a stage before it changed")


def _json(settings: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(settings, default=str)))
