"""VLMEvalKit itself: found, imported, and kept from changing the process it is imported into."""

import importlib
import logging
import os
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uni_dpo.errors import UniDPOError

DATA_VARIABLE = "LMUData"
"""The environment variable that names the folder of benchmark files."""


def import_kit(checkout: str | Path | None = None) -> str:
    """Import VLMEvalKit, from the installed package or from a checkout, and say which one it is.

    Importing `vlmeval` switches gradients off, seeds PyTorch, adds a log handler and drops the verification
    of TLS certificates, for the whole process; all of it is put back.

    Args:
        checkout: a folder that holds `vlmeval/`; `None` for the installed package.

    Raises:
        UniDPOError: it is not there, or another one is already imported.
    """
    if checkout is not None:
        root = Path(checkout).resolve()
        if not (root / "vlmeval" / "__init__.py").is_file():
            raise UniDPOError(f"{root} is not a VLMEvalKit checkout: it has no vlmeval/__init__.py")
        _refuse_another(root)
        if str(root) not in sys.path:
            sys.path.insert(0, str(root))
    with _process_as_it_was():
        try:
            kit = importlib.import_module("vlmeval")
            importlib.import_module("vlmeval.dataset")
            importlib.import_module("vlmeval.vlm")
        except ModuleNotFoundError as error:
            if error.name == "vlmeval":
                raise UniDPOError(
                    "VLMEvalKit is not installed: pip install ms-vlmeval, or give --vlmevalkit CHECKOUT"
                ) from error
            raise UniDPOError(
                f"VLMEvalKit needs the Python module {error.name}, which is not installed: pip install {error.name}"
            ) from error
    return f"vlmeval {getattr(kit, '__version__', '?')}"


def _refuse_another(root: Path) -> None:
    loaded = sys.modules.get("vlmeval")
    where = Path(str(loaded.__file__)).resolve().parent.parent if loaded is not None else root
    if where != root:
        raise UniDPOError(f"VLMEvalKit is already imported from {where}; {root} needs a process of its own")


@contextmanager
def _process_as_it_was() -> Iterator[None]:
    import torch

    gradients = torch.is_grad_enabled()
    handlers = logging.root.handlers[:]
    certificates = ssl._create_default_https_context
    logging.disable(logging.ERROR)  # it reports a missing .env file, which nothing here needs
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        logging.disable(logging.NOTSET)
        logging.root.handlers[:] = handlers
        torch.set_grad_enabled(gradients)
        ssl._create_default_https_context = certificates


def data_root() -> Path:
    """The folder of benchmark files: `LMUData`, or `~/LMUData`.

    Raises:
        UniDPOError: `LMUData` names a folder that is not there; VLMEvalKit would silently use another one.
    """
    named = os.environ.get(DATA_VARIABLE)
    if named is None:
        return Path.home() / "LMUData"
    if not Path(named).is_dir():
        raise UniDPOError(
            f"LMUData is set to {named}, which is not a folder; create it, put the benchmarks' TSV files there, "
            "or unset LMUData to use ~/LMUData"
        )
    return Path(named)
