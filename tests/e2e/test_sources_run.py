"""The commands of the page of sources, as written: every folder and model that they name stands there, small.

A training gets what a CPU needs at the end of its line; the rest runs to the letter.
"""

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMMANDS = list(
    dict.fromkeys(re.findall(r"^\| .+? \| `([^`]+)` \| `[^`]+` \|$", (ROOT / "docs" / "sources.md").read_text(), re.M))
)
ELSEWHERE = {
    "uni-dpo eval": "the benchmarks have to be downloaded",
    "uni-dpo engine run": "the models have to have learnt a little; its twin for a CPU ends in _tiny.yaml",
    "uni-dpo engine rlaif-v": "the models have to have learnt a little",
    "bash scripts/run_data_engine.sh": "the models have to have learnt a little",
}
"""Commands that the test in their row runs, on what it prepares."""
CPU = (
    "use_cpu=true bf16=false flash_attn=auto deepspeed=null max_steps=1 per_device_train_batch_size=2 "
    "gradient_accumulation_steps=1 preprocessing_num_workers=1 plot_loss=false"
)
MORE = {
    "uni-dpo train": CPU,
    "uni-dpo train examples/uni_dpo/text.yaml": f"{CPU} template=qwen",
    "uni-dpo train examples/uni_dpo/math.yaml": f"{CPU} output_dir=out/math",
    "uni-dpo train examples/vision_alignment/sft.yaml": f"{CPU} output_dir=out/sft",
    "uni-dpo train examples/text_dpo/qlora.yaml": "use_cpu=true max_steps=1 output_dir=out/qlora",
    "uni-dpo ppo": "bf16=false steps=1 rollout_batch_size=4 mini_batch_size=2 micro_batch_size=2 max_tokens=4",
    "uni-dpo trl-dpo": "--use_cpu true --bf16 false --max_steps 1 --report_to none --per_device_train_batch_size 2",
    "uni-dpo predict": "--max-tokens 4",
    "uni-dpo compare": "--max-tokens 4",
    "uni-dpo chat": "--max-tokens 4",
    "bash examples": "--max_steps 1 --use_cpu true --plot_loss false",
}
"""What a line gets at its end: the settings of a CPU, and another place for what stands under its own already."""
NIGHTLY = (
    "uni-dpo train examples/vision_alignment/dpo.yaml",
    "uni-dpo train examples/vision_alignment/sft.yaml",
    "uni-dpo train examples/uni_dpo/text.yaml",
    "uni-dpo train examples/text_dpo/qlora.yaml",
    "bash examples/uni_dpo/Qwen2_vl_2B_",
    "uni-dpo predict questions.jsonl answers.jsonl --model saves/vision_alignment",
    "uni-dpo predict textvqa.jsonl",
    "uni-dpo chat saves/vqa_rad",
)
"""Lines that differ from others in their settings alone."""
ENVIRONMENT = {"GPU_LIST": "", "BF16": "false", "FLASH_ATTN": "auto", "GLOBAL_BATCH_SIZE": "2"}
ENVIRONMENT |= {"PREPROCESSING_NUM_WORKERS": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
"""What the published scripts take from the environment on a CPU."""


def write(path: Path, rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows), encoding="utf-8")


def module(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"of_sources_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, list[Any]]) -> Iterator[Path]:
    """A folder where all that the page names is there, at a small size."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("examples", "scripts", "src", "VLMEvalKit"):
        (folder / name).symlink_to(ROOT / name)
    write_models(folder)
    write_pairs(folder, digits["preference"][:8])
    write_tables(folder, digits["preference"][:4])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def write_models(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl, write_tiny_text_model

    seeing = write_tiny_qwen2_vl(folder / "Qwen" / "Qwen2-VL-2B-Instruct")
    for name in ("Qwen/Qwen2-VL-2B", "models/aligned", "saves/sft", "saves/vqa_rad"):
        shutil.copytree(seeing, folder / name)
    for name in ("sft", "uni_dpo"):
        shutil.copytree(seeing, folder / "saves" / "vision_alignment" / name)
    writing = write_tiny_text_model(folder / "Qwen" / "Qwen2.5-7B-Instruct", "writer")
    for name in ("princeton-nlp/Llama-3-Base-8B-SFT", "Qwen/Qwen2.5-Math-7B", "saves/math/uni_dpo"):
        shutil.copytree(writing, folder / name)
    adapter = get_peft_model(
        AutoModelForCausalLM.from_pretrained(writing), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    adapter.save_pretrained(folder / "saves" / "text_dpo")
    parts = module(ROOT / "tests" / "models" / "test_compose.py")
    for made, name in (
        (parts.write_vision(folder / "vision", "clip"), "openai/clip-vit-large-patch14-336"),
        (parts.write_language(folder / "language", "llama"), "meta-llama/Llama-3.2-3B-Instruct"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(made, folder / name)


def write_pairs(folder: Path, taken: list[Any]) -> None:
    """The data of the recipes, under the names that they give."""
    asked = "Which digit is written here?"
    pairs, talks, tests = [], [], []
    for digit in taken:
        image = {"images": [str(digit.image)]}
        scores = {"score_chosen": 4.0, "score_rejected": 1.0}
        pairs.append(
            {"instruction": f"<image>{asked}", "chosen": digit.answer, "rejected": "No idea.", **scores, **image}
        )
        said = [{"from": "human", "value": f"<image>{asked}"}, {"from": "gpt", "value": digit.answer}]
        talks.append({"conversations": said, **image})
        tests.append({"id": digit.image.stem, "question": asked, "answer": digit.answer, **image})
    published = folder / "data" / "uni_dpo"
    write(published / "uni_dpo_image_only_mcq_short_long_50k.json", pairs)
    shutil.copy(ROOT / "data" / "uni_dpo" / "dataset_info.json", published)
    aligned = folder / "data" / "vision_alignment"
    for name, rows in (("captions", talks), ("sft", talks), ("ranked", pairs), ("scored", pairs)):
        write(aligned / f"{name}.json", rows)
    write(aligned / "prompts.jsonl", tests)
    shutil.copy(ROOT / "examples" / "vision_alignment" / "dataset_info.json", aligned)
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    texts = [{"instruction": f"{n} + 1?", "chosen": str(n + 1), "rejected": "?", **scores} for n in range(8)]
    for place, name in (("text", "ultrafeedback"), ("math", "math"), ("outputs/text_dpo", "stances")):
        where = folder / (place if "/" in place else f"data/{place}")
        write(where / f"{name}.json", texts)
        write(where / "dataset_info.json", {name: {"file_name": f"{name}.json", "ranking": True, "columns": columns}})


def write_tables(folder: Path, taken: list[Any]) -> None:
    """What is converted, asked and shown."""
    import datasets

    asked = "Which digit is written here?"
    (folder / "MM-RLHF").mkdir()
    for name in ("photo.jpg", "scan.png", "MM-RLHF/1.png"):
        shutil.copy(taken[0].image, folder / name)
    old = {"instruction": "<image>?", "chosen": "a", "rejected": "b", "images": ["/old/MM-RLHF/1.png"]}
    write(folder / "pairs.json", [old])
    prompt = "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n"
    scores = {"score_chosen": 9.0, "score_rejected": 1.0}
    write(folder / "Train_Qwen_2_5_math_7B.jsonl", [{"prompt": prompt, "chosen": "2", "rejected": "3", **scores}])
    write(folder / "questions.jsonl", [{"question": "1 + 1?", "answer": "2"}])
    ten = [{"question_id": 1, "question": asked, "image": str(taken[0].image), "answers": ["one"] * 10}]
    write(folder / "textvqa.jsonl", ten)
    three = {"question": asked, "chosen": "a", "rejected": "b"}
    for name, texts in (("RLAIF-V-Dataset", three), ("RLHF-V-Dataset", {"text": json.dumps(three)})):
        write(folder / name / "train.jsonl", [{"image": str(taken[0].image), "idx": 0, **texts}])
    talk = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": "one"}]
    write(folder / "sft.json", [{"id": "1", "image": str(taken[0].image), "conversations": talk}])
    for name in ("stances.json", "test_prompts.json"):
        shutil.copy(ROOT / "examples" / "text_dpo" / name, folder / name)
    split = datasets.Dataset.from_dict(
        {"image": [str(digit.image) for digit in taken], "question": [asked] * 4, "answer": ["one"] * 4}
    ).cast_column("image", datasets.Image())
    datasets.DatasetDict(train=split, test=split).save_to_disk(folder / "flaviagiammarino" / "vqa-rad")
    (folder / "rejected.csv").write_text("rejected\n" + "two\n" * 8)


def test_a_reason_is_given_only_for_commands_of_the_page() -> None:
    assert all(any(command.startswith(start) for command in COMMANDS) for start in (*ELSEWHERE, *MORE, *NIGHTLY))
    assert sum(command.startswith(tuple(ELSEWHERE)) for command in COMMANDS) < len(COMMANDS) / 3


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(line, marks=[pytest.mark.nightly] if line.startswith(NIGHTLY) else [])
        for line in COMMANDS
        if not line.startswith(tuple(ELSEWHERE))
    ],
)
def test_the_command_of_a_row_runs(command: str, work: Path) -> None:
    line = command.replace("/data/MM-RLHF", str(work / "MM-RLHF"))
    if "/path/to/LlamaFactory" in line:
        upstream = ROOT / ".upstream" / "llamafactory-0.9.5"
        if not upstream.is_dir() and not os.environ.get("UNI_DPO_REQUIRE_UPSTREAM"):
            pytest.skip("LlamaFactory's source is missing: `make upstream` fetches it")
        shutil.copytree(upstream, work / "LlamaFactory")
        line = line.replace("/path/to/LlamaFactory", str(work / "LlamaFactory"))
    if "qlora" in line:
        pytest.importorskip("bitsandbytes", minversion="0.50", reason="QLoRA needs it")
    words = [*shlex.split(line), *shlex.split(more(command))]
    program = {"uni-dpo": str(BIN / "uni-dpo"), "python": sys.executable}.get(words[0], words[0])
    done = subprocess.run(
        [program, *words[1:]],
        cwd=work,
        env={**os.environ, **ENVIRONMENT, "DEEPSPEED": "", "PATH": f"{BIN}:{os.environ['PATH']}"},
        input="Hello.\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def more(command: str) -> str:
    """What a CPU needs at the end of a line: the words for the longest beginning that is known."""
    return MORE[max(known, key=len)] if (known := [start for start in MORE if command.startswith(start)]) else ""
