"""What a configuration may say, and what is refused before anything is started."""

from pathlib import Path

import pytest
import yaml

from uni_dpo.align.config import AlignConfig
from uni_dpo.errors import UniDPOError


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"modle": "x"}, r"modle: unknown setting; did you mean 'model'\?"),
        ({"rounds": 0}, "rounds: 0 is out of range"),
        ({"questions": "gone.jsonl"}, "there is no file gone.jsonl"),
        ({"validation": 1.5}, "validation: a file of questions, or a share between 0 and 1; not 1.5"),
        ({"validation": 0.5, "test": 0.6}, "leave no questions to learn from"),
        ({"engine": {"pipeline": "verifiable", "input": {}}}, "engine.input: it follows from `questions`"),
        ({"engine": {"pipeline": "verifiable", "sampel": {}}}, "engine.sampel: unknown setting"),
        ({"engine": {"pipeline": "judge"}}, r"engine.models.judge: the judge pipeline needs a model"),
        ({"train": {"dataset": "x"}}, "train.dataset: it follows from the stages before"),
        ({"train": {"learning_rat": 1}}, r"train.learning_rat: unknown setting; did you mean 'learning_rate'\?"),
        ({"warm_up": {"stage": "sft"}}, "warm_up.dataset: name the dataset"),
        ({"baselines": {"a b": {}}}, "baselines.a b: a name has letters"),
        ({"baselines": {"DPO": {"pref_los": "x"}}}, "DPO.pref_los: unknown setting"),
        ({"baselines": {"DPO": "sigmoid"}}, "baselines.DPO: a mapping of settings is expected, not 'sigmoid'"),
        ({"benchmarks": {"MME": "x"}}, "benchmarks.MME: a mapping of settings is expected, not 'x'"),
        ({"launcher": "srun"}, "has no {command}"),
        ({"launcher": {"trian": "srun {command}"}}, r"no stage is of this kind; did you mean 'train'\?"),
        ({"launcher": "srun '{command}"}, "cannot be split into words"),
        ({"evaluate": {"grader": "exakt"}}, "no grader is called 'exakt'"),
        ({"questions": {"path": "x", "per_round": "often"}}, "questions.per_round: one of repeated, new"),
    ],
)
def test_faults_are_named_by_their_key(settings, changed, message):
    with pytest.raises(UniDPOError, match=message):
        AlignConfig(settings(**changed))


def test_a_comparing_judge_scores_no_answer_by_itself(settings):
    judge = {"backend": "openai", "model": "m", "base_url": "http://localhost:1/v1"}
    engine = {"pipeline": "judge", "models": {"judge": judge}, "reward": {"method": "compare"}}
    with pytest.raises(UniDPOError, match="does not score one answer by itself"):
        AlignConfig(settings(engine=engine, evaluate={"by": "score"}))
    engine["reward"] = {"method": "grade"}
    assert AlignConfig(settings(engine=engine, evaluate={"by": "score"})).settings.evaluate.by == "score"


def test_settings_beside_the_file_take_the_place_of_its_own(settings, tmp_path):
    path = tmp_path / "align.yaml"
    path.write_text(yaml.safe_dump(settings()))
    config = AlignConfig.load(path, ["train.learning_rate=1e-5", "rounds=3", "engine.sample.n=2"])
    assert config.settings.train["learning_rate"] == 1e-5
    assert config.settings.rounds == 3
    assert config.settings.engine["sample"] == {"n": 2}


def test_models_are_put_in_for_their_names(settings):
    models = {"aligned": {"model": "{model}"}, "reference": {"model": "{base}"}, "sampler": {"batch_size": 4}}
    config = AlignConfig(settings(engine={"pipeline": "dpo_reward", "models": models}))
    filled = config.engine({"model": "now", "base": "first", "previous": "then"}, seed=7)
    assert filled["models"] == {
        "aligned": {"model": "now"},
        "reference": {"model": "first"},
        "sampler": {"model": "now", "batch_size": 4},
    }
    assert filled["seed"] == 7


def test_shares_and_parts_of_the_questions(settings):
    file = settings()["questions"]
    raw = settings(validation=0.2, test=0.2, rounds=2, questions={"path": file, "per_round": "new"})
    config = AlignConfig(raw)
    assert config.splits
    assert config.shares() == pytest.approx({"validation": 0.2, "test": 0.2, "training-1": 0.3, "training-2": 0.3})
    assert not AlignConfig(settings()).splits


def test_what_is_read_does_not_lie_where_the_stages_write(settings, tmp_path):
    place = tmp_path / "work" / "questions"
    place.mkdir(parents=True)
    file = place / "mine.jsonl"
    file.write_bytes(Path(settings()["questions"]).read_bytes())
    with pytest.raises(UniDPOError, match=r"questions.path: .*mine.jsonl lies in .*work/questions, which the stages"):
        AlignConfig(settings(questions=str(file)))
    beside = file.rename(tmp_path / "work" / "mine.jsonl")
    assert AlignConfig(settings(questions=str(beside))).questions.path == str(beside)
