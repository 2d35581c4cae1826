"""Going on with a fully tuned model from its checkpoint."""

from typing import Any

from transformers import PreTrainedModel, Trainer


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
