"""What every trainer here adds to transformers': loading by published names, a reference adapter, ending together."""

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from safetensors import safe_open
from transformers import PreTrainedModel, Trainer

from uni_dpo.errors import UniDPOError
from uni_dpo.models.loading import load_alike


class EndsTogether(Trainer):
    """A trainer whose processes wait for one another before they go on from training or evaluation.

    The threads of gloo outlive the group where DistributedDataParallel was used, and hold the tensors of their last
    operations. A process that ends before they let go is aborted by them ("terminate called without an active
    exception"), and torchrun then kills the others, which may still be saving. What has been waited for is let go.
    """

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does, until every process has."""
        output = super().train(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as `Trainer` does, until every process has."""
        metrics = super().evaluate(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        return metrics


@contextmanager
def process_group() -> Iterator[None]:
    """Leave the group of processes that was joined inside; the decorator of a function that trains.

    Its threads end with the last thing that holds the group, a DistributedDataParallel too. Decorating a function makes
    sure that its trainer is gone by then: threads that are left to the end of the process abort it.
    """
    joined = dist.is_available() and dist.is_initialized()
    yield
    if dist.is_available() and dist.is_initialized() and not joined:
        gc.collect()
        dist.destroy_process_group()


class LoadsByPublishedNames(Trainer):
    """A trainer that resumes fully tuned vision-language models from their checkpoints, and ends with the best one.

    Transformers 5 saves a vision-language model under its published names, but loads checkpoints by the names of its
    modules and skips those it does not know: a resumed run would start again from the base, and the best model at the
    end would be a mixture of the best checkpoint and the last step.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        whole = self._whole_model(model)
        if whole is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_by_published_names(whole, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        whole, best = self._whole_model(), self.state.best_model_checkpoint
        if whole is None or best is None:
            super()._load_best_model()
        else:
            load_by_published_names(whole, best)

    def _whole_model(self, model: Any = None) -> PreTrainedModel | None:
        """The fully tuned model behind its wrappers; None for adapters and for weights that lie in shards."""
        whole = self.accelerator.unwrap_model(model if model is not None else self.model)
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        return whole if isinstance(whole, PreTrainedModel) and not sharded else None


def refuse_broken_flash_attention() -> None:
    """Refuse flash-attention where the installed transformers cannot run it.

    Raises:
        UniDPOError: it is 5.6.0, which moves an attention sink to the queries' precision also where there is none.
    """
    if transformers.__version__ == "5.6.0":
        raise UniDPOError(
            "transformers 5.6.0 cannot run flash-attention: install another, as `pip install transformers==5.5.4`, or "
            "choose sdpa (flash_attn: sdpa; in TRL attn_implementation: sdpa)"
        )


def refuse_not_a_number(loss: torch.Tensor, step: int, **parts: torch.Tensor) -> None:
    """Stop a training whose loss is no finite number; going on would write it into every weight.

    Args:
        loss: a scalar.
        step: steps that were taken before.
        parts: what the loss is made of, for the message.

    Raises:
        UniDPOError: names the step, and those parts that are no finite numbers either.
    """
    if torch.isfinite(loss):
        return
    broken = [name for name, part in parts.items() if not torch.isfinite(part).all()]
    raise UniDPOError(
        f"step {step + 1}: the loss is {loss.item()}"
        + (f", and so is {' and '.join(broken)}" if broken else "")
        + "; the run stops before its weights are lost. Lower learning_rate, or set bf16 in place of fp16, and resume "
        "from the last checkpoint; at step 1, look for NaN in the model that it starts from"
    )


REFERENCE_ADAPTER = "reference"
"""The name of the frozen copy of the adapter that a training starts from."""


class KeepsAdapterAsReference(Trainer):
    """A trainer whose PEFT model may hold a frozen copy of its adapter, which is never saved."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        adapters = getattr(self.accelerator.unwrap_model(self.model), "peft_config", {})
        reference = adapters.pop(REFERENCE_ADAPTER, None)
        try:
            super()._save(output_dir, state_dict)
        finally:
            if reference is not None:
                adapters[REFERENCE_ADAPTER] = reference


def add_reference_adapter(model: Any) -> None:
    """Copy the active adapter of a PEFT model to `REFERENCE_ADAPTER`, frozen; the first one stays active.

    The reference of a preference loss is the model before this training. Where that starts from an adapter, the model
    without its adapters is another one.
    """
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    config = copy.deepcopy(model.peft_config[model.active_adapter])
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # what it starts from is overwritten, and some ways change the base too
    model.add_adapter(REFERENCE_ADAPTER, config)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parts = name.split(".")
        if REFERENCE_ADAPTER in parts:
            source = ".".join(model.active_adapter if part == REFERENCE_ADAPTER else part for part in parts)
            parameter.data = parameters[source].detach().clone()
        parameter.requires_grad_(name in trained)


@contextmanager
def reference_adapter(model: Any) -> Iterator[None]:
    """Let a PEFT model answer with `REFERENCE_ADAPTER` in this block, without gradients."""
    active = model.active_adapter
    model.set_adapter(REFERENCE_ADAPTER)
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_adapter(active)


def load_by_published_names(model: PreTrainedModel, checkpoint: str) -> None:
    """Load a checkpoint's weights into `model`, by the names under which `save_pretrained` wrote them.

    The model's weights keep their precision and device.
    """
    model.load_state_dict(load_alike(model, checkpoint).state_dict())


def names_not_loaded(model: PreTrainedModel, checkpoint: str) -> tuple[int, int]:
    """Count what transformers' own trainer leaves out when it loads a checkpoint into `model`.

    Returns:
        How many of the checkpoint's tensors have no parameter of their name in `model`, and how many it has.
    """
    files = Path(checkpoint).glob("model*.safetensors")
    names = {name for file in files for name in sorted(safe_open(file, "pt").keys())}
    return len(names - model.state_dict().keys()), len(names)
