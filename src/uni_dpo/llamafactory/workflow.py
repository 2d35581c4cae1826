"""The DPO run: look at the data first, then hand over to LlamaFactory, then draw our curves."""

import inspect
from functools import partial
from pathlib import Path
from typing import Any

from llamafactory.data import TEMPLATES
from llamafactory.data import get_dataset as _upstream_get_dataset
from llamafactory.extras import logging
from llamafactory.extras.misc import has_tokenized_data
from llamafactory.extras.ploting import plot_loss
from llamafactory.train.dpo import workflow
from llamafactory.train.trainer_utils import create_ref_model as _upstream_create_ref_model
from trl import DPOTrainer

from uni_dpo.data.checks.preflight import preflight
from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory.data import media_places
from uni_dpo.llamafactory.processor import media_token_ids
from uni_dpo.llamafactory.question_pairs import pairs_to_train
from uni_dpo.llamafactory.reference_cache import ReferenceCache, over_splits
from uni_dpo.llamafactory.reference_records import reference_identity, vision_identity
from uni_dpo.llamafactory.run_context import RunContext, current_run, run_record, running
from uni_dpo.monitor.ledger import write_run_card
from uni_dpo.shared_prefix.families import FLEX_ATTENTION
from uni_dpo.shared_prefix.image_store import ImageStore
from uni_dpo.trainer_mixins import refuse_broken_flash_attention
from uni_dpo.weighted_losses import METRICS

logger = logging.get_logger(f"llamafactory.{__name__}")  # below LlamaFactory's own, which shows what is INFO


def run_dpo(
    model_args: Any,
    data_args: Any,
    training_args: Any,
    finetuning_args: Any,
    callbacks: list[Any] | None = None,
) -> None:
    """Run LlamaFactory's DPO stage; with `pref_loss: uni_dpo`, on data whose scores and images were checked.

    Raises:
        UniDPOError: the data cannot be trained on, or not with these settings here; no model has been loaded by then.
    """
    if finetuning_args.pair_attention == FLEX_ATTENTION and training_args.device.type == "cpu":
        raise UniDPOError("pair_attention: flex_attention has no gradients on a CPU: set it to sdpa, or leave it out")
    if model_args.flash_attn == "fa2":
        refuse_broken_flash_attention()
    run = _context(model_args, data_args, training_args, finetuning_args)
    if run.needs_scores:
        _prepare(data_args, training_args, finetuning_args)
    _say_what_the_reference_is(model_args, finetuning_args)
    _say_what_the_loss_is(finetuning_args)
    with running(run):
        workflow.run_dpo(model_args, data_args, training_args, finetuning_args, callbacks)
    if run.needs_scores and training_args.do_train and finetuning_args.plot_loss and training_args.process_index == 0:
        plot_loss(training_args.output_dir, keys=list(METRICS))
    if run.keeps_ledger and training_args.do_train and training_args.process_index == 0:
        write_run_card(training_args.output_dir, logger)


def _context(model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any) -> RunContext:
    cache = store = None
    if finetuning_args.precompute_ref_log_probs and finetuning_args.use_ref_model and training_args.do_train:
        identity = reference_identity(model_args, data_args, training_args, finetuning_args)
        cache = ReferenceCache(Path(finetuning_args.ref_cache_dir).expanduser(), identity)
    if finetuning_args.keep_image_features:
        store = _image_store(model_args, data_args, training_args, finetuning_args)
    return RunContext(
        needs_scores=finetuning_args.uses_uni_dpo,
        keeps_ledger=finetuning_args.uni_dpo_ledger,
        record=run_record(model_args, data_args, training_args, finetuning_args),
        reference_beta=finetuning_args.pref_beta if finetuning_args.use_ref_model else None,
        starts_from_adapter=finetuning_args.is_ours and bool(model_args.adapter_name_or_path),
        reference_cache=cache,
        image_store=store,
        pair_choice=finetuning_args.pair_choice,
    )


def _say_what_the_reference_is(model_args: Any, finetuning_args: Any) -> None:
    """Say with what a training that starts from an adapter compares: LlamaFactory's losses leave the adapter out."""
    compares = finetuning_args.use_ref_model and finetuning_args.ref_model is None
    if not compares or not model_args.adapter_name_or_path or finetuning_args.create_new_adapter:
        return
    if finetuning_args.is_ours:
        started = ", ".join(map(str, model_args.adapter_name_or_path))
        logger.info_rank0(f"The reference is the model as it starts: a frozen copy of the adapter {started} is in it.")
    else:
        logger.warning_rank0(
            f"pref_loss: {finetuning_args.pref_loss}: the reference is the model without adapter_name_or_path; "
            "set create_new_adapter: true to compare with the model that this training starts from."
        )


def _say_what_the_loss_is(finetuning_args: Any) -> None:
    """Warn of LlamaFactory's losses that it asks TRL for without their name: such a TRL computes `sigmoid`."""
    loss = finetuning_args.pref_loss
    nameless = "loss_type" in inspect.signature(DPOTrainer.dpo_loss).parameters
    if loss in ("hinge", "ipo", "kto_pair") and nameless:
        logger.warning_rank0(
            f"pref_loss: {loss}: with this TRL, LlamaFactory computes the loss sigmoid under that name; "
            f"pref_loss: {{{loss}: 1}} is {loss}."
        )


def _prepare(data_args: Any, training_args: Any, finetuning_args: Any) -> None:
    if data_args.streaming and training_args.accelerator_config.dispatch_batches is None:
        # Dispatching slices every tensor of a batch by rows, and an image's patches are no rows.
        training_args.accelerator_config.dispatch_batches = False
    if data_args.streaming and training_args.dataloader_num_workers == 0:
        # LlamaFactory cuts a streamed file into as many shards, and none hold nothing.
        logger.warning_rank0("streaming: with dataloader_num_workers: 0 there would be no data; it is 1 now.")
        training_args.dataloader_num_workers = 1
    if training_args.local_process_index == 0:
        _check_files(data_args, finetuning_args)


def get_dataset(template: Any, model_args: Any, data_args: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return LlamaFactory's datasets, refused where the loss needs scores and they cannot train it."""
    module = _upstream_get_dataset(template, model_args, data_args, *args, **kwargs)
    run = current_run()
    if run.needs_scores:
        media_ids = media_token_ids(template, kwargs["tokenizer"], kwargs["processor"])
        pairs = partial(pairs_to_train, choice=run.pair_choice, cutoff_len=data_args.cutoff_len, media_ids=media_ids)
        module = over_splits(pairs, module)
    if (cache := run.reference_cache) is not None:
        module = cache.expect(module)
        logger.info_rank0(f"Reference log-probs: {cache}.")
    return module


def create_ref_model(model_args: Any, finetuning_args: Any, *args: Any, **kwargs: Any) -> Any:
    """Return LlamaFactory's reference model, or none where all that it would say is in the cache."""
    cache = current_run().reference_cache
    if cache is not None and cache.complete():
        logger.info_rank0("Reference log-probs: no reference model is loaded.")
        return None
    return _upstream_create_ref_model(model_args, finetuning_args, *args, **kwargs)


def _image_store(model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any) -> ImageStore:
    template = TEMPLATES.get(str(data_args.template))
    if template is not None and template.mm_plugin.image_token is None:
        raise UniDPOError(f"keep_image_features: template: {data_args.template} has no images: leave it out")
    folder = Path(finetuning_args.image_features_dir).expanduser()
    store = ImageStore(folder, vision_identity(model_args, training_args))
    logger.info_rank0(f"Image features: {store.count():,} images in {store.folder}.")
    return store


def _check_files(data_args: Any, finetuning_args: Any) -> None:
    if data_args.tokenized_path is not None and has_tokenized_data(data_args.tokenized_path):
        return
    folder = data_args.dataset_dir
    if not isinstance(folder, str) or folder == "ONLINE" or folder.startswith("REMOTE:"):
        return
    report = preflight(
        [*(data_args.dataset or []), *(data_args.eval_dataset or [])],
        folder,
        media_places(data_args)[1],
        tau_good=finetuning_args.uni_dpo_tau_good if finetuning_args.uni_dpo_nll_lambda > 0 else None,
        max_samples=data_args.max_samples,
        choice=finetuning_args.pair_choice,
    )
    for warning in report.warnings:
        logger.warning_rank0(warning)
