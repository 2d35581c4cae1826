"""What every trainer here adds to transformers' own: resuming by published names, ending together."""

from typing import Any

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


class ResumesByPublishedNames(Trainer):
    """A trainer whose fully tuned vision-language models can go on from their checkpoints."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Resume a fully tuned model by the names under which its checkpoint was saved.

        Transformers 5 saves a vision-language model under its published names, but resumes by the names of its
        modules and skips those it does not know: the run would start again from the base.
        """
        whole = self.accelerator.unwrap_model(model if model is not None else self.model)
        if self.is_deepspeed_enabled or self.is_fsdp_enabled or not isinstance(whole, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(whole).from_pretrained(resume_from_checkpoint, config=whole.config, dtype=whole.dtype)
        whole.load_state_dict(saved.state_dict())
