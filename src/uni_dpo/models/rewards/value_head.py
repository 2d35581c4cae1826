"""Reward models that LlamaFactory trained (`stage: rm`), fed as its training fed them."""

from collections.abc import Sequence
from typing import Any

import torch
from llamafactory.data import MultiModalDataCollatorForSeq2Seq, get_template_and_fix_tokenizer
from llamafactory.hparams import get_infer_args
from llamafactory.model import load_model, load_tokenizer, patcher
from llamafactory.model.model_utils import valuehead

from uni_dpo.errors import UniDPOError
from uni_dpo.models.loading import all_weights, one_line
from uni_dpo.models.rewards.options import VALUE_HEAD_WEIGHTS, Conversation, RewardCheckpoint, RewardModelOptions
from uni_dpo.models.rewards.questions import shared_states

_upstream_prepare_valuehead_model = valuehead.prepare_valuehead_model


def prepare_valuehead_model(model: Any) -> None:
    """Give a reward model its output head under the name that TRL looks for; a LLaVA of today has it there already.

    LlamaFactory looks for it inside the language model, where transformers kept it until 4.51.
    """
    if model.config.model_type == "llava" and hasattr(model, "lm_head"):
        return
    _upstream_prepare_valuehead_model(model)


class ValueHeadModel:
    """See `RewardModel`. The rating is the value head's output at the conversation's last token.

    Answers of one batch to one question run it, and its images, once.
    """

    def __init__(self, checkpoint: RewardCheckpoint, options: RewardModelOptions) -> None:
        arguments: dict[str, Any] = {
            "stage": "rm",
            "model_name_or_path": checkpoint.base,
            "template": checkpoint.template,
            "infer_dtype": options.dtype,
            "image_max_pixels": options.image_max_pixels,
            "image_min_pixels": options.image_min_pixels,
            "trust_remote_code": options.trust_remote_code,
        }
        if checkpoint.adapter is not None:
            arguments["adapter_name_or_path"] = str(checkpoint.adapter)
        patcher.prepare_valuehead_model = prepare_valuehead_model
        with one_line(options.model):
            model_args, data_args, finetuning_args, _ = get_infer_args(arguments)
            parts = load_tokenizer(model_args)
            self.tokenizer, self.processor = parts["tokenizer"], parts["processor"]
            self.template = get_template_and_fix_tokenizer(self.tokenizer, data_args)
            head = valuehead.load_valuehead_params(str(options.model), model_args)
            if head is None:
                raise UniDPOError(f"{options.model}: its value head is damaged or missing; copy it again")
            with all_weights():
                self.model = load_model(
                    self.tokenizer, model_args, finetuning_args, is_trainable=False, add_valuehead=True
                )
        _check_head(options, self.model.state_dict(), head)
        self.collate = MultiModalDataCollatorForSeq2Seq(
            template=self.template, model=self.model, pad_to_multiple_of=8, **parts
        )

    @torch.inference_mode()
    def rate(self, conversations: Sequence[Conversation]) -> list[float]:
        """See `RewardModel.rate`."""
        batch = self.collate([self._features(conversation) for conversation in conversations])
        batch.pop("labels")
        device = next(self.model.parameters()).device
        inputs = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
        states = shared_states(self.model.pretrained_model, inputs, [each.question() for each in conversations])
        if states is None:
            _, _, values = self.model(**inputs, output_hidden_states=True, return_dict=True, use_cache=False)
        else:
            values = self.model.v_head(states).squeeze(-1)
        last = inputs["attention_mask"].sum(-1, keepdim=True) - 1
        ratings: list[float] = values.gather(-1, last).squeeze(-1).float().tolist()
        return ratings

    def _features(self, conversation: Conversation) -> dict[str, Any]:
        images = list(conversation.images)
        videos = [video if isinstance(video, str) else list(video) for video in conversation.videos]
        shown: tuple[list[Any], ...] = (images, videos, [])
        messages = self.template.mm_plugin.process_messages(conversation.messages(), *shown, self.processor)
        prompt, answer = self.template.encode_oneturn(self.tokenizer, messages, conversation.system or None, None)
        if self.template.efficient_eos:
            answer = [*answer, self.tokenizer.eos_token_id]
        prompt, _ = self.template.mm_plugin.process_token_ids(prompt, None, *shown, self.tokenizer, self.processor)
        tokens = [*prompt, *answer]
        return {
            "input_ids": tokens,
            "attention_mask": [1] * len(tokens),
            "labels": tokens,
            "images": images,
            "videos": videos,
            "audios": [],
        }


def _check_head(options: RewardModelOptions, loaded: dict[str, Any], head: dict[str, Any]) -> None:
    """See that the model rates with the head of the file: weights of other names or shapes are passed over."""
    for name in VALUE_HEAD_WEIGHTS:
        own = loaded.get(name)
        if name not in head or own is None or not torch.equal(own.cpu(), head[name].to(own.dtype).cpu()):
            raise UniDPOError(f"{options.model}: its value head ({name}) does not fit the model")
