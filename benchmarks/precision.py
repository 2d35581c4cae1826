"""The loss in bfloat16, LlamaFactory's and ours, against float64 on the same weights.

    python benchmarks/precision.py                          a Qwen2-VL of 6 + 6 layers
    python benchmarks/precision.py --shape middle           of 12 + 16 layers, twice as wide
    python benchmarks/precision.py --shape wide             of 2 + 3 layers, in the widths of Qwen2-VL-2B
    python benchmarks/precision.py --sharpen 10             logits ten times as large, nearer to a trained model's
    python benchmarks/precision.py --layers                 the hidden states behind every layer instead

Each seed draws policy, reference and two answers to one image: a pair, sigmoid loss, summed log-probabilities. The
table has root mean squares over the seeds of what each is off from float64; "hidden states" is what is left of it when
the head is applied to the same hidden states in float64, so the rest is the head's own rounding. With `--layers` it has
the relative error of the hidden states of all scored tokens; the ratio is the geometric mean of ours over theirs.
"""

import argparse
import copy
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from pair_step import build_trainer
from pair_step_models import RandomPairs, Setting, build_models
from torch import Tensor, nn

from uni_dpo.logprobs import ResponseTokens, response_logps

SIDES = {"ordinary": "LlamaFactory", "shared_prefix": "shared prefix"}


@dataclass
class Off:
    """What a side is off from float64, one number per seed and answer, pair or seed."""

    logps: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)
    margins: list[Tensor] = field(default_factory=list)
    loss: list[Tensor] = field(default_factory=list)
    gradient: list[Tensor] = field(default_factory=list)


def loss_of(policy: Tensor, reference: Tensor) -> Tensor:
    """The sigmoid loss of log-probabilities, the chosen answers' first."""
    chosen, rejected = (policy - reference).chunk(2)
    return -nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()


def exact_logps(model: Any, batch: dict[str, Any]) -> Tensor:
    """Log-probabilities of every row's answer, from the model in float64."""
    tokens = ResponseTokens.from_labels(batch["labels"])
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}, use_cache=False).logits
    found = logits.double().flatten(0, 1)[tokens.predictor].log_softmax(-1).gather(1, tokens.target[:, None])[:, 0]
    return tokens.sum(found)


def run(trainer: Any, model: Any, features: list[Any]) -> tuple[Tensor, Tensor]:
    """A side's log-probabilities, and those from its hidden states by the head in float64."""
    batch = trainer.data_collator(features)
    tokens = ResponseTokens(**batch["response_tokens"]) if "response_tokens" in batch else None
    tokens = tokens or ResponseTokens.from_labels(batch["labels"])
    states: list[Tensor] = []
    hook = model.model.language_model.register_forward_hook(lambda *given: states.append(given[-1].last_hidden_state))
    output = trainer.concatenated_forward(model, batch)
    hook.remove()
    with torch.no_grad():
        head = copy.deepcopy(model.lm_head).double()
        hidden = tokens.sum(response_logps(states[0].detach().double(), head, tokens))
    if isinstance(output, dict):
        return torch.cat([output["chosen_logps"], output["rejected_logps"]]), hidden
    return torch.cat(output[:2]), hidden


def gradients(model: Any) -> Tensor:
    """All gradients of a model in one line."""
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def compare(setting: Setting, sharpen: float, off: dict[str, Off]) -> None:
    """Add one seed to what each side is off."""
    policy, reference = build_models(setting)
    for model in (policy, reference):
        model.lm_head.weight.data *= sharpen
    pairs = RandomPairs(policy, setting)
    exact = [copy.deepcopy(model).double() for model in (policy, reference)]
    batch = pairs(pairs.features)
    with torch.no_grad():
        exact_reference = exact_logps(exact[1], batch)
    exact_policy = exact_logps(exact[0], batch)
    exact_loss = loss_of(exact_policy, exact_reference)
    exact_loss.backward()
    exact_gradient = gradients(exact[0])
    del exact
    exact_margins = torch.sub(*(exact_policy - exact_reference).detach().chunk(2))
    with tempfile.TemporaryDirectory() as folder:
        for side, found in off.items():
            for model in (policy, reference):
                model.config.get_text_config()._attn_implementation = "sdpa"
            trainer = build_trainer(side, policy, reference, pairs, folder)
            policy.zero_grad(set_to_none=True)
            with torch.no_grad():
                their_logps, _ = run(trainer, reference, pairs.features)
            logps, hidden = run(trainer, policy, pairs.features)
            loss = loss_of(logps, their_logps)
            loss.backward()
            margins = torch.sub(*(logps - their_logps).detach().chunk(2))
            found.logps.append(logps.detach().double() - exact_policy.detach())
            found.hidden.append(hidden - exact_policy.detach())
            found.margins.append(margins.double() - exact_margins)
            found.loss.append((loss.double() / exact_loss - 1).detach().view(1))
            found.gradient.append(((gradients(policy) - exact_gradient).norm() / exact_gradient.norm()).view(1))


def layer_states(model: Any, tokens: ResponseTokens, run: Callable[[], Any]) -> list[Tensor]:
    """The hidden states behind every layer, and behind the last norm, that predict the scored tokens."""
    text = model.model.language_model
    states: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        states.append(hidden.flatten(0, 1)[tokens.predictor].double())

    hooks = [module.register_forward_hook(keep) for module in (*text.layers, text.norm)]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return states


def compare_layers(setting: Setting, off: dict[str, list[Tensor]]) -> None:
    """Add one seed to the relative error of each side behind every layer."""
    policy, _ = build_models(setting)
    pairs = RandomPairs(policy, setting)
    batch = pairs(pairs.features)
    exact_model = copy.deepcopy(policy).double()
    exact = layer_states(
        exact_model, ResponseTokens.from_labels(batch["labels"]), lambda: exact_logps(exact_model, batch)
    )
    with tempfile.TemporaryDirectory() as folder:
        for side, found in off.items():
            policy.config.get_text_config()._attn_implementation = "sdpa"
            trainer = build_trainer(side, policy, policy, pairs, folder)
            given = trainer.data_collator(pairs.features)
            tokens = ResponseTokens(**given["response_tokens"]) if "response_tokens" in given else None
            tokens = tokens or ResponseTokens.from_labels(given["labels"])
            states = layer_states(policy, tokens, partial(trainer.concatenated_forward, policy, given))
            errors = [(mine - true).norm() / true.norm() for mine, true in zip(states, exact, strict=True)]
            found.append(torch.stack(errors))


def print_layers(off: dict[str, list[Tensor]]) -> None:
    """One line per layer, in Markdown."""
    stock, ours = (torch.stack(off[side]) for side in SIDES)
    ratios = (ours / stock).log()
    print("| behind layer | LlamaFactory off by | shared prefix off by | ratio | its standard error | the same in |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for layer in range(stock.shape[1]):
        name = "last norm" if layer == stock.shape[1] - 1 else str(layer + 1)
        ratio = ratios[:, layer]
        print(
            f"| {name} | {rms([stock[:, layer]]):.5f} | {rms([ours[:, layer]]):.5f} | {ratio.mean().exp():.4f} "
            f"| {ratio.std() / len(ratio) ** 0.5:.4f} | {int((ours == stock)[:, layer].sum())} of {len(ratio)} |"
        )


def rms(values: list[Tensor]) -> float:
    """Root mean square of all values."""
    return float(torch.cat(values).square().mean().sqrt())


def main() -> None:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("small", "middle", "wide"), default="small")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--sharpen", type=float, default=1.0, help="times the weights of the head")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--image-tokens", type=int, default=64)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--layers", action="store_true", help="compare hidden states behind every layer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    off = {side: Off() for side in SIDES}
    layers: dict[str, list[Tensor]] = {side: [] for side in SIDES}
    for seed in range(options.seeds):
        setting = Setting(
            options.shape, "cpu", "bfloat16", options.vocabulary, 1, 2, options.image_tokens, 48, options.answer, 1,
            checkpointing=False, liger=False, attention="sdpa", seed=seed,
        )  # fmt: skip
        if options.layers:
            compare_layers(setting, layers)
        else:
            compare(setting, options.sharpen, off)
    if options.layers:
        print_layers(layers)
        return
    print("| in bfloat16 | logps off by | of it hidden states | margins off by | loss off by | gradient off by |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for side, found in off.items():
        print(
            f"| {SIDES[side]} | {rms(found.logps):.3f} | {rms(found.hidden):.3f} | {rms(found.margins):.3f} "
            f"| {rms(found.loss):.1e} | {rms(found.gradient):.1e} |"
        )
    stock, ours = (torch.cat(off[side].loss).abs() for side in SIDES)
    print(f"\nThe loss of the shared prefix is nearer for {int((ours < stock).sum())} of {options.seeds} seeds.")


if __name__ == "__main__":
    main()
