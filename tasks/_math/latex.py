"""LaTeX as people and models write it: one spelling for each thing, and units apart from their numbers."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

# Characters of an answer, and brackets within brackets. The answers of MATH have at most 159 and 5.
MAX_LENGTH, MAX_DEPTH = 400, 12
# Exponents within exponents.
MAX_TOWER = 2


class TooComplex(ValueError):
    """An answer beyond the limits. No gold answer is, so it counts as wrong without being read."""


Replacement = str | Callable[[re.Match[str]], str]


def compiled(table: list[tuple[str, Replacement]]) -> list[tuple[re.Pattern[str], Replacement]]:
    return [(re.compile(pattern), new) for pattern, new in table]


# One character for each thing that LaTeX spells out. Where the text itself has them, they are replaced first.
ROW, WORD, END, OPEN, CLOSE, MONEY = "⏎", "«", "»", "⦃", "⦄", "¤"
SIGNS = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "÷": "/", "⁄": "/", "∕": "/",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "±": r"\pm ", "√": r"\sqrt ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∈": r"\in ", "∪": r"\cup ",
    "∩": r"\cap ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "…": r"\dots ",
    "°": r"^\circ ", "¢": " cents ", "α": r"\alpha ", "β": r"\beta ", "θ": r"\theta ", "π": r"\pi ",
    "φ": r"\phi ", "∞": r"\infty ", "\xa0": " ", "∠": r"\angle ", "△": r"\triangle ", "λ": r"\lambda ",
    "ω": r"\omega ", "。": ".", "、": ",", "｛": r"\{", "｝": r"\}", "￥": "¥", "’": "'", "′": "'",
}  # fmt: skip
# Chinese texts use full-width signs.
WIDE = {chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F) if not chr(code).isalnum()}
PRIVATE = str.maketrans(WIDE | dict.fromkeys(ROW + WORD + END + OPEN + CLOSE + MONEY, "\ufffd") | SIGNS)
SCRIPT = re.compile("(?P<up>[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+)|(?P<low>[₀₁₂₃₄₅₆₇₈₉]+)|[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
FUNCTIONS = (
    "arcsin arccos arctan arccot sinh cosh tanh sin cos tan cot sec csc ln lg log exp max min gcd lcm".split()
)
COMMANDS = [*FUNCTIONS, "sqrt", "pi", "cup"]
# Commands for the layout only, before \text{} is read.
LAYOUT = compiled([
    (r"\\\\\s*(?:\[[^\[\]]{0,9}\])?(?![a-zA-Z])|\\cr\b", ROW),
    (r"\\\$|\\text\{(?:\$|USD|Rs\.?)\s*\}|[€£¥₹]|\\pounds|\\euro(?![a-z])", MONEY),
    (r"(?<=[0-9])\s*(\\text\s*\{)?\s*万", r"\\cdot 10^4 \1"),
    (r"(?<=[0-9])\s*(\\text\s*\{)?\s*亿", r"\\cdot 10^8 \1"),
    # Of vectors.
    (r"\\times(?=\s*\{?\s*\\(?:mathbf|vec|boldsymbol)(?![a-zA-Z]))", r"\\wedge"),
    (r"\\[()\[\]]|\$", ""),
    (r"\\!|\\(?:underline|(?:display|text)style|limits|boldsymbol|rm|bf|it)(?![a-zA-Z])", ""),
    (r"\\(?:left|right)\s*\.|\\[mM]?(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])", ""),
    (r"\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\\(?:hspace|vspace|phantom)\{[^{}]*\}", " "),
    (r"\\mathbb\s*\{?\s*([RZ])\s*\}?|\\mathbf\s*\{([RZ])\}|\\R(?![a-zA-Z])", r"\\Reals\1\2 "),
    (r"\\RealsZ", r"\\Integers"), (r"\\RealsR", r"\\Reals"),
])  # fmt: skip
# One of several ways to write a thing, after \text{} is read.
SPELLING = compiled([
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\[lc]?dots(?![a-zA-Z])|(?<=[,\s])\.\.\.", r"\\ldots "),
    (r"\\(?:bar|dot)\s*(?=\{?[0-9])", r"\\overline"),
    (r"\\overline\s*([0-9])", r"\\overline{\1}"),
    (r"\\overline\s*(?:\{([a-zA-Z])\}|([a-zA-Z]))", r"\\bar{\1\2}"),
    (r"\\overrightarrow(?![a-zA-Z])", r"\\vec"),
    (r"\\[td]binom", r"\\binom"),
    (r"\{([^{}]+)\\choose(?![a-zA-Z])([^{}]+)\}", r"\\binom{\1}{\2}"),
    (r"\{([,:])\}", r"\1"),
    (r"\\(?:leqslant|leqq|leq)(?![a-zA-Z])|<=", r"\\le "),
    (r"\\(?:geqslant|geqq|geq)(?![a-zA-Z])|>=", r"\\ge "),
    (r"\\neq(?![a-zA-Z])|\\not\s*=|!=", r"\\ne "),
    (r"\\equiv(?![a-zA-Z])|==", "="),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\(?:approx|simeq)(?![a-zA-Z])", r"\\approx "),
    (r"\\mod(?![a-zA-Z])\s*", r"\\pmod "),
    (r"\*\*", "^"),
    (r"\\(?:times|ast)(?![a-zA-Z])|\*", r"\\cdot "),
    (r"\\div(?![a-zA-Z])", "/"),
    (r"(?<![a-zA-Z0-9.\\])([0-9]+(?:\.[0-9]+)?)[eE]([-+]?[0-9]{1,3})(?![a-zA-Z0-9])", r"\1\\cdot 10^{\2}"),
    (r"\\lbrace(?![a-zA-Z])|\\\{", OPEN),
    (rf"(?<=\\Reals)\s*-\s*(?={OPEN})", r"\\setminus "),
    (r"\\rbrace(?![a-zA-Z])|\\\}", CLOSE),
    (r"\\langle(?![a-zA-Z])", "("),
    (r"\\rangle(?![a-zA-Z])", ")"),
    (r"\\[lr]?[vV]ert(?![a-zA-Z])|\\mid(?![a-zA-Z])", "|"),
    (r"\\varnothing|\\empty(?![a-zA-Z])", r"\\emptyset"),
    (r"\^\s*\{?\s*(?:\\circ|\\degree)\s*\}?|\\degrees?(?![a-zA-Z])", r"^{\\circ}"),
    (r"\^\s*\{?\s*((?:\\prime\s*)+)\}?", lambda m: "'" * m[1].count("prime")),
    (r"\\%|(?<=[0-9])\s*percent\b", "%"),
    (r"\\backslash(?![a-zA-Z])", r"\\setminus "),
    (r"\\(?:overline|overleftrightarrow)\s*\{([A-Z]{2,4})\}", r"\1"),
    (r"(?<![\\a-zA-Z])a(?=(?:sin|cos|tan)\s*\()", "arc"),
    (rf"(?<![\\a-zA-Z])({'|'.join(COMMANDS)})(?![a-zA-Z])", r"\\\1 "),
    (r"(?<![\\a-zA-Z])abs\(([^()]*)\)", r"|\1|"),
    (r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
    (r"(?<![0-9])([0-9]+) ([0-9]+) ?/ ?([0-9]+)(?![0-9])", r"\1\\frac{\2}{\3}"),
    (r"\band\b", ","),
    (r"\bor\b", ";"),
])  # fmt: skip
TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|tt|sf|sc|up)?|mbox|hbox|math(?:rm|bf|it|sf|tt)|operatorname)\s*"
    rf"\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}|{WORD}[^{END}]*{END}|([一-鿿]+)"
)
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
).split()
MEANS = dict(
    pair.split() for pair in ("and ,", "or ;", "to :", "percent %", "% %", "或 ;", "或者 ;", "和 ,", "与 ,")
)
MEANS |= {word: str(number) for number, word in enumerate(NUMBERS)}
MEANS |= {word: f"\\{word} " for word in COMMANDS} | {"无解": r"\emptyset ", "空集": r"\emptyset "}
# The answer is 5; \text{Option (A)}.
LEAD = re.compile(
    r"\A\s*(?P<open>\\(?:text|textbf|mathrm|mbox)\s*\{)?\s*(?:so,?\s|thus,?\s|therefore,?\s|hence,?\s)?(?:the\s)?"
    r"(?:final\s|correct\s)?(?:(?:answer|result|solution|value)(?:\s+is(?![a-z])\s*:?|\s*[:=])"
    r"|(?:answer|option|choice)\s+(?=\(?[A-Z]\)?[}\s.]*\Z)|(?:所以|故|因此)?答案(?:是|为)?:?)\s*(?P<close>\})?",
    re.IGNORECASE,
)
LETTERS = re.compile(
    r"[^a-zA-Z]*|(?![mgshl]$)\(?[a-zA-Z]\)?(?:(?:\s*,\s*(?:and\s)?|\s+and\s+|\s+)[a-zA-Z])*,?"
)
BOLD = re.compile(r"(?<!\S)\*\*(?=\S)([^*]*)(?<=\S)\*\*(?=[\s.]|$)")
BOX = re.compile(r"[\s$*]*(?:\\[(\[])?\s*\\(?:boxed|fbox)\s*\{(.*)\}\s*(?:\\[)\]])?[\s$.*]*", re.DOTALL)
NUMERAL = r"\s*(\{[0-9a-z+\- ]+\}|[0-9]+|[a-z])\s*"
COMBINATIONS = re.compile(
    rf"(?<![a-zA-Z\\])(?:C_{NUMERAL}\^{NUMERAL}|C\^{NUMERAL}_{NUMERAL}|(?:\{{\}})?[_^]{NUMERAL}C_{NUMERAL}"
    r"|C\(([0-9]+),([0-9]+)\))"
)
PERMUTATIONS = re.compile(r"(?<![a-zA-Z\\])[AP]_\{?([0-9]+)\}?\^\{?([0-9]+)\}?")
# For integer k.
INTEGER = re.compile(
    r"[\s,;:(]*(?:(?:for|where|with)\s+)?(?:(?:all|any|every|each|some|an?)\s+)?(?:integers?\s+[a-z]|[a-z]\s*"
    r"(?:\\in\s*(?:\\Integers|Z)|is\s+(?:an?|any|some)\s+integer|[为是]整数))[\s).]*$"
)


def words(text: str) -> str:
    """The words and signs of a text in small letters, without punctuation, articles and commands."""
    text = re.sub("(?<![a-zA-Z])(?:[A-Z]+|[A-Z][a-z]*)(?![a-zA-Z])", lambda m: m[0].lower(), text)
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", text)
    text = re.sub(r"\b(?:an?|the)\s+(?=[a-z]{2})", "", text)
    return " ".join(re.findall(r"[a-zA-Z0-9一-鿿]+|[-+/^*=<>;]|\\cdot", text.replace("\\", " \\")))


def tidy(text: str) -> str:
    r"""`text` with one spelling for each thing: no $, \left, \dfrac, \!, no full stop, \text{m} as «m».

    Errors: TooComplex.
    """
    if len(text) > MAX_LENGTH:
        raise TooComplex("too long")
    text = re.sub("^([A-J])、", r"\1. ", text).translate(PRIVATE)
    if "begin" not in text:
        # A doubled backslash, as in JSON.
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)
    text = LEAD.sub(lambda m: "" if m["close"] else m["open"] or "", BOLD.sub(r"\1", text))
    text = BOLD.sub(r"\1", text)
    while unboxed := BOX.fullmatch(text):
        text = unboxed[1]
    if re.search(r"\\boxed|\\fbox", text):
        raise TooComplex("a box within other text")
    for pattern, new in LAYOUT:
        text = pattern.sub(new, text)
    text = SCRIPT.sub(_of_script, TEXT.sub(_of_text, text))
    for pattern, new in SPELLING:
        text = pattern.sub(new, text)
    text = PERMUTATIONS.sub(_of_permutations, COMBINATIONS.sub(_of_combinations, text))
    # 17th
    text = re.sub(rf"(?<=[0-9])\s*\^?\s*\{{?{WORD}?(?:st|nd|rd|th){END}?\}}?(?![a-z])", "", text)
    # Answer: 17
    text = re.sub(rf"^\s*{WORD}[^{END}]*:{END}", "", text)
    text = re.sub(rf"\s*({WORD})\s*|\s*([.,;])\s*$", r"\1\2", " ".join(text.split()))
    text = text.lstrip(" ,;").rstrip("" if re.search(r"[ap]\.\s?m\.$", text) else " .,;\\" + ROW)
    condition = INTEGER.search(text.replace(WORD, " ").replace(END, " "))
    text = text[: condition.start()] if condition and condition.start() else text
    _check(text)
    return text


def _check(text: str) -> None:
    """Errors: TooComplex, of a text whose brackets or exponents are nested too deeply."""
    if re.search(r"\^\s*(?:\{[^{}]*\}|[^{\s])\s*\^", text):
        raise TooComplex("a power of a power")
    # Of each open bracket: whether it is an exponent.
    exponents: list[bool] = []
    before = ""
    for sign in text:
        if sign in "([{" + OPEN:
            exponents.append(before == "^")
        elif sign in ")]}" + CLOSE and exponents:
            exponents.pop()
        elif sign == "^" and sum(exponents) >= MAX_TOWER:
            raise TooComplex("a power tower")
        if len(exponents) > MAX_DEPTH:
            raise TooComplex("too deep")
        before = sign if sign != " " else before


def _of_script(match: re.Match[str]) -> str:
    """LaTeX of raised or lowered digits, or of a fraction that is one character."""
    digits = unicodedata.normalize("NFKC", match[0]).replace("−", "-")
    if match["up"] or match["low"]:
        return f"{'^' if match['up'] else '_'}{{{digits}}}"
    return r"\frac" + "".join(f"{{{part}}}" for part in digits.split("⁄"))


def _of_text(match: re.Match[str]) -> str:
    r"""What the content of a \text{} means: a separator, a choice's letter, a word number, or «words»."""
    content = " ".join((match[1] or match[2] or "").split())
    word = content.strip(" ,.").lower()
    minutes = word == "min" and re.search(r"[0-9]\s*$", match.string[: match.start()])
    if word in MEANS and not minutes:
        return MEANS[word]
    parts = re.findall("[a-zA-Z]+", re.sub(r"\\[a-zA-Z]+", " ", content))
    if len(content) > 1 and parts and all(map(unit_of, parts)):
        return f"{WORD}{content}{END}"
    if re.fullmatch("[A-J][.:]", content):
        return content + " "
    if LETTERS.fullmatch(content) and not re.search("[一-鿿]", content):
        content = re.sub(r"(?<=[a-zA-Z])\s+(?=[a-zA-Z]\b)", ",", re.sub(r",?\s+and\s+", ",", content))
        # \cdot\mathbf{b} is no \cdotb
        return " " + content if content[:1].isalpha() else content
    return content if re.search("[0-9]", content) else f"{WORD}{content}{END}"


def _of_combinations(match: re.Match[str]) -> str:
    r"""\binom{n}{k} of C_n^k, C(n,k) and the like."""
    n, k = (part.strip("{}") for part in match.groups() if part)
    if match[3]:
        n, k = k, n
    return f"\\binom{{{n}}}{{{k}}}" if not (n + k).isdigit() or int(n) >= int(k) else match[0]


def _of_permutations(match: re.Match[str]) -> str:
    r"""\binom{n}{k} k! of A_n^k."""
    n, k = match.groups()
    return f"\\binom{{{n}}}{{{k}}}\\cdot {k}!" if int(n) >= int(k) else match[0]


# ---------------------------------------------------------------- units

# The numbers that some units stand for.
WORTH: dict[str, Fraction | int] = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9,
    "cent": Fraction(1, 100),
}  # fmt: skip
UNITS = {
    name + plural: line.split()[0]
    for line in (
        "m meter metre", "cm centimeter centimetre", "mm millimeter millimetre",
        "km kilometer kilometre kph kmh", "inch in inche", "foot ft feet", "yard yd", "mile mi mph",
        "second s sec", "minute min", "hour h hr", "day", "week", "month", "year yr", "g gram gm",
        "kg kilogram", "mg", "ton tonne", "pound lb", "ounce oz", "liter l L litre",
        "ml milliliter millilitre", "gallon gal", "dollar usd buck", "euro eur", "degree deg", "radian rad",
        "acre", "hectare", "N newton", "J joule", "kj", "W watt", "kw", "V volt", "ohm", "hz hertz",
        "pa pascal", "kpa", "mol mole", "K kelvin", "ev", "knot", *WORTH,
    )
    for name in line.split()
    for plural in ("", "s")
}  # fmt: skip
# Words after a number that are no unit of it: 5 or more, 5 squared.
NO_UNITS = {"or", "and", "not", "is", "at", "to", "plus", "minus", "squared", "cubed", "factorial"}
NO_UNIT = re.compile(r"[,;]|.*(?:[不非或和与至到加减乘除余多]|以上|以下|左右)")
VAGUE = {"unit", "units", "square", "sq", "cubic", "cu", "per", "of", "a", "the", "us"}
ONE = rf"(?:{WORD}[^{END}]*{END}|\\Omega(?![a-zA-Z]))\s*(?:\^\s*\{{?-?[0-9]\}}?)?"
JOINED = r"(?:\s|/|\\cdot(?![a-zA-Z]))*"
UNIT_TAIL = re.compile(
    rf"(?:(?P<text>(?:{JOINED}(?:{ONE}|\\frac\s*\{{(?:1|{ONE})\}}\s*\{{(?:{JOINED}{ONE})+\}}"
    rf"|\((?:{JOINED}{ONE})+\)))+)"
    r"|\s*(?P<mod>\\pmod\s*(?:[0-9]+|\{[^{}]*\}))"
    r"|(?P<circ>\^\{\\circ\})\s*(?:[CF](?![a-zA-Z]))?"
    r"|(?:(?<=[0-9)}])|(?<=\\pi))(?P<bare>\s*[a-zA-Z]+\.?(?:[\s/]+[a-zA-Z]+\.?)*)(?:\s?\^\s?\{?-?[0-9]\}?)?)[.\s]*$"
)


def split_unit(text: str) -> tuple[str, str]:
    """(the text without a unit or modulus at its end or a currency; the name of that, else "")."""
    unit = ""
    if MONEY in text:
        text, unit = text.replace(MONEY, ""), "dollar"
    for _ in range(2):
        if not (tail := UNIT_TAIL.search(text)) or not text[: tail.start()].strip(" -+"):
            break
        # Not the unit of the value.
        if tail["circ"] and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
            break
        if tail["bare"] and not _surely_unit(tail["bare"], text[: tail.start()]):
            break
        found = tail["mod"] and re.sub(r"[\s{}]", "", tail["mod"])
        if not found:
            content = (tail["text"] or tail["bare"] or "degree").strip(WORD + " ")
            names = re.findall("[a-zA-Z]+", content)
            if NO_UNITS & {*names[:1]} or NO_UNIT.match(content):
                break
            known = [*filter(None, map(unit_of, names))]
            found = known[0] if known else ""
            power = re.search(r"\^\s?\{?(-?[0-9])", tail[0])
            found += f"^{power[1]}" if len(known) == 1 and power else ""
        text = text[: tail.start()].strip()
        unit = found or unit
    return text, unit


def unit_of(name: str) -> str | None:
    """The first spelling of a unit, None if it is none. The case of a single letter matters."""
    return UNITS.get(name if len(name) == 1 else name.lower())


def same_unit(unit: str, other: str) -> bool:
    """Whether two units may be the same: a missing unit or exponent fits any."""
    (name, _, power), (name2, _, power2) = unit.partition("^"), other.partition("^")
    return not name or not name2 or name == name2 and (not power or not power2 or power == power2)


def _surely_unit(bare: str, value: str) -> bool:
    """Whether letters after a value, not in \\text, are a unit and no variables: 5cm, 5 m, 5 square feet."""
    names = re.findall("[a-zA-Z]+", bare)
    if not bare[0].isspace():
        return len(names) == 1 and len(bare) > 1 and bool(unit_of(bare))
    # 2 m + 3 n
    if re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", value)):
        return all(len(name) > 2 for name in names)
    known = [unit_of(name) or len(name) > 2 for name in names]
    return any(known) and all(is_known or name in VAGUE for is_known, name in zip(known, names))
