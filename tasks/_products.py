"""How a response works out a product: partial products, steps and their sum, read from its arithmetic."""

import re
from itertools import combinations, permutations, product

from tasks._arithmetic import MAX_LENGTH, TYPOGRAPHIC, evaluate
from tasks._attempts import read_thinking

MAX_RUNS, MAX_TERMS, MAX_PARTS = 200, 24, 6  # runs of arithmetic and products read, and parts of a factor
SPACES = str.maketrans(dict.fromkeys("\u00a0\u2007\u2009\u202f", " "))  # as between thousands

# One way to write arithmetic, from the many that models have. Every pattern is linear in the text's length.
SIGNS = [
    (r"\{,\}", ","),  # 1{,}081
    (r"\\,", " "),
    (r"\\(?:times|cdot|ast)(?![a-z])|\\\*", "*"),
    (r"\\(?:left|right)(?![a-z])|\\[()\[\]!;]|[$&`]", ""),
    (r"\\(?:boxed|text|textbf|mathbf)\{([^{}\n]{0,100})\}", r"\1"),
    (r"(?<![0-9)*])\*\*(?!\*)|(?<!\*)\*\*(?![0-9(*])", ""),  # bold; 2**3 stays
    (r"(?<=[0-9)]) ?\b(?:times|multiplied by)\b ?(?=[0-9(])|(?<=[0-9)]) ?x ?(?=[0-9(])", "*"),
    (r"(?<=[0-9)]) plus (?=[0-9(])", "+"),
    (r"(?<=[0-9)]) minus (?=[0-9(])", "-"),
    (r"(?<=[0-9)]) (?:is equal to|equals|is|gives|makes) (?=[0-9(])", "="),
    (r" ?\n ?(?==)", " "),  # a chain that goes on in the next line
    (r"(?<=[0-9)]) ?(?=\([0-9]+ ?[-+])", "*"),  # 23(40+7)
    (r"(?<=[0-9])\.0*(?![0-9.])", ""),  # 1081.0, and a full stop
]
SIGNS = [(re.compile(pattern), sign) for pattern, sign in SIGNS]
GROUPED = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:([, ])[0-9]{3})(?:\1[0-9]{3})*(?![0-9])(?! ?\*)")

RUN = re.compile(r"[(0-9](?:[-+*/()=0-9 ]|\.(?=[0-9]))*")
NUMBERS = r"[0-9]{1,9}(?: ?[-+] ?[0-9]{1,9}){0,5}"
FACTOR = rf"[0-9]{{1,9}}|\({NUMBERS}\)"
TERM = re.compile(rf"([-+]?) ?({FACTOR})(?: ?\* ?({FACTOR}))? ?(?=[-+]|\Z)")
PART = re.compile(r"([-+]?) ?([0-9]+)")


def plain(text):
    """`text` in small letters, its arithmetic in ASCII signs and its numbers without thousands separators."""
    text = text.lower().translate(TYPOGRAPHIC).translate(SPACES)
    for pattern, sign in SIGNS:
        text = pattern.sub(sign, text)
    return GROUPED.sub(lambda number: number[0].replace(number[1], ""), text)


def behaviours(completion, a, b, answer=None):
    """Dict of how the thinking reaches a*b; `answer` is the product stated. What does not apply is left out.

    decomposes           1.0 if partial products add up to the product by the distributive law, else 0.0
    decomposes_fully     1.0 if they do so down to factors of one non-zero digit each (or a power of ten)
    steps                equations; a chain such as 23*4=20*4+3*4=80+12=92 has three
    arithmetic_accuracy  share of the steps that hold
    partials_add_up      1.0 if the partial products, as stated, add up to `answer`, right or wrong

    Decided by the factors alone: 23*40 and 23*7 decompose 23*47 because 40+7=47, wherever they stand, be the
    products right or wrong; (20+3)*47 and 50-3 do so as well. 24*7 is no partial product of 23*47.
    """
    text = plain(read_thinking(completion)[0])
    steps, terms = (
        [],
        {},
    )  # terms: (factor, factor) in either order -> the value stated, None if there is none
    for run, _ in zip(RUN.finditer(text), range(MAX_RUNS)):
        sides = [side.strip(" .") for side in run[0][:MAX_LENGTH].rstrip(" =(+-*/").split("=")]
        values = [evaluate(side) for side in sides]
        if any(value and len(value[1]) > 1 for value in values):
            steps += [bool(x and y and x[0] == y[0]) for x, y in zip(values, values[1:])]
        for pair, value in _partials([_expand(side) for side in sides]):
            if pair in terms or len(terms) < 2 * MAX_TERMS and pair not in ((a, b), (b, a)):
                terms[pair] = terms[pair[::-1]] = value if value is not None else terms.get(pair)
    found, total = _derive(terms, a, b)
    stats = {"decomposes": float(found), "steps": len(steps)}
    stats["decomposes_fully"] = float(
        found and _derive({t: v for t, v in terms.items() if _easy(*t)}, a, b)[0]
    )
    if steps:
        stats["arithmetic_accuracy"] = sum(steps) / len(steps)
    if found and answer is not None and total is not None:
        stats["partials_add_up"] = float(total == answer)
    return stats


def _expand(side):
    """The signed terms of a side, multiplied out: `(20+3)*47-5` -> [(1, 20, 47), (1, 3, 47), (-1, 5, None)].

    [] of what is no sum of numbers and of products of two numbers or sums.
    """
    terms, at = [], 0
    while match := TERM.match(side, at):
        at = match.end()
        factors = [[(1, None)] if not f else _parts(f) for f in match.group(2, 3)]
        sign = -1 if match[1] == "-" else 1
        terms += [(sign * s * t, u, v) for (s, u), (t, v) in product(*factors)]
    return terms if at == len(side) else []


def _parts(factor):
    return [(-1 if sign == "-" else 1, int(number)) for sign, number in PART.findall(factor)]


def _partials(chain):
    """((u, v), value stated or None) of every product u*v in a chain of equal sides, as _expand gives them.

    The value is the number that stands in its place further on: `20*4+3*4 = 80+12` states 80 and 12.
    """
    for i, terms in enumerate(chain):
        later = (side for side in chain[i + 1 :] if side and all(v is None for _, _, v in side))
        values = next((side for side in later if len(side) == len(terms)), None)
        for j, (_, u, v) in enumerate(terms):
            if v is not None:
                yield (u, v), values and values[j][1]


def _derive(terms, a, b):
    """(whether terms x*p with parts p of y make x*y, up to a*b; the sum of their stated values or None)."""
    partners = {}  # x -> {p: value stated of x*p}
    for (x, p), value in terms.items():
        partners.setdefault(x, {})[p] = value
    numbers = {a, b, *partners}
    for _ in range(3):  # a product of partial products of partial products
        for x in numbers:
            parts = [part for part in partners.get(x, {}).items() if part[0]][:MAX_PARTS]
            for y, value in _sums(parts, numbers):
                if partners.get(x, {}).get(y) is None:
                    partners.setdefault(x, {})[y] = partners.setdefault(y, {})[x] = value
        if b in partners.get(a, ()):
            return True, partners[a][b]
    return False, None


def _sums(parts, wanted):
    """(sum, sum of their values or None) of the two to five parts that make a wanted sum, or difference."""
    for n in range(2, 6):
        for some in combinations(parts, n):
            if (y := sum(p for p, _ in some)) in wanted:
                yield y, None if None in (values := [v for _, v in some]) else sum(values)
    for (p, v), (q, w) in permutations(parts, 2):
        if p > q and p - q in wanted:
            yield p - q, None if v is None or w is None else v - w


def _easy(u, v):
    """Whether nothing is left to decompose: one non-zero digit each, or a power of ten."""
    digits = [str(n).rstrip("0") for n in (u, v)]
    return "1" in digits or max(map(len, digits)) <= 1
