#!/bin/bash
# RLAIF-V's data engine by its published arguments; a setting from the environment or after the script's name.
#   WORK_DIR=outputs/pairs DATASET_PATH=data/questions.jsonl PIPELINE_NAME=dpo_reward INSTRUCT_MODEL_PATH=models/sampler \
#   REWARD_MODEL_PATH=models/aligned,models/reference bash scripts/run_data_engine.sh [--sample_k 10 …]
set -euo pipefail
needed() { [ -n "${!1:-}" ] || { echo "error: $1 is not set: $2" >&2; exit 1; }; }
needed WORK_DIR "the folder of the run"
needed DATASET_PATH "a file or folder of questions with images"
needed PIPELINE_NAME "divide_and_conquer or dpo_reward"
needed INSTRUCT_MODEL_PATH "the model that answers"
needed REWARD_MODEL_PATH "splitter,asker,checker; for dpo_reward aligned,reference"
exec uni-dpo engine rlaif-v --work_dir "$WORK_DIR" --dataset_path "$DATASET_PATH" --pipeline_name "$PIPELINE_NAME" \
    --instruct_model_path "$INSTRUCT_MODEL_PATH" --reward_model_path "$REWARD_MODEL_PATH" \
    --run_stage "${RUN_STAGE:--1}" --continue_from_stage "${CONTINUE_FROM_STAGE:-0}" "$@"
