"""Formulas as people type them, as the LaTeX that math-verify reads: 2√3, 10², 2½, 3×10⁸, 90°, 5 km/h, 5米."""

import re
import unicodedata

_SIGNS = {
    "×": r"\times ",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "∞": r"\infty ",
    "°": r"^\circ ",
    r"\degree": r"^\circ ",
    "−": "-",
}
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
_SIGN = r"[√∞×⁰¹²³⁴-⁹⁻⁺ⁿ¼-¾⅐-⅞]"
_PART = r"[\w.,^(){}|√∞⁰¹²³⁴-⁹⁻⁺ⁿ¼-¾⅐-⅞°π]+"
_FORMULA = re.compile(rf"(?<![\w\\])[-−]?{_PART}(?:\s?[-−+×·⋅/*=]\s?{_PART})*")
_TYPESET = re.compile(r"(\$[^$]+\$|\\\(.+?\\\)|\\\[.+?\\\])", re.DOTALL)
_AREA = re.compile(r"(?<=\d)\s*(?:[kcdmµ]?m|ft|in|yd)[²³]")
_NAME = (
    r"(?:[kcdmµnMG]?(?:m|g|s|L|l|A|V|W|J|N|Hz|Pa|mol|eV|C|K)|ft|in|yd|mi|miles?|lbs?|oz|hr?|hours?|min|minutes?|sec|seconds?"
    r"|days?|years?|people|persons?|dollars?|units?)"
)
_POWER = r"(?:\^\{?-?\d\}?)?"
_UNITS = re.compile(rf"(\S*\d)(?:\s|\\[ ,;:])*{_NAME}{_POWER}(?:\s*(?:/|\\cdot|\*|per)\s*{_NAME}{_POWER})*")
_CHINESE = re.compile(r"(-?[\d.,]+)\s*([千万亿])?[\u4e00-\u9fff]*")
_SCALES = {"千": 3, "万": 4, "亿": 8}


def latex(formula: str) -> str:
    """Return a formula with the signs of Unicode as LaTeX."""
    formula = re.sub(
        "[¼-¾⅐-⅞]",
        lambda match: "\\frac{{{}}}{{{}}}".format(*unicodedata.normalize("NFKC", match[0]).split("\u2044")),
        formula,
    )
    formula = re.sub("[⁰¹²³⁴-⁹⁻⁺ⁿ]+", lambda match: "^{" + "".join(_RAISED[sign] for sign in match[0]) + "}", formula)
    formula = re.sub(
        r"√\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|\w))", lambda match: f"\\sqrt{{{match[1] or match[2]}}}", formula
    )
    for sign, command in _SIGNS.items():
        formula = formula.replace(sign, command)
    return formula.strip()


def typeset(text: str) -> str:
    """Return a text with the formulas that are written without LaTeX, and have a sign of one, between dollar signs."""

    def formula(match: re.Match[str]) -> str:
        found = match[0].rstrip(".,")
        return f"${latex(found)}$" + match[0][len(found) :] if re.search(_SIGN, found) else match[0]

    parts = _TYPESET.split(text)
    parts[::2] = [_FORMULA.sub(formula, _AREA.sub("", part)) for part in parts[::2]]
    return "".join(parts)


def without_unit(value: str) -> str:
    """Return a number without the unit behind it: 5 km/h, 5 cm^2, 12 个; 5万 is 50000. What is none stays."""
    if found := _UNITS.fullmatch(value):
        return found[1]
    if not (found := _CHINESE.fullmatch(value)) or value == found[1]:
        return value
    return f"{found[1]}e{_SCALES[found[2]]}" if found[2] else found[1]
