"""What other tools call a setting: TRL, ms-swift, OpenRLHF and LLaVA's scripts, beside LlamaFactory."""

from collections.abc import Iterable

from uni_dpo.errors import did_you_mean

_SAME = (
    ("model_name_or_path", "model", "model_id", "model_id_or_path", "model_path", "base_model", "pretrain"),
    ("dataset", "dataset_name", "dataset_path", "data_path", "train_file", "train_dataset"),
    ("output_dir", "output", "output_path", "save_path"),
    ("stage", "rlhf_type"),
    ("finetuning_type", "train_type", "tuner_type", "sft_type", "use_peft", "use_lora", "lora_enable"),
    ("pref_loss", "loss_type", "dpo_loss_type"),
    ("pref_beta", "beta", "dpo_beta"),
    ("pref_ftx", "rpo_alpha", "sft_weight"),
    ("dpo_label_smoothing", "label_smoothing"),
    ("lora_rank", "lora_r"),
    ("lora_target", "target_modules", "lora_target_modules"),
    ("cutoff_len", "max_length", "max_seq_length", "model_max_length", "max_len", "max_prompt_length"),
    ("image_max_pixels", "max_pixels", "image_resolution"),
    ("image_min_pixels", "min_pixels"),
    ("flash_attn", "attn_impl", "attn_implementation"),
    ("bf16", "torch_dtype", "dtype"),
    ("quantization_bit", "quant_bits", "load_in_4bit", "load_in_8bit", "bits"),
    ("freeze_vision_tower", "freeze_vit"),
    ("freeze_multi_modal_projector", "freeze_aligner", "freeze_merger"),
    ("freeze_language_model", "freeze_llm"),
    ("num_train_epochs", "num_epochs", "max_epochs", "epochs"),
    ("learning_rate", "lr"),
    ("per_device_train_batch_size", "batch_size", "micro_batch_size", "micro_train_batch_size"),
    ("val_size", "split_dataset_ratio"),
    ("preprocessing_num_workers", "dataset_num_proc"),
    ("eval_strategy", "evaluation_strategy"),
    ("ref_model", "ref_model_name_or_path", "ref_pretrain"),
)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: what it is called here, or what is spelt like it."""
    names = set(known)
    meant = next((one for same in _SAME if name.lower() in same for one in same if one in names), None)
    return f"; here it is called {meant!r}" if meant else did_you_mean(name, names)
