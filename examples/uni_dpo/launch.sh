# Sourced by the recipes beside it: makes one command of their settings, logs them, and runs it.

: "${GLOBAL_BATCH_SIZE:=128}"
: "${EPOCHS:=1}"
: "${LR_SCHEDULER_TYPE:=cosine}"
: "${WARMUP_STEPS:=0}"
: "${CUTOFF_LEN:=4096}"
: "${MAX_SAMPLES:=10000000}"
: "${PREPROCESSING_NUM_WORKERS:=16}"
: "${TEMPLATE:=qwen2_vl}"
: "${FINETUNING_TYPE:=full}"
: "${FREEZE_VISION_TOWER:=false}" # the published run trained all weights: its LlamaFactory's freezing had no effect
: "${FREEZE_MULTI_MODAL_PROJECTOR:=false}"
: "${BF16:=true}"
: "${FLASH_ATTN:=fa2}" # LlamaFactory falls back, with a warning, where flash-attention 2 is not installed
: "${LOGGING_STEPS:=1}"
: "${SAVE_STEPS:=1000}"
: "${SEED:=42}"
: "${REPORT_TO:=none}"
: "${OVERWRITE_OUTPUT_DIR:=false}" # false: resume from the last checkpoint in OUTPUT_DIR, if there is one

: "${NNODES:=1}"
: "${NODE_RANK:=0}"
: "${MASTER_ADDR:=127.0.0.1}"
: "${MASTER_PORT:=61000}"
: "${PYTHON:=python}" # of an overlaid checkout; this repository has its own
: "${DRY_RUN:=0}"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
: "${DEEPSPEED=$root/examples/uni_dpo/ds_z2.json}" # DEEPSPEED= (empty) does without
if [[ -z ${DATASET_DIR:-} ]]; then
    DATASET_DIR="$root/data/uni_dpo"
    [[ ! -e $DATASET_DIR/$DATASET.json && -e $root/data/$DATASET.json ]] && DATASET_DIR="$root/data"
fi

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

IFS=, read -ra gpus <<<"$GPU_LIST"
on_gpus=$((${#gpus[@]} > 0))
processes=$((on_gpus ? ${#gpus[@]} : 1))
for name in GLOBAL_BATCH_SIZE PER_GPU_BATCH_SIZE NNODES; do
    [[ ${!name} =~ ^[1-9][0-9]*$ ]] || fail "$name must be a whole number above 0, not '${!name}'"
done
pairs_at_once=$((PER_GPU_BATCH_SIZE * processes * NNODES))
((GLOBAL_BATCH_SIZE % pairs_at_once == 0)) || fail \
    "GLOBAL_BATCH_SIZE $GLOBAL_BATCH_SIZE cannot be split evenly: PER_GPU_BATCH_SIZE $PER_GPU_BATCH_SIZE" \
    "x $processes processes x NNODES $NNODES make $pairs_at_once pairs at once"
GRADIENT_ACCUMULATION_STEPS=$((GLOBAL_BATCH_SIZE / pairs_at_once))
[[ $OVERWRITE_OUTPUT_DIR == true || ! -e $OUTPUT_DIR/trainer_state.json ]] || fail \
    "$OUTPUT_DIR holds a finished training; set another OUTPUT_DIR, or OVERWRITE_OUTPUT_DIR=true"

arguments=(
    --stage dpo
    --do_train true
    --model_name_or_path "$MODEL_PATH"
    --finetuning_type "$FINETUNING_TYPE"
    --freeze_vision_tower "$FREEZE_VISION_TOWER"
    --freeze_multi_modal_projector "$FREEZE_MULTI_MODAL_PROJECTOR"
    --flash_attn "$FLASH_ATTN"
    --template "$TEMPLATE"
    --dataset_dir "$DATASET_DIR"
    --dataset "$DATASET"
    --cutoff_len "$CUTOFF_LEN"
    --max_samples "$MAX_SAMPLES"
    --preprocessing_num_workers "$PREPROCESSING_NUM_WORKERS"
    --overwrite_cache true
    --pref_beta "$PREF_BETA"
    "${loss_arguments[@]}"
    --learning_rate "$LR"
    --lr_scheduler_type "$LR_SCHEDULER_TYPE"
    --warmup_steps "$WARMUP_STEPS"
    --num_train_epochs "$EPOCHS"
    --per_device_train_batch_size "$PER_GPU_BATCH_SIZE"
    --gradient_accumulation_steps "$GRADIENT_ACCUMULATION_STEPS"
    --bf16 "$BF16"
    --seed "$SEED"
    --ddp_timeout 180000000
    --output_dir "$OUTPUT_DIR"
    --overwrite_output_dir "$OVERWRITE_OUTPUT_DIR"
    --logging_steps "$LOGGING_STEPS"
    --save_steps "$SAVE_STEPS"
    --plot_loss true
    --report_to "$REPORT_TO"
)
((on_gpus)) && [[ -n $DEEPSPEED ]] && arguments+=(--deepspeed "$DEEPSPEED")

command=(env CUDA_VISIBLE_DEVICES="$GPU_LIST")
if [[ -f $root/src/train.py ]]; then # an overlaid LlamaFactory checkout
    command+=("$PYTHON")
    ((on_gpus)) && command+=(
        -m torch.distributed.run --nnodes "$NNODES" --node_rank "$NODE_RANK" --nproc_per_node "$processes"
        --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT"
    )
    command+=("$root/src/train.py")
else
    uni_dpo="$(command -v uni-dpo || printf '%s' "$root/.venv/bin/uni-dpo")"
    [[ -x $uni_dpo ]] || fail "uni-dpo is not installed: run 'make setup' in $root, or pip install uni-dpo"
    command+=(
        FORCE_TORCHRUN="$on_gpus" NPROC_PER_NODE="$processes" NNODES="$NNODES" NODE_RANK="$NODE_RANK"
        MASTER_ADDR="$MASTER_ADDR" MASTER_PORT="$MASTER_PORT" "$uni_dpo" train
    )
fi
command+=("${arguments[@]}" "$@")

if [[ $DRY_RUN != 0 ]]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi

log="$OUTPUT_DIR/log/train.log"
mkdir -p "$(dirname "$log")"
{
    echo "started $(date '+%F %T %z') by $0"
    echo "GPUs: ${GPU_LIST:-none}, machines: $NNODES, global batch: $GLOBAL_BATCH_SIZE"
    printf '%s %s\n' "${arguments[@]}"
    printf '\ncommand: '
    printf '%q ' "${command[@]}"
    printf '\n\n'
} >>"$log"
echo "log: $log"
"${command[@]}" 2>&1 | tee -i -a "$log"
