#!/usr/bin/env bash
# SimPO on Qwen2-VL-2B, on the same pairs, to compare Uni-DPO with. Settings come from the environment as in
# Qwen2_VL_2B_uni_dpo.sh; DRY_RUN=1 prints the command and runs nothing.
set -euo pipefail

: "${MODEL_PATH:=Qwen/Qwen2-VL-2B}" # a folder or a hub name
: "${OUTPUT_DIR:=saves/qwen2_vl_2b/simpo}"
: "${DATASET:=uni_dpo_image_only_mcq_short_long_50k}"
: "${GPU_LIST=0,1,2,3}" # GPU_LIST= (empty) trains on the CPU
: "${PER_GPU_BATCH_SIZE:=1}"

: "${LR:=5.0e-7}"
: "${PREF_BETA:=2.0}"
: "${SIMPO_GAMMA:=1.0}"

loss_arguments=(
    --pref_loss simpo
    --simpo_gamma "$SIMPO_GAMMA"
)
# The settings that all recipes share (batch 128, epochs, precision, DeepSpeed …) are at the top of launch.sh.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
