"""The grader `multiple_choice`: which option an answer picks, read as models write, in English and Chinese.

An answer is read as mentions of options, by letter or by text. What stands before and behind a mention says whether it
is the conclusion, is rejected, or is only discussed. Two different conclusions at once are none.
"""

import re
import string
import unicodedata
from collections import defaultdict
from collections.abc import Mapping

from uni_dpo.data.questions import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import plain, reference_of, without_reasoning
from uni_dpo.graders.mentions import bare, letters_pattern, mention_groups, mentions_of
from uni_dpo.graders.numeric import DASHES, equal, stated

_ALPHABET = dict.fromkeys(string.ascii_uppercase, "")
_MARKS = str.maketrans("’【】「」", "'()()")
_CORRECTED = re.compile(
    r"\b(?:wait|scratch that|correction|on second thoughts?|let me correct (?:that|this|myself))\b"
    r"(?:[\s,.:;!—–-]|\bno\b|\bactually\b)*"
    r"|\bactually[,:]?\s+(?:no\b[,.:]?\s*)?(?=it\b|the answer\b|this\b)"
    r"|(?:^|(?<=[,.。!?\n]))\s*(?:不对|等等|等一下|更正)[,:!。]*",
    re.IGNORECASE | re.MULTILINE,
)
"""What takes back the conclusion before it."""


def multiple_choice(answer: str, question: Question) -> float | None:
    """Give 1 where the answer picks the reference's option, by letter or text; None where it picks none, or several."""
    options = {letter.upper(): text for letter, text in question.options.items()}
    wanted = pick_option(reference_of(question), options)
    if wanted is None:
        raise UniDPOError(f"{question.called}: the reference {question.reference!r} is none of the options")
    picked = pick_option(answer, options)
    return None if picked is None else float(picked == wanted)


def pick_option(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the one option that a text picks; None where it picks none, or where that cannot be told.

    Args:
        text: an answer in any wording: `B`, `**B**`, `\\boxed{B}`, `<answer>B</answer>`, `B. cat`, `The answer is a
            cat.`, `不是A而是C`, or a discussion that ends in a conclusion.
        options: letter → text; without options every letter of the alphabet is one.
    """
    options = {letter: _one_notation(option) for letter, option in options.items()} or _ALPHABET
    said = without_reasoning(text) or ""
    text = _without_list(_one_notation(unicodedata.normalize("NFKC", said)), options)
    options = {letter: _without_markup(option) for letter, option in options.items()}
    picked = _picked(text, options)
    if picked is None and not any(mentions_of(_without_markup(text), options)):
        return _by_number(said, options)
    return picked


def _without_list(text: str, options: Mapping[str, str]) -> str:
    """A text without the question's whole list of options, which some answers repeat before or behind their own."""
    left = text
    for letter, option in options.items():
        left = re.sub(
            rf"(?mi)^[ \t]*[(\[]?{letter}[)\].:、][ \t]*{re.escape(option)}[ \t]*$", "", before := left, count=1
        )
        if not option or left == before:
            return text
    return left if left.strip() else text


def _by_number(text: str, options: Mapping[str, str]) -> str | None:
    """The one option whose number a text states in another notation: `three` for 3, `1/2` for a LaTeX fraction."""
    numbers = {letter: stated(option) for letter, option in options.items() if option}
    given = stated(text)
    if given is None or None in numbers.values():
        return None
    return _only({letter for letter, number in numbers.items() if number and equal(given, number)})


def _one_notation(text: str) -> str:
    """A text with one minus sign, one LaTeX fraction, and neither space nor LaTeX's spaces around signs and units."""
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\[!,;:]", "", text.translate(DASHES))
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = re.sub(r" *([=<>]) *(?=[-\d])", r"\1", text)
    return re.sub(r"(?<=\d)[ \u00a0](?=(?:[kcmµμn]?[mgsLlWVAJN]|km|kg|Hz|min|hr?|Pa|°|%)(?![A-Za-z]))", "", text)


def _picked(text: str, options: Mapping[str, str]) -> str | None:
    for inner in (*reversed(_marked(text)), text):
        whole = _whole(_without_markup(inner), options)
        if whole is not None:
            return whole or None
    return _discussion(_without_markup(text), options)


def _marked(text: str) -> list[str]:
    """What stands in answer tags, in boxes and behind `####`, in the order of the text."""
    found = re.finditer(
        r"(?is)<answer>(.*?)(?:</answer>|$)|\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}|^####\s*([^\n]+)", text, re.MULTILINE
    )
    return [next(group for group in match.groups() if group is not None) for match in found]


def _without_markup(text: str) -> str:
    text = re.sub(r"\\(?:text\w*|math\w*|boxed|textbf)\s*\{([^{}]*)\}", r" \1 ", text)
    text = re.sub(r"(?s)<([A-Z])>(?!.*</\1>)", r" \1 ", text)
    text = re.sub(r"</?\w+>|\\[()\[\]]|\$|\*+|`+|(?<![^\W_])_+|_+(?![^\W_])|^#+\s*", " ", text, flags=re.MULTILINE)
    return re.sub(r"[ \t]+", " ", text.translate(_MARKS)).strip()


def _whole(text: str, options: Mapping[str, str]) -> str | None:
    """The option that a text is, by text or letter or both; empty where they contradict; None where it is more."""
    same = [
        letter
        for letter, option in options.items()
        if option and (plain(text) == plain(option) or bare(text) == bare(option))
    ]
    if len(same) == 1:
        return same[0]
    letters = letters_pattern(options)
    found = re.fullmatch(
        rf"(?is)(?:option|choice|answer|ans\b|选项|选|答案)?[\s:]*([\"'(\[{{]*({letters})[\"')\]}}]*[.,:;、。!)-]*)\s*(.*)",
        text,
    )
    if not found:
        return None
    marked, letter, rest = found.group(1), found.group(2).upper(), bare(found.group(3))
    if not rest or rest == bare(options[letter]):
        return letter
    same = [letter for letter, option in options.items() if option and rest == bare(option)]
    if same and marked in ("A", "a"):  # the article
        return same[0]
    return "" if same else None


def _discussion(text: str, options: Mapping[str, str]) -> str | None:
    for correction in reversed(list(_CORRECTED.finditer(text))):
        later = text[correction.end() :]
        if any(kind in ("concluded", "stated") for kind, _ in mention_groups(later, mentions_of(later, options))):
            return _discussion(later, options)
    groups = mention_groups(text, mentions_of(text, options))
    said: dict[str, list[set[str]]] = defaultdict(list)
    for kind, letters in groups:
        said[kind].append(letters)
    if said["concluded"]:
        last = said["concluded"][-1]
        position = max(index for index, group in enumerate(groups) if group == ("concluded", last))
        narrowed = [letters for kind, letters in groups[position + 1 :] if kind == "stated" and letters < last]
        return _only(narrowed[-1] if narrowed else last)
    leading = _leading_letters(text, options)
    if len(leading) == 1:
        return leading.pop()
    if said["stated"]:
        return _only(said["stated"][-1])
    rejected = set().union(*said["rejected"])
    left = set().union(*said["open"]) - rejected
    if rejected and not left and any(options.values()):
        left = set(options) - rejected
    return _only(left)


def _leading_letters(text: str, options: Mapping[str, str]) -> set[str]:
    """The letter that a text begins with, as in `B. cat` or `(B)`, and those of the list of options that it opens."""
    entry = rf"[(\[]?({letters_pattern(options)})(?:[)\].:、](?!\w*\.\w)|\s*$|\s*-\s)"
    if not (first := re.match(entry, text, re.MULTILINE | re.IGNORECASE)):
        return set()
    listed = re.findall(rf"(?<!\w)[(\[]?({letters_pattern(options)})[)\].:、](?=\s*\w)", text[first.end() :])
    return {first.group(1).upper(), *listed}


def _only(letters: set[str]) -> str | None:
    return next(iter(letters)) if len(letters) == 1 else None
