"""LaTeX as people and models write it: one spelling for each thing, exact numbers, units apart from them."""

import re
import unicodedata
from fractions import Fraction
from math import factorial

MAX_LENGTH, MAX_DEPTH = 400, 12  # characters of an answer and brackets within brackets: MATH's have 159 and 5
MAX_BITS, MAX_FACTORIAL = 100_000, 5_000  # of an exact number
MAX_TOWER = 2  # exponents within exponents


class TooComplex(ValueError):
    """An answer beyond the caps: no gold answer is, so it is wrong without a look."""


# ---------------------------------------------------------------- LaTeX's varieties

SIGNS = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "－": "-", "÷": "/", "⁄": "/", "∕": "/", "’": "'",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "±": r"\pm ", "√": r"\sqrt ", "％": "%",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ",
    "∅": r"\emptyset ", "ℝ": r"\mathbb{R}", "…": r"\dots ", "°": r"^\circ ", "¢": " cents ", "\xa0": " ",
    "α": r"\alpha ", "β": r"\beta ", "θ": r"\theta ", "π": r"\pi ", "φ": r"\phi ", "∞": r"\infty ",
}  # fmt: skip
SCRIPT = re.compile("(?P<up>[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+)|(?P<low>[₀₁₂₃₄₅₆₇₈₉]+)|[½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
# One character each stands for what LaTeX spells out; the text that is read cannot hold them any more.
ROW, WORD, END, OPEN, CLOSE, MONEY = "⏎", "«", "»", "⦃", "⦄", "¤"
PRIVATE = str.maketrans(dict.fromkeys(ROW + WORD + END + OPEN + CLOSE + MONEY, "\ufffd") | SIGNS)
REWRITE = [
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\\\\s*(?:\[[^\[\]]{0,9}\])?(?![a-zA-Z])|\\cr\b", ROW),
        (r"\\\$|\\text\{\$\}|€|£|\\pounds|\\euro(?![a-z])", MONEY),
        (r"\\times(?=\s*\{?\s*\\(?:mathbf|vec|boldsymbol)(?![a-zA-Z]))", r"\\wedge"),  # of vectors
        (r"\\[()\[\]]|\$", ""),  # delimiters of mathematics
        (r",\s*\\!\s*", ","),
        (
            r"\\[!]|\\underline(?![a-zA-Z])|\\displaystyle|\\textstyle|\\limits|\\boldsymbol|\\(?:rm|bf|it)(?![a-zA-Z])",
            "",
        ),
        (r"\\(?:left|right)\s*\.", ""),
        (r"\\[mM]?(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])", ""),
        (r"\\[,;: ]|~|\\q?quad(?![a-zA-Z])|\\(?:hspace|vspace|phantom)\{[^{}]*\}", " "),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[lc]?dots(?![a-zA-Z])|(?<=[,\s])\.\.\.", r"\\ldots "),
        (r"\\(?:bar|dot)\s*(?=\{[0-9])", r"\\overline"),
        (r"\\tbinom|\\dbinom", r"\\binom"),
        (r"\{([,:])\}", r"\1"),
        (r"\\(?:leqslant|leqq|leq)(?![a-zA-Z])|<=", r"\\le "),
        (r"\\(?:geqslant|geqq|geq)(?![a-zA-Z])|>=", r"\\ge "),
        (r"\\neq(?![a-zA-Z])|\\not\s*=|!=", r"\\ne "),
        (r"\\equiv(?![a-zA-Z])", "="),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:approx|simeq|sim)(?![a-zA-Z])", r"\\approx "),
        (r"\\(?:times|ast)(?![a-zA-Z])|(?<!\\)\*", r"\\cdot "),
        (r"\\div(?![a-zA-Z])", "/"),
        (
            r"(?<![a-zA-Z0-9.\\])([0-9]+(?:\.[0-9]+)?)[eE]([-+]?[0-9]{1,3})(?![a-zA-Z0-9])",
            r"\1\\cdot 10^{\2}",
        ),
        (r"\\lbrace(?![a-zA-Z])|\\\{", OPEN),
        (r"\\rbrace(?![a-zA-Z])|\\\}", CLOSE),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\[lr]?vert(?![a-zA-Z])", "|"),
        (r"\\varnothing|\\empty(?![a-zA-Z])", r"\\emptyset"),
        (r"\^\s*\{?\s*(?:\\circ|\\degree)\s*\}?|\\degrees?(?![a-zA-Z])", r"^{\\circ}"),
        (r"\\%|\\text\{\s*(?:%|percent)\s*\}|(?<=[0-9])\s*percent\b", "%"),
        (r"\\mathbb\s*R(?![a-zA-Z])|\\(?:mathbb|mathbf)\s*\{R\}|\\R(?![a-zA-Z])", r"\\Reals "),
        (r"(?<![\\a-zA-Z])(sqrt|pi|sin|cos|tan|log|ln|cup)(?![a-zA-Z])", r"\\\1 "),
        (r"(?<![\\a-zA-Z])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (r"\band\b", ","),
        (r"\bor\b", ";"),
        (r"\\(?:overline|overrightarrow|overleftrightarrow)\s*\{([A-Z]{2,3})\}", r"\1"),
    )
]
TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|tt|sf|sc|up)?|mbox|hbox|math(?:rm|bf|it|sf|tt)|operatorname)\s*\{([^{}]*)\}"
)
FUNCTIONS = "sin cos tan cot sec csc log ln exp lcm gcd max min arcsin arccos arctan".split()
NUMBERS = dict(
    zip(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty".split(),
        map(str, range(21)),
    )
)


def _of_script(match):
    """LaTeX of raised or lowered digits, or of a fraction that is one character."""
    digits = unicodedata.normalize("NFKC", match[0]).replace("−", "-")
    if match["up"] or match["low"]:
        return f"{'^' if match['up'] else '_'}{{{digits}}}"
    return r"\frac" + "".join(f"{{{part}}}" for part in digits.split("⁄"))


LEAD = re.compile(  # The answer is 5; \text{Option (A)}
    r"\A\s*(?P<open>\\(?:text|textbf|mathrm|mbox)\s*\{)?\s*(?:so,?\s|thus,?\s|therefore,?\s|hence,?\s)?(?:the\s)?"
    r"(?:final\s|correct\s)?(?:(?:answer|result|solution|value)(?:\s+is(?![a-z])\s*:?|\s*[:=])"
    r"|(?:answer|option|choice)\s+(?=\(?[A-Z]\)?[}\s.]*\Z))\s*(?P<close>\})?",
    re.IGNORECASE,
)
SEPARATORS = {"and": ",", "or": ";", "to": ":"}
CHOICE = re.compile(
    r"[^a-zA-Z]*|(?![mgshl]$)\(?[a-zA-Z]\)?(?:(?:\s*,\s*(?:and\s)?|\s+and\s+|\s+)[a-zA-Z])*,?"
)


def _of_text(match):
    r"""What the content of a \text{} means: a separator, a choice's letter, a word number, or «words»."""
    content = " ".join(match[1].split())
    word = content.strip(" ,.").lower()
    if word in SEPARATORS:
        return SEPARATORS[word]
    if word in NUMBERS:
        return NUMBERS[word]
    if word in FUNCTIONS:
        return f"\\{word} "
    if CHOICE.fullmatch(content):
        content = re.sub(r"(?<=[a-zA-Z])\s+(?=[a-zA-Z]\b)", ",", re.sub(r",?\s+and\s+", ",", content))
        return " " + content if content[:1].isalpha() else content  # \cdot\mathbf{b} is no \cdotb
    if re.search("[0-9]", content):
        return content
    return f"{WORD}{content}{END}"


def tidy(text):
    r"""`text` with one spelling for each thing: no $, \left, \dfrac, \!, no full stop, \text{m} as «m»."""
    if len(text) > MAX_LENGTH:
        raise TooComplex("too long")
    text = text.translate(PRIVATE)
    if "begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)  # the backslash doubled, as in JSON
    text = LEAD.sub(lambda m: "" if m["close"] else m["open"] or "", text)
    while unboxed := re.fullmatch(r"[\s$]*\\(?:boxed|fbox)\s*\{(.*)\}[\s$.]*", text, re.DOTALL):
        text = unboxed[1]
    if re.search(r"\\boxed|\\fbox", text):
        raise TooComplex("a box within other text")
    for pattern, new in REWRITE[:3]:
        text = pattern.sub(new, text)
    text = SCRIPT.sub(_of_script, TEXT.sub(_of_text, text))
    for pattern, new in REWRITE[3:]:
        text = pattern.sub(new, text)
    text = re.sub(rf"(?<=[0-9])\s*\^?\s*\{{?{WORD}?(?:st|nd|rd|th){END}?\}}?(?![a-z])", "", text)  # 17th
    text = re.sub(rf"^\s*{WORD}[^{END}]*:{END}", "", text)  # Answer: 17
    text = re.sub(rf"\s*({WORD})\s*|\s*([.,;])\s*$", r"\1\2", " ".join(text.split()))
    text = text.lstrip(" ,;").rstrip("" if re.search(r"[ap]\.\s?m\.$", text) else " .,;\\" + ROW)
    if re.search(r"\^\s*(?:\{[^{}]*\}|[^{\s])\s*\^", text):
        raise TooComplex("a power of a power")
    deepest = 0
    exponents, before = [], ""  # of each open bracket: whether it is an exponent
    for sign in text:
        if sign in "([{" + OPEN:
            exponents.append(before == "^")
        elif sign in ")]}" + CLOSE and exponents:
            exponents.pop()
        elif sign == "^" and sum(exponents) >= MAX_TOWER:
            raise TooComplex("a power tower")
        deepest, before = max(deepest, len(exponents)), sign if sign != " " else before
    if deepest > MAX_DEPTH:
        raise TooComplex("too deep")
    return text


TOKEN = re.compile(r"\\[a-zA-Z]+|[0-9]+(?:\.[0-9]+)?|\.[0-9]+|\s+|.", re.DOTALL)
ONE_DIGIT = (r"\frac", r"\binom", r"\overline")  # \frac12 is a half; x^12 and \sqrt13 mean all of it
ARGUMENTS = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1, r"\overline": 1, "^": 1, "_": 1}


def plain(text):
    r"""`text` without needless blanks, every argument in braces: `\frac 1{2}x ^2` -> `\frac{1}{2}x^{2}`."""
    tokens, out = TOKEN.findall(text), []

    def group(i):
        """(the bracketed group at token i, the index behind it); an open end takes all."""
        depth, start = 0, i
        for i in range(start, len(tokens)):
            depth += (tokens[i] in "{([") - (tokens[i] in "})]")
            if depth == 0:
                break
        return "".join(tokens[start : i + 1]), i + 1

    i = 0
    while i < len(tokens):
        token, i = tokens[i], i + 1
        if token.isspace():
            if out and out[-1][-1:].isdigit() and i < len(tokens) and tokens[i][0].isdigit():
                out.append(" ")  # a gap between digits says something
            continue
        out.append(token)
        for _ in range(ARGUMENTS.get(token, 0)):
            while i < len(tokens) and tokens[i].isspace():
                i += 1
            if token == r"\sqrt" and i < len(tokens) and tokens[i] == "[":
                root, i = group(i)
                out.append(root)
            if i >= len(tokens):
                break
            if tokens[i] == "{" or tokens[i] == "(" and token in (r"\sqrt", "^"):
                inner, i = group(i)
                out.append("{" + plain(inner[1:-1]) + "}")
            elif token in ONE_DIGIT and tokens[i][0].isdigit() and "." not in tokens[i]:
                out.append("{" + tokens[i][0] + "}")
                tokens[i] = tokens[i][1:]
                i += not tokens[i]
            else:
                sign = tokens[i] if tokens[i] in "+-" and i + 1 < len(tokens) else ""
                i += len(sign)
                out.append("{" + sign.strip("+") + tokens[i] + "}")
                i += 1
    joined = ""
    for token in out:
        gap = re.search(r"\\[a-zA-Z]+$", joined) and token[0].isalpha()
        joined += " " + token if gap else token
    return joined


# ---------------------------------------------------------------- exact numbers

ATOM = re.compile(
    r"(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9])|[0-9]+\.?[0-9]*|\.[0-9]+|\.(?=\\overline))"
    r"(?:\\overline\{(?P<period>[0-9]+)\})?|\\frac|\\cdot|[-+/^!(){}]"
)


def rational(text):
    """The exact Fraction that a plain text of numbers means, None if it holds anything else.

    Signs, + - / ^ ! brackets, fractions, products, mixed numbers, repeating decimals. Errors: TooComplex.
    """
    atoms, at = [], 0
    while at < len(text):
        if not (match := ATOM.match(text, at)):
            return None
        atoms.append(match)
        at = match.end()
    parser = _Arithmetic(atoms[::-1])
    try:
        value = parser.total()
        return value if not parser.atoms else None
    except (SyntaxError, IndexError, ZeroDivisionError):
        return None


def small(value):
    """The Fraction itself. Errors: TooComplex."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise TooComplex("a number too large")
    return value


class _Arithmetic:
    """Recursive descent over a stack of ATOM's matches; every method returns a Fraction."""

    def __init__(self, atoms):
        self.atoms = atoms

    def peek(self):
        return self.atoms[-1][0] if self.atoms else ""

    def take(self, expected):
        if self.peek() != expected:
            raise SyntaxError
        self.atoms.pop()

    def sign(self):
        return -1 if self.peek() in ("+", "-") and self.atoms.pop()[0] == "-" else 1

    def total(self):
        value = self.product()
        while self.peek() in ("+", "-"):
            value = small(value + self.product())  # which takes the sign
        return value

    def product(self):
        value = self.sign() * self.power()
        while (op := self.peek()) and op not in "+-)}":
            if op in ("/", r"\cdot"):
                self.atoms.pop()
            elif op not in ("(", r"\frac") and not op[0].isdigit():
                raise SyntaxError
            factor = self.sign() * self.power() if op in ("/", r"\cdot") else self.power()
            value = small(value / factor if op == "/" else value * factor)
        return value

    def power(self):
        value = self.atom()
        while self.peek() == "!":
            self.atoms.pop()
            if value.denominator != 1 or value < 0:
                raise SyntaxError
            if value > MAX_FACTORIAL:
                raise TooComplex("a number too large")
            value = Fraction(factorial(int(value)))
        if self.peek() == "^":
            self.atoms.pop()
            exponent = self.braced()
            if exponent.denominator != 1:
                raise SyntaxError
            bits = max(value.numerator.bit_length(), value.denominator.bit_length()) - (abs(value) == 1)
            if bits * abs(exponent) > MAX_BITS:
                raise TooComplex("a number too large")
            value **= int(exponent)
        return value

    def braced(self):
        self.take("{")
        value = self.total()
        self.take("}")
        return value

    def atom(self):
        match = self.atoms.pop()
        if match["number"]:
            return self.number(match)
        if match[0] == r"\frac":
            return self.braced() / self.braced()
        if match[0] not in ("(", "{"):
            raise SyntaxError
        value = self.total()
        self.take(")" if match[0] == "(" else "}")
        return value

    def number(self, match):
        digits = match["number"].replace(",", "")
        value = Fraction("0" + digits.removesuffix("."))
        if match["period"]:
            if "." not in digits:
                raise SyntaxError
            places = len(digits) - digits.index(".") - 1
            value += Fraction(int(match["period"]), (10 ** len(match["period"]) - 1) * 10**places)
        if self.peek() == r"\frac" and "." not in digits:
            self.atoms.pop()
            numerator, denominator = self.braced(), self.braced()
            part = numerator / denominator
            proper = numerator.denominator == 1 == denominator.denominator and 0 < part < 1
            return value + part if proper else value * part  # 1\frac{2}{3} is 5/3
        return value


# ---------------------------------------------------------------- units

WORTH = {  # units that are numbers
    "cent": Fraction(1, 100),
    "dozen": 12,
    "hundred": 100,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
}
UNITS = {
    name + plural: line.split()[0]
    for line in (
        "m meter metre", "cm centimeter centimetre", "mm millimeter millimetre", "km kilometer kilometre",
        "inch in inche", "foot ft feet", "yard yd", "mile mi", "second s sec", "minute min", "hour h hr",
        "day", "week", "month", "year yr", "g gram gm", "kg kilogram", "mg", "ton tonne", "pound lb",
        "ounce oz", "liter l litre", "ml milliliter millilitre", "gallon gal", "dollar usd buck",
        "euro eur", "degree deg", "radian rad", "mph", "kph kmh", "acre", "hectare", "newton", "joule",
        "watt", "volt", "ohm", "hz hertz", "knot", *WORTH,
    )
    for name in line.split()
    for plural in ("", "s")
}  # fmt: skip
# What follows a number and is no unit of it: 5 or more, 5 squared.
NO_UNITS = {",", ";", "not", "is", "at", "to", "plus", "minus", "squared", "cubed", "factorial"}
VAGUE = {"unit", "units", "square", "sq", "cubic", "cu", "per", "of", "a", "the", "us"}
UNIT_TAIL = re.compile(
    rf"(?:\s*{WORD}(?P<text>[^{END}]*){END}\s*(?:\^\{{?[0-9]\}}?)?(?:\s*/\s*{WORD}[^{END}]*{END})?"
    rf"|\s*\\frac\{{{WORD}(?P<over>[^{END}]*){END}\}}\{{{WORD}[^{END}]*{END}(?:\^\{{?[0-9]\}}?)?\}}"
    r"|\s*(?P<mod>\\pmod\s*(?:[0-9]+|\{[^{}]*\}))"
    r"|(?:(?P<circ>\^\{\\circ\})\s*(?:[CF](?![a-zA-Z]))?)"
    r"|(?<=[0-9)}])(?P<bare>\s*[a-zA-Z][a-zA-Z]*\.?(?:[\s/]+[a-zA-Z]+\.?)*)(?:\s?\^\{?[0-9]\}?)?)[.\s]*$"
)


def split_unit(text):
    """(the text without a trailing unit or modulus or a currency, the name of that, "" if there is none)."""
    unit = ""
    if MONEY in text:
        text, unit = text.replace(MONEY, ""), "dollar"
    for _ in range(2):
        if not (tail := UNIT_TAIL.search(text)) or not text[: tail.start()].strip(" -+"):
            break
        if tail["circ"] and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):  # not the unit of the value
            break
        if tail["bare"] and not _surely_unit(tail["bare"], text[: tail.start()]):
            break
        words = (tail["text"] or tail["bare"] or tail["over"] or "degree").lower()
        names = re.findall("[a-zA-Z]+", words)
        if NO_UNITS & {*names[:1], words.strip()[:1]}:
            break
        found = tail["mod"] and re.sub(r"[\s{}]", "", tail["mod"])
        found = found or next((UNITS[w] for w in names if w in UNITS), "")
        text = text[: tail.start()].strip()
        unit = found or unit
    return text, unit


def _surely_unit(words, value):
    """Whether letters behind a value, without \\text, are a unit, no variables: 5cm, 5 m, 5 square feet."""
    names = re.findall("[a-zA-Z]+", words)
    if not words[0].isspace():
        return len(names) == 1 and len(words) > 1 and words in UNITS
    if re.search("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", value)):  # 2 m + 3 n
        return all(len(name) > 2 for name in names)
    known = [name.lower() in UNITS or len(name) > 2 for name in names]
    return any(known) and all(is_known or name in VAGUE for is_known, name in zip(known, names))
