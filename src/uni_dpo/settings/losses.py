"""The preference losses that are known by name, and weighted sums of them, read before torch is imported."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from uni_dpo.errors import did_you_mean
from uni_dpo.settings.options import NotNegative, as_number, parts_of, range_fault
from uni_dpo.settings.reading import SettingsError

UNI_DPO = "uni_dpo"
STOCK = ("sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo")
"""LlamaFactory's own; by their bare name they are its code, untouched."""
LossName = Literal["uni_dpo", "sigmoid", "dpo", "hinge", "ipo", "kto_pair", "bco_pair", "bco", "orpo", "simpo", "sft"]
"""What a weighted sum may name; `dpo` is `sigmoid`, `bco` is `bco_pair`."""
LossWeights = dict[LossName, NotNegative]
_OTHER_NAMES = {"dpo": "sigmoid", "bco": "bco_pair"}
_NOT_TRLS = (UNI_DPO, "kto_pair", "orpo", "simpo", *_OTHER_NAMES)
"""Names that TRL's DPO trainer does not know."""
_MEANS_THE_SAME = (UNI_DPO, "sigmoid", "orpo", "simpo")
"""Losses that are the same alone with weight 1 as by their bare name.

LlamaFactory hands TRL 0.24 no name, so that its `hinge`, `ipo` and `kto_pair` are `sigmoid` there.
"""


@dataclass(frozen=True)
class LossFacts:
    """How a loss is trained where nothing else is set.

    Attributes:
        beta: β.
        averages: whether it takes log-probabilities averaged over an answer's tokens, rather than summed.
        compares: whether it compares with a reference model.
    """

    beta: float = 0.1
    averages: bool = False
    compares: bool = True


LOSSES = {
    UNI_DPO: LossFacts(beta=2.0, averages=True),
    "sigmoid": LossFacts(),
    "hinge": LossFacts(),
    "ipo": LossFacts(averages=True),
    "kto_pair": LossFacts(),
    "bco_pair": LossFacts(),
    "orpo": LossFacts(averages=True, compares=False),
    "simpo": LossFacts(averages=True, compares=False),
    "sft": LossFacts(averages=True, compares=False),
}


def read_losses(value: Any, stock: Collection[str] = STOCK, setting: str = "pref_loss") -> dict[str, float]:
    """Read a loss's name, or losses with their weights.

    Args:
        value: `uni_dpo`; `{uni_dpo: 1, sft: 0.1}`; or that as text, with `=` or `:`, in braces or not.
        stock: names that LlamaFactory itself knows.
        setting: what the value is called in a message.

    Returns:
        name → weight above 0, in the order given; a weight of 0 leaves a loss out.

    Raises:
        SettingsError: a name is unknown, or a weight is no number of 0 or more.
    """
    if isinstance(value, str) and value in stock:
        return {value: 1.0}
    if isinstance(value, str) and re.fullmatch(r"\w+", value):
        value = {value: 1.0}
    faults: list[tuple[str, str]] = []
    weights: dict[str, float] = {}
    for given, weight in _entries(value, setting):
        name = _OTHER_NAMES.get(given, given)
        where = setting if weight == 1.0 and len(value) == 1 else f"{setting}.{given}"
        if name not in LOSSES:
            hint = did_you_mean(given, (*LOSSES, *_OTHER_NAMES)) or f"; known: {', '.join(LOSSES)}"
            faults.append((where, f"{given!r} is no preference loss{hint}"))
        elif name in weights:
            faults.append((where, "this loss is given twice"))
        else:
            number = as_number(weight)
            fault = range_fault(number, parts_of(NotNegative)[1]) if number is not None else None
            if number is None or fault:
                faults.append((where, fault or f"the loss's weight is a number, not {weight!r}"))
            weights[name] = number or 0.0
    if not faults and not any(weights.values()):
        faults.append((setting, f"no loss of {value!r} has a weight above 0"))
    if faults:
        raise SettingsError(faults)
    return {name: weight for name, weight in weights.items() if weight > 0}


def read_trl_losses(loss_type: Any, loss_weights: Any = None) -> dict[str, float] | None:
    """Read what TRL's `loss_type` and `loss_weights` say, or a mapping as of `pref_loss` in their place.

    Args:
        loss_type: a name, several, or losses with weights in any form of `read_losses`.
        loss_weights: one for each name; 1 where there are none.

    Returns:
        name → weight where `objective` makes the loss: with a loss that TRL has not, as `uni_dpo`, or where weights
        stand beside the names. None where TRL makes it.

    Raises:
        SettingsError: see `read_losses`; or the weights are not as many as the names.
    """
    names = [loss_type] if isinstance(loss_type, str) else loss_type
    if not isinstance(names, Sequence | Mapping):
        raise SettingsError([("loss_type", f"a loss, several, or losses with weights; not {loss_type!r}")])
    weighted = isinstance(names, Mapping) or any(re.search("[:=]", str(name)) for name in names)
    if weighted and loss_weights is not None:
        raise SettingsError([("loss_weights", "loss_type has the weights already; leave this out")])
    if not weighted:
        if not {*_NOT_TRLS}.intersection(names):
            return None
        weights = [1.0] * len(names) if loss_weights is None else loss_weights
        if not isinstance(weights, Sequence) or len(weights) != len(names):
            raise SettingsError([("loss_weights", f"one weight for each of {', '.join(names)}; not {weights!r}")])
        names = [f"{name}:{weight}" for name, weight in zip(names, weights, strict=True)]
    return read_losses(names if isinstance(names, Mapping) else ",".join(names), (), "loss_type")


def written(value: Any, stock: Collection[str] = STOCK) -> str:
    """Return losses as one text: a bare name where they are that loss alone, else `uni_dpo: 1, sft: 0.1`.

    Raises:
        SettingsError: see `read_losses`.
    """
    weights = read_losses(value, stock)
    if isinstance(value, str) and value in stock:
        return value
    if [*weights.values()] == [1.0] and next(iter(weights)) in _MEANS_THE_SAME:
        return next(iter(weights))
    return ", ".join(f"{name}: {str(weight).removesuffix('.0')}" for name, weight in weights.items())


def betas_of(losses: Iterable[str], asked: float | None) -> dict[str, float]:
    """Return the β of each loss: its own, unless one is asked for."""
    return {name: LOSSES.get(name, LossFacts()).beta if asked is None else asked for name in losses}


def averages_of(losses: Iterable[str], asked: bool | None) -> dict[str, bool]:
    """Tell of each loss whether it takes averaged log-probabilities: its own way, unless one is asked for.

    `sft` always does.
    """
    own = {name: LOSSES.get(name, LossFacts()).averages for name in losses}
    return {name: averages if asked is None or name == "sft" else asked for name, averages in own.items()}


def uses_uni_dpo(value: Any) -> bool:
    """Tell whether Uni-DPO is among the losses, so that pairs need scores."""
    return UNI_DPO in read_losses(value)


def is_ours(value: Any) -> bool:
    """Tell whether `objective` makes the loss, rather than LlamaFactory."""
    return written(value) not in STOCK


def compares(value: Any) -> bool:
    """Tell whether any of the losses needs a reference model."""
    return any(LOSSES[name].compares for name in read_losses(value))


def _entries(value: Any, setting: str) -> list[tuple[str, Any]]:
    """Names and weights as they were given."""
    if isinstance(value, Mapping):
        if None not in value.values():
            return [(str(name), weight) for name, weight in value.items()]
        value = ",".join(f"{name}" if weight is None else f"{name}:{weight}" for name, weight in value.items())
    if not isinstance(value, str):
        raise SettingsError([(setting, f"a loss, or losses with weights, as {{uni_dpo: 1, sft: 0.1}}; not {value!r}")])
    parts = [part for part in value.strip().strip("{}").split(",") if part.strip()]
    pairs = [re.split(r"[:=]", part, maxsplit=1) for part in parts]
    if not pairs or any(len(pair) < 2 for pair in pairs):
        raise SettingsError([(setting, f"give every loss a weight, as {{uni_dpo: 1, sft: 0.1}}; not {value!r}")])
    return [(name.strip().strip("\"'"), weight.strip()) for name, weight in pairs]
