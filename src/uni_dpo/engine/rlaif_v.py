"""The arguments of RLAIF-V's data engine (arXiv 2405.17220) as a configuration of ours."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError, did_you_mean

JUDGES = {"divide_and_conquer": ("splitter", "asker", "checker"), "dpo_reward": ("aligned", "reference")}
"""Pipeline → the roles of the models in `reward_model_path`, in that order."""


@dataclass(frozen=True)
class RlaifVArguments:
    """What the published command line takes; its names are kept.

    Attributes:
        dataset_path: questions with images: a file, or a folder that `datasets` saved.
        pipeline_name: `divide_and_conquer` or `dpo_reward`; a trailing `_pipeline` is dropped.
        instruct_model_path: the model that answers.
        reward_model_path: the models that judge, joined by commas. `divide_and_conquer`: the one that splits, the one
            that asks, the one that checks. `dpo_reward`: the aligned one and its reference.
        sample_k: answers per question.
        rank: `dpo_reward`: chosen is among the best `rank`, rejected among the worst.
        distance: `dpo_reward`: a pair's answers differ by fewer words than this.
        strict_follow_rank: `dpo_reward`: pair the best with the worst, the second best with the second worst, only.
        seed: of everything drawn.
        backend: that runs the models, `transformers` or `vllm`.
        instruct_model_name, reward_model_name, reward_model_python_path: of no effect; see `without_effect`.
    """

    dataset_path: str
    pipeline_name: str
    instruct_model_path: str
    reward_model_path: str
    sample_k: int = 10
    rank: int = 3
    distance: int = 25
    strict_follow_rank: bool = False
    seed: int = 0
    backend: str = "transformers"
    instruct_model_name: str | None = None
    reward_model_name: str | None = None
    reward_model_python_path: str | None = None

    def without_effect(self) -> list[str]:
        """Say of every argument that has no meaning here what to use instead, a line each."""
        lines = []
        for name in ("instruct_model_name", "reward_model_name"):
            if getattr(self, name):
                lines.append(f"--{name}: not needed; the checkpoint says what it is, and adapters name their base")
        if self.reward_model_python_path:
            lines.append(
                "--reward_model_python_path: of no effect; all models run in this interpreter. For a model that needs "
                "another one, start a server there and name it in the config: {backend: openai, base_url: …}"
            )
        return lines


def configuration(given: RlaifVArguments) -> dict[str, Any]:
    """Turn the published arguments into the configuration of `uni-dpo engine run`.

    Raises:
        UniDPOError: an unknown pipeline, or another number of judging models than it has roles.
    """
    pipeline = given.pipeline_name.removesuffix("_pipeline")
    if pipeline not in JUDGES:
        raise UniDPOError(
            f"--pipeline_name {given.pipeline_name}: there is no such pipeline{did_you_mean(pipeline, JUDGES)}; "
            f"it can be {' or '.join(JUDGES)}"
        )
    roles = JUDGES[pipeline]
    judges = [path.strip() for path in given.reward_model_path.split(",")]
    if len(judges) != len(roles) or not all(judges):
        raise UniDPOError(
            f"--reward_model_path: {pipeline} needs {len(roles)} models, joined by commas: {','.join(roles)}; "
            f"not {len([path for path in judges if path])}"
        )
    models = {"sampler": given.instruct_model_path, **dict(zip(roles, judges, strict=True))}
    if pipeline == "divide_and_conquer":
        reward: dict[str, Any] = {"score": "refuted", "split_prompt": "split_rlaif_v", "ask_prompt": "ask_rlaif_v"}
        pairs: dict[str, Any] = {"min_gap": 1.0, "max_pairs_per_question": 2, "length_balance": "published"}
    else:
        reward = {"beta": 0.1, "score": "sum"}
        choose = "ranked" if given.strict_follow_rank else "published"
        pairs = {"choose": choose, "rank": given.rank, "max_word_difference": given.distance}
    return {
        "pipeline": pipeline,
        "seed": given.seed,
        "input": {"path": str(Path(given.dataset_path))},
        "models": {role: {"backend": given.backend, "model": model} for role, model in models.items()},
        "sample": {"n": given.sample_k, "temperature": 0.7, "top_p": 0.95, "max_tokens": 512},
        "reward": reward,
        "pairs": pairs,
        "dataset": {"name": f"rlaif_v_{pipeline}"},
    }
