"""The published command line of RLAIF-V's data engine becomes a configuration of ours."""

import pytest

from uni_dpo.engine.config import EngineConfig
from uni_dpo.engine.rlaif_v import RlaifVArguments, configuration
from uni_dpo.errors import UniDPOError


def arguments(**changed):
    given = {
        "dataset_path": "questions.jsonl",
        "pipeline_name": "divide_and_conquer_pipeline",
        "instruct_model_path": "models/llava",
        "reward_model_path": "models/split, models/ask,models/check",
    }
    return RlaifVArguments(**{**given, **changed})


def test_divide_and_conquer_names_its_three_models_in_the_published_order():
    config = configuration(arguments(sample_k=4))
    models = {role: entry["model"] for role, entry in config["models"].items()}
    assert models == {
        "sampler": "models/llava",
        "splitter": "models/split",
        "asker": "models/ask",
        "checker": "models/check",
    }
    assert config["sample"]["n"] == 4
    assert config["reward"]["split_prompt"] == "split_rlaif_v"
    EngineConfig(config)


@pytest.mark.parametrize(("strict", "choose"), [(True, "ranked"), (False, "published")])
def test_dpo_reward_takes_rank_distance_and_the_rule_of_pairing(strict, choose):
    config = configuration(
        arguments(pipeline_name="dpo_reward", reward_model_path="a,b", rank=2, distance=7, strict_follow_rank=strict)
    )
    assert config["pairs"] == {"choose": choose, "rank": 2, "max_word_difference": 7}
    assert [config["models"][role]["model"] for role in ("aligned", "reference")] == ["a", "b"]
    EngineConfig(config)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"pipeline_name": "dpo_rewards"}, "--pipeline_name dpo_rewards: there is no such pipeline"),
        ({"reward_model_path": "a,b"}, "needs 3 models, joined by commas: splitter,asker,checker; not 2"),
        ({"reward_model_path": "a,,b"}, "needs 3 models"),
        ({"pipeline_name": "dpo_reward"}, "needs 2 models, joined by commas: aligned,reference; not 3"),
    ],
)
def test_what_does_not_fit_is_one_line(changed, said):
    with pytest.raises(UniDPOError) as error:
        configuration(arguments(**changed))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_arguments_without_a_meaning_here_say_what_to_use():
    assert arguments().without_effect() == []
    lines = arguments(
        instruct_model_name="llava-1.5-7b", reward_model_name="omni", reward_model_python_path="/usr/bin/python"
    ).without_effect()
    assert [line.split(":")[0] for line in lines] == [
        "--instruct_model_name",
        "--reward_model_name",
        "--reward_model_python_path",
    ]
    assert "base_url" in lines[-1]
