"""Run inside a checkout with the overlay: what its LlamaBoard shows, and a training by its button, as one JSON line.

Gradio's own functions are called, with the values that the page would send.
"""

import json
import sys

from llamafactory.webui.interface import create_ui

model, folder, output = sys.argv[1:]
page = create_ui()
engine = next(found.fn.__self__ for found in page.fns.values() if getattr(found.fn, "__name__", "") == "resume")
elements = {engine.manager.get_id_by_elem(found): found for found in engine.manager.get_elem_list()}
element = {name.removeprefix("train."): found for name, found in elements.items()}
settings = [name for name in element if name.startswith("uni_dpo_")]
preview = next(found for found in page.fns.values() if getattr(found.fn, "__name__", "") == "get_preview")
_, rows, _ = preview.fn(folder, ["tiny"], 0)

values = {found: getattr(found, "value", None) for found in elements.values()}
values |= {elements["top.model_name"]: "Custom", elements["top.model_path"]: model, elements["top.lang"]: "en"}
values |= {elements["top.template"]: "qwen2_vl", elements["top.finetuning_type"]: "full"}
chosen = {
    "training_stage": "DPO",
    "dataset_dir": folder,
    "dataset": ["tiny"],
    "compute_type": "fp32",
    "pref_loss": "uni_dpo",
    "pref_beta": 2.0,
    "uni_dpo_qual_eta": 0.5,
    "output_dir": output,
    "extra_args": json.dumps({"use_cpu": True, "max_steps": 1, "preprocessing_num_workers": 1, "logging_steps": 1}),
}
values |= {element[name]: value for name, value in chosen.items()}
(shown,) = (found[element["output_box"]] for found in engine.runner.preview_train(values))
*_, last = engine.runner.run_train(values)
said = {
    "losses": [value for _, value in element["pref_loss"].choices],
    "settings": {name: element[name].value for name in settings},
    "rows": rows,
    "command": shown,
    "end": last[element["output_box"]],
}
print("SAID " + json.dumps(said))
