r"""Sets of real numbers, compared at their ends and between them, which decides.

The ends of a region are those of its intervals, and the roots of its conditions. The sides of a condition
differ by a polynomial of degree 2 at most, as in x^2 < 4 and |x - 1| < 3. `unknown` is the variable's name.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from tasks._math.algebra import (
    LOCK,
    NO_VALUE,
    Call,
    Constant,
    Name,
    Real,
    Tree,
    Undecided,
    Values,
    close,
    has_steps,
    is_real,
    leaves,
    mp,
)


class Points(NamedTuple):
    """A finite set."""

    trees: tuple[Tree, ...]


class Interval(NamedTuple):
    """brackets: "()", "[)", "(]" or "[]"."""

    brackets: str
    low: Tree
    high: Tree


class Condition(NamedTuple):
    r"""What an equation or inequality describes, such as 0 < x \le 1: operators between sides."""

    operators: tuple[str, ...]
    sides: tuple[Tree, ...]


class Combined(NamedTuple):
    r"""operator: \cup, \cap or \setminus."""

    operator: str
    parts: tuple[Region, ...]


Region = Points | Interval | Condition | Combined
SPOTS = [*map(Fraction, (0, 1, -1))], [*map(Fraction, ("2.71", "-7.3", "19.4", "-123"))]


def same_region(gold: Region, answer: Region, unknown: str) -> bool:
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


def at(tree: Tree, unknown: str, x: Real) -> Real:
    """The real value of a tree where the unknown is x. Errors: Undecided, ArithmeticError."""
    found = mp.convert(Values(0, {unknown: x, r"\infty": mp.inf}).evaluate(tree))
    if not is_real(found):
        raise Undecided
    return found.real


def holds(region: Region, unknown: str, x: Real) -> bool:
    """Whether x is in the region."""
    match region:
        case Points(trees):
            return any(compare(at_or_none(tree, unknown, x), "=", x) for tree in trees)
        case Interval(brackets, low, high):
            left, right = ("<" if bracket in "()" else r"\le" for bracket in brackets)
            above = compare(at_or_none(low, unknown, x), left, x)
            return above and compare(x, right, at_or_none(high, unknown, x))
        case Condition(operators, sides):
            values = [at_or_none(side, unknown, x) for side in sides]
            return all(compare(a, op, b) for a, op, b in zip(values, operators, values[1:]))
    inside = [holds(part, unknown, x) for part in region.parts]
    return {r"\cup": any(inside), r"\cap": all(inside)}.get(
        region.operator, inside[0] and not any(inside[1:])
    )


def at_or_none(tree: Tree, unknown: str, x: Real) -> Real | None:
    """The value of `at`, None where there is none."""
    try:
        return at(tree, unknown, x)
    except NO_VALUE:
        return None


def compare(left: Real | None, operator: str, right: Real | None) -> bool:
    """Whether left < right, or =, or another operator; not where one of them is missing."""
    if left is None or right is None:
        return False
    if left == right or mp.isfinite(left - right) and (close(left, right) or close(left + 1, right + 1)):
        return operator in ("=", r"\le")
    return operator == r"\ne" or operator != "=" and bool(left < right)


def ends(region: Region, unknown: str) -> list[Real]:
    """The numbers at which a region begins or ends. Errors: Undecided, ArithmeticError."""
    match region:
        case Condition(_, sides):
            return [root for pair in zip(sides, sides[1:]) for root in roots(*pair, unknown)]
        case Points(trees):
            return [at(tree, unknown, Fraction(0)) for tree in trees]
        case Interval(_, low, high):
            return [at(tree, unknown, Fraction(0)) for tree in (low, high)]
    return [end for part in region.parts for end in ends(part, unknown)]


def roots(left: Tree, right: Tree, unknown: str) -> list[Real]:
    """The real numbers at which two trees are equal. Errors: Undecided, ArithmeticError."""
    if Name(r"\infty") in leaves(left) + leaves(right):
        return []
    if isinstance(right, Call) and right.function == "abs":
        left, right = right, left
    if isinstance(left, Call) and left.function == "abs":
        (inside,) = left.arguments
        if not has_steps(inside) and at(right, "", Fraction(0)) >= 0:
            two = Constant(Fraction(2))
            left, right = Call("^", (inside, two)), Call("^", (right, two))
    if has_steps(left) or has_steps(right):
        raise Undecided
    difference = Call("-", (left, right))
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
