"""What of this machine, a configuration and its data will not work, said in seconds."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Literal

from uni_dpo.align.config import AlignConfig, training
from uni_dpo.align.layout import WorkLayout
from uni_dpo.data.questions import InputOptions, Question, questions_in_order
from uni_dpo.data.tables.reading import iter_rows
from uni_dpo.data.tables.splitting import row_groups
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import check_references
from uni_dpo.models.checkpoint import find_checkpoint
from uni_dpo.settings.machine import existing, folder_fault, has_accelerator

Verdict = Literal["good", "mind", "fault"]
LOOKED_AT = 2000
"""Questions of each file that are read."""
_NEEDED = ("torch", "transformers", "llamafactory", "accelerate", "peft")
_GIB = 1 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: whether it will work, its name, and what was found."""

    verdict: Verdict
    what: str
    found: str


def examine(path: str | Path | None, given: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Look at the machine, and at a configuration of `uni-dpo align`, if there is one, and what it names."""
    yield from _machine()
    if path is None:
        return
    try:
        config = AlignConfig.load(path, given)
    except UniDPOError as error:
        yield from (Finding("fault", "configuration", line) for line in str(error).splitlines())
        return
    yield Finding("good", "configuration", f"{path}: every setting is known")
    yield from _model(config)
    for name in ("questions", "validation", "test"):
        yield from _questions(config, name)
    yield from _engine(config)
    yield from _launchers(config)
    fault = folder_fault(str(config.work))
    yield Finding("fault" if fault else "good", "work_dir", fault or str(config.work))
    yield from _room(config)


def _machine() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("good" if sys.version_info >= (3, 11) else "fault", "Python", python)
    for package in _NEEDED:
        try:
            found = version(package)
        except PackageNotFoundError:
            yield Finding("fault", package, 'is not installed: pip install "uni-dpo[train,engine]"')
            continue
        if (package, found) == ("transformers", "5.6.0"):
            yield Finding("fault", package, "5.6.0 cannot run flash-attention; take another version")
        else:
            yield Finding("good", package, found)
    gpu = has_accelerator()
    yield Finding("good" if gpu else "mind", "GPU", "found" if gpu else "none: everything runs on the processor")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("good", "processor", f"{os.cpu_count()} cores, {memory / _GIB:.0f} GiB of memory")


def _tried(what: str, look: Callable[[], object], said: str = "") -> Finding:
    """What is said, or else what `look` returns; where it raises one, the fault."""
    try:
        found = look()
        return Finding("good", what, said or str(found))
    except (UniDPOError, OSError) as error:
        return Finding("fault", what, str(error))


def _model(config: AlignConfig) -> Iterator[Finding]:
    name = config.settings.model
    if Path(name).is_dir():
        yield _tried("model", lambda: f"{name}: {find_checkpoint(name).family}, {_weights(config) / 1e6:,.1f} MB")
        return
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE

    cached: object = None
    with suppress(ValueError):  # no name that the hub could have
        cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        yield Finding("good", "model", f"{name}: in the hub's cache")
    elif HF_HUB_OFFLINE or name.count("/") != 1:
        offline = " and HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE and name.count("/") == 1 else ""
        yield Finding("fault", "model", f"{name}: there is no such folder, it is not in the hub's cache{offline}")
    else:
        yield Finding("mind", "model", f"{name}: will be downloaded from the hub")


def _questions(config: AlignConfig, name: str) -> Iterator[Finding]:
    given = {"questions": config.questions.path, "validation": config.validation, "test": config.test}[name]
    if not isinstance(given, str):
        yield Finding("good", name, f"{given:.0%} of the questions")
        return
    try:
        asked = questions_in_order(InputOptions(path=given, image_root=config.image_root), config.work / "doctor")
        rows = [question for question, _ in islice(asked, LOOKED_AT)]
    except UniDPOError as error:
        yield Finding("fault", name, str(error))
        return
    pictured = sum(bool(row.images) for row in rows)
    answered = [row for row in rows if row.reference is not None]
    first = "the first " if len(rows) == LOOKED_AT else ""
    yield Finding(
        "good", name, f"{first}{len(rows):,} questions, {pictured:,} with images, {len(answered):,} with answers"
    )
    graded = name != "questions" or any(isinstance(part, float) for part in (config.validation, config.test))
    if config.settings.evaluate.by == "answers" and graded:
        grader = config.settings.evaluate.grader
        if not answered:
            yield Finding("fault", name, "evaluate.by: answers needs a column `answer`; or set evaluate.by: score")
        else:
            look = partial(check_references, grader, answered)
            yield _tried(f"{name}, grader", look, f"{grader} reads their answers")
    if name == "questions":
        said = f"{config.settings.engine['pipeline']} can score answers to them"
        yield _tried("questions, pipeline", lambda: config.checked_engine.check_questions(rows), said)
        if config.splits:
            yield _tried("split", lambda: _divisible(config, given))


def _divisible(config: AlignConfig, path: str) -> str:
    files = len(config.shares())
    groups = len(set(row_groups(islice(iter_rows(path), LOOKED_AT), "image")))
    if groups < files:
        raise UniDPOError(
            f"{path} is to be divided into {files} files of which no two share an image, and by their images its "
            f"questions make {groups} groups; add questions about other images, or name files for validation and test"
        )
    return f"{files} files of questions; no image stands in two"


def _engine(config: AlignConfig) -> Iterator[Finding]:
    engine = config.checked_engine
    served = [role for role, (backend, _) in engine.models.items() if backend == "openai"]
    if served:
        said = f"{', '.join(served)}: answers"
        yield _tried("server", lambda: [*map(engine.check_servers, ("sample", "reward"))], said)
    look = partial(engine.check_models, "reward", [Question("", "", images=("some",))])
    yield _tried("models", look, f"fit the pipeline {config.settings.engine['pipeline']}")


def _launchers(config: AlignConfig) -> Iterator[Finding]:
    for program in sorted({words[0] for words in config.launchers.values()} - {"{command}"}):
        there = shutil.which(program)
        yield Finding("good" if there else "fault", "launcher", there or f"{program} is not on this machine's PATH")


def _room(config: AlignConfig) -> Iterator[Finding]:
    """Whether checkpoints fit onto the disk and the training into the memory, by the size of the weights."""
    weights = _weights(config)
    if not weights:
        return
    full = str(training(config.settings.train).get("finetuning_type", "lora")) == "full"
    arms = WorkLayout(config).arms(1)
    epochs = max(1, round(float(arms[0].options.get("num_train_epochs", 3))))
    saved = epochs if arms[0].options["save_strategy"] == "epoch" else 1
    one = 3 * weights if full else weights // 10  # weights, and an optimizer's two moments
    needed = config.settings.rounds * len(arms) * (saved + 1) * one
    there = existing(config.work)
    free = shutil.disk_usage(there).free
    said = f"about {needed / _GIB:.1f} GiB of checkpoints, {free / _GIB:.1f} GiB free at {there}"
    yield Finding("good" if needed < free else "fault", "disk", said)
    if not has_accelerator():
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        used = weights * (5 if full else 2)  # gradients, two moments and the reference beside the weights
        said = f"about {used / _GIB:.1f} GiB of weights and their training, {memory / _GIB:.1f} GiB there"
        yield Finding("good" if used < memory else "fault", "memory", said)


def _weights(config: AlignConfig) -> int:
    """Bytes of the model's weights; 0 for a name on the hub."""
    folder = Path(config.settings.model)
    if not folder.is_dir():
        return 0
    with suppress(UniDPOError):
        return sum(file.stat().st_size for file in find_checkpoint(folder).base.glob("*.safetensors"))
    return 0
