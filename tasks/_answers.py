r"""Mathematical answers as people and models write them: read into a small structure, and compared by it.

`same(gold, answer, decide)` takes apart lists, sets, tuples, intervals, unions, matrices, relations, number
bases, times and units; compares rational numbers exactly; and leaves what needs algebra to `decide`. Taking
apart comes first because a computer algebra system is lenient where mathematics is not: math-verify holds
(1,2) equal to {1,2}, 1011_2 to 1011_3, 1/2^98 to 1/2^99, 2s (two seconds?) to 2.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from tasks._latex import (
    CLOSE,
    END,
    MONEY,
    NUMBERS,
    OPEN,
    ROW,
    WORD,
    WORTH,
    plain,
    rational,
    split_unit,
    tidy,
)

MAX_ITEMS = 64  # of a list or a matrix


class Node(NamedTuple):
    """kind, what it holds, and the text it was read from.

    number   (Fraction, whether it is a percentage, unit)
    text     an expression in plain LaTeX (with its unit), or a word
    list set tuple union   items; a `tuple` also has its brackets in front, e.g. "[)"
    matrix   (environment, rows)
    relation (operators, sides)
    base     (digits, base)
    time     (hour, minute, second, "am", "pm" or "")
    """

    kind: str
    value: object
    source: str


# ---------------------------------------------------------------- structure

OPERATORS = re.compile(r"=|<|>|\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|\\approx(?![a-z])|\\in(?![a-z])")
FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", "=": "=", r"\ne": r"\ne"}
GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
TIME = re.compile(
    r"([0-9]{1,2})(?:\s?:\s?([0-5][0-9]))?(?:\s?:\s?([0-5][0-9]))?\s*«?\s*(?:([aApP])\.?\s?[mM]\.?)?\s*»?"
)
BASE = re.compile(r"(-?)\(?([0-9A-Za-z]*[0-9][0-9A-Za-z]*(?:\.[0-9A-Za-z]+)?)\)?_\{?([0-9]+)\}?")
MATRIX = re.compile(r"\\begin\{([a-zA-Z]*matrix|array)\}(?:\{[lcr| ]*\})?(.*?)\\end\{\1\}", re.DOTALL)


def split(text, separators):
    """Parts of `text` between the matches of a compiled pattern that stand outside of all brackets."""
    parts, found, depth, start = [], [], 0, 0
    for match in re.finditer(
        rf"(?P<sep>{separators.pattern})|(?P<bracket>[][(){{}}{OPEN}{CLOSE}{WORD}{END}])", text
    ):
        if sign := match["bracket"]:
            depth += (sign in "([{" + OPEN + WORD) - (sign in ")]}" + CLOSE + END)
        elif depth == 0:
            parts.append(text[start : match.start()].strip())
            found.append(match["sep"])
            start = match.end()
    return [*parts, text[start:].strip()], found


ITEMS, CUP = re.compile("[,;]"), re.compile(r"\\cup(?![a-z])")


def bracketed(text):
    """(opening, inside, closing) where one pair of brackets holds the whole text, else None."""
    if len(text) < 2 or text[0] not in "([{" + OPEN or text[-1] not in ")]}" + CLOSE:
        return None
    depth = 0
    for i, sign in enumerate(text):
        depth += (sign in "([{" + OPEN) - (sign in ")]}" + CLOSE)
        if depth == 0 and i < len(text) - 1:
            return None
    return (text[0], text[1:-1].strip(), text[-1]) if depth == 0 else None


@lru_cache(maxsize=1 << 14)
def read(text, thousands=True):
    """The Node of an answer. `thousands`: 1,000 is a number, not a list. Errors: TooComplex."""
    return _read(tidy(text), thousands)


def _read(text, thousands=True):
    text = NUMBERS.get(text.strip().lower(), text.strip())
    if option := re.fullmatch(r"([A-Z])[):]", text):
        text = option[1]
    # (C) 12 is the choice and what it says; (C) or (D) is not.
    if label := re.fullmatch(r"\(([A-Z])\)[:.]?(?![-a-zA-Z])\s*(?![\s,;:(=<>+*/^_|]|[A-Z]\b)(.+)", text):
        return Node("choice", (_read(label[1]), _read(label[2])), text)
    joined = GROUPED.sub(lambda m: m[0].replace(",", ""), text) if thousands else text
    if not bracketed(text):
        items, separators = split(joined, ITEMS)
        items = [item for item in items if item]
        if len(items) > 1:
            return _list(items, set(separators) == {";"}, text)
        text = items[0] if items else joined
    sides, operators = split(text, OPERATORS)
    if operators:
        return _relation([*sides], operators, text)
    parts, cups = split(text, CUP)
    if cups:
        return Node("union", tuple(_read(part) for part in parts), text)
    if group := bracketed(text):
        opening, inside, closing = group
        if opening + closing == "{}":  # braces that only group, or a set's without their backslashes
            inner = _read(inside, thousands)
            if inner.kind != "text":
                return Node("set", inner.value, text) if inner.kind == "list" else inner
        items = [item for item in split(inside, ITEMS)[0]]
        if opening == OPEN and closing == CLOSE:
            if builder := re.fullmatch(r"[a-z](?:\s*\\in\s*\\Reals)?\s*(?:\\mid|\||:)(.*)", inside):
                return _read(builder[1])  # {x | 2 < x < 3}
            items = [item for item in items if item]
            return Node("set", _flat(_read(item, False) for item in items[:MAX_ITEMS]), text)
        if len(items) > 1 and OPEN + CLOSE not in opening + closing:
            brackets = opening + closing if len(items) == 2 else "()"
            return Node("tuple", (brackets, *(_read(item, False) for item in items[:MAX_ITEMS])), text)
        if inside and opening + closing in ("()", "[]") and not re.match(r"[^()]*\)\s*_", inside):
            return _read(inside)
    if (whole := MATRIX.fullmatch(text)) and whole[2].count(ROW) + whole[2].count("&") < MAX_ITEMS:
        rows = [row for row in whole[2].split(ROW) if row.strip()]
        return Node(
            "matrix", (whole[1][0] == "v", tuple(tuple(map(_read, row.split("&"))) for row in rows)), text
        )
    if re.search(r"\\[pm][pm](?![a-z])", text):
        signs = (("+", "-"), ("-", "+"))
        return Node("list", tuple(_read(_signed(text, *pair)) for pair in signs), text)
    return _leaf(text)


def _signed(text, plus, minus):
    text = re.sub(r"\\pm(?![a-z])", plus, text)
    text = re.sub(r"\\mp(?![a-z])", minus, text)
    return text.strip().removeprefix("+")


def _list(items, either, text):
    nodes = [_read(item) for item in items[:MAX_ITEMS]]
    regions = [as_set(node) for node in nodes if node.kind == "relation" and not _name(node)]
    if either and len(regions) == len(nodes) and all(regions):  # x < 1 or x > 2
        return Node("union", tuple(regions), text)
    named = [node for node in nodes if node.kind == "relation" and (_name(node))]
    if (
        named
        and len({_name(node) for node in named}) == 1
        and (len(named) in (1, len(nodes)))
        and nodes[0] in named
    ):
        nodes = [_last(node) if node in named else node for node in nodes]  # x = 1 or x = 2; x = 1, 2
    return Node("list", _flat(nodes), text)


def _flat(nodes):
    r"""The nodes, and for each \pm among them its two."""
    return tuple(part for node in nodes for part in (node.value if node.kind == "list" else (node,)))


def _relation(sides, operators, text):
    if operators[0] == r"\approx" and not sides[0]:  # about 8.24
        return _relation(sides[1:], operators[1:], text) if operators[1:] else _read(sides[1])
    if r"\approx" in operators:  # what is rounded is an aside
        cut = operators.index(r"\approx")
        sides, operators = sides[: cut + 1], operators[:cut]
        return _relation(sides, operators, text) if operators else _read(sides[0])
    if operators == [r"\in"]:
        return _read(sides[1])
    if not all(sides) or r"\in" in operators or len(sides) > 8:
        return Node("text", (plain(text), ""), text)
    falling = operators[0] in (">", r"\ge")
    if falling:  # one direction for all: rising
        sides, operators = sides[::-1], [FLIPPED[op] for op in operators[::-1]]
    named = [is_name(s) for s in sides]
    if set(operators) == {"="}:  # the value that a name is given may be a letter as well: x = A
        if named[-1] and not named[0]:
            sides, named = sides[::-1], named[::-1]
        named = [named[0], *(False for _ in sides[1:])]
    nodes = [Node("name", plain(s), s) if name else _read(s) for s, name in zip(sides, named)]
    return Node("relation", (tuple(operators), tuple(nodes)), text)


NAME = re.compile(
    r"(?:m?\\angle\s*|\\triangle\s*|\\overline|\\vec|\\overrightarrow|\{)*"
    rf"(?:[a-zA-Z]|[A-Z]{{2,4}}|\\(?:alpha|beta|gamma|delta|theta|phi|lambda|mu|rho|sigma|omega|ell)|{WORD}[^{END}]*{END})"
    r"\}?'*(?:_\{?[0-9a-zA-Z]+\}?)?(?:\^\{?-1\}?)?(?:\((?:[^()]|\([^()]*\))*\))?"
)
LOOSE = re.compile(r"(?!-)[a-zA-Z\\+\-/ {}()_^']*[a-zA-Z][a-zA-Z\\+\-/ {}()_^']*")


def is_name(text):
    """Whether an equation's side only names what the other side gives: x, f(2), AB, (x, y), «Area»."""
    if (group := bracketed(text)) and group[0] == "(":
        items = split(group[1], ITEMS)[0]
        return len(items) > 1 and all(is_name(item) for item in items)
    return bool(NAME.fullmatch(text)) and text not in ("e", "i")


def _name(node):
    """The name that a relation gives a value to, "" if it does something else."""
    operators, sides = node.value
    return sides[0].value if set(operators) == {"="} and sides[0].kind == "name" else ""


def _last(node):
    return node.value[1][-1]


def _leaf(text):
    if (time := TIME.fullmatch(text)) and (time[2] or time[4]):
        hour, minute, second = (int(part or 0) for part in time.groups()[:3])
        return Node(
            "time", (hour, minute, second, {"a": "am", "p": "pm"}.get((time[4] or "").lower(), "")), text
        )
    if (base := BASE.fullmatch(text.replace(" ", ""))) and not re.match("-?[a-zA-Z]_", text):
        digits = base[1] + (base[2].lstrip("0") or "0").upper()
        if base[3] != "10":
            return Node("base", (digits, int(base[3])), text)
        text = base[1] + base[2]
    value, unit = split_unit(text)
    if percent := value.endswith("%"):
        value = value[:-1].strip()
    value = re.sub(r"(?<![0-9])([0-9]+) ([0-9]+) ?/ ?([0-9]+)(?![0-9])", r"\1\\frac{\2}{\3}", value)
    value = re.sub(
        r"(?<![0-9.])([0-9]{1,3})((?: [0-9]{3})+)(?![0-9])", lambda m: m[0].replace(" ", ""), value
    )
    value = plain(value).replace(WORD + END, "")
    if ":" in value and len(ratio := value.split(":")) > 1 and all(ratio):
        if len(ratio) > 2:
            return Node("tuple", ("::", *map(_leaf, ratio)), text)
        value = "\\frac{" + ratio[0] + "}{" + ratio[1] + "}"
    if value and (number := rational(value)) is not None:
        return Node("number", (number, percent, unit), text)
    if value == r"\Reals" or letters(text) in ("all real numbers", "all reals", "real numbers"):
        return Node("tuple", ("()", _leaf(r"-\infty"), _leaf(r"\infty")), text)
    if value == r"\emptyset" or re.fullmatch("no (real |integer )?solutions?|none", letters(text)):
        return Node("set", (), text)
    return Node("text", (value.replace(r"+\infty", r"\infty") if value == r"+\infty" else value, unit), text)


# ---------------------------------------------------------------- comparison


def letters(text):
    """The words of a text, in small letters, without marks, articles and commands."""
    words = re.findall("[a-z0-9]+", re.sub(r"\\[a-zA-Z]+", " ", text).lower())
    return " ".join(words[1:] if words[:1] in (["a"], ["an"], ["the"]) and words[1:] else words)


def same(gold, answer, decide):
    """Whether two texts give the same answer. `decide(kind, gold, answer)` -> bool does the algebra of

    "equal"       two LaTeX expressions
    "equation"    two pairs of sides; as well "inequality", of rising ones
    "set"         two LaTeX texts, at least one of which is a set or matrix that is written as an operation

    Errors: TooComplex, and what `decide` raises.
    """
    if squeeze(gold) == squeeze(answer):
        return True
    return _same(read(gold), read(answer), decide)


def squeeze(text):
    """`text` without blanks but those between digits."""
    return re.sub(r"\s+(?![0-9])|(?<![0-9])\s+", "", text)


def _same(g, a, decide):
    if g == a or g.kind == a.kind and g.value == a.value:
        return True
    match g.kind, a.kind:
        case "choice", _:
            return any(_same(part, a, decide) for part in g.value)
        case _, "choice":
            return any(_same(g, part, decide) for part in a.value)
        case "relation", _:
            return _same_relation(g, a, decide)
        case _, "relation":
            return _same_value(g, a, decide)
        case "number", "number":
            return _same_number(g.value, a.value)
        case "base", "base":
            return g.value == a.value
        case ("set", "number") | ("number", "set"):
            return len((g if g.kind == "set" else a).value) == 1 and _same_items(_one(g), _one(a), decide)
        case ("time", "time" | "number") | ("number", "time"):
            return _same_time(g, a)
        case "matrix", "matrix":
            (det, rows), (other, others) = g.value, a.value
            return det == other and [*map(len, rows)] == [*map(len, others)] and all(
                _same(x, y, decide) for row, row2 in zip(rows, others) for x, y in zip(row, row2)
            )  # fmt: skip
        case ("list", "list") | ("list", "set") | ("set", "list") | ("set", "set"):
            return _same_items(g, a, decide)
        case ("list", "tuple") | ("tuple", "list"):
            golds, answers = (n.value if n.kind == "list" else n.value[1:] for n in (g, a))
            if g.kind == "tuple" and all(i.kind == "relation" and _name(i) for i in answers):  # x = 1, y = 2
                answers = [_last(i) for i in sorted(answers, key=_name)]
            brackets = (g if g.kind == "tuple" else a).value[0]
            return brackets in ("()", "::") and _all(golds, answers, decide)
        case "tuple", "tuple":
            return g.value[0] == a.value[0] and _all(g.value[1:], a.value[1:], decide)
        case "union", "union":
            kinds = [sorted(part.kind for part in node.value) for node in (g, a)]  # (-1) is no {-1}
            if kinds[0] != kinds[1]:
                return False
            return _unordered(g.value, a.value, decide) or decide("set", _plain(g), _plain(a))
        case "union", "list":  # (-1, 0) and (2, 3)
            kinds = {part.kind for part in a.value}
            return kinds <= {"tuple", "set"} and _unordered(g.value, a.value, decide)
        case ("union", "tuple" | "set") | ("tuple" | "set", "union"):
            return decide("set", _plain(g), _plain(a))
        case ("list", "number") if "," in a.source:
            return _same(g, _read(a.source, thousands=False), decide)
        case ("union" | "tuple" | "set", "text") | ("text", "union" | "tuple" | "set"):
            text = g if g.kind == "text" else a
            return bool(re.search(r"\\(?:setminus|backslash|cap|Reals)", text.source)) and decide(
                "set", _plain(g), _plain(a)
            )
        case ("matrix", "text") | ("text", "matrix"):
            return "matrix" in (g if g.kind == "text" else a).source and decide("set", _plain(g), _plain(a))
        case ("text", "text" | "number") | ("number", "text"):
            return _same_text(g, a, decide)
    return g.kind == "text" and letters(g.source) == letters(a.source) != "" and g.value[0].startswith(WORD)


def _one(node):
    return node if node.kind == "set" else Node("set", (node,), node.source)


def _plain(node):
    return (
        plain(node.source)
        .replace(r"\Reals", r"\mathbb{R}")
        .replace(OPEN, r"\{")
        .replace(CLOSE, r"\}")
        .replace(ROW, r"\\")
    )


def _all(golds, answers, decide):
    return len(golds) == len(answers) and all(_same(g, a, decide) for g, a in zip(golds, answers))


def _unordered(golds, answers, decide):
    if len(golds) != len(answers):
        return False
    left = list(answers)
    for g in golds:
        found = next((i for i, a in enumerate(left) if _same(g, a, decide)), None)
        if found is None:
            return False
        del left[found]
    return True


def _same_items(g, a, decide):
    golds, answers = g.value, a.value
    names = [[i.kind == "relation" and bool(_name(i)) for i in items] for items in (golds, answers)]
    if golds and all(names[0]) and not any(names[1]):  # AB = 9, CD = 4 in that order
        return _all(golds, answers, decide)
    words = [i.kind == "text" and i.value[0].startswith((WORD, r"\ldots")) for i in golds]
    if any(words):  # words in a row may be a ranking, and what goes on has an order
        return _all(golds, answers, decide)
    if "set" in (g.kind, a.kind):
        golds, answers = dict.fromkeys(i.value for i in golds), dict.fromkeys(i.value for i in answers)
        golds = [next(i for i in g.value if i.value == v) for v in golds]
        answers = [next(i for i in a.value if i.value == v) for v in answers]
    return _unordered(golds, answers, decide)


def _same_number(g, a):
    (x, x_percent, x_unit), (y, y_percent, y_unit) = g, a
    if (x_unit in WORTH or y_unit in WORTH) and x * WORTH.get(x_unit, 1) == y * WORTH.get(y_unit, 1):
        return x_percent == y_percent  # 3 million is 3,000,000; for "how many millions?" 3 is right as well
    if x_unit and y_unit and x_unit != y_unit:
        return False
    if x_percent == y_percent:
        return x == y
    percent, bare = (x, y) if x_percent else (y, x)
    return percent == 100 * bare or percent == bare and abs(bare) >= 1  # 25% is 25 and 0.25; 0.5% is not 0.5


def _same_time(g, a):
    if g.kind == a.kind:
        (*clock, half), (*other, other_half) = g.value, a.value
        hours = [c[0] % 12 + 12 * (h == "pm") if h else c[0] for c, h in ((clock, half), (other, other_half))]
        vague = "" in (half, other_half) and max(clock[0], other[0]) <= 12 and clock[0] % 12 == other[0] % 12
        return clock[1:] == other[1:] and (hours[0] == hours[1] or vague)
    hour, minute, second, half = (g if g.kind == "time" else a).value
    number = (a if g.kind == "time" else g).value[0]
    if half:  # 9 a.m. is 9
        return number == hour and minute == second == 0
    return minute != 0 == second and Fraction(hour, minute) == number  # 3:15 may be a ratio


PROSE = re.compile(rf"(?=.*[a-zA-Z]{{3}})[a-zA-Z0-9 .,'{WORD}{END}]+")


def _same_text(g, a, decide):
    if g.kind == a.kind == "text":
        (x, x_unit), (y, y_unit) = g.value, a.value
        if x.startswith(WORD) or y.startswith(WORD):
            operators = {"".join(re.findall(r"(?<![a-zA-Z])[-+/^]|\\cdot", text)) for text in (x, y)} - {""}
            return letters(g.source) == letters(a.source) != "" and len(operators) < 2  # «a»+«b», «a»-«b»
        if x_unit and y_unit and x_unit != y_unit:
            return False
        if x == y:
            return True
        if PROSE.fullmatch(g.source) and letters(g.source) == letters(a.source):
            return True
        if re.fullmatch(r"(?:m?\\(?:angle|triangle) ?)?[A-Z]{2,}", x):  # a name, such as CD or LQSX
            return x == y
        if re.fullmatch("[a-zA-Z]", x) and x.lower() == y.lower():
            return True
    words = [_expression(node) for node in (g, a)]
    if variables(words[0]) != variables(words[1]) or any(
        not w.isascii() or re.search(rf"[0-9] [0-9]|[{WORD}{END}{MONEY}]", w) for w in words
    ):
        return False
    return decide("equal", *words)


def _expression(node):
    if node.kind == "text":
        return node.value[0].removesuffix("%")
    value = node.value[0] / 100 if node.value[1] else node.value[0]
    if value.numerator.bit_length() + value.denominator.bit_length() > 4000:  # Python refuses to write it out
        return plain(node.source)
    return (
        f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
        if value.denominator > 1
        else str(value.numerator)
    )


def variables(text):
    """The letters that stand for something unknown, as a set: not e, i, nor the letters of commands."""
    return set(re.findall("[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", " ", text))) - {"e", "i"}


def _same_relation(g, a, decide):
    operators, sides = g.value
    if a.kind == "relation":
        others = a.value[1]
        if operators != a.value[0]:
            name, other = _name(g), _name(a)
            return bool(name and name == other) and _same(_last(g), _last(a), decide)
        if operators[0] == r"\ne" and _all(sides, others[::-1], decide) or _all(sides, others, decide):
            return True
        if set(operators) == {"="} and not variables("".join(_sides(g))):  # 0.56 = 56%
            return all(any(_same(side, other, decide) for side in sides) for other in others)
        if set(operators) == {"="} and len(sides) == 2:
            if _name(g) and _name(a) and not variables(_sides(g)[1] + _sides(a)[1]):
                return False  # x = 5 is not y = 5
            return decide("equation", _sides(g), _sides(a))
        if operators[0] in ("<", r"\le") and len(operators) == 1:
            return decide("inequality", _sides(g), _sides(a))
        g_set, a_set = as_set(g), as_set(a)
        return bool(g_set and a_set) and _same(g_set, a_set, decide)
    if set(operators) != {"="}:
        region = as_set(g)
        return region is not None and _same(region, a, decide)
    if _name(g):
        return any(_same(side, a, decide) for side in sides[1:])
    constant = all(s.kind == "number" or s.kind == "text" and not variables(s.value[0]) for s in sides)
    return constant and any(_same(side, a, decide) for side in sides)


def _same_value(g, a, decide):
    """An answer that is a relation against a gold value: x = 5, x = 10/2 = 5, a + b = 5, 2 + 3 = 5, x > 3."""
    operators, sides = a.value
    if set(operators) != {"="}:
        region = as_set(a)
        return region is not None and g.kind in ("tuple", "union") and _same(g, region, decide)
    if sides[0].kind == "name" or LOOSE.fullmatch(sides[0].source) and len(sides) == 2:
        sides = sides[1:]
    return all(_same(g, side, decide) for side in sides)


def _sides(node):
    return [n.value if n.kind == "name" else _plain(n) for n in node.value[1]]


def as_set(node):
    """The interval or union that a relation such as 1 < x <= 3 or x > 3 confines its variable to, or None."""
    operators, sides = node.value
    infinity = _leaf(r"\infty")
    if len(sides) == 2 and operators[0] in ("<", r"\le", r"\ne"):
        left, right = (s.kind == "name" for s in sides)
        if left == right:
            return None
        bound, closed = sides[0] if right else sides[1], operators[0] == r"\le"
        below = Node("tuple", ("(" + ")]"[closed], _leaf(r"-\infty"), bound), node.source)
        above = Node("tuple", ("(["[closed] + ")", bound, infinity), node.source)
        if operators[0] == r"\ne":
            return Node("union", (below, above), node.source)
        return below if left else above
    if len(sides) == 3 and set(operators) <= {"<", r"\le"} and sides[1].kind == "name":
        brackets = "(["[operators[0] != "<"] + ")]"[operators[1] != "<"]
        return Node("tuple", (brackets, sides[0], sides[2]), node.source)
    return None
