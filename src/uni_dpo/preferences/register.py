"""Making a file of pairs known to LlamaFactory."""

import os
from pathlib import Path
from typing import Any

from uni_dpo.preferences.dataset_info import FILE_NAME, load_dataset_info, register_entry
from uni_dpo.preferences.detect import detect_attributes
from uni_dpo.preferences.faults import PreferenceDataError


def register_file(name: str, file: str | Path, dataset_dir: str | Path, *, replace: bool = False) -> dict[str, Any]:
    """Write the entry of a file of pairs into `dataset_dir`'s `dataset_info.json`.

    Args:
        name: what the dataset is called from now on.
        file: the file; its columns are detected.
        dataset_dir: the folder of `dataset_info.json`, which is made where it is missing.
        replace: whether an entry of that name may be replaced.

    Returns:
        The entry.

    Raises:
        PreferenceDataError: the file does not look like pairs, or the name is taken.
    """
    folder = Path(dataset_dir)
    if not replace and (folder / FILE_NAME).is_file() and name in load_dataset_info(folder):
        raise PreferenceDataError(f"{folder / FILE_NAME}: has a dataset {name!r}; choose another name, or --replace")
    path = Path(file).absolute()
    inside = path.is_relative_to(folder.absolute())
    file_name = os.path.relpath(path, folder.absolute()) if inside else str(path)
    attributes = {"file_name": file_name} | detect_attributes(file)
    folder.mkdir(parents=True, exist_ok=True)
    register_entry(name, attributes, folder)
    return attributes
