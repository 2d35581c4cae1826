"""Our files in a checkout of LlamaFactory or VLMEvalKit: look, put in, take out."""

from uni_dpo.overlay.changes import Change, State, apply, check, revert
from uni_dpo.overlay.checkout import Checkout, Upstream, detect

__all__ = ["Change", "Checkout", "State", "Upstream", "apply", "check", "detect", "revert"]
