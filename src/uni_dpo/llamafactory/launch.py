"""`uni-dpo train`: what `llamafactory-cli train` does, with Uni-DPO registered and nothing copied."""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uni_dpo.data.dataset_info import check_named
from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory import register
from uni_dpo.llamafactory.seams import first_process, refuse_uni_dpo, register_web_ui
from uni_dpo.monitor.console import VERBOSE, readable
from uni_dpo.settings.reading import FaultCollector, is_config, located, override, read_mapping
from uni_dpo.settings.training import check_early, flags, generation_warning, help_lines


def train(arguments: list[str]) -> None:
    """Train as `llamafactory-cli train ARGUMENTS` would, on one process or through torchrun.

    Several GPUs or machines, or `FORCE_TORCHRUN=1`, start one process per GPU (`NPROC_PER_NODE` of them where it is
    set); several machines are described by the variables that LlamaFactory documents: `NNODES`, `NODE_RANK`,
    `MASTER_ADDR`, `MASTER_PORT`, and `RDZV_ID`, `MIN_NNODES`, `MAX_NNODES`, `MAX_RESTARTS` for elastic runs.

    Args:
        arguments: a YAML or JSON file followed by `key=value` overrides, or `--key value` flags. `--verbose` among
            them shows everything that LlamaFactory says, which otherwise goes to `OUTPUT/uni_dpo/train.log`.

    Raises:
        UniDPOError: the configuration cannot be read or the data cannot be trained on.
    """
    if not arguments:
        raise UniDPOError("name a configuration: uni-dpo train CONFIG.yaml [key=value …], or --key value flags")
    if arguments in (["--help"], ["-h"]):
        print("\n".join(help_lines()))
        return
    if "--verbose" in arguments:
        os.environ[VERBOSE] = "1"
        arguments = [argument for argument in arguments if argument != "--verbose"]
    given = read_arguments(arguments)
    with located(given if isinstance(given, dict) else {}):
        faults = FaultCollector()
        with faults.collecting():
            check_early(given)
        with faults.collecting():
            check_named(flags(given) if isinstance(given, list) else given)
        faults.raise_any()
        _register()
        refuse_uni_dpo(given)
    if warning := generation_warning(given):
        print(f"warning: {warning}", file=sys.stderr)
    if _wants_torchrun():
        _torchrun(arguments)
    else:
        _run(arguments)


def web_ui() -> None:
    """Serve LlamaBoard with `uni_dpo` in it; its trainings are those of `uni-dpo train`.

    Raises:
        UniDPOError: gradio is not installed.
    """
    if find_spec("gradio") is None:
        raise UniDPOError('LlamaBoard needs the package gradio: pip install "gradio>=4.38.0,<=5.50.0"')
    _register()
    register_web_ui()
    from uni_dpo.llamafactory.webui import run_web_ui

    run_web_ui()


def read_arguments(arguments: list[str]) -> dict[str, Any] | list[str]:
    """Read a configuration file with its overrides, or give the flags as they are.

    `${…}` in a value is OmegaConf's interpolation, as in LlamaFactory.

    Raises:
        UniDPOError: the file is missing, or is no mapping in YAML or JSON.
    """
    if not arguments or not is_config(arguments[0]):
        return arguments
    given = override(read_mapping(arguments[0]), arguments[1:])
    values = _interpolated(given) if "${" in str(given.values()) else dict(given)
    given.clear()
    given |= {str(key): value for key, value in values.items()}
    # YAML reads a bare `no`, which turns saving, logging or evaluation off, as false.
    given |= {key: "no" for key, value in given.items() if key.endswith("_strategy") and value is False}
    return given


def _interpolated(values: dict[str, Any]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        filled: Any = OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True)
    except OmegaConfBaseException as error:
        raise UniDPOError(f"an interpolation cannot be filled in: {str(error).splitlines()[0]}") from error
    return dict(filled)


def _register() -> None:
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    register()


def _run(arguments: list[str]) -> None:
    _register()
    from llamafactory.extras.misc import use_ray
    from llamafactory.train.tuner import run_exp

    if use_ray():
        raise UniDPOError(
            "USE_RAY=1 starts workers that do not know this plugin: apply the overlay to a LlamaFactory checkout "
            "(uni-dpo overlay apply) and use its llamafactory-cli, or unset USE_RAY"
        )
    read = read_arguments(arguments)
    try:
        _show(read, run_exp)
    except UniDPOError:
        raise
    except Exception as error:
        if message := _fault_of_the_user(error):
            raise UniDPOError(message) from None
        raise


def _show(given: dict[str, Any] | list[str], run_exp: Callable[..., Any]) -> None:
    """Run LlamaFactory with its words in a file and one line per logging step, or all of it on the terminal."""
    output = (flags(given) if isinstance(given, list) else given).get("output_dir")
    if os.environ.get(VERBOSE) or not isinstance(output, str):
        run_exp(given)
        return
    from uni_dpo.llamafactory.run_context import progress_lines

    quiet = [*given, "--disable_tqdm", "true"] if isinstance(given, list) else {"disable_tqdm": True, **given}
    output = str(Path(output).expanduser())
    with readable(output) as file:
        run_exp(quiet, callbacks=[progress_lines()])
    if first_process():
        print(f"{output}: finished; what LlamaFactory said is in {file}", file=sys.stderr)


_REFUSING = ("hf_argparser.py", "training_args.py", "optimization.py", "versions.py", "integration_utils.py")
"""Files of transformers whose errors are about a setting's value, or a package that it needs."""


def _fault_of_the_user(error: Exception) -> str | None:
    """What to say of a setting, or of a checkpoint, that was refused; None where the training stumbled later on."""
    import llamafactory

    frames, said = traceback.extract_tb(error.__traceback__), str(error)
    in_worker = re.findall(r'^  File "(.+)", line ', str(error.__cause__), re.MULTILINE)  # as `multiprocess` says it
    raised_in, wrong_value = Path((in_worker or [frames[-1].filename])[-1]), isinstance(error, ValueError)
    refusals = (  # perhaps from a worker's process
        "correct `template`",
        "`metric_for_best_model` training argument",
        "No `target_modules` passed",
        "Cannot find valid samples",
        "corresponds to no data",
    )
    if frames[-1].name == "_prepare_split_single":
        return f"a file of data cannot be read: {error.__cause__ or error}"
    if "Image features and image tokens do not match" in said:
        return "cutoff_len cuts image tokens: raise it, or lower image_max_pixels"
    if (
        (wrong_value and raised_in.is_relative_to(Path(llamafactory.__file__).parent))
        or (wrong_value and "arget modules" in said and "not found in the base model" in said)
        or (raised_in.parent.name == "hparams" or raised_in.name in _REFUSING)
        or (frames[-1].name == "train_test_split" or any(words in said for words in refusals))
    ):
        return str(error.args[0] if isinstance(error, KeyError) else error).replace("test_size", "val_size")
    called = {frame.name for frame in frames}
    if wrong_value and "interleave_datasets" in called:
        return f"interleave_probs: {said}; give one probability for each dataset, which sum to 1"
    if "init_hf_repo" in called:
        return f"push_to_hub: the hub makes no repository: {said.splitlines()[0]}"
    if "load_from_disk" in called:
        return f"tokenized_path: does not hold rows that were tokenized ({said}); remove it, or name another"
    if "load_dataset" in called:
        return f"a dataset cannot be loaded: {said}"
    of_adapter = "'adapter_config.json'" in said
    no_tokenizer = isinstance(error, OSError) and raised_in.parts[-2:] == ("model", "loader.py")
    if not no_tokenizer and not (of_adapter and wrong_value):
        return None
    loaders = {"create_ref_model": "ref_model", "create_reward_model": "reward_model"}
    models = (loaders[frame.name] for frame in frames if frame.name in loaders)
    setting = "adapter_name_or_path" if of_adapter else next(models, "model_name_or_path")
    return (
        f"{setting}: this is no folder with a checkpoint and its tokenizer, and no model of that name could be loaded: "
        + str(error.__cause__ or error).splitlines()[0]
    )


def _wants_torchrun() -> bool:
    if "LOCAL_RANK" in os.environ:
        return False
    from llamafactory.extras.misc import get_device_count, is_env_enabled, use_kt

    asked = is_env_enabled("FORCE_TORCHRUN") or os.environ.get("NNODES", "1") != "1"
    return asked or (get_device_count() > 1 and not use_kt())


def _torchrun(arguments: list[str]) -> None:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.run(run.parse_args([*_topology(), "--module", __name__, *arguments]))
    except ChildFailedError:
        sys.exit(1)


def _topology() -> list[str]:
    """The machines and processes of this run, as torchrun's flags."""
    from llamafactory.extras.misc import get_device_count

    env = os.environ
    nodes = env.get("NNODES", "1")
    several = nodes != "1" or "MAX_NNODES" in env
    if several and not {"MASTER_ADDR", "MASTER_PORT"} <= env.keys():
        raise UniDPOError(
            "NNODES, MAX_NNODES: set MASTER_ADDR and MASTER_PORT too, the same on every machine, or the machines wait "
            "for one another in different places"
        )
    processes = env.get("NPROC_PER_NODE", str(max(1, get_device_count())))
    if not {"MASTER_PORT", "RDZV_ID"} & env.keys():
        # torchrun binds a free port itself: one that is looked up first may be taken by another run in between.
        return ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", processes]
    address, port = env.get("MASTER_ADDR", "127.0.0.1"), env.get("MASTER_PORT", "0")
    if "RDZV_ID" not in env:
        return [
            *("--nnodes", nodes, "--node-rank", env.get("NODE_RANK", "0"), "--nproc-per-node", processes),
            *("--master-addr", address, "--master-port", port),
        ]
    if "MIN_NNODES" in env and "MAX_NNODES" in env:
        nodes = f"{env['MIN_NNODES']}:{env['MAX_NNODES']}"
    return [
        *("--nnodes", nodes, "--nproc-per-node", processes, "--max-restarts", env.get("MAX_RESTARTS", "0")),
        *("--rdzv-id", env["RDZV_ID"], "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{address}:{port}"),
    ]


if __name__ == "__main__":
    _run(sys.argv[1:])
