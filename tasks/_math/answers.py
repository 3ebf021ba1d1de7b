r"""Mathematical answers as people and models write them: read into a small structure, and compared by it.

`same(gold, answer)` splits both into lists, sets, tuples, intervals, unions, matrices, relations, number
bases, times and units. It compares rational numbers exactly, formulas as `algebra.py` does, and sets of real
numbers as `regions.py` does. The structure comes first because a computer algebra system is lenient where
mathematics is not: to math-verify, (1,2) equals {1,2}, 1011_2 equals 1011_3, and 1/2^98 equals 1/2^99.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

from tasks._math.algebra import (
    LOCK,
    NO_VALUE,
    Call,
    Constant,
    Name,
    Sides,
    Tree,
    Values,
    equal,
    leaves,
    mp,
    names,
    parse,
    same_equation,
    same_inequality,
    value,
)
from tasks._math.latex import (
    CLOSE,
    END,
    NUMBERS,
    OPEN,
    ROW,
    WORD,
    WORTH,
    TooComplex,
    same_unit,
    split_unit,
    tidy,
    words,
)
from tasks._math.regions import Combined, Condition, Interval, Points, Region, same_region

# Of a list or a matrix.
MAX_ITEMS = 64


@dataclass(frozen=True)
class Node:
    """A part of an answer, and the text that it was read from."""

    source: str


@dataclass(frozen=True)
class Number(Node):
    """A rational number; `percent`: it has a percent sign, which does not count in the value."""

    value: Fraction
    percent: bool
    unit: str


@dataclass(frozen=True)
class Formula(Node):
    """A formula with unknowns, or with a value that is not rational."""

    tree: Tree
    unit: str


@dataclass(frozen=True)
class Text(Node):
    """Words, or what is no formula."""

    text: str


@dataclass(frozen=True)
class Items(Node):
    """What a list, a set, a tuple or a union has in common."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class List(Items):
    """Several answers in any order."""


@dataclass(frozen=True)
class Set(Items):
    """A set in braces."""


@dataclass(frozen=True)
class Tuple(Items):
    """A tuple or an interval; its brackets, such as "[)", or "::" of a ratio."""

    brackets: str


@dataclass(frozen=True)
class Union(Items):
    r"""Regions joined by an operator: \cup, \cap or \setminus."""

    operator: str


@dataclass(frozen=True)
class Matrix(Node):
    """Rows of entries; or a determinant."""

    determinant: bool
    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True)
class Relation(Node):
    """Equations and inequalities in a chain: operators between sides."""

    operators: tuple[str, ...]
    sides: tuple[Node, ...]


@dataclass(frozen=True)
class Choice(Node):
    """The letter of a choice, and what the choice says."""

    letter: str
    content: Node


@dataclass(frozen=True)
class Based(Node):
    """A number in a base other than ten."""

    digits: str
    base: int


@dataclass(frozen=True)
class Time(Node):
    """A time of day; `half`: "am", "pm" or ""."""

    hour: int
    minute: int
    half: str


# ---------------------------------------------------------------- structure

OPERATORS = re.compile(r"=|<|>|\\(?:le|ge|ne|approx|sim|in)(?![a-z])")
FLIPPED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
EQUAL, KINDS = {"=", r"\approx"}, {"=", "<", r"\le", r"\ne"}
ITEMS, SETS = re.compile("[,;]"), re.compile(r"\\(?:cup|cap|setminus)(?![a-z])")
GROUPED = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
SPACED = re.compile(r"(?<![0-9.])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9])")
NO_TEXT = r"(?![\s,;:(=<>+*/^_|]|[A-Z]\b|\\(?:c[ua]p|cdot|setminus|[lg]e|ne|in|to)\b)"
# (C) 12 is a choice and what it says; (C) or (D) is not.
LABEL = re.compile(rf"\(?([A-J])(?:\)[:.]?(?![-a-zA-Z])|[.:](?!\s*[a-zA-Z]$))\s*{NO_TEXT}(.+)")
HALF = r"(?:([aApP])\.?\s?[mM]\.?|noon)?"
TIME = re.compile(rf"([0-9]{{1,2}})(?:\s?:\s?([0-5][0-9]))?\s*{WORD}?\s*{HALF}\s*{END}?")
BASE = re.compile(r"(-?)\(?([0-9A-Za-z]*[0-9][0-9A-Za-z]*(?:\.[0-9A-Za-z]+)?)\)?_\{?([0-9]+)\}?")
MATRIX = re.compile(r"(.*)\\begin\{([a-zA-Z]*matrix|array)\}(?:\{[lcr| ]*\})?(.*?)\\end\{\2\}", re.DOTALL)
ALL = ("all real numbers", "all reals", "real numbers")


def split(text: str, separators: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """(parts of `text`, the separators between them): only separators outside of all brackets count."""
    parts, found, depth, start = [], [], 0, 0
    brackets = rf"(?P<bracket>[][(){{}}{OPEN}{CLOSE}{WORD}{END}])"
    for match in re.finditer(rf"(?P<sep>{separators.pattern})|{brackets}", text):
        if sign := match["bracket"]:
            depth += (sign in "([{" + OPEN + WORD) - (sign in ")]}" + CLOSE + END)
        elif depth == 0:
            parts.append(text[start : match.start()].strip())
            found.append(match["sep"])
            start = match.end()
    return [*parts, text[start:].strip()], found


def bracketed(text: str) -> tuple[str, str, str] | None:
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
def read(text: str) -> Node:
    """The Node of an answer. Errors: TooComplex."""
    return _read(tidy(text))


def _read(text: str, thousands: bool = True) -> Node:
    """`thousands`: 1,000 is a number, not a list."""
    text = text.strip()
    if text.lower() in NUMBERS:
        text = str(NUMBERS.index(text.lower()))
    if option := re.fullmatch(r"([A-Z])[):]", text):
        text = option[1]
    if label := LABEL.fullmatch(text):
        return Choice(text, label[1], _read(label[2]))
    joined = GROUPED.sub(lambda m: m[0].replace(",", ""), text) if thousands else text
    if not bracketed(text):
        items, separators = split(joined, ITEMS)
        items = [item for item in items if item]
        if len(items) > 1:
            return _list(items, set(separators) == {";"}, text)
        text = items[0] if items else joined
    sides, operators = split(text, OPERATORS)
    if operators:
        return _relation(sides, operators, text)
    parts, found = split(text, SETS)
    if found:
        return _union(parts, found, text)
    if node := _group(text, thousands) or _matrix(text):
        return node
    if re.search(r"\\[pm][pm](?![a-z])", text):
        return List(text, (_read(_signed(text, "+", "-")), _read(_signed(text, "-", "+"))))
    return _leaf(text)


def _union(parts: list[str], operators: list[str], text: str) -> Node:
    mixed = len(set(operators)) > 1 or operators[0] == r"\setminus" and len(operators) > 1
    return Text(text, text) if mixed else Union(text, tuple(map(_read, parts)), operators[0])


def _group(text: str, thousands: bool) -> Node | None:
    """The Node of a text in brackets, None of any other."""
    if not (group := bracketed(text)):
        return None
    opening, inside, closing = group
    # {x | 2 < x < 3}
    builder = re.fullmatch(r"[a-z](?:\s*\\in\s*\\Reals)?\s*[|:](.*)", inside)
    if builder and opening in "{" + OPEN:
        return _read(builder[1])
    # Braces that only group, or a set's without their backslashes.
    if opening + closing == "{}":
        inner = _read(inside, thousands)
        return Set(text, inner.items) if isinstance(inner, List) else inner
    items = split(inside, ITEMS)[0]
    if opening == OPEN and closing == CLOSE:
        return Set(text, _flat(_read(item, False) for item in items[:MAX_ITEMS] if item))
    if len(items) > 1 and OPEN + CLOSE not in opening + closing:
        brackets = opening + closing if len(items) == 2 else "()"
        return Tuple(text, tuple(_read(item, False) for item in items[:MAX_ITEMS]), brackets)
    return _read(inside) if inside and opening + closing in ("()", "[]") else None


def _matrix(text: str) -> Node | None:
    whole = MATRIX.fullmatch(text)
    if not whole or whole[3].count(ROW) + whole[3].count("&") >= MAX_ITEMS:
        return None
    factor = {"": "", "-": "(-1)"}.get(whole[1].strip(), f"({whole[1]})")
    rows = [row.split("&") for row in whole[3].split(ROW) if row.strip()]
    entries = tuple(tuple(_read(f"{factor}({entry})" if factor else entry) for entry in row) for row in rows)
    return Matrix(text, whole[2][0] == "v", entries)


def _signed(text: str, plus: str, minus: str) -> str:
    r"""The text with these signs for \pm and \mp."""
    text = re.sub(r"\\pm(?![a-z])", plus, text)
    return re.sub(r"\\mp(?![a-z])", minus, text).strip().removeprefix("+")


def _list(items: list[str], either: bool, text: str) -> Node:
    """`either`: the items are alternatives, as with "or"."""
    nodes = [_read(item) for item in items[:MAX_ITEMS]]
    first = nodes[0]
    # x != 1, 2
    excluded = isinstance(first, Relation) and first.operators == (r"\ne",)
    if isinstance(first, Relation) and excluded:
        left = first.sides[0]
        nodes = [n if isinstance(n, Relation) else Relation(n.source, (r"\ne",), (left, n)) for n in nodes]
    called = [name_of(node) for node in nodes]
    if (either or excluded) and all(isinstance(node, Relation) for node in nodes) and not any(called):
        # x < 1 or x > 2
        return Union(text, tuple(nodes), r"\cup" if either else r"\cap")
    # x = 1 or x = 2; x_1 = 1, x_2 = 2; x = 1, 2: all of one name
    if len({re.sub(r"_[0-9]+$", "", name) for name in called if name}) == 1 and called[0]:
        if all(called) or not any(called[1:]):
            nodes = [unnamed(node) if name else node for node, name in zip(nodes, called)]
    return List(text, _flat(nodes))


def _flat(nodes: Iterable[Node]) -> tuple[Node, ...]:
    r"""The nodes, and for each \pm among them its two."""
    return tuple(part for node in nodes for part in (node.items if isinstance(node, List) else (node,)))


def _relation(texts: list[str], operators: list[str], text: str) -> Node:
    # About 8.24.
    if operators[0] == r"\approx" and not texts[0]:
        return _relation(texts[1:], operators[1:], text) if operators[1:] else _read(texts[1])
    if operators == [r"\in"] and re.fullmatch(r"[a-zA-Z]", texts[0]):
        return _read(texts[1])
    if not all(texts) or r"\in" in operators or len(texts) > 8:
        return Text(text, text)
    # One direction for all: rising.
    if operators[0] in (">", r"\ge"):
        texts, operators = texts[::-1], [FLIPPED.get(op, op) for op in operators[::-1]]
    sides = [_read(side) for side in texts]
    if set(operators) <= EQUAL and is_name(sides[-1]) and not is_name(sides[0]):
        sides, operators = sides[::-1], operators[::-1]
    return Relation(text, tuple(operators), tuple(sides))


def is_name(node: Node, loose: bool = False) -> bool:
    """Whether an equation's side only names what the other side gives: x, f(2), |AB|, V_1:V_2, (x, y).

    `loose`: a + b as well, which may be a quantity, or else make an equation in two unknowns.
    """
    if isinstance(node, Tuple | List):
        return all(is_name(item) for item in node.items)
    if not isinstance(node, Formula) or node.source in ("e", "i", r"\infty"):
        return False
    found = leaves(node.tree)
    if any(isinstance(leaf, Constant) for leaf in found) or re.fullmatch(r"\|\s*[a-z]\s*\|", node.source):
        return False
    letters = [leaf.name for leaf in found if isinstance(leaf, Name) and re.fullmatch("[a-z]'*", leaf.name)]
    alone = re.fullmatch(r"[a-z]'*|m?\\angle.*", node.source) or ":" in node.source
    return loose or not letters or bool(alone)


def name_of(node: Node) -> str:
    """The name that a relation gives a value to, "" if it does something else."""
    if not isinstance(node, Relation) or not set(node.operators) <= EQUAL or not is_name(node.sides[0]):
        return ""
    return re.sub(r"\\(?:overline|vec|triangle)|m?\\angle|[\s{}|]", "", node.sides[0].source)


def unnamed(node: Node) -> Node:
    """The value in x = 5; x = 3 = 5 stays what it is."""
    return node.sides[1] if isinstance(node, Relation) and len(node.sides) == 2 else node


def _leaf(text: str) -> Node:
    return _time(text) or _based(text) or _named_set(text) or _quantity(text)


def _time(text: str) -> Node | None:
    time = TIME.fullmatch(text)
    if not time or not (time[2] or time[3]):
        return None
    half = {"a": "am", "p": "pm"}.get((time[3] or "").lower(), "")
    return Time(text, int(time[1]), int(time[2] or 0), half)


def _based(text: str) -> Node | None:
    found = BASE.fullmatch(text.replace(" ", ""))
    if not found or re.match("-?[a-zA-Z]_", text):
        return None
    if found[3] == "10":
        return replace(_leaf(found[1] + found[2]), source=text)
    return Based(text, found[1] + (found[2].lstrip("0") or "0").upper(), int(found[3]))


def _named_set(text: str) -> Node | None:
    """All real numbers, or none."""
    if text == r"\Reals" or words(text) in ALL:
        return Tuple(text, (_leaf(r"-\infty"), _leaf(r"\infty")), "()")
    if text == r"\emptyset" or re.fullmatch("no (real |integer )?solutions?|none", words(text)):
        return Set(text, ())
    return None


def _quantity(text: str) -> Node:
    """A number or a formula with its unit, a ratio, or else a Text."""
    value, unit = split_unit(text)
    value = value.replace(WORD + END, "").strip()
    if percent := value.endswith("%"):
        value = value[:-1].strip()
    value = SPACED.sub(lambda m: m[0].replace(" ", ""), value)
    parts = value.split(":")
    if len(parts) > 2 and all(parts):
        return Tuple(text, tuple(map(_leaf, parts)), "::")
    trees = [tree for tree in map(parse, parts) if tree]
    if len(trees) < len(parts):
        return Text(text, squeeze(re.sub(r"\{(\w)\}", r"\1", value)))
    tree = Call("/", (trees[0], trees[1])) if len(trees) == 2 else trees[0]
    if names(tree):
        return Formula(text, tree, unit)
    try:
        with LOCK:
            number = Values().evaluate(tree)
    except TooComplex:
        raise
    except ZeroDivisionError:
        return Text(text, value)
    except NO_VALUE:
        number = None
    if isinstance(number, Fraction):
        return Number(text, number, percent, unit)
    return Formula(text, tree, unit)


# ---------------------------------------------------------------- comparison


def same(gold: str, answer: str) -> bool:
    """Whether two texts give the same answer. Errors: TooComplex."""
    if squeeze(gold) == squeeze(answer):
        return True
    return _same(read(gold), read(answer))


def squeeze(text: str) -> str:
    """`text` without blanks, except those between digits."""
    return re.sub(r"\s+(?![0-9])|(?<![0-9])\s+", "", text)


def _same(g: Node, a: Node) -> bool:
    if type(g) is type(a) and replace(a, source=g.source) == g:
        return True
    if isinstance(g, Choice) or isinstance(a, Choice):
        return _same_choice(g, a)
    if isinstance(g, Relation) and isinstance(a, Relation):
        return _same_relations(g, a)
    if isinstance(g, Relation) or isinstance(a, Relation):
        return _same_value(g, a)
    if isinstance(g, Based):
        return a.source.upper() == g.digits
    if isinstance(g, Items | Matrix) or isinstance(a, Items | Matrix):
        return _same_collection(g, a)
    if isinstance(g, Number) and isinstance(a, Number):
        return _same_number(g, a)
    if isinstance(g, Time | Number) and isinstance(a, Time | Number):
        return _same_time(g, a)
    if isinstance(g, Formula | Number) and isinstance(a, Formula | Number):
        return _same_formula(g, a)
    return same_words(g, a)


def _same_choice(g: Node, a: Node) -> bool:
    """Two choices, or a choice and its letter or what it says."""
    if isinstance(g, Choice) and isinstance(a, Choice):
        return g.letter == a.letter and _same(g.content, a.content)
    if isinstance(g, Choice):
        return a.source == g.letter or _same(g.content, a)
    return isinstance(a, Choice) and (g.source == a.letter or _same(g, a.content))


def _same_collection(g: Node, a: Node) -> bool:
    """Two Nodes of which at least one has several parts."""
    match g, a:
        case Set(), Number() | Formula():
            return len(g.items) == 1 and _same(g.items[0], a)
        case Number() | Formula(), Set():
            return len(a.items) == 1 and _same(a.items[0], g)
        case Matrix(), Matrix():
            alike = g.determinant == a.determinant and len(g.rows) == len(a.rows)
            return alike and all(_all(row, row2) for row, row2 in zip(g.rows, a.rows))
        case List() | Set(), List() | Set():
            return _same_items(g, a)
        case (List(), Formula()) | (Formula(), List()) if CHOICES.fullmatch(g.source + a.source):
            return re.sub("[^A-H]", "", g.source) == re.sub("[^A-H]", "", a.source)
        case Tuple(), Tuple():
            return g.brackets == a.brackets and _all(g.items, a.items)
        case List() | Tuple(), List() | Tuple():
            return _same_tuple(g, a)
        case Union(), List():
            # (-1, 0) and (2, 3)
            parts = g.operator == r"\cup" and all(isinstance(part, Tuple | Set) for part in a.items)
            return parts and _unordered(g.items, a.items)
        case (Union(), Tuple() | Set() | Union()) | (Tuple() | Set(), Union()):
            return _same_regions(g, a)
        case List(), Number() if "," in a.source:
            return _same(g, _read(a.source, thousands=False))
    return same_words(g, a)


def _all(golds: Sequence[Node], answers: Sequence[Node]) -> bool:
    return len(golds) == len(answers) and all(_same(g, a) for g, a in zip(golds, answers))


def _unordered(golds: Sequence[Node], answers: Sequence[Node]) -> bool:
    left = list(answers)
    for g in golds:
        found = next((i for i, a in enumerate(left) if _same(g, a)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _same_items(g: Items, a: Items) -> bool:
    """Two lists or sets."""
    golds, answers = g.items, a.items
    # AB = 9, CD = 4 in that order.
    if golds and all(map(name_of, golds)) and not any(map(name_of, answers)):
        return _all(golds, answers)
    # Words may be a ranking, and a sequence that continues has an order.
    if any(MARKED.match(item.source) for item in golds):
        return _all(golds, answers)
    if isinstance(g, Set) or isinstance(a, Set):
        return _unordered(_distinct(golds), _distinct(answers))
    return _unordered(golds, answers)


def _distinct(items: Sequence[Node]) -> list[Node]:
    return list({replace(item, source=""): item for item in items}.values())


def _same_tuple(g: Items, a: Items) -> bool:
    """A list and a tuple, in any order."""
    answers: Sequence[Node] = a.items
    # x = 1, y = 2
    if isinstance(g, Tuple) and all(map(name_of, answers)):
        answers = [unnamed(item) for item in sorted(answers, key=name_of)]
    brackets = [node.brackets for node in (g, a) if isinstance(node, Tuple)]
    return brackets[0] in ("()", "::") and _all(g.items, answers)


def _same_number(g: Number, a: Number) -> bool:
    x, y = g.value, a.value
    if (g.unit in WORTH or a.unit in WORTH) and x * WORTH.get(g.unit, 1) == y * WORTH.get(a.unit, 1):
        # 3 million is 3,000,000; for "how many millions?" 3 is right as well.
        return g.percent == a.percent
    if not same_unit(g.unit, a.unit):
        return False
    if g.percent == a.percent:
        return x == y
    percent, bare = (x, y) if g.percent else (y, x)
    # 25% is 25 and 0.25; 0.5% is not 0.5.
    return percent == 100 * bare or percent == bare and abs(bare) >= 1


def _same_time(g: Time | Number, a: Time | Number) -> bool:
    """Two times, or a time and a number."""
    if isinstance(g, Time) and isinstance(a, Time):
        return g.minute == a.minute and _same_hour(g, a)
    time, number = (g, a) if isinstance(g, Time) else (a, g)
    if not isinstance(time, Time) or not isinstance(number, Number):
        return False
    # 9 a.m. is 9
    if time.half:
        return number.value == time.hour and time.minute == 0
    # 3:15 may be a ratio.
    return time.minute != 0 and Fraction(time.hour, time.minute) == number.value


def _same_hour(g: Time, a: Time) -> bool:
    if g.half and a.half or max(g.hour, a.hour) > 12:
        hours = [t.hour % 12 + 12 * (t.half == "pm") if t.half else t.hour for t in (g, a)]
    else:
        hours = [g.hour, a.hour]
    return hours[0] == hours[1] or max(hours) <= 12 and hours[0] % 12 == hours[1] % 12


MARKED = re.compile(rf"[{WORD}]|\\ldots|(?=.*[a-zA-Z]{{3}})[a-zA-Z0-9 .,']+$")
# A, C and AC
CHOICES = re.compile(f"[A-H ,{WORD}{END}]+")
# A name, such as CD or LQSX.
STRING = re.compile(r"(?:m?\\(?:angle|triangle) ?)?[A-Z]{2,}")


def same_words(g: Node, a: Node) -> bool:
    """Whether two texts of words are the same up to case, articles and punctuation."""
    return words(g.source) == words(a.source) != "" and any(MARKED.search(node.source) for node in (g, a))


def _same_formula(g: Formula | Number, a: Formula | Number) -> bool:
    if same_words(g, a):
        return True
    if STRING.fullmatch(g.source) or STRING.fullmatch(a.source):
        return g.source == a.source
    if re.fullmatch("[a-zA-Z]", g.source) and g.source.lower() == a.source.lower():
        return True
    if same_unit(g.unit, a.unit) and equal(_tree_of(g), _tree_of(a)):
        return True
    # What looks like a unit may be a letter: 3 m is three metres, or three times m.
    if not (g.unit or a.unit) or "degree" in (g.unit, a.unit):
        return False
    whole, other = parse(g.source), parse(a.source)
    return whole is not None and other is not None and equal(whole, other)


def _unit(node: Node) -> str:
    return node.unit if isinstance(node, Number | Formula) else ""


def _tree_of(node: Formula | Number) -> Tree:
    if isinstance(node, Formula):
        return node.tree
    return Constant(node.value / 100 if node.percent else node.value)


def _tree(node: Node) -> Tree | None:
    """The tree of a formula or a number, None of any other Node."""
    return _tree_of(node) if isinstance(node, Formula | Number) else None


def _trees(nodes: Iterable[Node]) -> tuple[Tree, ...] | None:
    """The trees of formulas and numbers, None if another Node is among them."""
    nodes = list(nodes)
    found = tuple(_tree_of(node) for node in nodes if isinstance(node, Formula | Number))
    return found if len(found) == len(nodes) else None


def _constant(node: Node) -> bool:
    return isinstance(node, Number | Based) or isinstance(node, Formula) and not names(node.tree)


def _same_relations(g: Relation, a: Relation) -> bool:
    if name_of(g) and name_of(g) == name_of(a) and _same_value(g, a):
        return True
    if g.operators == a.operators:
        if _all(g.sides, a.sides) or g.operators == (r"\ne",) and _all(g.sides, a.sides[::-1]):
            return True
    # 0.56 = 56%
    if set(g.operators) | set(a.operators) == {"="} and all(map(_constant, g.sides)):
        return all(any(_same(side, other) for side in g.sides) for other in a.sides)
    gold, answer = _pair(g), _pair(a)
    if g.operators == a.operators and gold and answer:
        units = [_unit(side) for side in g.sides + a.sides]
        if not all(same_unit(unit, other) for unit in units for other in units):
            return False
        if g.operators == ("=",) and same_equation(gold, answer):
            return True
        if g.operators[0] in ("<", r"\le") and same_inequality(gold, answer):
            return True
    return _same_regions(g, a)


def _pair(node: Relation) -> Sides | None:
    """The trees of a relation of two formulas, None of any other."""
    trees = _trees(node.sides)
    return (trees[0], trees[1]) if trees and len(trees) == 2 else None


def _same_value(g: Node, a: Node) -> bool:
    """A relation against a value: x = 5, x = 10/2 = 5, a + b = 5, 2 + 3 = 5, x > 3."""
    if any(isinstance(node, Relation) and not set(node.operators) <= EQUAL for node in (g, a)):
        return _same_regions(g, a)
    golds, answers = _values(g, True), _values(a, False)
    return bool(golds and answers) and all(any(_same(gold, a) for gold in golds) for a in answers)


def _values(node: Node, gold: bool) -> Sequence[Node]:
    """The values that a Node states: without the name; of an answer, without what is rounded."""
    if not isinstance(node, Relation):
        return [node]
    operators, sides = node.operators, node.sides
    if is_name(sides[0], loose=not gold) and not (gold and _implicit(sides)):
        sides, operators = sides[1:], operators[1:]
    elif gold and not all(map(_constant, sides)):
        return []
    if gold or r"\approx" not in operators:
        return sides
    exact = operators.index(r"\approx") + 1
    return sides[:exact] if all(_rounds(sides[exact - 1], side) for side in sides[exact:]) else []


def _rounds(exact: Node, rounded: Node) -> bool:
    """Whether a number may be the rounded value of another: to the last digit, or to 2 %."""
    trees = _trees((exact, rounded))
    if trees is None or any(map(names, trees)) or not same_unit(_unit(exact), _unit(rounded)):
        return False
    with LOCK:
        x, y = (value(tree, 0) for tree in trees)
    if x is None or y is None:
        return False
    digits = re.match(r"-?[0-9]+\.?([0-9]*)(?!.*[/%])", rounded.source)
    x, y = mp.convert(x), mp.convert(y)
    return bool(abs(x - y) <= max(mp.mpf(10) ** -len(digits[1]) if digits else 0, abs(x) / 50))


def _implicit(sides: Iterable[Node]) -> bool:
    r"""Whether an equation gives a quantity by itself, as \tan x = 2x does."""
    trees = [tree for tree in map(_tree, sides) if tree]
    unknowns = [{leaf for leaf in leaves(tree) if isinstance(leaf, Name) and names(leaf)} for tree in trees]
    return any(unknowns[0] & others for others in unknowns[1:])


def _same_regions(g: Node, a: Node) -> bool:
    """Whether two Nodes are the same set of real numbers: intervals, unions, relations of one unknown."""
    gold, answer = _region(g), _region(a)
    if gold is None or answer is None:
        return False
    unknowns = _names(gold) | _names(answer)
    if len(unknowns) > 1 or any(name.startswith("call:") for name in unknowns):
        return False
    # What holds or does not, as 2 < 3 does, describes no set.
    if any(isinstance(region, Condition) and not _names(region) for region in (gold, answer)):
        return False
    return same_region(gold, answer, next(iter(unknowns), ""))


def _names(region: Region) -> set[str]:
    """The unknowns of a region."""
    match region:
        case Points(trees):
            return set().union(*map(names, trees))
        case Interval(_, low, high):
            return names(low) | names(high)
        case Condition(_, sides):
            return set().union(*map(names, sides))
    return set().union(*map(_names, region.parts))


def _region(node: Node) -> Region | None:
    """The region of `_math/regions.py` that a Node describes, None if it describes none."""
    match node:
        case Union():
            parts = [region for region in map(_region, node.items) if region]
            return Combined(node.operator, tuple(parts)) if len(parts) == len(node.items) else None
        case Relation():
            trees = _trees(node.sides)
            return Condition(node.operators, trees) if trees and not set(node.operators) - KINDS else None
        case Tuple() | Set() if all(map(_constant, node.items)):
            trees = _trees(node.items)
            if trees is None:
                return None
            if isinstance(node, Set):
                return Points(trees)
            return Interval(node.brackets, *trees) if len(trees) == 2 else None
    return None
