"""How a response computes a product: partial products, steps and their sum, read from its arithmetic."""

import re
from collections.abc import Iterator
from itertools import combinations, islice, permutations

from tasks._text.arithmetic import MAX_LENGTH, TYPOGRAPHIC, evaluate
from tasks._text.attempts import read_thinking

# Two factors, and by factor the value that is stated of a product (None: none is).
Pair = tuple[int, int]
Values = dict[int, int | None]
# (sign, factor, the second factor or None).
Term = tuple[int, int, int | None]

# How many stretches of arithmetic and how many products of the thinking are read.
MAX_RUNS, MAX_PRODUCTS = 100, 64
# Parts of a factor whose sums are tried.
MAX_PARTS = 6

# (pattern, replacement): the many ways to write arithmetic become one. The time is linear in the text's
# length. It is short because every pattern begins with a fixed character: hence the odd lookbehinds.
CHARACTERS = TYPOGRAPHIC | dict.fromkeys(map(ord, "\u00a0\u2007\u2009\u202f"), " ")
SPELLINGS = [
    # 1{,}081
    (r"\{,\}", ","),
    (r"\\,", " "),
    (r"\\(?:times|cdot|ast)(?![a-z])|\\\*", "*"),
    (r"\\(?:left|right)(?![a-z])|\\[()\[\]!;]", ""),
    (r"\\(?:boxed|text|textbf|mathbf)\{([^{}\n]{0,100})\}", r"\1"),
    # Bold; 2**3 stays.
    (r"\*\*(?:(?<![0-9)*]\*\*)(?!\*)|(?<!\*\*\*)(?![0-9(*]))", ""),
    (r"product of ([0-9]{1,9}) and (?=[0-9])", r"\1*"),
    (r" (?:times|multiplied by) (?=[0-9(])", "*"),
    (r"x(?<=[0-9) ]x) ?(?=[0-9(])", "*"),
    (r" plus (?=[0-9(])", "+"),
    (r" minus (?=[0-9(])", "-"),
    (r" (?:is equal to|equals|is|gives|makes) (?=[0-9(])", "="),
    # A chain that continues in the next line.
    (r"\n ?(?==)", " "),
    # 23(40+7)
    (r"\((?:(?<=[0-9)]\()|(?<=[0-9)] \())(?=[0-9]+ ?[-+])", "*("),
    # 1081.0
    (r"\.(?<=[0-9]\.)0+(?![0-9]|\.[0-9])", ""),
]
SIGNS = [(re.compile(pattern), sign) for pattern, sign in SPELLINGS]
GROUPED = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:([, ])[0-9]{3})(?:\1[0-9]{3})*(?![0-9])(?! ?\*)")

RUN = re.compile(r"[(0-9](?:[-+*/()=0-9 ]|\.(?=[0-9]))*")
NUMBERS = r"[0-9]{1,9}(?: ?[-+] ?[0-9]{1,9}){0,5}"
FACTOR = rf"[0-9]{{1,9}}|\({NUMBERS}\)"
TERM = re.compile(rf"([-+]?) ?({FACTOR})(?: ?\* ?({FACTOR}))? ?(?=[-+]|\Z)")
PART = re.compile(r"([-+]?) ?([0-9]+)")


def plain(text: str) -> str:
    """`text` in small letters, its arithmetic in ASCII signs and its numbers without thousands separators."""
    text = text.lower().translate(CHARACTERS)
    for mark in "$&`":
        text = text.replace(mark, "")
    for pattern, sign in SIGNS:
        text = pattern.sub(sign, text)
    return GROUPED.sub(lambda number: number[0].replace(number[1], ""), text)


def behaviours(completion: str, a: int, b: int, answer: int | None = None) -> dict[str, float]:
    """How the thinking reaches a*b, by name; a name that does not apply is left out. answer: as stated.

    decomposes           1.0 if partial products add up to the product by the distributive law, else 0.0
    decomposes_fully     1.0 if they do so down to factors of one non-zero digit each
    steps                number of equations; a chain such as 23*4=20*4+3*4=80+12=92 has three
    arithmetic_accuracy  share of the steps that hold
    partials_add_up      1.0 if the partial products, as stated, add up to `answer`, right or wrong

    The factors alone decide: 23*40 and 23*7 decompose 23*47 because 40+7=47, in any order, whether or not
    the products are right; (20+3)*47 and 50-3 do so as well. 24*7 is no partial product of 23*47.
    """
    text = plain(read_thinking(completion)[0])
    runs = [run[0][:MAX_LENGTH].rstrip(" =(+-*/") for run in islice(RUN.finditer(text), MAX_RUNS)]
    chains = [[side.strip(" .") for side in run.split("=")] for run in runs]
    steps: list[bool] = []
    # By the factors, in either order: the value stated, None if none is.
    terms: dict[Pair, int | None] = {}
    for chain in chains:
        values = [evaluate(side) for side in chain]
        if any(value and len(value.numbers) > 1 for value in values):
            steps += [bool(x and y and x.value == y.value) for x, y in zip(values, values[1:])]
    products = (found for chain in chains for found in _partials([_expand(side) for side in chain]))
    for pair, value in islice(products, MAX_PRODUCTS):
        if pair not in ((a, b), (b, a)):
            terms[pair] = terms[pair[::-1]] = value if value is not None else terms.get(pair)
    found, total = _derive(terms, a, b)
    stats: dict[str, float] = {"decomposes": float(found), "steps": len(steps)}
    digits = {pair: value for pair, value in terms.items() if all(len(str(n).rstrip("0")) == 1 for n in pair)}
    stats["decomposes_fully"] = float(found and _derive(digits, a, b)[0])
    if steps:
        stats["arithmetic_accuracy"] = sum(steps) / len(steps)
    if found and answer is not None and total is not None:
        stats["partials_add_up"] = float(total == answer)
    return stats


def _expand(side: str) -> list[Term]:
    """The signed terms of a side, multiplied out: `(20+3)*47-5` -> [(1, 20, 47), (1, 3, 47), (-1, 5, None)].

    [] of what is no sum of numbers and of products of two numbers or sums.
    """
    terms: list[Term] = []
    at = 0
    while match := TERM.match(side, at):
        at = match.end()
        sign = -1 if match[1] == "-" else 1
        for s, u in _parts(match[2]):
            if match[3]:
                terms += [(sign * s * t, u, v) for t, v in _parts(match[3])]
            else:
                terms.append((sign * s, u, None))
    return terms if at == len(side) else []


def _parts(factor: str) -> list[tuple[int, int]]:
    """(sign, number) of every number in a factor: `(40-7)` -> [(1, 40), (-1, 7)]."""
    return [(-1 if sign == "-" else 1, int(number)) for sign, number in PART.findall(factor)]


def _partials(chain: list[list[Term]]) -> Iterator[tuple[Pair, int | None]]:
    """((u, v), value stated or None) of every product u*v in a chain of equal sides, as _expand gives them.

    The value is the number at the same position of a later side: `20*4+3*4 = 80+12` states 80 and 12.
    """
    for i, terms in enumerate(chain):
        later = (side for side in chain[i + 1 :] if side and all(v is None for _, _, v in side))
        values = next((side for side in later if len(side) == len(terms)), None)
        for j, (_, u, v) in enumerate(terms):
            if v is not None:
                yield (u, v), values[j][1] if values else None


def _derive(terms: dict[Pair, int | None], a: int, b: int) -> tuple[bool, int | None]:
    """(whether `terms` make a*b by the distributive law; the sum of their stated values or None).

    That is: the parts p of one factor add up to it, and x*p with the other factor x is a term itself or made
    of terms u*p whose u add up to x.
    """
    # By p: {u: value stated of u*p}.
    partners: dict[int, Values] = {}
    for (u, p), value in terms.items():
        partners.setdefault(p, {})[u] = value
    for x, y in ((a, b), (b, a)):
        parts = {p: values[x] for p, values in partners.items() if x in values}
        for p, values in partners.items():
            if p not in parts and (made := _add_up(values, x)):
                parts[p] = made[0]
        if total := _add_up(parts, y):
            return True, total[0]
    return False, None


def _add_up(values: Values, wanted: int) -> tuple[int | None] | None:
    """(sum of their values or None,) of the first two to five parts with the sum or difference `wanted`.

    values: by part. None where no parts make it.
    """
    parts = [(p, value) for p, value in values.items() if p][:MAX_PARTS]
    for n in range(2, 6):
        for some in combinations(parts, n):
            if sum(p for p, _ in some) == wanted:
                return (_sum([value for _, value in some]),)
    for (p, v), (q, w) in permutations(parts, 2):
        if p - q == wanted:
            return (None if v is None or w is None else v - w,)
    return None


def _sum(values: list[int | None]) -> int | None:
    """The sum, None where a value is missing."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
