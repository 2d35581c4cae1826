"""What every trainer here adds to transformers' own: loading by published names, ending together."""

import functools
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel, Trainer


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


def load_by_published_names(model: PreTrainedModel, checkpoint: str) -> None:
    """Load a checkpoint's weights into `model`, by the names under which `save_pretrained` wrote them.

    Args:
        model: any model of transformers; its weights keep their precision and device.
        checkpoint: the folder that holds the weights.
    """
    dtypes = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    widest = functools.reduce(torch.promote_types, dtypes)  # frozen parts may be in bf16 beside a trained float32
    saved = type(model).from_pretrained(checkpoint, config=model.config, dtype=widest)
    model.load_state_dict(saved.state_dict())


def names_not_loaded(model: PreTrainedModel, checkpoint: str) -> tuple[int, int]:
    """Count what transformers' own trainer leaves out when it loads a checkpoint into `model`.

    Returns:
        How many of the checkpoint's tensors have no parameter of their name in `model`, and how many it has.
    """
    files = Path(checkpoint).glob("model*.safetensors")
    names = {name for file in files for name in sorted(safe_open(file, "pt").keys())}
    return len(names - model.state_dict().keys()), len(names)
