from pathlib import Path

import pytest

from uni_dpo.engine import run_engine
from uni_dpo.errors import UniDPOError

PLUGIN = str(Path(__file__).parent / "plugins" / "counting.py")


def config(model, **changes):
    return {
        "pipeline": "verifiable",
        "plugins": [PLUGIN],
        "models": {"sampler": model},
        "sample": {"n": 4, "max_tokens": 6},
        "reward": {"grader": "size"},
        "pairs": {"min_gap": 1.0},
        "batch_size": 3,
        **changes,
    }


@pytest.fixture(scope="module")
def ray_instance():
    import ray

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def rows(work):
    return sorted(line for line in (work / "0-sample.jsonl").read_text().splitlines() if '"commit"' not in line)


def test_rows_equal_those_of_one_process(tmp_path, questions, tiny_qwen2_vl, ray_instance):
    spec = config({"model": str(tiny_qwen2_vl)}, reward={"grader": "exact"})
    for engine in ("local", "ray"):
        run_engine({**spec, "engine": engine}, tmp_path / engine, questions=questions, run_stage=0)
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    assert len(rows(tmp_path / "ray")) == len(questions)


def test_a_killed_worker_loses_and_doubles_nothing(tmp_path, questions, ray_instance):
    log, died = tmp_path / "log", tmp_path / "died"
    model = {"backend": "counting", "log": str(log), "die_once": str(died)}
    result = run_engine(config(model, engine="ray"), tmp_path / "ray", questions=questions)
    assert died.exists()
    assert result.report["sample"]["usage"]["requests"] == len(questions)
    assert len(questions) < len(log.read_text().splitlines()) <= len(questions) + 3
    run_engine(config({"backend": "counting"}), tmp_path / "local", questions=questions)
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    one, other = ((tmp_path / w / "dataset" / "pairs.json").read_bytes() for w in ("ray", "local"))
    assert one == other


def test_a_fault_of_the_input_in_a_worker_is_one_plain_error(tmp_path, questions, ray_instance):
    with pytest.raises(UniDPOError, match="cannot be loaded; there is no such folder"):
        run_engine(config({"model": str(tmp_path / "gone")}, engine="ray"), tmp_path / "w", questions=questions)
