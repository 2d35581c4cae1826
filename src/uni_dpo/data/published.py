"""Where the data of the published recipes lie, for the message to a user who does not have them yet."""

from pathlib import PurePath

HOME = "https://huggingface.co/datasets/psp-dada/Uni-DPO"
IMAGES = "https://huggingface.co/datasets/yifanzhang114/MM-RLHF"
FILES = {
    "uni_dpo_image_only_mcq_short_long_50k.json": "Multimodal",
    "Train_Qwen_2_5_math_7B.jsonl": "Math",
}
"""File → its folder in the data set at `HOME`."""


def where_to_get(path: object) -> str | None:
    """Say where a file of the published data comes from; None for any other file.

    Args:
        path: of a file that is not there: pairs, or an image of MM-RLHF.
    """
    file = PurePath(str(path))
    if file.name in FILES:
        return f"it is published: download it from the folder {FILES[file.name]} of {HOME}, to {file.parent}"
    if "MM-RLHF" in file.parts:
        return (
            f"unpack long.zip, short.zip and mcq.zip of {IMAGES}, then `uni-dpo data rebase-images FILE --root MM-RLHF`"
        )
    return None
