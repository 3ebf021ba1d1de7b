"""Exact arithmetic on what a model writes: no `eval`, and no text is too odd or too long."""

import re
from fractions import Fraction
from functools import lru_cache

TYPOGRAPHIC = str.maketrans({"×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/", "−": "-", "–": "-"})
MAX_LENGTH = 200  # characters of an expression; no honest one comes near
MAX_SIDE = 40  # characters of a side of an equation in prose
RANK = {"(": 0, "+": 1, "-": 1, "*": 2, "/": 2}


@lru_cache(maxsize=1 << 14)
def evaluate(expression):
    """(exact value, its numbers in order, its operations in order) of ASCII digits with + - * / and brackets;
    None of any other text.

    An operation is (sign, left, right), the two as numerator and denominator, perhaps not reduced. Refused:
    signs before a number (-3), leading zeros (007), gaps in a number (1 2), division by zero, and all that is
    no plain arithmetic. Two stacks, of values and of operators: no depth of brackets overflows.
    """
    if len(expression) > MAX_LENGTH or not re.fullmatch(r"[-+*/()0-9\s]+", expression):
        return None
    values, operators, numbers, operations = (
        [],
        [],
        [],
        [],
    )  # values: numerator and denominator, far faster than Fraction
    due = True  # the next token must be a number or an opening bracket

    def apply():
        op, (c, d), (a, b) = operators.pop(), values.pop(), values.pop()
        operations.append((op, (a, b), (c, d)))
        match op:
            case "+":
                values.append((a * d + c * b, b * d))
            case "-":
                values.append((a * d - c * b, b * d))
            case "*":
                values.append((a * c, b * d))
            case _ if c == 0:
                raise ZeroDivisionError
            case _:
                values.append((a * d, b * c))

    try:
        for token in re.findall(r"[0-9]+|[-+*/()]", expression):
            if due and token[0] in "0123456789" and (token == "0" or token[0] != "0"):
                numbers.append(int(token))
                values.append((numbers[-1], 1))
                due = False
            elif due and token == "(":
                operators.append(token)
            elif not due and token == ")":
                while operators[-1] != "(":
                    apply()
                operators.pop()
            elif not due and token in "+-*/":
                while operators and RANK[operators[-1]] >= RANK[token]:
                    apply()
                operators.append(token)
                due = True
            else:
                return None
        while operators and not due:
            apply()  # a bracket left open finds too few values
    except (IndexError, ZeroDivisionError):
        return None
    return None if due else (Fraction(*values[0]), tuple(numbers), tuple(operations))


def read_equation(text):
    """(operands, value stated, whether it holds, operations) of an equation such as `(3+5)*2 = 16`; None of
    other texts.

    text: digits, points, + - * / ( ) = and blanks, perhaps with loose ends as prose leaves them around it. In
    a chain `3*5 = 10+5 = 15` the operands and operations (see evaluate) are those of the first side that
    computes, the value is the last, and it holds where all sides agree (to 1/100 if there are decimal
    points).
    """
    if len(text) > MAX_LENGTH:
        return None
    sides = [_side(side) for side in text.rstrip(" =").split("=")]
    computes = next((side for side in sides if side and len(side[1]) > 1), None)
    if len(sides) < 2 or computes is None or None in sides:
        return None
    value, margin = sides[-1][0], Fraction(1, 100) if "." in text else 0
    return computes[1], value, all(abs(side[0] - value) <= margin for side in sides), computes[2]


@lru_cache(maxsize=1 << 14)
def _side(text):
    if len(text) > MAX_SIDE:
        return None
    text = text.strip(" .").rstrip(" (+-*/")
    if text.count("(") != text.count(")"):  # a bracket of the sentence's, as in `(3+5=8)`
        text = text.strip("() ")
    if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text):
        return Fraction(text) if "." in text else int(text), (), ()
    return evaluate(text)
