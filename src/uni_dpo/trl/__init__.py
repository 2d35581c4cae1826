"""Uni-DPO for TRL: `UniDPOTrainer` and `UniDPOConfig` in place of `DPOTrainer` and `DPOConfig`."""

from uni_dpo.errors import UniDPOError


def correct_availability() -> None:
    """Let TRL know which optional packages are missing.

    TRL asks transformers whether a package is installed and takes the answer for a truth value. Transformers 5
    answers with a pair, which is true even where it says no, so that TRL imports packages that are not there.

    Raises:
        UniDPOError: TRL is not installed.
    """
    try:
        from trl import import_utils
    except ModuleNotFoundError as error:
        if error.name != "trl":
            raise
        raise UniDPOError("TRL is not installed: pip install 'uni-dpo[trl]'") from None
    for name, answer in vars(import_utils).items():
        if name.endswith("_available") and isinstance(answer, tuple):
            setattr(import_utils, name, bool(answer[0]))


correct_availability()

from uni_dpo.trl.arguments import TRLUniDPOConfig as UniDPOConfig  # noqa: E402  # TRL cannot be imported without this
from uni_dpo.trl.trainer import UniDPOTrainer  # noqa: E402

__all__ = ["UniDPOConfig", "UniDPOTrainer"]
