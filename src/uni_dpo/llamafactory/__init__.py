"""Plugin for LlamaFactory: `pref_loss: uni_dpo`, next to everything that LlamaFactory has."""


def register() -> None:
    """Teach the LlamaFactory on the import path Uni-DPO; see `uni_dpo.llamafactory.seams`."""
    from uni_dpo.llamafactory.seams import register as _register

    _register()
