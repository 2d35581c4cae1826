"""LlamaBoard, LlamaFactory's page, with `uni_dpo` among its losses and the loss's settings beside it."""

import os
import sys
from dataclasses import fields
from typing import Any

from annotated_types import Ge
from llamafactory.webui import runner
from llamafactory.webui.components.train import create_train_tab as _upstream_create_train_tab
from llamafactory.webui.locales import LOCALES

from uni_dpo.objective import ObjectiveArguments
from uni_dpo.settings.losses import LOSSES, UNI_DPO, read_losses
from uni_dpo.settings.options import parts_of
from uni_dpo.settings.reading import SettingsError

SETTINGS = {field.name: field for field in fields(ObjectiveArguments)}
HIGHEST_BETA = 10
"""Where the slider of β ends; LlamaFactory's ends at 1, below Uni-DPO's 2."""
CHINESE = {
    "uni_dpo_qual_eta": "质量权重随分差增大的快慢。",
    "uni_dpo_tau_ref": "策略的间隔达到该值，偏好对即视为已学会。",
    "uni_dpo_perf_gamma": "已学会的偏好对降权的力度（0：不降权）。",
    "uni_dpo_nll_lambda": "校准 NLL 项的权重（0：关闭）。",
    "uni_dpo_tau_good": "chosen 的分数达到该值，NLL 项才可能起作用。",
}


class LlamaBoardRunner(runner.Runner):
    """LlamaFactory's runner, whose command has Uni-DPO's settings where that is the loss."""

    def _parse_train_args(self, data: dict[Any, Any]) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._parse_train_args(data)
        if arguments["stage"] == "dpo" and UNI_DPO in _losses(arguments["pref_loss"]):
            given = {name: data[self.manager.get_elem_by_id(f"train.{name}")] for name in SETTINGS}
            arguments = given | arguments  # what stands among the extra arguments wins
        return arguments


def create_train_tab(engine: Any) -> dict[str, Any]:
    """Return LlamaFactory's tab, its losses and settings with ours among them."""
    import gradio as gr

    settings = {name: _number(name) for name in SETTINGS}
    manager = engine.manager
    manager.get_base_elems = lambda: type(manager).get_base_elems(manager) | {*settings.values()}
    try:
        elements: dict[str, Any] = _upstream_create_train_tab(engine)
    finally:
        del manager.get_base_elems
    loss, beta = elements["pref_loss"], elements["pref_beta"]
    _change(loss, choices=[*loss.choices, (UNI_DPO, UNI_DPO)], allow_custom_value=True)  # weights are typed in
    _change(beta, maximum=HIGHEST_BETA)
    with elements["rlhf_tab"], gr.Row():
        for setting in settings.values():
            setting.render()
    loss.input(_own_beta, [loss], [beta], queue=False)
    return elements | settings


def _change(element: Any, **values: Any) -> None:
    """Change an element, and what gradio makes it from again for each visitor."""
    vars(element).update(values)
    element.constructor_args.update(values)


def run_web_ui() -> None:
    """Serve the page as `llamafactory-cli webui` does, to this machine only where nothing else is said."""
    os.environ.setdefault("GRADIO_SERVER_NAME", "127.0.0.1")
    own: Any = runner
    own.Popen, own.gen_cmd = _popen(runner.Popen), _shown(runner.gen_cmd)
    from llamafactory.webui.interface import run_web_ui as serve

    serve()


def _popen(start: Any) -> Any:
    """`Popen` that trains by this program where LlamaFactory would by its own."""

    def popen(command: list[str], *arguments: Any, **options: Any) -> Any:
        ours = [sys.executable, "-m", "uni_dpo.cli", *command[1:]] if command[0] == "llamafactory-cli" else command
        return start(ours, *arguments, **options)

    return popen


def _shown(show: Any) -> Any:
    """LlamaFactory's text of the command, naming the program that knows the settings."""
    return lambda arguments: show(arguments).replace("llamafactory-cli train", "uni-dpo train", 1)


def _number(name: str) -> Any:
    import gradio as gr

    field = SETTINGS[name]
    text = str(field.metadata["help"])
    LOCALES[name] = {language: {"label": name, "info": text} for language in LOCALES["pref_loss"]}
    LOCALES[name]["zh"] = {"label": name, "info": CHINESE[name]}
    default: Any = field.default
    least: Any = next((bound.ge for bound in parts_of(field.type)[1] if isinstance(bound, Ge)), None)
    return gr.Number(value=default, minimum=least, step=0.001, render=False)


def _own_beta(loss: str) -> Any:
    """The slider of β at the value that the chosen loss has by itself."""
    import gradio as gr

    first = next(iter(_losses(loss)), "sigmoid")
    return gr.Slider(value=LOSSES[first].beta)


def _losses(text: str) -> dict[str, float]:
    """The losses that a text names; none where it is not understood, which the training then says."""
    try:
        return read_losses(text)
    except SettingsError:
        return {}
