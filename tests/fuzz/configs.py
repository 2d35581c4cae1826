"""A seeded fuzzer of configurations: every command's file, and the options of every command that reads none.

`python tests/fuzz/configs.py --count 3000 --seed 0` prints what came of them. Checkpoints and servers that the files
name are not there, so a configuration that is right ends where one is looked for; those whose answers are given run to
their end. What LlamaFactory and TRL read is handed to their own parsers, unless `parsers` is false.
"""

import copy
import io
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.update(TQDM_DISABLE="1", HF_HUB_OFFLINE="1", DISABLE_VERSION_CHECK="1")

import typer.main
import yaml
from fuzzing import main, mutated
from PIL import Image

from uni_dpo.cli.app import app

ROOT = Path(__file__).parents[2]
ODD: list[Any] = [
    None, True, False, 0, -1, 3.5, 2**70, float("nan"), float("inf"), "", " ", "x", "1e-3", "\0", "\ud800", "a\nb",
    "gone", "x" * 3000, "../x", ".", "q.jsonl", "a.png", "a.b:c", "a.py", "{question}", "http://127.0.0.1:9/v1", "auto",
    "cuda:9", "float32", "4bit", [], [1, 1], ["x"], {}, {"a": 1}, {"backend": "openai"}, {1: 2}, [{}],
]  # fmt: skip
SERVER = {"backend": "openai", "model": "m", "base_url": "http://127.0.0.1:9/v1", "max_retries": 0, "timeout": 2}
GIVEN = {
    "pipeline": "verifiable",
    "input": {"path": "q.jsonl", "answers": "given"},
    "models": {},
    "sample": {"sampler": "given"},
    "reward": {"grader": "exact"},
    "pairs": {"min_gap": 1.0, "max_pairs_per_question": 2, "choose": "any", "length_balance": "off"},
    "dataset": {"name": "d", "prompt": "answer"},
    "batch_size": 2,
    "max_failed_share": 0.1,
}
"""An engine configuration that needs no model and comes to its end."""
EVAL = {
    "model": {"m": {"class": "Qwen2VLChat", "model_path": "gone", "min_pixels": 3136, "dtype": "float32"}},
    "data": {"d": {"path": "d.tsv", "type": "VQA", "prompt": "plain"}},
}
ALONE = ("demo", "align", "train", "trl-dpo", "ppo", "grpo", "eval", "engine", "webui")
"""Commands that are not run with odd options: they have files, train what they find, or serve until stopped."""
parsers = True
"""Whether LlamaFactory and TRL are imported to read what the checks before them let pass."""


def broken_config(rng: random.Random, number: int) -> tuple[str, Callable[[], object]]:
    """A broken configuration in the working folder, or odd options, and the command that is to refuse them."""
    Image.new("RGB", (56, 56), "red").save("a.png")
    rows = [{"id": i, "question": "Q?", "images": ["a.png"], "answer": "7", "answers": ["7", "8"]} for i in range(3)]
    Path("q.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    Path("d.tsv").write_text("index\tquestion\tanswer\timage_path\n0\tq?\t7\ta.png\n", encoding="utf-8")
    kinds = [_engine, _engine_example, _online, _evaluation, _training, _options, _options]
    return kinds[number % len(kinds)](rng)


def _engine(rng: random.Random) -> tuple[str, Callable[[], object]]:
    config: dict[str, Any] = copy.deepcopy(GIVEN)
    if rng.random() < 0.5:
        config |= {"pipeline": "judge", "models": {"judge": SERVER}, "reward": {"method": "grade"}}
    return "engine", _command(["engine", "run", _file(rng, config), "--work-dir", "w"])


def _engine_example(rng: random.Random) -> tuple[str, Callable[[], object]]:
    source = rng.choice(sorted((ROOT / "examples" / "engine").glob("*.yaml")))
    config = yaml.safe_load(source.read_text(encoding="utf-8")) | {"input": {"path": "q.jsonl"}}
    return "engine", _command(["engine", "run", _file(rng, config), "--work-dir", "w"])


def _online(rng: random.Random) -> tuple[str, Callable[[], object]]:
    name = rng.choice(["ppo", "grpo"])
    config = yaml.safe_load((ROOT / "examples" / "vision_alignment" / f"{name}.yaml").read_text(encoding="utf-8"))
    config |= {"questions": {"path": "q.jsonl"}, "output_dir": "w"}
    return name, _command([name, _file(rng, config), *_overrides(rng, config)])


def _evaluation(rng: random.Random) -> tuple[str, Callable[[], object]]:
    config = mutated(rng, EVAL, ODD) if rng.random() < 0.9 else EVAL
    text = json.dumps(config)
    Path("c.json").write_text(text if rng.random() < 0.9 else text[: rng.randrange(len(text))], encoding="utf-8")
    return "eval", _command(["eval", "c.json", "--work-dir", "w"])


def _training(rng: random.Random) -> tuple[str, Callable[[], object]]:
    found = [*(ROOT / "examples" / "uni_dpo").glob("*.yaml"), *(ROOT / "examples" / "text_dpo").glob("*.yaml")]
    found += [ROOT / "examples" / "vision_alignment" / f"{name}.yaml" for name in ("dpo", "reward", "sft", "uni_dpo")]
    config = yaml.safe_load(rng.choice(sorted(found)).read_text(encoding="utf-8"))
    config |= {"model_name_or_path": "gone", "output_dir": "w", "dataset_dir": "."}
    config |= {"use_cpu": True, "bf16": False, "fp16": False} if rng.random() < 0.9 else {}
    if parsers and rng.random() < 0.3:
        flags = {"model_name_or_path": "gone", "dataset_name": "q.jsonl", "output_dir": "w", "use_cpu": True}
        return "trl-dpo", _command(["trl-dpo", "--config", _file(rng, flags | {"beta": 0.1, "learning_rate": 1e-5})])
    arguments = [_file(rng, config), *_overrides(rng, config)]
    return "train", lambda: _train(arguments)


def _train(arguments: list[str]) -> None:
    """Check a training as `uni-dpo train` does, and let LlamaFactory parse what is left of it."""
    from uni_dpo.llamafactory import launch

    if not parsers:
        with mock.patch.object(launch, "_register", side_effect=SystemExit(0)):
            launch.train(arguments)
        return
    from llamafactory.hparams import get_train_args
    from llamafactory.train import tuner

    with mock.patch.object(tuner, "run_exp", get_train_args):
        launch.train(arguments)


def _options(rng: random.Random) -> tuple[str, Callable[[], object]]:
    path, command = rng.choice(_commands())
    names = [item for item in command.params if item.param_type_name == "option" and "--help" not in item.opts]
    places = [item for item in command.params if item.param_type_name == "argument"]
    likely = ["q.jsonl", "o.jsonl", "a.png", "w", "gone", "d.tsv", "3", "0.5", "auto", "exact"]
    words = [str(rng.choice(likely)) for item in places for _ in range(1 if item.nargs == 1 else rng.randint(0, 3))]
    for item in names:
        if item.required or rng.random() < 0.3:
            value = rng.choice([*likely, *(value for value in ODD if isinstance(value, str | int | float))])
            words += [rng.choice(item.opts)] if item.is_flag else [rng.choice(item.opts), str(value)]
    words = [word for word in words if "\0" not in word]  # no shell can pass one
    return " ".join(path), _command([*path, *words[: rng.choice([len(words)] * 9 + [rng.randint(0, len(words))])]])


def _commands() -> list[tuple[list[str], Any]]:
    found: list[tuple[list[str], Any]] = []
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if name not in ALONE:
            below = getattr(command, "commands", {})
            found += [([name, inner], one) for inner, one in below.items()] or [([name], command)]
    return found


def _command(arguments: list[str]) -> Callable[[], object]:
    def run() -> None:
        with mock.patch.object(sys, "stdin", io.StringIO("hello\n/exit\n")):
            app(arguments, standalone_mode=False)

    return run


def _overrides(rng: random.Random, config: dict[str, Any]) -> list[str]:
    odd = ["", "x", "seed", "=", "a.b.c=1", "seed=[", "seed=null", "seed=-1", "seed=x", "seed=\ud800"]
    named = [
        f"{name}={rng.choice(['', 'x', '-1', '[]', '{}', 'true', '1e400'])}" for name in rng.sample(list(config), 2)
    ]
    return rng.choice([[], [], [rng.choice(odd)], named])


def _file(rng: random.Random, config: Any) -> str:
    """The configuration with up to three parts changed, as YAML, now and then with broken bytes."""
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        config = mutated(rng, config, ODD)
    text = yaml.safe_dump(config, allow_unicode=True).encode(errors="surrogatepass")
    if rng.random() < 0.1:
        broken = bytearray(text)
        for _ in range(rng.randint(1, 3)):
            broken[rng.randrange(len(broken))] = rng.choice(b'\0\xff"{[:&*!\t\n')
        text = bytes(broken[: rng.choice([len(broken), rng.randrange(len(broken))])])
    Path("c.yaml").write_bytes(text)
    return "c.yaml"


if __name__ == "__main__":
    sys.exit(main("configurations", broken_config, __doc__))
