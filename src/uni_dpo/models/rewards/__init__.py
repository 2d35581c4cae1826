"""Models that say how good an answer is, as a whole or step by step; nothing heavy is imported before one is loaded."""

from typing import TYPE_CHECKING

from uni_dpo.models.rewards.options import (
    ProcessModelOptions,
    RewardModel,
    RewardModelOptions,
    find_process_loader,
    find_reward_checkpoint,
)

if TYPE_CHECKING:
    from uni_dpo.models.rewards.classifiers import StepClassifier


def load_reward_model(options: RewardModelOptions) -> RewardModel:
    """Load the reward model in `options.model`.

    Raises:
        UniDPOError: there is none, or it cannot be loaded with all its weights.
    """
    checkpoint = find_reward_checkpoint(options)
    if checkpoint.kind == "value_head":
        from uni_dpo.models.rewards.value_head import ValueHeadModel

        return ValueHeadModel(checkpoint, options)
    from uni_dpo.models.rewards.classifiers import SequenceClassifier

    return SequenceClassifier(checkpoint, options)


def load_process_model(options: ProcessModelOptions) -> "StepClassifier":
    """Load the process reward model in `options.model`.

    Raises:
        UniDPOError: there is none, or it cannot be loaded with all its weights.
    """
    loader = find_process_loader(options)
    from uni_dpo.models.rewards.classifiers import StepClassifier

    return StepClassifier(loader, options)
