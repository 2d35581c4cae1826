"""The documented name of `uni_dpo.data.vqa_rad` in version 0.1; it stays importable."""

from uni_dpo.data.vqa_rad import download_file, load_and_process_vqa_dpo, save_dataset

__all__ = ["download_file", "load_and_process_vqa_dpo", "save_dataset"]
