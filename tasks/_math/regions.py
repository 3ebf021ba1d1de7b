r"""Sets of real numbers, compared at their ends and between them, which decides.

A region is ("set", trees), ("interval", brackets, low, high), ("relation", operators, sides) or (operator,
region, ...) of \cup, \cap or \setminus. Its ends are those of its intervals, and the roots of its relations,
whose sides differ by a polynomial of degree 2 at most, as in x^2 < 4 and |x - 1| < 3.
"""

from fractions import Fraction

from tasks._math.algebra import LOCK, NO_VALUE, Undecided, Values, close, has_steps, is_real, leaves, mp

SPOTS = [*map(Fraction, (0, 1, -1))], [*map(Fraction, ("2.71", "-7.3", "19.4", "-123"))]


def same_region(gold, answer, unknown):
    """Whether two regions, described with at most one unknown, are the same."""
    with LOCK:
        try:
            found = sorted(
                end for region in (gold, answer) for end in ends(region, unknown) if mp.isfinite(end)
            )
        except NO_VALUE:
            return False
        found = found or [mp.mpf(0)]
        points = [found[0] - 1, *found, *((x + y) / 2 for x, y in zip(found, found[1:])), found[-1] + 1]
        inside = [(holds(gold, unknown, x), holds(answer, unknown, x)) for x in points]
        # The point (2, 1) is no empty interval, which x < x would describe as well.
        return (True, True) in inside and all(in_gold == in_answer for in_gold, in_answer in inside)


def at(tree, unknown, x):
    """The real value of a tree where the unknown is x. Errors: Undecided, ArithmeticError."""
    found = mp.convert(Values(0, {unknown: x, r"\infty": mp.inf}).evaluate(tree))
    if not is_real(found):
        raise Undecided
    return found.real


def holds(region, unknown, x):
    """Whether x is in the region."""
    kind, *parts = region
    if kind == "set":
        return any(compare(tree, "=", x, unknown, x) for tree in parts[0])
    if kind == "interval":
        (left, right), low, high = parts
        above = compare(low, "<" if left == "(" else r"\le", x, unknown, x)
        return above and compare(x, "<" if right == ")" else r"\le", high, unknown, x)
    if kind == "relation":
        operators, sides = parts
        return all(compare(a, op, b, unknown, x) for a, op, b in zip(sides, operators, sides[1:]))
    inside = [holds(part, unknown, x) for part in parts]
    return {r"\cup": any(inside), r"\cap": all(inside)}.get(kind, inside[0] and not any(inside[1:]))


def compare(left, operator, right, unknown, x):
    """Whether left < right, or =, or ..., of trees or numbers; not where one of them has no value."""
    try:
        left, right = (at(side, unknown, x) if isinstance(side, tuple) else side for side in (left, right))
    except NO_VALUE:
        return False
    if left == right or mp.isfinite(left - right) and (close(left, right) or close(left + 1, right + 1)):
        return operator in ("=", r"\le")
    return operator == r"\ne" or operator != "=" and left < right


def ends(region, unknown):
    """The numbers at which a region begins or ends. Errors: Undecided, ArithmeticError."""
    kind, *parts = region
    if kind == "relation":
        return [root for sides in zip(parts[1], parts[1][1:]) for root in roots(*sides, unknown)]
    if kind in ("set", "interval"):
        return [at(tree, unknown, 0) for tree in (parts[0] if kind == "set" else parts[1:])]
    return [end for part in parts for end in ends(part, unknown)]


def roots(left, right, unknown):
    """The real numbers at which two trees are equal. Errors: Undecided, ArithmeticError."""
    if ("name", r"\infty") in leaves(left) + leaves(right):
        return []
    if right[0] == "abs":
        left, right = right, left
    if left[0] == "abs" and not has_steps(left[1]) and at(right, None, 0) >= 0:
        left, right = (("^", side, ("number", Fraction(2))) for side in (left[1], right))
    if has_steps(left) or has_steps(right):
        raise Undecided
    difference = ("-", left, right)
    c, plus, minus = (at(difference, unknown, x) for x in SPOTS[0])
    a, b = (plus + minus) / 2 - c, (plus - minus) / 2
    if not all(close(at(difference, unknown, x), (a * x + b) * x + c) for x in map(mp.convert, SPOTS[1])):
        raise Undecided
    if close(a + 1, 1):
        return [] if close(b + 1, 1) else [-c / b]
    discriminant = b * b - 4 * a * c
    if discriminant < 0:
        return []
    return [(-b + sign * mp.sqrt(discriminant)) / (2 * a) for sign in (1, -1)]
