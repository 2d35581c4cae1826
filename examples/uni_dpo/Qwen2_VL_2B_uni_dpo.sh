#!/usr/bin/env bash
# Uni-DPO on Qwen2-VL-2B, as published. Run it from a clone of this project or from an overlaid LlamaFactory
# checkout; arguments given to the script go to LlamaFactory, and every setting is taken from the environment:
#   MODEL_PATH=/models/Qwen2-VL-2B GPU_LIST=0,1 bash examples/uni_dpo/Qwen2_VL_2B_uni_dpo.sh --max_steps 10
# DRY_RUN=1 prints the command and runs nothing.
set -euo pipefail

: "${MODEL_PATH:=Qwen/Qwen2-VL-2B}" # a folder or a hub name
: "${OUTPUT_DIR:=saves/qwen2_vl_2b/uni_dpo}"
: "${DATASET:=uni_dpo_image_only_mcq_short_long_50k}"
: "${GPU_LIST=0,1,2,3}" # GPU_LIST= (empty) trains on the CPU
: "${PER_GPU_BATCH_SIZE:=1}"

: "${LR:=6.0e-6}"
: "${PREF_BETA:=2.0}"
: "${UNI_DPO_QUAL_ETA:=0.7}"
: "${UNI_DPO_TAU_REF:=2.0}"
: "${UNI_DPO_PERF_GAMMA:=3.0}"
: "${UNI_DPO_NLL_LAMBDA:=0.001}"
: "${UNI_DPO_TAU_GOOD:=2.5}"
: "${DPO_AVERAGE_LOG_PROB:=true}"

loss_arguments=(
    --pref_loss uni_dpo
    --dpo_average_log_prob "$DPO_AVERAGE_LOG_PROB"
    --uni_dpo_qual_eta "$UNI_DPO_QUAL_ETA"
    --uni_dpo_tau_ref "$UNI_DPO_TAU_REF"
    --uni_dpo_perf_gamma "$UNI_DPO_PERF_GAMMA"
    --uni_dpo_nll_lambda "$UNI_DPO_NLL_LAMBDA"
    --uni_dpo_tau_good "$UNI_DPO_TAU_GOOD"
)
# The settings that all recipes share (batch 128, epochs, precision, DeepSpeed …) are at the top of launch.sh.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
