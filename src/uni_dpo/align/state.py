"""What is done in a work dir, and what of it the configuration has made stale."""

import json
from collections.abc import Iterable, Mapping
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

    def write(self) -> None:
        """Replace the file as a whole."""
        content = {"stages": self.stages, **({"restart": self.restart} if self.restart else {})}
        write_text(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def begin(self, stage: AlignStage, fingerprint: str) -> None:
        """Note what a stage's outputs are made by from now on."""
        seconds = self.stages.get(stage.name, {}).get("seconds", 0.0)
        self.stages[stage.name] = {
            "fingerprint": fingerprint,
            "settings": _json(stage.settings),
            "after": list(stage.after),
            "done": False,
            "seconds": seconds,
        }
        self.write()

    def end(self, stage: AlignStage, seconds: float) -> None:
        """Note that a stage is done."""
        entry = self.stages[stage.name]
        entry["done"] = True
        entry["seconds"] = round(entry["seconds"] + seconds, 1)
        self.write()

    def forget(self, name: str) -> None:
        """Drop a stage."""
        self.stages.pop(name, None)

    def standing(self, stage: AlignStage, fingerprint: str) -> Standing:
        """Tell how a stage stands whose fingerprint would now be `fingerprint`."""
        known = self.stages.get(stage.name)
        if known is None:
            return Standing("to do")
        if known["fingerprint"] == fingerprint:
            return Standing("done" if known["done"] else "begun")
        if stage.follows:
            return Standing("to do")
        changed = difference(known["settings"], _json(stage.settings))
        return Standing("stale", changed or "a stage before it changed")


class Fingerprints:
    """Stage → digest of its settings and of the fingerprints of the stages before it."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def add(self, stage: AlignStage) -> str:
        """Return the fingerprint of the next stage."""
        before = [self.known[name] for name in stage.after]
        self.known[stage.name] = digest([stage.name, _json(stage.settings), before])
        return self.known[stage.name]


def stale_lines(stale: Iterable[tuple[str, str]]) -> str:
    """Return one line per stale stage."""
    return "\n".join(f"  {name}: {why}" for name, why in stale)


def _json(settings: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(settings, default=str)))
