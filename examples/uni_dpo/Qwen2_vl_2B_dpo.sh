#!/usr/bin/env bash
# Plain DPO on Qwen2-VL-2B, on the same pairs, to compare Uni-DPO with. Settings come from the environment as
# in Qwen2_VL_2B_uni_dpo.sh; DRY_RUN=1 prints the command and runs nothing.
set -euo pipefail

: "${MODEL_PATH:=Qwen/Qwen2-VL-2B}" # a folder or a hub name
: "${OUTPUT_DIR:=saves/qwen2_vl_2b/dpo}"
: "${DATASET:=uni_dpo_image_only_mcq_short_long_50k}"
: "${GPU_LIST=0,1,2,3}" # GPU_LIST= (empty) trains on the CPU
: "${PER_GPU_BATCH_SIZE:=1}"

: "${LR:=5.0e-7}"
: "${PREF_BETA:=0.1}"
: "${DPO_LABEL_SMOOTHING:=0.1}"
: "${DPO_AVERAGE_LOG_PROB:=true}" # as published; textbook DPO sums: false

loss_arguments=(
    --pref_loss sigmoid
    --dpo_average_log_prob "$DPO_AVERAGE_LOG_PROB"
    --dpo_label_smoothing "$DPO_LABEL_SMOOTHING"
)
# The settings that all recipes share (batch 128, epochs, precision, DeepSpeed …) are at the top of launch.sh.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
