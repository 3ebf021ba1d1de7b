"""Exact arithmetic on what a model writes: no `eval`, and no text is too odd or too long."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

# An int wherever it is one.
Number = int | Fraction
# (sign, left, right)
Operation = tuple[str, Number, Number]

TYPOGRAPHIC = str.maketrans({"×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/", "−": "-", "–": "-"})
# Characters of an expression; no honest one is nearly as long.
MAX_LENGTH = 200
# Characters of a side of an equation in prose.
MAX_SIDE = 40
PLAIN = re.compile(r"[-+*/()0-9\s]+")
TOKEN = re.compile(r"[0-9]+|[-+*/()]")
OPERATIONS: dict[str, Callable[[Number, Number], Number]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": Fraction,
}


class Arithmetic(NamedTuple):
    """What an expression computes: its value, its numbers and its operations in order."""

    value: Number
    numbers: tuple[int, ...]
    operations: tuple[Operation, ...]


class Statement(NamedTuple):
    """What an equation such as `(3+5)*2 = 16` states: operands, value, whether it holds, operations."""

    operands: tuple[int, ...]
    value: Number
    holds: bool
    operations: tuple[Operation, ...]


class Reader:
    """Recursive descent over the tokens of an expression. Errors: IndexError where they end too early,
    SyntaxError, ZeroDivisionError.
    """

    def __init__(self, text: str) -> None:
        # The next token is the last one.
        self.tokens = TOKEN.findall(text)[::-1]
        self.numbers: list[int] = []
        self.operations: list[Operation] = []

    def sum(self) -> Number:
        return self.chain("+-", self.product)

    def product(self) -> Number:
        return self.chain("*/", self.atom)

    def chain(self, signs: str, part: Callable[[], Number]) -> Number:
        """One or more parts with these signs between them, computed from left to right."""
        value = part()
        while self.tokens and self.tokens[-1] in signs:
            sign = self.tokens.pop()
            right = part()
            self.operations.append((sign, value, right))
            value = apply(sign, value, right)
        return value

    def atom(self) -> Number:
        token = self.tokens.pop()
        if token == "(":
            value = self.sum()
            if self.tokens.pop() != ")":
                raise SyntaxError
            return value
        if not token.isdigit() or token[0] == "0" != token:
            raise SyntaxError
        number = int(token)
        self.numbers.append(number)
        return number


def apply(sign: str, left: Number, right: Number) -> Number:
    """left + right, or with another of the signs + - * /. Errors: ZeroDivisionError."""
    value = OPERATIONS[sign](left, right)
    return value if value.denominator > 1 else value.numerator


@lru_cache(maxsize=1 << 14)
def evaluate(expression: str) -> Arithmetic | None:
    """What an expression of ASCII digits with + - * / and brackets computes; None of any other text.

    Refused are signs before a number (-3), leading zeros (007), gaps in a number (1 2), division by zero, and
    texts of more than MAX_LENGTH characters.
    """
    if len(expression) > MAX_LENGTH or not PLAIN.fullmatch(expression):
        return None
    reader = Reader(expression)
    try:
        value = reader.sum()
    except (IndexError, SyntaxError, ZeroDivisionError, RecursionError):
        return None
    return None if reader.tokens else Arithmetic(value, tuple(reader.numbers), tuple(reader.operations))


def read_equation(text: str) -> Statement | None:
    """The Statement of a text such as `(3+5)*2 = 16`; None of other texts.

    text: digits, points, + - * / ( ) = and blanks, perhaps with loose ends as prose leaves them around it. In
    a chain `3*5 = 10+5 = 15` the operands and operations are those of the first side that computes, the value
    is the last one, and the chain holds where all sides agree (to 1/100 if there are decimal points).
    """
    if len(text) > MAX_LENGTH:
        return None
    sides = [_side(side) for side in text.rstrip(" =").split("=")]
    known = [side for side in sides if side]
    computes = next((side for side in known if len(side.numbers) > 1), None)
    if len(sides) < 2 or len(known) < len(sides) or computes is None:
        return None
    value = known[-1].value
    margin = Fraction(1, 100) if "." in text else Fraction(0)
    holds = all(-margin <= side.value - value <= margin for side in known)
    return Statement(computes.numbers, value, holds, computes.operations)


@lru_cache(maxsize=1 << 14)
def _side(text: str) -> Arithmetic | None:
    """What one side of an equation computes; a number alone, which may be negative, has no `numbers`."""
    if len(text) > MAX_SIDE:
        return None
    text = text.strip(" .").rstrip(" (+-*/")
    # A bracket of the sentence, as in `(3+5=8)`.
    if text.count("(") != text.count(")"):
        text = text.strip("() ")
    if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text):
        return Arithmetic(Fraction(text) if "." in text else int(text), (), ())
    return evaluate(text)
