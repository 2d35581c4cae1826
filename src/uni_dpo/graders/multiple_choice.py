"""The grader `multiple_choice`: which option an answer picks, read as models write, in English and Chinese.

An answer is read as mentions of options, by letter or by text. What stands before and behind a mention says whether it
is the conclusion, is rejected, or is only discussed. Two different conclusions at once are none.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from uni_dpo.data.questions import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import plain, reference_of, without_reasoning
from uni_dpo.graders.numeric import DASHES, equal, stated

NEAR = 300
"""Characters before and behind a mention that are read for what is said of it."""
_ALPHABET = {chr(code): "" for code in range(ord("A"), ord("Z") + 1)}
_MARKS = str.maketrans("’【】「」", "'()()")
_OPEN = r"[\s\"'“‘(\[{<:\-]*"
_NAMES = (
    r"(?:(?:the|an?|only|simply|clearly|definitely|probably|most|likely|best|correct|option|choice|letter|answer)\b"
    r"[\s:]*)*"
)
_IS = (
    r"(?:(?:is|was|be|are|would|should|must|will|has|to|seems?|appears?|could|might|that|it|it's|here|therefore|thus)\b"
    r"\s*|[:=→-]\s*)"
)


def _before(*patterns: str) -> re.Pattern[str]:
    """One of `patterns`, directly before a mention but for names of options and opening marks."""
    return re.compile(rf"(?:{'|'.join(patterns)})\s*{_NAMES}(?:选项|选择)?{_OPEN}$", re.IGNORECASE)


_CONCLUDED = _before(
    rf"\b(?:answer|option|choice|conclusion|selection|pick|ans)\b[\"'”]?(?: to (?:the|this) question)?\s*{_IS}+",
    r"\banswer\s*",
    r"\b(?:choose|chose|chosen|pick|picked|select|selected|going? (?:with|for)|opt for|settle on|say|bet on)\b:?",
    r"\b(?:therefore|thus|hence|so|consequently|finally|in conclusion|overall)\b[,:]?\s*"
    rf"(?:i (?:think|believe)\s*)?(?:(?:it|this|that|the \w+)\b\s*)?{_IS}*",
    r"(?:答案|正确选项|正确的选项|结论|正确的)\s*(?:应该|应当|应|就|只能|显然|可能)?\s*(?:是|为|选择|选|:|=|即)*",
    r"(?<!不)(?<!不能)(?<!不应)(?<!不应该)(?:选择|选)(?:的是|了|定)?\s*:?",
    r"(?:因此|所以|综上所述|综上|总之|可见|故|因而)[,:]?\s*(?:图中|这)?(?:应该|应)?(?:是|为|选)*",
    r"\bnot\b[^.;!?]*,?\s*\bbut(?: rather)?",
    r"而是|应该是|应为",
)
_STATED = _before(
    rf"\b(?:it|this|that|which|there|i think|i believe)(?:'s\b|\s*{_IS})\s*",
    r"\bshows\s*",
    r"\bi (?:think|believe|guess)\s*",
    r"是|为",
)
_REJECTED = _before(
    r"(?:\bnot|n't|\bnever|\bneither|\bnor|\brather than|\binstead of|\bunlike|\bexcept|\bwithout)(?: (?:be|it|have))?",
    r"\b(?:rul\w+ out|exclud\w+|eliminat\w+|reject\w*|discard\w*)",
    r"不|没有?|未|非|不是|不选择|不选|不应该选|不应选|不能选|不该选|并非|并不是|排除了?|而非|而不是|不可能是|不会是|除了",
)
_DISCUSSED = _before(
    r"\b(?:whether|if|consider\w*|look(?:ing)? at|examin\w+|check\w*)(?: (?:it|this|that))?(?: is| be)?",
    r"是否是?|考虑|先看|来看",
)
_WRONG = (
    r"(?:wrong|incorrect|false|ruled out|eliminated|unlikely|impossible|"
    r"not (?:correct|right|true|the|it\b|supported)|isn't (?:correct|right|it|the))"
)
_REJECTED_BEHIND = re.compile(
    r"^[)\]\"'”.,]*\s*(?:(?:is|are|was|seems?|looks?|can|be|must|would|clearly|obviously|also|both)\s+)*"
    rf"{_WRONG}"
    r"|^[)\]\"'”]*\s*(?:选项|项)?,?\s*(?:都|是|明显|显然|也|被|可以)*(?:错|不对|不正确|不是(?:答案|正确)|不符|不成立|排除|有误|不合)",
    re.IGNORECASE,
)
_LETTER_REJECTED_BEHIND = re.compile(
    r"^[)\]\"'”]*\s*(?:(?:is|does|can|could|would|was)\s*n(?:o|')t\b|cannot\b)", re.IGNORECASE
)
_CONCLUDED_BEHIND = re.compile(
    r"^[)\]\"'”.,]*\s*(?:is|are|was|would be|should be|must be|seems|looks|fits)\s+"
    r"(?:(?:the|most|clearly|definitely|therefore|thus|probably|my|indeed|also)\s+)*(?:correct|right|best|answer|true|final|accurate)\b"
    r"|^\s+it is\b"
    r"|^[)\]\"'”]*\s*(?:选项|项)?\s*(?:是|为|才是|最|才)*\s*(?:正确|对的|答案|最合适|最佳)",
    re.IGNORECASE,
)
_ASKED_BEHIND = re.compile(r"^[^.!;\n]{0,12}\?")
_JOINED = re.compile(
    r"^[)\]\"'”]*\s*(?:,|、|/|&|\+|;|\band\b|\bor\b|\bnor\b|和|或者|或|与|以及|及|也(?:可能|许)?是)+\s*(?:and|or)?\s*(?:option|选项)?\s*[(\[\"'“]*$",
    re.IGNORECASE,
)
_ARTICLE_BEHIND = re.compile(
    r"^\s+(?!(?:because|since|as|is|are|was|and|or|nor|but|for|due|rather|not|which|would|seems?|looks?|can|cannot|has|fits|here|in|"
    r"isn't|doesn't|matches|shows|says|with|correctly|best|instead|too|the|it|i|this|that|so)\b)[a-z]"
)
_BREAK = re.compile(r"(?<![^\w][A-Z])\.(?=\s|$|[^\x00-\x7f])|[!?;。\n]")
_BOTH = re.compile(r"\band\b|\bor\b|\bnor\b|[、/&+和或与及也]")
_CLAUSE_BEHIND = re.compile(r"^\s+(?:is|are|was|has|shows?|does|would|can|could|refers|describes)\b", re.IGNORECASE)
_CORRECTED = re.compile(
    r"\b(?:wait|scratch that|correction|on second thoughts?|let me correct (?:that|this|myself))\b"
    r"(?:[\s,.:;!—–-]|\bno\b|\bactually\b)*"
    r"|\bactually[,:]?\s+(?:no\b[,.:]?\s*)?(?=it\b|the answer\b|this\b)"
    r"|(?:^|(?<=[,.。!?\n]))\s*(?:不对|等等|等一下|更正)[,:!。]*",
    re.IGNORECASE | re.MULTILINE,
)
"""What takes back the conclusion before it."""
_SUM_BEHIND = re.compile(r"^\s*(?:[-+*/×÷]\s*\d|=)")


@dataclass(frozen=True)
class _Mention:
    letter: str
    start: int
    end: int
    by_letter: bool


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
    text = _one_notation(unicodedata.normalize("NFKC", said))
    picked = _picked(text, options)
    if picked is None and not any(_mentions(_without_markup(text), options)):
        return _by_number(said, options)
    return picked


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
        if option and (plain(text) == plain(option) or _bare(text) == _bare(option))
    ]
    if len(same) == 1:
        return same[0]
    letters = _letters(options)
    found = re.fullmatch(
        rf"(?is)(?:option|choice|answer|ans\b|选项|选|答案)?[\s:]*([\"'(\[{{]*({letters})[\"')\]}}]*[.,:;、。!)-]*)\s*(.*)",
        text,
    )
    if not found:
        return None
    marked, letter, rest = found.group(1), found.group(2).upper(), _bare(found.group(3))
    if not rest or rest == _bare(options[letter]):
        return letter
    same = [letter for letter, option in options.items() if option and rest == _bare(option)]
    if same and marked in ("A", "a"):  # the article
        return same[0]
    return "" if same else None


def _discussion(text: str, options: Mapping[str, str]) -> str | None:
    for correction in reversed(list(_CORRECTED.finditer(text))):
        later = text[correction.end() :]
        if any(kind in ("concluded", "stated") for kind, _ in _groups(later, _mentions(later, options))):
            return _discussion(later, options)
    groups = _groups(text, _mentions(text, options))
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
    if rejected and not left and options is not _ALPHABET:
        left = set(options) - rejected
    return _only(left)


def _groups(text: str, mentions: list[_Mention]) -> list[tuple[str, set[str]]]:
    """What is said of each mention, with mentions that are listed together (`A or B`), or explain one, as one."""
    groups: list[tuple[str, set[str]]] = []
    for position, mention in enumerate(mentions):
        kind = _kind(text, mention)
        last = mentions[position - 1] if position else None
        gap = text[last.end : mention.start] if last else ""
        if last and last.letter == mention.letter and len(gap) < 5 and kind in ("open", groups[-1][0]):
            continue
        if last and _JOINED.match(gap):
            before, letters = groups[-1]
            both = _BOTH.search(gap) is not None
            if kind == before or (
                kind == "open" and (both or not _CLAUSE_BEHIND.match(text[mention.end : mention.end + NEAR]))
            ):
                letters.add(mention.letter)
                continue
            if before == "open" and both:
                groups[-1] = kind, letters | {mention.letter}
                continue
        groups.append((kind, {mention.letter}))
    return groups


def _kind(text: str, mention: _Mention) -> str:
    """`concluded`, `stated`, `rejected`, `discussed` or `open`: by the sentence that a mention stands in."""
    before = text[max(0, mention.start - NEAR) : mention.start]
    breaks = [match.end() for match in _BREAK.finditer(before)]
    before, behind = before[breaks[-1] if breaks else 0 :], text[mention.end : mention.end + NEAR]
    if _REJECTED_BEHIND.match(behind) or (mention.by_letter and _LETTER_REJECTED_BEHIND.match(behind)):
        return "rejected"
    if _REJECTED.search(before):
        return "rejected"
    if _DISCUSSED.search(before) or _ASKED_BEHIND.match(behind):
        return "discussed"
    if _CONCLUDED.search(before) or _CONCLUDED_BEHIND.match(behind):
        return "concluded"
    alone = not before.strip(" ([\"'") and re.match(r"[)\]\"'”.]*\s*$", behind) is not None
    if alone and mention.start:
        return "concluded"
    return "stated" if _STATED.search(before) else "open"


def _mentions(text: str, options: Mapping[str, str]) -> list[_Mention]:
    """Where options are named, in order: by their text, the longest first, and by letter where no text stands."""
    taken: list[_Mention] = []
    for letter, option in sorted(options.items(), key=lambda item: -len(item[1])):
        words = re.escape(_bare(option)).replace(r"\ ", r"\s+")
        if len(_bare(option)) < 2 and not (_bare(option).isdigit() or ord((_bare(option) or "a")[0]) > 0x2E7F):
            continue
        edge = r"[A-Za-z0-9{}^_]" if _bare(option).isdigit() else r"[A-Za-z0-9]"
        for match in re.finditer(
            rf"(?<!{edge})(?<!\d\.)(?<!-)(?:an? |the )?{words}(?!{edge}|[.,]\d)", text, re.IGNORECASE
        ):
            if not _SUM_BEHIND.match(text[match.end() : match.end() + NEAR]) and not any(
                match.start() < other.end and other.start < match.end() for other in taken
            ):
                taken.append(_Mention(letter, *match.span(), by_letter=False))
    covered = {position for mention in taken for position in range(mention.start, mention.end)}
    letters = _letters(options)
    pattern = (
        rf"(?<![A-Za-z0-9])(?<![A-Za-z]')(?:({letters})|(?<=[(\[])({letters.lower()})(?=[)\]]))(?!'?[A-Za-z0-9]|-[a-z])"
    )
    lower = rf"(?i:(?:answer|option|choice)(?: is|:)?\s+)({letters.lower()})(?=[\s.,;!)]*$)"
    for match in (*re.finditer(pattern, text), *re.finditer(lower, text, re.MULTILINE)):
        group = next(number for number, value in enumerate(match.groups(), 1) if value)
        start, end = match.span(group)
        word = text[start:end]
        pronoun = word == "I" and text[end : end + 2].strip()
        if pronoun or (word == "A" and _ARTICLE_BEHIND.match(text[end : end + NEAR])):
            continue
        if start not in covered:
            covered.add(start)
            taken.append(_Mention(word.upper(), start, end, by_letter=True))
    return sorted(taken, key=lambda mention: mention.start)


def _leading_letters(text: str, options: Mapping[str, str]) -> set[str]:
    """The letter that a text begins with, as in `B. cat` or `(B)`, and those of the list of options that it opens."""
    entry = rf"[(\[]?({_letters(options)})(?:[)\].:、](?!\w*\.\w)|\s*$|\s*-\s)"
    if not (first := re.match(entry, text, re.MULTILINE | re.IGNORECASE)):
        return set()
    listed = re.findall(rf"(?<!\w)[(\[]?({_letters(options)})[)\].:、](?=\s*\w)", text[first.end() :])
    return {first.group(1).upper(), *listed}


def _letters(options: Mapping[str, str]) -> str:
    return "|".join(sorted(map(re.escape, options), key=lambda letter: -len(letter)))


def _bare(option: str) -> str:
    """A text in its plain form without its article."""
    return re.sub(r"^(?:an?|the) ", "", plain(option))


def _only(letters: set[str]) -> str | None:
    return next(iter(letters)) if len(letters) == 1 else None
