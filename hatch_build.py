"""Puts the overlays into a wheel; an editable install reads them from the repository."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

OVERLAY = ("LlamaFactory", "VLMEvalKit", "data", "examples", "scripts")


class OverlayHook(BuildHookInterface):
    """Adds the folders that `uni-dpo overlay apply` copies."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling with `version` "standard" or "editable"."""
        if version == "standard":
            build_data["force_include"].update({folder: f"uni_dpo/_overlay/{folder}" for folder in OVERLAY})
