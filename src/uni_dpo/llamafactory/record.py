"""What was trained on what, for the page of a run."""

from typing import Any

from uni_dpo.monitor.record import changed_settings, device_words, versions


def run_record(model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any) -> dict[str, Any]:
    """Describe a run by LlamaFactory's four groups of arguments.

    Returns:
        `changed` (settings that differ from their defaults), `evidence` (see `Evidence.settings`), `versions`,
        `device`, `model`, `datasets`, `library`.
    """
    return {
        "library": "llama-factory",
        "model": model_args.model_name_or_path,
        "datasets": {"train": data_args.dataset or [], "eval": data_args.eval_dataset or []},
        "changed": changed_settings(finetuning_args, training_args, data_args, model_args),
        "evidence": _evidence(finetuning_args, training_args),
        "versions": versions(),
        "device": device_words(training_args),
    }


def _evidence(finetuning_args: Any, training_args: Any) -> dict[str, Any]:
    found = {
        "pref_loss": finetuning_args.pref_loss,
        "beta": finetuning_args.pref_beta,
        "learning_rate": training_args.learning_rate,
        "averaged": finetuning_args.averages_logps,
        "has_reference": finetuning_args.use_ref_model,
    }
    if finetuning_args.uses_uni_dpo:
        objective = finetuning_args.uni_dpo_config()
        found |= {name: getattr(objective, name) for name in ("eta", "tau_ref", "gamma", "nll_lambda", "tau_good")}
    return found
