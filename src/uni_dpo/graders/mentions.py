"""Where a text mentions the options of a question, by letter or by text, and what it says of each mention.

What stands before and behind a mention says whether it is the conclusion, is rejected, or is only discussed; in English
and Chinese.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from uni_dpo.graders.grading import plain

NEAR = 300
"""Characters before and behind a mention that are read for what is said of it."""
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
    rf"\banswer\s*(?::\s*(?:it|this|that|the \w+)\b\s*{_IS}+)?",
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
    r"是|(?<!因)为",
)
_REJECTED = _before(
    r"(?:\b(?:can)?not|\bno|n't|\bnever|\bneither|\bnor|\brather than|\binstead of|\bunlike|\bexcept|\bwithout)"
    r"(?: (?:be|it|have))?",
    r"\b(?:rul\w+ out|exclud\w+|eliminat\w+|reject\w*|discard\w*)",
    r"\b(?:incorrect|wrong|false)(?: (?:answers?|options?|choices?))?:",
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
    rf"{_WRONG}(?! *(?:options?|answers?|choices?)? *:)"
    r"|^[)\]\"'”.,:]*\s*[✗✘❌]"
    r"|^[)\]\"'”]*\s*(?:选项|项)?,?\s*(?:都|是|明显|显然|也|被|可以)*(?:错|不对|不正确|不是(?:答案|正确)|不符|不成立|排除|有误|不合)",
    re.IGNORECASE,
)
_LETTER_REJECTED_BEHIND = re.compile(
    r"^[)\]\"'”]*\s*(?:(?:is|does|can|could|would|was)\s*n(?:o|')t\b|cannot\b)", re.IGNORECASE
)
_CONCLUDED_BEHIND = re.compile(
    r"^[)\]\"'”.,]*\s*(?:is|are|was|would be|should be|must be|seems|looks|fits)\s+"
    r"(?:(?:the|most|clearly|definitely|therefore|thus|probably|my|indeed|also)\s+)*(?:correct|right|best|better|answer|true|final|accurate)\b"
    r"|^\s+it is\b"
    r"|^[)\]\"'”.,:]*\s*[✓✔✅]"
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
_SUM_BEHIND = re.compile(r"^\s*(?:[-+*/×÷]\s*\d|=)")


@dataclass(frozen=True)
class Mention:
    """One mention of an option, from `start` to before `end` of a text, by its letter or by its own text."""

    letter: str
    start: int
    end: int
    by_letter: bool


def mentions_of(text: str, options: Mapping[str, str]) -> list[Mention]:
    """Return the mentions of options in order: by their text, the longest first, and by letter where no text stands."""
    taken: list[Mention] = []
    for letter, option in sorted(options.items(), key=lambda item: -len(item[1])):
        words = re.escape(bare(option)).replace(r"\ ", r"\s+")
        if len(bare(option)) < 2 and not (bare(option).isdigit() or ord((bare(option) or "a")[0]) > 0x2E7F):
            continue
        edge = r"[A-Za-z0-9{}^_]" if bare(option).isdigit() else r"[A-Za-z0-9]"
        for match in re.finditer(
            rf"(?<!{edge})(?<!\d\.)(?<!-)(?:an? |the )?{words}(?!{edge}|[.,]\d)", text, re.IGNORECASE
        ):
            behind = text[match.end() : match.end() + NEAR]
            if words == "no" and match.start() and _ARTICLE_BEHIND.match(behind):
                continue  # Yes, there is no doubt
            if not _SUM_BEHIND.match(behind) and not any(
                match.start() < other.end and other.start < match.end() for other in taken
            ):
                taken.append(Mention(letter, *match.span(), by_letter=False))
    covered = {position for mention in taken for position in range(mention.start, mention.end)}
    letters = letters_pattern(options)
    pattern = (
        rf"(?<![A-Za-z0-9])(?<![A-Za-z]')(?:({letters})|(?<=[(\[])({letters.lower()})(?=[)\]]))(?!'?[A-Za-z0-9]|-[a-z])"
    )
    lower = rf"(?i:(?:answer|option|choice)(?: is|:)?\s+)({letters.lower()})(?=[\s.,;!)]*$)"
    for match in (*re.finditer(pattern, text), *re.finditer(lower, text, re.MULTILINE)):
        group = next(number for number, value in enumerate(match.groups(), 1) if value)
        start, end = match.span(group)
        word = text[start:end]
        pronoun = word == "I" and re.match(r"['’]|[ \t]+[a-z]", text[end:])
        if pronoun or (word == "A" and _ARTICLE_BEHIND.match(text[end : end + NEAR])):
            continue
        if start not in covered:
            covered.add(start)
            taken.append(Mention(word.upper(), start, end, by_letter=True))
    return sorted(taken, key=lambda mention: mention.start)


def mention_groups(text: str, mentions: list[Mention]) -> list[tuple[str, set[str]]]:
    """Tell what is said of each mention; those that are listed together (`A or B`), or explain one, count as one."""
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


def _kind(text: str, mention: Mention) -> str:
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


def letters_pattern(options: Mapping[str, str]) -> str:
    """Return a regular expression of the letters of options, the longest first."""
    return "|".join(sorted(map(re.escape, options), key=lambda letter: -len(letter)))


def bare(option: str) -> str:
    """Return a text in its plain form without its article."""
    return re.sub(r"^(?:an?|the) ", "", plain(option))
