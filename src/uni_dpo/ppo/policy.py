"""The policy with its value head, the reference beside it, what is put into them, and one step's experience."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from uni_dpo.data.questions import Question
from uni_dpo.logprobs import IGNORE_INDEX, ResponseTokens, response_logps
from uni_dpo.models.prompt import open_image
from uni_dpo.online.policy import adapter, freeze_vision_tower, load_model, media_tokens, prompt_text
from uni_dpo.ppo.config import PPOConfig
from uni_dpo.shared_prefix.families import logit_cap, unwrapped
from uni_dpo.shared_prefix.forward import projection
from uni_dpo.shared_prefix.media import media_dim
from uni_dpo.shared_prefix.rows import share_rows, shares_rows

Inputs = dict[str, Tensor]


class Policy(nn.Module):
    """A vision-language model that answers, with a value per answer token from a head on its last hidden states."""

    def __init__(self, model: Any, *, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        head = unwrapped(model).get_output_embeddings()
        # From zero: the first advantages are the rewards, not the noise of a random critic.
        self.value_head = nn.Linear(head.in_features, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, inputs: Inputs, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return log-probability and value of every answer token; see `Batch` for the arguments.

        Returns:
            (B, T) log-probabilities at the sampling temperature, 0 on padding; (B, T) values before each token.
        """
        logps, hidden = answer_logps(self.model, inputs, labels, self.temperature)
        values = self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1).float()
        return logps, values


def answer_logps(model: Any, inputs: Inputs, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Score the last T tokens of each sequence; answers to one prompt share its run.

    Args:
        inputs: of the model: left-padded prompts, right-padded answers.
        labels: (B, T + 1), the answers' tokens after one ignored column; padding ignored.
        temperature: divides the logits, as in sampling.

    Returns:
        (B, T) log-probabilities, 0 on padding, and (B, T, D) the hidden states that predict the tokens.
    """
    language = unwrapped(model)
    answers = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    answers[:, -labels.shape[1] :] = labels != IGNORE_INDEX
    shared = share_rows(model, inputs, answers)
    if shared is None:
        states = language.base_model(**inputs, use_cache=False).last_hidden_state
    else:
        states = shared.rows(language.base_model(**shared.inputs, use_cache=False).last_hidden_state)
    hidden = states[:, -labels.shape[1] :]
    tokens = ResponseTokens.from_labels(labels)
    head = language.get_output_embeddings()
    if logit_cap(language) is None:
        scored = response_logps(hidden / temperature, head, tokens)
    else:  # the cap comes before the temperature
        project = projection(language)
        scored = response_logps(hidden, head, tokens, project=lambda states: project(states) / temperature)
    return tokens.table(scored, labels.shape[1] - 1), hidden[:, :-1]


class Reference:
    """The policy as it was at the start: a frozen copy, or the policy with its adapter switched off."""

    def __init__(self, model: Any, *, lora: bool) -> None:
        self._copy = None if lora else copy.deepcopy(model).eval().requires_grad_(False)

    @contextmanager
    def of(self, model: Any) -> Iterator[Any]:
        """Give the reference model, where `model` is the policy's."""
        if self._copy is not None:
            yield self._copy
        else:
            with model.disable_adapter():
                yield model

    def to(self, device: torch.device) -> None:
        """Move the copy, where there is one."""
        if self._copy is not None:
            self._copy.to(device)


def load_policy(config: PPOConfig) -> tuple[Policy, Reference, Any]:
    """Policy, reference and processor of `config.model`.

    Raises:
        UniDPOError: the checkpoint cannot be loaded.
    """
    model, processor = load_model(config)
    shares_rows(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    reference = Reference(model, lora=config.finetuning == "lora")
    if config.finetuning == "lora":
        from peft import get_peft_model

        model = get_peft_model(model, adapter(config))
    elif config.freeze_vision_tower:
        freeze_vision_tower(model)
    return Policy(model, temperature=config.temperature), reference, processor


def encode(question: Question, processor: Any) -> Inputs:
    """Return a question as the model's inputs, a batch of one that ends where the answer begins.

    Raises:
        UniDPOError: the chat template drops the question, or an image cannot be read.
    """
    text = prompt_text(question, processor)
    images = [open_image(path) for path in question.images]
    return dict(processor(text=[text], **({"images": images} if images else {}), return_tensors="pt"))


def collate(prompts: Sequence[Inputs], answers: Sequence[Sequence[int]], pad: int) -> tuple[Inputs, Tensor]:
    """Left-padded prompts with right-padded answers, and the labels that score the answers.

    What has a column per token is padded; the rest (pixels, grids) is put end to end.

    Args:
        prompts: one per row, each a batch of one.
        answers: token ids, one list per row; empty lists for prompts alone.
        pad: the padding token.
    """
    before = max(prompt["input_ids"].shape[1] for prompt in prompts)
    after = max(map(len, answers))
    inputs: Inputs = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt):
        having = [prompt for prompt in prompts if name in prompt]  # a question without images has no pixels
        example = having[0][name]
        if example.shape != having[0]["input_ids"].shape:
            inputs[name] = _end_to_end([prompt[name] for prompt in having], media_dim(name, having[0]))
            continue
        table = example.new_full((len(prompts), before + after), pad if name == "input_ids" else 0)
        for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            table[row, before - prompt[name].shape[1] : before] = prompt[name][0]
            if name == "input_ids":
                table[row, before : before + len(answer)] = torch.tensor(answer, dtype=table.dtype)
            elif name == "attention_mask":
                table[row, before : before + len(answer)] = 1
        inputs[name] = table
    labels = torch.full((len(prompts), after + 1), IGNORE_INDEX)
    for row, answer in enumerate(answers):
        labels[row, 1 : 1 + len(answer)] = torch.tensor(answer)
    return inputs, labels


def _end_to_end(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Pixels of several prompts, those of fewer tiles (LLaVA-NeXT, LLaVA-OneVision) filled with zeros to the most."""
    if parts[0].ndim == 5:
        most = max(part.shape[1] for part in parts)
        parts = [torch.nn.functional.pad(part, (*[0] * 7, most - part.shape[1])) for part in parts]
    return torch.cat(list(parts), dim)


@dataclass(frozen=True)
class Rollout:
    """Answers and what they earned; tables are (B, T), a column per answer token, 0 on padding.

    Attributes:
        prompts: one batch of one per answer.
        answers: token ids, the end of turn included where the policy came to it.
        scores: (B,) the reward of each answer.
        logps: of the policy that sampled the answers: the old ones of every epoch.
        reference_logps: of the reference.
        mask: 1 on answer tokens.
        advantages: whitened over all tokens of all processes.
        returns: what the values should have been.
        values: what they were.
    """

    prompts: list[Inputs]
    answers: list[list[int]]
    scores: Tensor
    logps: Tensor
    reference_logps: Tensor
    mask: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def sampling_config(model: Any, tokenizer: Any, *, max_tokens: int, temperature: float) -> GenerationConfig:
    """Plain sampling at a temperature; see also `plain_sampling`."""
    own = model.generation_config
    return GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        suppress_tokens=media_tokens(model) or None,
        max_new_tokens=max_tokens,
        eos_token_id=own.eos_token_id or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=own.bos_token_id,
    )


def up_to_the_end(tokens: Sequence[int], ends: set[int]) -> list[int]:
    """Return the tokens of one answer with its first end of turn, without what follows it."""
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return list(tokens[: end + 1])


def ends_of(config: GenerationConfig) -> set[int]:
    """Return the tokens that end an answer."""
    ends = config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends])


def stack(tables: Sequence[Tensor]) -> Tensor:
    """Tables of different widths under one another, 0 where a row has no column."""
    width = max(table.shape[1] for table in tables)
    return torch.cat([torch.nn.functional.pad(table, (0, width - table.shape[1])) for table in tables])
