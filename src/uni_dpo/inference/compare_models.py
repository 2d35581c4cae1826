"""The two models of a comparison; a LoRA adapter stands for its base with the adapter on it."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError
from uni_dpo.storage.identity import file_stamps

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Models:
    """The model before training and the one after it.

    Args:
        original: a checkpoint's folder, or a name that transformers knows.
        trained: likewise, or None where only the adapter was trained.
        adapter: the folder of a LoRA adapter that lies on `original`, or None.
    """

    original: str
    trained: str | None
    adapter: Path | None

    @classmethod
    def find(cls, trained: str, original: str | None = None) -> "Models":
        """Tell an adapter from a whole model by its files.

        Args:
            trained: what training wrote: a whole model or an adapter.
            original: the model before; an adapter names its own.

        Raises:
            UniDPOError: a whole model without `original`, or an adapter that cannot be read or names no base.
        """
        file = Path(trained) / ADAPTER_CONFIG
        if not file.is_file():
            if original is None:
                raise UniDPOError(f"{trained}: is no LoRA adapter, so name the model before training with --original")
            return cls(original, trained, None)
        if original is None:
            try:
                original = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
            except (ValueError, AttributeError) as error:
                raise UniDPOError(f"{file}: cannot be read: {error}") from error
            if not original:
                raise UniDPOError(f"{file}: names no base_model_name_or_path; name it with --original")
        return cls(original, None, Path(trained))

    def versions(self) -> tuple[Any, Any]:
        """What tells one state of each model from the next: its name, and the sizes and times of its files."""
        return _version(self.original), (_version(self.original), _version(str(self.adapter or self.trained)))

    def load_original(self, **options: Any) -> Any:
        """The model before training, as an engine backend.

        Args:
            options: settings of the engine's `transformers` backend.

        Raises:
            UniDPOError: it cannot be loaded or has no chat template.
        """
        return _load(self.original, options)

    def load_trained(self, **options: Any) -> Any:
        """The whole model after training; see `load_original`."""
        return _load(str(self.trained), options)

    def add_adapter(self, backend: Any) -> None:
        """Lay the adapter on the model before training.

        Raises:
            UniDPOError: it does not fit that model.
        """
        from peft import PeftModel

        with warnings.catch_warnings():
            # PEFT only warns where an adapter's weights find no place, and goes on with the model as it was.
            warnings.filterwarnings("error", message=".*missing adapter keys")
            try:
                backend.model = PeftModel.from_pretrained(backend.model, str(self.adapter)).eval()
            except (OSError, ValueError, RuntimeError, UserWarning) as error:
                reason = str(error).splitlines()[0][:300]
                raise UniDPOError(f"the adapter {self.adapter} does not fit {self.original}: {reason}") from error


def _load(name: str, options: dict[str, Any]) -> Any:
    from uni_dpo.models.backends import make_backend

    backend: Any = make_backend({"backend": "transformers", "model": name, **options})
    if getattr(backend.processor, "chat_template", None) is None:
        raise UniDPOError(
            f"{name}: has no chat template, so there is no telling how to ask it; "
            "put the chat_template that it was trained with into its tokenizer_config.json"
        )
    return backend


def _version(name: str) -> Any:
    return name, [*file_stamps(name, (".safetensors",)), *file_stamps(name, (".json",))]
