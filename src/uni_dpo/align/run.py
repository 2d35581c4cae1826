"""Running a configuration: every stage that is not done, in order, from where the last run stopped."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from uni_dpo.align.commands import Command
from uni_dpo.align.config import AlignConfig
from uni_dpo.align.launch import end_left_over, last_lines, run_command
from uni_dpo.align.stages import ENGINE_STAGES, AlignStage, AlignStages
from uni_dpo.align.state import AlignState, Standing
from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.storage import read_json
from uni_dpo.storage.writing import holding

Say = Callable[[str], None]
PATIENCE = 15.0
"""Seconds after a command in which its files have to be seen."""


def run_align(
    config: AlignConfig,
    *,
    until: str | None = None,
    restart: str | None = None,
    say: Say = print,
    show: Say = lambda line: None,
) -> None:
    """Run what is left to do.

    Args:
        config: the configuration.
        until: the last stage to run.
        restart: this stage and those after it are done again; what they made is put aside.
        say: gets a line per stage.
        show: gets the latest line of the stage at work.

    Raises:
        UniDPOError: another run is at work here, the configuration does not fit what is done, or a stage failed.
    """
    with _ended_in_order(), holding(config.work / ".lock", str(config.work)):
        ended = end_left_over(config.work)
        if ended:
            say(f"ended {ended} processes that an earlier run had left behind")
        stages, state = AlignStages(config), AlignState(config.work)
        _check_names(stages, until, restart)
        if restart := restart or state.restart:
            _refuse_stale(takewhile(lambda stage: stage.name != restart, stages), state)
            _put_aside(stages, state, restart)
        _refuse_stale(_until(stages, until), state)
        stages.contents.remember()
        for stage in _until(stages, until):
            standing = state.standing(stage).word
            if standing != "done":
                if standing == "to do" and not stage.follows:
                    _move_aside(config.work, stage.outputs)  # of a baseline that was taken out, of a round too many
                state.begin(stage)
                seconds = _do(stage, config, say, show)
                state.end(stage, seconds)
                say(f"{stage.name:<16} {seconds:>7.1f} s  {result(stage, config.work)}")


def _until(stages: AlignStages, last: str | None) -> Iterator[AlignStage]:
    for stage in stages:
        yield stage
        if stage.name == last:
            return


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Within the block, Ctrl-C and the signal by which schedulers end a job end the stage at work, once.

    A second one would break into the ending of the stage and leave parts of it running.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: object) -> NoReturn:
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # of a job in the background of a shell, which Ctrl-C is not for
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def standings(config: AlignConfig) -> list[tuple[AlignStage, Standing, float]]:
    """Return every stage with how it stands and the seconds that it took."""
    state = AlignState(config.work)
    return [
        (stage, state.standing(stage), state.stages.get(stage.name, {}).get("seconds", 0.0))
        for stage in AlignStages(config)
    ]


def result(stage: AlignStage, work: Path) -> str:
    """Return what a finished stage made, in a few words."""
    if counts := _engine_counts(stage, work):
        named = [f"{counts[name]:,} {name}" for name in ("questions", "answers", "pairs") if name in counts]
        usage = counts.get("usage", {})
        named += [f"{usage['requests']:,} requests"] if usage.get("requests") else []
        named += [f"cost {usage['cost']:.4f}"] if usage.get("cost") else []
        return ", ".join(named)
    if stage.kind == "choose":
        return str(read_json(stage.outputs[0]).get("reason", ""))
    return stage.says


def _do(stage: AlignStage, config: AlignConfig, say: Say, show: Say) -> float:
    """Run a stage's commands, again where they fail and `attempts` allows it; return the seconds that it took."""
    began = time.monotonic()
    for attempt in range(1, config.settings.attempts + 1):
        try:
            for command in stage.commands():
                _run(stage, command, config, show)
            # a server answered all but so few questions that the engine goes on without them
            if attempt < config.settings.attempts and (failed := _engine_counts(stage, config.work).get("failed")):
                raise UniDPOError(f"{failed} questions got no reply")
            if stage.own is not None:
                stage.own()
            break
        except UniDPOError as error:
            if attempt == config.settings.attempts:
                raise
            say(f"{stage.name}: {str(error).splitlines()[0]}; trying again in {config.settings.pause:g} s")
            time.sleep(config.settings.pause)
    return time.monotonic() - began


def _run(stage: AlignStage, command: Command, config: AlignConfig, show: Say) -> None:
    """Run a command whose output is not there yet, and see that it leaves what it makes."""
    if command.output is not None and command.output.exists():
        return
    log = config.work / "logs" / f"{stage.name.replace('/', '-')}.log"
    status = run_command(
        command.words, config.launchers[stage.kind], log=log, work=config.work,
        show=lambda line: show(f"{stage.name}: {line}"),
    )  # fmt: skip
    if status:
        raise UniDPOError(
            f"{stage.name} ended with status {status}; the end of {log}:\n{last_lines(log)}\n"
            "What is done is kept: run the same command again when the cause is removed"
        )
    wanted = [path for path in (command.output, command.leaves) if path is not None] or list(stage.outputs)
    deadline = time.monotonic() + PATIENCE
    while missing := [path for path in wanted if not path.exists()]:
        if time.monotonic() > deadline:  # as with a launcher that does not wait
            raise UniDPOError(
                f"{stage.name}: its command ended well, but there is no {missing[0]}. A launcher has to run the "
                f"command and wait until it ends (sbatch --wait, srun), and {config.work} has to be the same folder "
                f"there; see {log}"
            )
        time.sleep(0.2)  # a file server may show late what another machine wrote


def _engine_counts(stage: AlignStage, work: Path) -> dict[str, Any]:
    """What the engine counted in a stage of its own; empty for the others."""
    if stage.kind not in ENGINE_STAGES:
        return {}
    manifest = read_json(work / f"round-{stage.name.partition('/')[0]}" / "engine" / "manifest.json")
    found: dict[str, Any] = manifest.get("stages", {}).get(ENGINE_STAGES[stage.kind], {}).get("counts", {})
    return found


def _check_names(stages: AlignStages, until: str | None, restart: str | None) -> None:
    known = [stage.name for stage in stages]
    for name in (until, restart):
        if name is not None and name not in known:
            hint = did_you_mean(name, known) or f"; the stages are {', '.join(known)}"
            raise UniDPOError(f"no stage is called {name!r}{hint}")
    if until is not None and restart is not None and known.index(until) < known.index(restart):
        raise UniDPOError(f"--until {until} comes before --from {restart}: nothing would be done; turn them around")


def _refuse_stale(stages: Iterable[AlignStage], state: AlignState) -> None:
    """Stop where what is there was made by other settings, and say what changed."""
    found = ((stage.name, state.standing(stage)) for stage in stages)
    stale = [(name, standing.why) for name, standing in found if standing.word == "stale"]
    if stale:
        lines = "\n".join(f"  {name}: {why}" for name, why in stale)
        raise UniDPOError(
            f"the configuration does not fit what is in {state.path.parent}; stale now:\n{lines}\n"
            f"run with --from {stale[0][0]} to do them again (what they made is put aside), or take another work_dir"
        )


def _put_aside(stages: AlignStages, state: AlignState, restart: str) -> None:
    """Move what a stage and those after it made to `aside/`, and forget that they were done."""
    state.restart = restart
    state.write()
    kept = {stage.name for stage in takewhile(lambda stage: stage.name != restart, stages)}
    left = [stage for stage in stages if stage.name not in kept]
    work = stages.config.work
    outputs = [output for stage in left for output in stage.outputs]
    if any(stage.name[0].isdecimal() for stage in left):
        # later rounds may be no stages now, since an earlier one ended the run or fewer are asked for
        begun = _number(restart.partition("/")[0])
        outputs += [folder for folder in sorted(work.glob("round-*")) if _number(folder.name[6:]) > begun]
    _move_aside(work, outputs)
    state.stages = {name: entry for name, entry in state.stages.items() if name in kept}
    state.restart = None
    state.write()


def _number(text: str) -> int:
    """The number of a round; 0 of what is none."""
    return int(text) if text.isdecimal() else 0


def _move_aside(work: Path, outputs: Sequence[Path]) -> None:
    """Move what stages made to a new folder in `aside/`."""
    place = next(folder for n in range(1, 10_000) if not (folder := work / "aside" / str(n)).exists())
    for output in outputs:
        if output.exists():
            target = place / output.relative_to(work)
            while target.exists():  # a stage before put something of its round there
                target = target.with_name(f"{target.name}-rest")
            target.parent.mkdir(parents=True, exist_ok=True)
            output.replace(target)
