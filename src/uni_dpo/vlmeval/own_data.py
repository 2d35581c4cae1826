"""VLMEvalKit datasets for a user's own table, judged by what the table is and never by what it is called.

VLMEvalKit picks metrics by looking for words in a dataset's name, and has no score for VQA of
one's own. Imported only after `kit.import_kit`.
"""

from typing import Any

import pandas as pd
from vlmeval.dataset.image_base import ImageBaseDataset
from vlmeval.dataset.image_mcq import ImageMCQDataset
from vlmeval.dataset.image_vqa import ImageVQADataset
from vlmeval.dataset.image_yorn import ImageYORNDataset
from vlmeval.dataset.utils.vqa_eval import process_answer
from vlmeval.smp import d2df, dump, get_intermediate_file_path, load

from uni_dpo.vlmeval.table import Table, listed


class _OwnDataset(ImageBaseDataset):
    """Rows come from a checked table."""

    def __init__(self, table: Table) -> None:
        self._frame = table.frame
        super().__init__(dataset="own_data")

    def load_data(self, dataset: str) -> pd.DataFrame:
        return self._frame.copy()


class OwnMCQ(_OwnDataset, ImageMCQDataset):
    """Options in columns A, B, …; scored by the letter or the text of one option."""


class OwnYesNo(_OwnDataset, ImageYORNDataset):
    """Answers yes or no; scored by which of the two words the prediction holds."""


class OwnVQA(_OwnDataset, ImageVQADataset):
    """Free answers; right when, in VLMEvalKit's normal form, the prediction is one of the accepted answers."""

    def evaluate(self, eval_file: str, **judge_kwargs: Any) -> pd.DataFrame:
        data = load(eval_file)
        data["eval_score"] = [
            float(process_answer(str(given)) in {process_answer(right) for right in listed(str(answers))})
            for given, answers in zip(data["prediction"], data["answer"], strict=True)
        ]
        dump(data, get_intermediate_file_path(eval_file, "_results"))
        means = {"Overall": 100 * data["eval_score"].mean()}
        if "category" in data:
            means |= {str(name): 100 * part["eval_score"].mean() for name, part in data.groupby("category")}
        result = d2df(means)
        dump(result, get_intermediate_file_path(eval_file, "_acc"))
        return result


OWN_CLASSES = {"MCQ": OwnMCQ, "Y/N": OwnYesNo, "VQA": OwnVQA}
