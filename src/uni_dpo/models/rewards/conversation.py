"""What a reward model rates."""

from dataclasses import dataclass

from uni_dpo.data.pair import Image, Pair


@dataclass(frozen=True, slots=True)
class Conversation:
    """A question with one answer.

    Attributes:
        instruction: the question, one `<image>` per image that stands in it.
        answer: what is rated.
        images: paths or encoded images, in the order of their `<image>`.
        system: the system prompt; empty for the template's own.
        history: earlier turns as (question, answer).
    """

    instruction: str
    answer: str
    images: tuple[Image, ...] = ()
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()

    def messages(self) -> list[dict[str, str]]:
        """The turns without the system prompt, the rated answer last."""
        turns = [*self.history, (self.instruction, self.answer)]
        return [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]


def both_answers(pair: Pair) -> tuple[Conversation, Conversation]:
    """The conversation that ends with a pair's chosen answer, and the one that ends with the rejected."""
    before = (pair.images, pair.system, pair.history)
    return Conversation(pair.instruction, pair.chosen, *before), Conversation(pair.instruction, pair.rejected, *before)
