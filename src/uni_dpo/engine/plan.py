"""Which stages a config fits: a changed setting makes its stage and all after it stale."""

import json
from collections.abc import Mapping
from typing import Any

from uni_dpo.engine.config import STAGES, EngineConfig
from uni_dpo.engine.workdir import WorkDir
from uni_dpo.errors import UniDPOError
from uni_dpo.storage.identity import digest

Stages = dict[str, dict[str, Any]]
"""Stage → its `fingerprint`, the `settings` behind it, and once it ran its `counts`: the manifest's entry."""


def plan_stages(config: EngineConfig, questions: str) -> Stages:
    """What each stage depends on: its own settings and everything before it.

    Args:
        questions: digest of the input.
    """
    stages: Stages = {}
    fingerprint = questions
    for stage in STAGES:
        settings = config.describe(stage)
        if stage == STAGES[0]:
            settings["questions"] = questions
        settings = json.loads(json.dumps(settings, default=str))
        fingerprint = digest([fingerprint, settings])
        stages[stage] = {"fingerprint": fingerprint, "settings": settings}
    return stages


def settle_stages(
    planned: Stages, known: Mapping[str, Any], work: WorkDir, only: int | None, continue_from: int | None
) -> Stages:
    """The manifest's entries for a run: planned ones, and known ones of stages that are not touched.

    Stale stages that the caller asked for have their files set apart; they will be done again.

    Args:
        known: entries of the manifest that is there.
        only, continue_from: `--run-stage` and `--continue-from-stage`.

    Raises:
        UniDPOError: a stage that the run needs is stale and was not asked for; the message says what changed.
    """
    stale = _stale(planned, known, work)
    redone = [n for n in stale if n == only or (continue_from is not None and n >= continue_from)]
    left = [n for n in stale if n not in redone]
    if left and (only is None or only > left[0]):
        lines = "\n".join(f"  stage {n} ({STAGES[n]}): {stale[n]}" for n in left)
        raise UniDPOError(
            f"the config does not fit what is in {work.folder}; stale now:\n{lines}\n"
            f"run with --continue-from-stage {left[0]} to do them again (their files are kept under another name), "
            "or take another --work-dir"
        )
    for number in redone:
        work.set_apart(number, STAGES[number], known.get(STAGES[number], {}).get("fingerprint", "unknown"))
    return {
        stage: known[stage] if number in left or _same(planned, known, stage) else planned[stage]
        for number, stage in enumerate(STAGES)
    }


def _stale(planned: Stages, known: Mapping[str, Any], work: WorkDir) -> dict[int, str]:
    """Stages whose rows were made by other settings, and what differs. Pairs are always made anew."""
    stale = {}
    for number, stage in enumerate(STAGES):
        if work.stage_path(number, stage).is_file() and not _same(planned, known, stage):
            if stage in known:
                changed = _difference(known[stage]["settings"], planned[stage]["settings"])
                stale[number] = changed or "an earlier stage changed"
            else:
                stale[number] = "no manifest says what made its rows"
    return stale


def _same(planned: Stages, known: Mapping[str, Any], stage: str) -> bool:
    return bool(known.get(stage, {}).get("fingerprint") == planned[stage]["fingerprint"])


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The settings that differ, each with its old and its new value."""
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {_short(old.get(key))}, is {_short(new.get(key))}" for key in changed)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
