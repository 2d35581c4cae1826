# isort: skip_file
from .model import Qwen2VLChatAguvis  # noqa: F401
from .prompt import Qwen2VLPromptMixin  # noqa: F401

#! Below this line are additions for Uni-DPO.
from uni_dpo.vlmeval.qwen2_vl import Qwen2VLChat  # noqa: F401
#! Above this line are additions for Uni-DPO.
