r"""Mathematical answers as people and models write them: read into a small structure, and compared by it.

`same(gold, answer)` takes apart lists, sets, tuples, intervals, unions, matrices, relations, number bases,
times and units; compares rational numbers exactly, formulas as `algebra.py` does, sets of real numbers as
`regions.py` does. Taking apart comes first because a computer algebra system is lenient where mathematics is
not: math-verify holds (1,2) equal to {1,2}, 1011_2 to 1011_3, 1/2^98 to 1/2^99.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from tasks._math.algebra import (
    LOCK,
    NO_VALUE,
    Values,
    equal,
    leaves,
    mp,
    names,
    parse,
    same_equation,
    same_inequality,
    value,
)  # fmt: skip
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
)  # fmt: skip
from tasks._math.regions import same_region

# Of a list or a matrix.
MAX_ITEMS = 64


class Node(NamedTuple):
    r"""kind, what it holds, and the text it was read from.

    number   (Fraction, whether it is a percentage, unit)
    formula  (its tree, unit)
    text     words, or what is no formula
    list set tuple   items; a `tuple` also has its brackets in front, e.g. "[)"
    union    (operator, items): of \cup, \cap or \setminus
    matrix   (whether it is a determinant, rows)
    relation (operators, sides)
    choice   (letter, what it says)
    base     (digits, base)
    time     (hour, minute, "am", "pm" or "")
    """

    kind: str
    value: object
    source: str


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


def split(text, separators):
    """Parts of `text` between the matches of a compiled pattern that stand outside of all brackets."""
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
def read(text):
    """The Node of an answer. Errors: TooComplex."""
    return _read(tidy(text))


def _read(text, thousands=True):
    """`thousands`: 1,000 is a number, not a list."""
    text = text.strip()
    if text.lower() in NUMBERS:
        text = str(NUMBERS.index(text.lower()))
    if option := re.fullmatch(r"([A-Z])[):]", text):
        text = option[1]
    if label := LABEL.fullmatch(text):
        return Node("choice", (label[1], _read(label[2])), text)
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
        mixed = len(set(found)) > 1 or found[0] == r"\setminus" and len(found) > 1
        return (
            Node("text", text, text) if mixed else Node("union", (found[0], tuple(map(_read, parts))), text)
        )
    if node := _group(text, thousands) or _matrix(text):
        return node
    if re.search(r"\\[pm][pm](?![a-z])", text):
        return Node("list", tuple(_read(_signed(text, *pair)) for pair in (("+", "-"), ("-", "+"))), text)
    return _leaf(text)


def _group(text, thousands):
    """The Node of a text in brackets, None of any other."""
    if not (group := bracketed(text)):
        return None
    opening, inside, closing = group
    # {x | 2 < x < 3}
    builder = re.fullmatch(r"[a-z](?:\s*\\in\s*\\Reals)?\s*[|:](.*)", inside)
    if builder and opening in "{" + OPEN:
        return _read(builder[1])
    items = split(inside, ITEMS)[0]
    # Braces that only group, or a set's without their backslashes.
    if opening + closing == "{}":
        inner = _read(inside, thousands)
        return Node("set", inner.value, text) if inner.kind == "list" else inner
    if opening == OPEN and closing == CLOSE:
        return Node("set", _flat(_read(item, False) for item in items[:MAX_ITEMS] if item), text)
    if len(items) > 1 and OPEN + CLOSE not in opening + closing:
        brackets = opening + closing if len(items) == 2 else "()"
        return Node("tuple", (brackets, *(_read(item, False) for item in items[:MAX_ITEMS])), text)
    return _read(inside) if inside and opening + closing in ("()", "[]") else None


def _matrix(text):
    whole = MATRIX.fullmatch(text)
    if not whole or whole[3].count(ROW) + whole[3].count("&") >= MAX_ITEMS:
        return None
    factor = {"": "", "-": "(-1)"}.get(whole[1].strip(), f"({whole[1]})")
    rows = [row.split("&") for row in whole[3].split(ROW) if row.strip()]
    rows = tuple(tuple(_read(f"{factor}({entry})" if factor else entry) for entry in row) for row in rows)
    return Node("matrix", (whole[2][0] == "v", rows), text)


def _signed(text, plus, minus):
    text = re.sub(r"\\pm(?![a-z])", plus, text)
    return re.sub(r"\\mp(?![a-z])", minus, text).strip().removeprefix("+")


def _list(items, either, text):
    nodes = [_read(item) for item in items[:MAX_ITEMS]]
    # x != 1, 2
    if nodes[0].kind == "relation" and nodes[0].value[0] == (r"\ne",):
        left = nodes[0].value[1][0]
        nodes = [
            n if n.kind == "relation" else n._replace(kind="relation", value=((r"\ne",), (left, n)))
            for n in nodes
        ]
        either = either or None
    called = [name_of(node) for node in nodes]
    if either is not False and all(node.kind == "relation" for node in nodes) and not any(called):
        # x < 1 or x > 2
        return Node("union", (r"\cup" if either else r"\cap", tuple(nodes)), text)
    # x = 1 or x = 2; x_1 = 1, x_2 = 2; x = 1, 2: all of one name
    if len({re.sub(r"_[0-9]+$", "", name) for name in called if name}) == 1 and called[0]:
        if all(called) or not any(called[1:]):
            nodes = [unnamed(node) if name else node for node, name in zip(nodes, called)]
    return Node("list", _flat(nodes), text)


def _flat(nodes):
    r"""The nodes, and for each \pm among them its two."""
    return tuple(part for node in nodes for part in (node.value if node.kind == "list" else (node,)))


def _relation(sides, operators, text):
    # About 8.24.
    if operators[0] == r"\approx" and not sides[0]:
        return _relation(sides[1:], operators[1:], text) if operators[1:] else _read(sides[1])
    if operators == [r"\in"] and re.fullmatch(r"[a-zA-Z]", sides[0]):
        return _read(sides[1])
    if not all(sides) or r"\in" in operators or len(sides) > 8:
        return Node("text", text, text)
    # One direction for all: rising.
    if operators[0] in (">", r"\ge"):
        sides, operators = sides[::-1], [FLIPPED.get(op, op) for op in operators[::-1]]
    sides = [_read(side) for side in sides]
    if set(operators) <= EQUAL and is_name(sides[-1]) and not is_name(sides[0]):
        sides, operators = sides[::-1], operators[::-1]
    return Node("relation", (tuple(operators), tuple(sides)), text)


def is_name(node, loose=False):
    """Whether an equation's side only names what the other side gives: x, f(2), |AB|, V_1:V_2, (x, y).

    `loose`: a + b as well, which may be a quantity, or else make an equation in two unknowns.
    """
    if node.kind in ("tuple", "list"):
        return all(is_name(item) for item in node.value if isinstance(item, Node))
    if node.kind != "formula" or node.source in ("e", "i", r"\infty"):
        return False
    found = leaves(node.value[0])
    letters = [name for kind, name in found if kind == "name" and re.fullmatch("[a-z]'*", name)]
    alone = re.fullmatch(r"[a-z]'*|m?\\angle.*", node.source) or ":" in node.source
    if any(kind == "number" for kind, _ in found) or re.fullmatch(r"\|\s*[a-z]\s*\|", node.source):
        return False
    return loose or not letters or bool(alone)


def name_of(node):
    """The name that a relation gives a value to, "" if it does something else."""
    if node.kind != "relation" or not set(node.value[0]) <= EQUAL or not is_name(node.value[1][0]):
        return ""
    return re.sub(r"\\(?:overline|vec|triangle)|m?\\angle|[\s{}|]", "", node.value[1][0].source)


def unnamed(node):
    """The value in x = 5; x = 3 = 5 stays what it is."""
    return node.value[1][1] if len(node.value[1]) == 2 else node


def _leaf(text):
    if (time := TIME.fullmatch(text)) and (time[2] or time[3]):
        half = {"a": "am", "p": "pm"}.get((time[3] or "").lower(), "")
        return Node("time", (int(time[1]), int(time[2] or 0), half), text)
    if (base := BASE.fullmatch(text.replace(" ", ""))) and not re.match("-?[a-zA-Z]_", text):
        if base[3] == "10":
            return _leaf(base[1] + base[2])._replace(source=text)
        return Node("base", (base[1] + (base[2].lstrip("0") or "0").upper(), int(base[3])), text)
    if text == r"\Reals" or words(text) in ALL:
        return Node("tuple", ("()", _leaf(r"-\infty"), _leaf(r"\infty")), text)
    if text == r"\emptyset" or re.fullmatch("no (real |integer )?solutions?|none", words(text)):
        return Node("set", (), text)
    value, unit = split_unit(text)
    value = value.replace(WORD + END, "").strip()
    if percent := value.endswith("%"):
        value = value[:-1].strip()
    value = SPACED.sub(lambda m: m[0].replace(" ", ""), value)
    parts = value.split(":")
    if len(parts) > 2 and all(parts):
        return Node("tuple", ("::", *map(_leaf, parts)), text)
    trees = [parse(part) for part in parts]
    if not all(trees):
        return Node("text", squeeze(re.sub(r"\{(\w)\}", r"\1", value)), text)
    tree = ("/", *trees) if len(trees) == 2 else trees[0]
    if names(tree):
        return Node("formula", (tree, unit), text)
    try:
        with LOCK:
            number = Values().evaluate(tree)
    except TooComplex:
        raise
    except ZeroDivisionError:
        return Node("text", value, text)
    except NO_VALUE:
        number = None
    if isinstance(number, Fraction):
        return Node("number", (number, percent, unit), text)
    return Node("formula", (tree, unit), text)


# ---------------------------------------------------------------- comparison


def same(gold, answer):
    """Whether two texts give the same answer. Errors: TooComplex."""
    if squeeze(gold) == squeeze(answer):
        return True
    return bool(_same(read(gold), read(answer)))


def squeeze(text):
    """`text` without blanks but those between digits."""
    return re.sub(r"\s+(?![0-9])|(?<![0-9])\s+", "", text)


def _same(g, a):
    if g.kind == a.kind and g.value == a.value:
        return True
    match g.kind, a.kind:
        case "choice", "choice":
            return g.value[0] == a.value[0] and _same(g.value[1], a.value[1])
        case ("choice", _) | (_, "choice"):
            choice, other = (g, a) if g.kind == "choice" else (a, g)
            if other.source == choice.value[0]:
                return True
            return _same(g.value[1], a) if g is choice else _same(g, a.value[1])
        case "relation", "relation":
            return _same_relations(g, a)
        case ("relation", _) | (_, "relation"):
            return _same_value(g, a)
        case "number", "number":
            return _same_number(g.value, a.value)
        case "base", _:
            return a.source.upper() == g.value[0]
        case ("set", "number" | "formula") | ("number" | "formula", "set"):
            items, other = (g.value, a) if g.kind == "set" else (a.value, g)
            return len(items) == 1 and _same(items[0], other)
        case ("time", "time" | "number") | ("number", "time"):
            return _same_time(g, a)
        case "matrix", "matrix":
            (det, rows), (other, others) = g.value, a.value
            alike = det == other and len(rows) == len(others)
            return alike and all(_all(row, row2) for row, row2 in zip(rows, others))
        case ("list" | "set", "list" | "set"):
            return _same_items(g, a)
        case ("list", "formula") | ("formula", "list") if CHOICES.fullmatch(g.source + a.source):
            return re.sub("[^A-H]", "", g.source) == re.sub("[^A-H]", "", a.source)
        case ("list", "tuple") | ("tuple", "list"):
            return _same_tuple(g, a)
        case "tuple", "tuple":
            return g.value[0] == a.value[0] and _all(g.value[1:], a.value[1:])
        case "union", "list":
            # (-1, 0) and (2, 3)
            parts = g.value[0] == r"\cup" and {part.kind for part in a.value} <= {"tuple", "set"}
            return parts and _unordered(g.value[1], a.value)
        case ("union", "tuple" | "set" | "union") | ("tuple" | "set", "union"):
            return _same_regions(g, a)
        case ("list", "number") if "," in a.source:
            return _same(g, _read(a.source, thousands=False))
        case ("formula" | "number", "formula") | ("formula", "number"):
            return _same_formula(g, a)
    return same_words(g, a)


def _all(golds, answers):
    return len(golds) == len(answers) and all(_same(g, a) for g, a in zip(golds, answers))


def _unordered(golds, answers):
    left = list(answers)
    for g in golds:
        found = next((i for i, a in enumerate(left) if _same(g, a)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _same_items(g, a):
    golds, answers = g.value, a.value
    # AB = 9, CD = 4 in that order.
    if golds and all(map(name_of, golds)) and not any(map(name_of, answers)):
        return _all(golds, answers)
    # Words may be a ranking, what goes on has an order.
    if any(MARKED.match(item.source) for item in golds):
        return _all(golds, answers)
    if "set" in (g.kind, a.kind):
        golds, answers = ({item.value: item for item in items}.values() for items in (golds, answers))
    return _unordered(golds, answers)


def _same_tuple(g, a):
    golds, answers = (n.value if n.kind == "list" else n.value[1:] for n in (g, a))
    # x = 1, y = 2
    if g.kind == "tuple" and all(map(name_of, answers)):
        answers = [unnamed(item) for item in sorted(answers, key=name_of)]
    brackets = (g if g.kind == "tuple" else a).value[0]
    return brackets in ("()", "::") and _all(golds, answers)


def _same_number(g, a):
    (x, x_percent, x_unit), (y, y_percent, y_unit) = g, a
    if (x_unit in WORTH or y_unit in WORTH) and x * WORTH.get(x_unit, 1) == y * WORTH.get(y_unit, 1):
        # 3 million is 3,000,000; for "how many millions?" 3 is right as well.
        return x_percent == y_percent
    if not same_unit(x_unit, y_unit):
        return False
    if x_percent == y_percent:
        return x == y
    percent, bare = (x, y) if x_percent else (y, x)
    # 25% is 25 and 0.25; 0.5% is not 0.5.
    return percent == 100 * bare or percent == bare and abs(bare) >= 1


def _same_time(g, a):
    if g.kind == a.kind:
        (hour, minute, half), (other, other_minute, other_half) = g.value, a.value
        if half and other_half or max(hour, other) > 12:
            hour, other = (
                h % 12 + 12 * (x == "pm") if x else h for h, x in ((hour, half), (other, other_half))
            )
        return minute == other_minute and (
            hour == other or max(hour, other) <= 12 and hour % 12 == other % 12
        )
    (hour, minute, half), (number, *_) = (g.value, a.value) if g.kind == "time" else (a.value, g.value)
    # 9 a.m. is 9
    if half:
        return number == hour and minute == 0
    # 3:15 may be a ratio.
    return minute != 0 and Fraction(hour, minute) == number


MARKED = re.compile(rf"[{WORD}]|\\ldots|(?=.*[a-zA-Z]{{3}})[a-zA-Z0-9 .,']+$")
# A, C and AC
CHOICES = re.compile(f"[A-H ,{WORD}{END}]+")
# A name, such as CD or LQSX.
STRING = re.compile(r"(?:m?\\(?:angle|triangle) ?)?[A-Z]{2,}")


def same_words(g, a):
    """Whether two texts of words are the same up to case, articles and marks."""
    return words(g.source) == words(a.source) != "" and any(MARKED.search(node.source) for node in (g, a))


def _same_formula(g, a):
    if same_words(g, a):
        return True
    if STRING.fullmatch(g.source) or STRING.fullmatch(a.source):
        return g.source == a.source
    if re.fullmatch("[a-zA-Z]", g.source) and g.source.lower() == a.source.lower():
        return True
    units = _unit(g), _unit(a)
    if same_unit(*units) and equal(_tree(g), _tree(a)):
        return True
    # What looks like a unit may be a letter: 3 m is three metres, or three times m.
    if not any(units) or "degree" in units:
        return False
    whole = [parse(node.source) for node in (g, a)]
    return all(whole) and equal(*whole)


def _unit(node):
    return node.value[-1] if node.kind in ("number", "formula") else ""


def _tree(node):
    """The tree of a formula or a number, None of any other Node."""
    if node.kind == "number":
        return "number", node.value[0] / 100 if node.value[1] else node.value[0]
    return node.value[0] if node.kind == "formula" else None


def _constant(node):
    return node.kind in ("number", "base") or node.kind == "formula" and not names(node.value[0])


def _same_relations(g, a):
    (operators, sides), (others, other_sides) = g.value, a.value
    if name_of(g) and name_of(g) == name_of(a) and _same_value(g, a):
        return True
    if operators == others and (
        _all(sides, other_sides) or operators == (r"\ne",) and _all(sides, other_sides[::-1])
    ):
        return True
    # 0.56 = 56%
    if set(operators) | set(others) == {"="} and all(map(_constant, sides)):
        return all(any(_same(side, other) for side in sides) for other in other_sides)
    trees = [tuple(map(_tree, node.value[1])) for node in (g, a)]
    if operators == others and len(operators) == 1 and all(map(all, trees)):
        units = [_unit(side) for side in sides + other_sides]
        if not all(same_unit(unit, other) for unit in units for other in units):
            return False
        if operators == ("=",) and same_equation(*trees):
            return True
        if operators[0] in ("<", r"\le") and same_inequality(*trees):
            return True
    return _same_regions(g, a)


def _same_value(g, a):
    """A relation against a value: x = 5, x = 10/2 = 5, a + b = 5, 2 + 3 = 5, x > 3."""
    if any(node.kind == "relation" and not set(node.value[0]) <= EQUAL for node in (g, a)):
        return _same_regions(g, a)
    golds, answers = _values(g, True), _values(a, False)
    return bool(golds and answers) and all(any(_same(gold, a) for gold in golds) for a in answers)


def _values(node, gold):
    """The values that a node states: without the name; of an answer, without what is rounded."""
    if node.kind != "relation":
        return [node]
    operators, sides = node.value
    if is_name(sides[0], loose=not gold) and not (gold and _implicit(sides)):
        sides, operators = sides[1:], operators[1:]
    elif gold and not all(map(_constant, sides)):
        return []
    if gold or r"\approx" not in operators:
        return sides
    exact = operators.index(r"\approx") + 1
    return sides[:exact] if all(_rounds(sides[exact - 1], side) for side in sides[exact:]) else []


def _rounds(exact, rounded):
    """Whether a number may be the rounded value of another: to the last digit, or to 2 %."""
    trees = _tree(exact), _tree(rounded)
    if not all(trees) or any(map(names, trees)) or not same_unit(_unit(exact), _unit(rounded)):
        return False
    with LOCK:
        values = [value(tree, 0) for tree in trees]
    if None in values:
        return False
    x, y = map(mp.convert, values)
    digits = re.match(r"-?[0-9]+\.?([0-9]*)(?!.*[/%])", rounded.source)
    return abs(x - y) <= max(mp.mpf(10) ** -len(digits[1]) if digits else 0, abs(x) / 50)


def _implicit(sides):
    r"""Whether an equation gives a quantity by itself, as \tan x = 2x does."""
    trees = [tree for tree in map(_tree, sides) if tree]
    unknowns = [{leaf for leaf in leaves(tree) if leaf[0] == "name" and names(leaf)} for tree in trees]
    return any(unknowns[0] & others for others in unknowns[1:])


def _same_regions(g, a):
    """Whether two Nodes are the same set of real numbers: intervals, unions, relations of one unknown."""
    regions = _region(g), _region(a)
    if not all(regions):
        return False
    unknowns = {name for region in regions for name in _names(region)}
    # What holds or does not, as 2 < 3 does, describes no set.
    if (
        len(unknowns) > 1
        or any(name.startswith("call:") for name in unknowns)
        or any(region[0] == "relation" and not _names(region) for region in regions)
    ):
        return False
    return same_region(*regions, *unknowns or [""])


def _names(region):
    """The unknowns of a region; its trees are tuples, too."""
    kind, *parts = region
    trees = {"set": parts[0], "interval": parts[1:], "relation": parts[-1]}.get(kind)
    return set().union(*(map(names, trees) if trees is not None else map(_names, parts)))


def _region(node):
    """The region of `_math/regions.py` that a Node describes, None if it describes none."""
    if node.kind == "union":
        parts = [_region(part) for part in node.value[1]]
        return (node.value[0], *parts) if all(parts) else None
    if node.kind == "relation":
        trees = [*map(_tree, node.value[1])]
        return ("relation", node.value[0], trees) if all(trees) and not set(node.value[0]) - KINDS else None
    if node.kind == "tuple" and len(node.value) == 3 and all(map(_constant, node.value[1:])):
        return "interval", node.value[0], *map(_tree, node.value[1:])
    return (
        ("set", [*map(_tree, node.value)]) if node.kind == "set" and all(map(_constant, node.value)) else None
    )
