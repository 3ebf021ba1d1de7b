r"""Formulas in LaTeX, read into trees, and compared by their values.

`parse` reads what `latex.tidy` returns, as TeX and people mean it: `\frac12`, `x^10`, `\sin 2x\cos y`,
`2\frac13`. `Values` computes a tree, with fractions where that is possible, else to DIGITS digits. The
unknowns have a value at each of a few sample points.

Two formulas are equal if they are equal at all sample points. That decides for formulas of the four
operations, powers, roots and elementary functions. It does not for functions that jump or bend (STEPS): such
a function of an unknown equals only itself or, where the unknown is one integer, is compared over two
periods. The time is bounded: a value is a fraction of at most MAX_BITS bits, or has DIGITS digits and a
checked exponent.
"""

from __future__ import annotations

import math
import operator
import random
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath

from tasks._math.latex import CLOSE, END, FUNCTIONS, OPEN, WORD, TooComplex, words


class Constant(NamedTuple):
    """A number."""

    value: Fraction


class Name(NamedTuple):
    """A letter, a word, or a constant such as \\pi."""

    name: str


class Call(NamedTuple):
    """A function of trees: one of + - * / ^ root factorial binom call:f, of FUNCTIONS or of STEPS."""

    function: str
    arguments: tuple[Tree, ...]


Tree = Constant | Name | Call
# A fraction, or a real (of Value, also a complex) number of `mp`, whose classes are no types to a checker.
Real = Fraction | Any
Value = Fraction | Any

# Bits of an exact number, and the largest number that has a factorial here.
MAX_BITS, MAX_FACTORIAL = 100_000, 5_000
# Functions whose value jumps or bends: sampling them at points decides nothing.
STEPS = {"floor", "ceil", "abs", "max", "min", "gcd", "lcm"}
INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan", "cot": "arccot"}
CONSTANTS = {"i", "e", r"\pi", r"\infty"}
TWO = Constant(Fraction(2))
# Letters that are functions if a bracket follows.
CALLED = set("fghFGHPQNE")
FUNCTION = rf"\\({'|'.join(FUNCTIONS)})(?![a-zA-Z])"
NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+|\.(?=\\overline))(?:\\overline\{([0-9]+)\})?"
GREEK = (
    r"alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|varphi|chi"
    r"|psi|omega|Gamma|Delta|Theta|Lambda|Sigma|Phi|Psi|Omega|ell|pi|infty"
)
NAME = (
    r"(?:\\(?:vec|hat|bar|tilde|overline|angle|triangle)\s*(?:\{[^{}]*\}|[a-zA-Z]+)"
    rf"|\\(?:{GREEK})(?![a-zA-Z])|{WORD}[^{END}]*{END}|[a-zA-Z])(?:'*\s*_(?:\{{[^{{}}]*\}}|[0-9a-zA-Z]))?'*"
)
BRACKETS = {"(": r"\)", "[": r"\]", "{": r"\}", "|": r"\|", r"\lfloor": r"\\rfloor", r"\lceil": r"\\rceil"}
AROUND = {"|": "abs", r"\lfloor": "floor", r"\lceil": "ceil"}


class Undecided(Exception):
    """The value needs more than exact arithmetic or DIGITS digits."""


class Reader:
    """Recursive descent over a text; the methods return trees. Errors: SyntaxError.

    at: the position in the text; bars: how many | are open.
    """

    def __init__(self, text: str) -> None:
        self.text, self.at, self.bars = text, 0, 0

    def take(self, pattern: str) -> re.Match[str] | None:
        """The match of a pattern at the current position, after blanks, or None."""
        if match := re.compile(rf"\s*{pattern}").match(self.text, self.at):
            self.at = match.end()
        return match

    def need(self, pattern: str) -> None:
        if not self.take(pattern):
            raise SyntaxError(self.text[self.at :])

    def sum(self) -> Tree:
        value = self.signed(self.product)
        while sign := self.take("([-+])"):
            value = Call(sign[1], (value, self.signed(self.product)))
        return value

    def sums(self) -> list[Tree]:
        """One or more sums between commas."""
        found = [self.sum()]
        while self.take(","):
            found.append(self.sum())
        return found

    def signed(self, read: Callable[[], Tree]) -> Tree:
        sign = self.take("([-+])")
        return negative(read()) if sign and sign[1] == "-" else read()

    def product(self) -> Tree:
        value = self.factor()
        while True:
            if self.take(r"\\cdot(?![a-zA-Z])"):
                value = Call("*", (value, self.signed(self.factor)))
            elif self.take("/"):
                divisor = self.signed(self.factor)
                # 1/2x is half of x, but a/bc is a over bc.
                while not (isinstance(value, Constant) and isinstance(divisor, Constant)) and self.starts():
                    divisor = Call("*", (divisor, self.factor()))
                value = Call("/", (value, divisor))
            elif self.starts():
                value = Call("*", (value, self.factor()))
            else:
                return value

    def starts(self, functions: bool = True) -> bool:
        """Whether another factor follows, without a sign between the two."""
        at, after_digit = self.at, self.text[: self.at].rstrip()[-1:].isdigit()
        command = r"\\(?:frac|binom|sqrt|lfloor|lceil)(?![a-zA-Z])"
        found = (
            (functions and self.take(FUNCTION))
            or self.take(rf"(?:{command}|[({{\[]|{NAME})")
            or (not after_digit and self.take("[0-9]"))
            or (not self.bars and self.take(r"\|"))
        )
        self.at = at
        return bool(found)

    def factor(self) -> Tree:
        value = self.atom()
        while True:
            if self.take(r"\^\{\\circ\}"):
                value = Call("/", (Call("*", (value, Name(r"\pi"))), Constant(Fraction(180))))
            elif self.take(r"\^"):
                value = Call("^", (value, self.argument()))
            elif self.take("!"):
                value = Call("factorial", (value,))
            elif self.take("%"):
                value = Call("/", (value, Constant(Fraction(100))))
            else:
                return value

    def argument(self, one_digit: bool = False) -> Tree:
        r"""What a command or ^ takes: {...}, a number (of \frac its first digit), a letter or a command."""
        if one_digit and (digit := self.take("([0-9])")):
            return Constant(Fraction(int(digit[1])))
        return self.signed(self.atom)

    def atom(self) -> Tree:
        if match := self.take(NUMBER):
            return self.number(match)
        if match := self.take(r"(\\(?:lfloor|lceil)(?![a-zA-Z])|[(\[{|])"):
            self.bars += match[1] == "|"
            value = self.sum()
            self.need(BRACKETS[match[1]])
            self.bars -= match[1] == "|"
            return Call(AROUND[match[1]], (value,)) if match[1] in AROUND else value
        if match := self.take(r"\\(frac|binom)(?![a-zA-Z])"):
            function = "/" if match[1] == "frac" else "binom"
            return Call(function, (self.argument(True), self.argument(True)))
        if self.take(r"\\sqrt(?![a-zA-Z])"):
            degree: Tree = TWO
            if self.take(r"\["):
                degree = self.sum()
                self.need(r"\]")
            return Call("root", (self.argument(), degree))
        if match := self.take(FUNCTION):
            return self.function(match[1])
        if match := self.take(f"({NAME})"):
            return self.name(re.sub(r"[\s{}]", "", match[1]))
        raise SyntaxError(self.text[self.at :])

    def number(self, match: re.Match[str]) -> Tree:
        """A number, with a period (0.\\overline{3}) or a fraction after it (2\\frac13)."""
        digits, period = match[1], match[2]
        value = Fraction(f"0{digits.removesuffix('.')}")
        if period:
            places = len(digits.partition(".")[2])
            value += Fraction(int(period), (10 ** len(period) - 1) * 10**places)
        elif digits.isdigit() and self.take(r"\\frac(?![a-zA-Z])"):
            above, below = self.argument(True), self.argument(True)
            proper = isinstance(above, Constant) and isinstance(below, Constant) and above.value < below.value
            return Call("+" if proper else "*", (Constant(value), Call("/", (above, below))))
        return Constant(value)

    def function(self, name: str) -> Tree:
        power = self.argument() if self.take(r"\^") else None
        base = [self.argument()] if name == "log" and self.take("_") else []
        if opening := self.take(rf"([({OPEN}])"):
            inside = self.sums()
            self.need(r"\)" if opening[1] == "(" else CLOSE)
        else:
            inside = [self.factor()]
            while self.starts(functions=False) and not re.match(r"\s*[(\[]", self.text[self.at :]):
                inside = [Call("*", (inside[0], self.factor()))]
        if power == Constant(Fraction(-1)) and name in INVERSE:
            name, power = INVERSE[name], None
        value = Call(name, (*inside, *base))
        return Call("^", (value, power)) if power else value

    def name(self, name: str) -> Tree:
        if name.startswith(WORD):
            name = WORD + words(name)
        called = name[0] in CALLED or name.endswith("'") or self.text.find(",", self.at) > 0
        if called and (opening := self.take(r"(\^\{-1\})?\(")):
            arguments = self.sums()
            self.need(r"\)")
            return Call(f"call:{name}{opening[1] or ''}", tuple(arguments))
        return Name(name)


def negative(tree: Tree) -> Tree:
    return Constant(-tree.value) if isinstance(tree, Constant) else Call("*", (Constant(Fraction(-1)), tree))


def parse(text: str) -> Tree | None:
    """The tree of a text, None if it is no formula."""
    reader = Reader(text)
    try:
        tree = reader.sum()
    except (SyntaxError, ValueError):
        return None
    return tree if not text[reader.at :].strip() else None


def names(tree: Tree) -> set[str]:
    """The unknowns of a tree: its letters, and the functions that are not defined."""
    match tree:
        case Name(name):
            return {name} - CONSTANTS
        case Constant():
            return set()
    called = {tree.function} if tree.function.startswith("call:") else set()
    return called.union(*map(names, tree.arguments))


def leaves(tree: Tree) -> list[Constant | Name]:
    """The numbers and names of a tree, except the arguments of unknown functions."""
    if not isinstance(tree, Call):
        return [tree]
    if tree.function.startswith("call:"):
        return []
    return [leaf for branch in tree.arguments for leaf in leaves(branch)]


def has_steps(tree: Tree) -> bool:
    """Whether a tree has functions of STEPS in it."""
    return isinstance(tree, Call) and (tree.function in STEPS or any(map(has_steps, tree.arguments)))


# ---------------------------------------------------------------- values

# Digits of a value that is no fraction; those that equal values share; the most that two terms may be apart.
DIGITS, CLOSE_DIGITS, SUM_DIGITS = 100, 70, 60
# Relative size of what is only rounding.
NOISE = mpmath.mpf(10) ** (5 - DIGITS)
# Bits of a function's argument before the point.
MAX_EXPONENT = 64
# Of the sample points. The first three are positive, and few are integers.
LARGE = Fraction(9973, 10)
SCALES = (1, 1, LARGE, 1, 1, 1, LARGE, Fraction(1, 1000))
# The longest period of a step function of an integer that is compared.
PERIOD = 1000
mp, LOCK = mpmath.MPContext(), threading.Lock()
mp.dps = DIGITS
NO_VALUE = (ArithmeticError, Undecided, TypeError, ValueError, mpmath.libmp.NoConvergence)
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
OF_NUMBERS: dict[str, Callable[[Fraction], Fraction | int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "abs": abs,
}
OF_LISTS: dict[str, Callable[[list[Value]], Value]] = {"max": max, "min": min}
OF_INTEGERS: dict[str, Callable[..., int]] = {
    "factorial": math.factorial,
    "binom": math.comb,
    "gcd": math.gcd,
    "lcm": math.lcm,
}
OF_REALS = {"arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot"}
OF_REALS |= {"lg": "log10", "binom": "binomial", "abs": "fabs"}


class Values:
    """Fractions, else complex numbers of DIGITS digits; names have their `known` or a random value."""

    constants = {"i": mp.mpc(0, 1), "e": mp.e, r"\pi": mp.pi}

    def __init__(self, point: int = 0, known: Mapping[str, Value] | None = None) -> None:
        self.point, self.known = point, dict(known or {})

    def name(self, name: str) -> Value:
        if name in self.known:
            return self.known[name]
        if name == r"\infty":
            raise Undecided
        if name in self.constants:
            return +self.constants[name]
        rng = random.Random(f"{name} {self.point}")
        value = SCALES[self.point] * Fraction(rng.randrange(300, 1700), 1000)
        return value if self.point < 3 or rng.random() < 0.3 else -value

    def evaluate(self, tree: Tree) -> Value:
        """The value of a tree. Errors: those of NO_VALUE; TooComplex is one of them."""
        match tree:
            case Constant(value):
                return value
            case Name(name):
                return self.name(name)
            case Call("root", (Call("^", (base, exponent)), degree)) if exponent == degree == TWO:
                return self.evaluate(Call("abs", (base,)))
        function = tree.function
        arguments = alike([self.evaluate(branch) for branch in tree.arguments])
        if function in OPERATIONS:
            return operate(function, *arguments)
        if function == "^":
            return power(*arguments)
        unknown = not names(tree) <= self.known.keys()
        if function.startswith("call:") or unknown and function in STEPS:
            return self.opaque(function, arguments)
        return call(function, arguments)

    def opaque(self, name: str, arguments: Sequence[Value]) -> Value:
        """The value of a function that is only known by its arguments, as f(2 - x)."""
        if name == "ceil":
            return -self.opaque("floor", [-arguments[0]])
        values = [arguments[0] ** 2] if name == "abs" else arguments
        keys = [mp.nstr(mp.convert(value), DIGITS // 2) for value in values]
        value = self.name(f"{name} {keys if name.startswith('call:') else sorted(keys)}")
        return abs(value) if name == "abs" else value


def alike(values: list[Value]) -> list[Value]:
    """The values as numbers of one kind: all are fractions, or none is."""
    exact = all(isinstance(value, Fraction) for value in values)
    return values if exact else [*map(mp.convert, values)]


def size(value: Value) -> int:
    """Bits of a fraction, 0 of any other value."""
    return value.numerator.bit_length() + value.denominator.bit_length() if isinstance(value, Fraction) else 0


def operate(name: str, x: Value, y: Value) -> Value:
    """x + y, or -, *, /. Errors: TooComplex; Undecided where DIGITS digits do not suffice for a sum."""
    found = OPERATIONS[name](x, y)
    if size(found) > MAX_BITS:
        raise TooComplex("a number too large")
    if name in "*/" or isinstance(found, Fraction):
        return found
    if x and y and abs(mp.mag(x) - mp.mag(y)) > SUM_DIGITS * math.log2(10):
        raise Undecided
    return found if abs(found) > NOISE * abs(x) else mp.zero


def power(base: Value, exponent: Value) -> Value:
    """base ** exponent, two numbers of one kind. Errors: TooComplex, Undecided, ArithmeticError."""
    if isinstance(base, Fraction):
        if exponent.denominator == 1:
            if abs(base) != 1 and size(base) * abs(exponent) > MAX_BITS:
                raise TooComplex("a number too large")
            return base ** int(exponent)
        base, exponent = mp.convert(base), mp.convert(exponent)
    if mp.mag(exponent) > MAX_EXPONENT or base and abs(mp.mag(base)) > 2**MAX_EXPONENT:
        raise Undecided
    return base**exponent


def call(name: str, arguments: list[Value]) -> Value:
    """The value of a known function. Errors: those of NO_VALUE."""
    first, exact = arguments[0], isinstance(arguments[0], Fraction)
    if name in OF_LISTS:
        return OF_LISTS[name](arguments)
    if exact and name in OF_NUMBERS:
        return Fraction(OF_NUMBERS[name](first))
    if exact and name in OF_INTEGERS and all(a.denominator == 1 and a >= 0 for a in arguments):
        if name in ("factorial", "binom") and first > MAX_FACTORIAL:
            raise TooComplex("a number too large")
        return Fraction(OF_INTEGERS[name](*map(int, arguments)))
    if exact and name == "root" and arguments[1] == 2 and first >= 0:
        root = Fraction(math.isqrt(first.numerator), math.isqrt(first.denominator))
        if root * root == first:
            return root
    arguments = [*map(mp.convert, arguments)]
    if name == "root":
        # The real root of a negative number, where there is one.
        value, degree = arguments
        real = degree in (3, 5, 7, 9) and value.imag == 0 and value.real < 0
        return -((-value.real) ** (1 / degree)) if real else value ** (1 / degree)
    if name not in ("ln", "log", "lg") and max(map(mp.mag, arguments)) > MAX_EXPONENT:
        raise Undecided
    found = getattr(mp, OF_REALS.get(name, name))(*arguments)
    # sin(pi), ln(1)
    noise = name != "exp" and abs(found) < NOISE and mp.mag(arguments[0]) > -MAX_EXPONENT
    return mp.zero if noise else found


def value(tree: Tree, point: int, **known: Value) -> Value | None:
    """The value of a tree at a sample point, None where it has none."""
    try:
        found = Values(point, known).evaluate(tree)
    except NO_VALUE:
        return None
    return found if isinstance(found, Fraction) or mp.isfinite(found) else None


def sampled(*trees: Tree) -> list[list[Value]]:
    """Rows of the trees' values at the sample points; none if one of the first two points has no value.

    Where all values are real at two points or more, the other points do not count, as in x√x = √x³, unless
    the trees contain an i.
    """
    rows = []
    for point in range(len(SCALES) if any(map(names, trees)) else 1):
        found = [value(tree, point) for tree in trees]
        row = [x for x in found if x is not None]
        if len(row) == len(found):
            rows.append(row)
        elif point < 2:
            return []
    real = [row for row in rows if all(map(is_real, row))]
    imaginary = any(Name("i") in leaves(tree) for tree in trees)
    return rows if imaginary or len(real) < 2 else real


def is_real(x: Value) -> bool:
    return isinstance(x, Fraction) or bool(abs(x.imag) <= abs(x) * mp.mpf(10) ** -CLOSE_DIGITS)


def close(x: Value, y: Value) -> bool:
    """Whether two values are the same, to CLOSE_DIGITS digits if they are no fractions."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    x, y = mp.convert(x), mp.convert(y)
    return bool(abs(x - y) <= mp.mpf(10) ** -CLOSE_DIGITS * max(abs(x), abs(y)))


# ---------------------------------------------------------------- verdicts

# Of an equation or inequality.
Sides = tuple[Tree, Tree]


def equal(gold: Tree, answer: Tree) -> bool:
    """Whether two trees are the same formula. Errors: TooComplex."""
    if names(gold) != names(answer):
        return False
    with LOCK:
        rows = sampled(gold, answer)
        if rows and all(close(x, y) for x, y in rows):
            return True
    if not has_steps(gold) and not has_steps(answer) or names(gold) not in ({"n"}, {"k"}, {"m"}):
        return False
    # Polynomials and functions with a period: if two are equal over two periods, they are equal.
    constants = [leaf.value for tree in (gold, answer) for leaf in leaves(tree) if isinstance(leaf, Constant)]
    numbers = [abs(number) for number in constants if number]
    if math.prod(number.numerator * number.denominator for number in numbers) > PERIOD:
        return False
    with LOCK:
        for n in range(2 * PERIOD):
            known = dict.fromkeys(names(gold), Fraction(n))
            x, y = value(gold, 0, **known), value(answer, 0, **known)
            if not isinstance(x, Fraction) or not isinstance(y, Fraction) or x != y:
                return False
    return True


def same_equation(gold: Sides, answer: Sides) -> bool:
    """Whether two equations say the same."""
    with LOCK:
        if ratio(gold, answer):
            return True
        return any(solves(*sides, gold) for sides in (answer, answer[::-1])) or any(
            solves(*sides, answer, strict=True) for sides in (gold, gold[::-1])
        )


def same_inequality(gold: Sides, answer: Sides) -> bool:
    """Whether two inequalities with the same sign say the same."""
    with LOCK:
        return ratio(gold, answer, positive=True)


def ratio(gold: Sides, answer: Sides, positive: bool = False) -> bool:
    """Whether left - right of two pairs of sides is the same up to a constant (positive) factor."""
    first, second = Call("-", gold), Call("-", answer)
    rows = sampled(first, second) if names(first) and names(first) == names(second) else []
    if not rows or not all(x and y for x, y in rows):
        return False
    ratios = [operator.truediv(*alike(row)) for row in rows]
    return all(close(ratios[0], other) for other in ratios) and (not positive or bool(ratios[0].real > 0))


def solves(letter: Tree, formula: Tree, equation: Sides, strict: bool = False) -> bool:
    """Whether letter = formula is the one solution of an equation: P = nRT/V of PV = nRT.

    In the letter, the equation must be a quotient of linear functions, which has one root. `strict`: it must
    not hold for all values of the letter where another letter is 0, unless the formula has no value there.
    """
    tree = Call("-", equation)
    if not isinstance(letter, Name) or letter.name in names(formula):
        return False
    if names(tree) != names(Call("-", (letter, formula))):
        return False
    for point in range(3):
        root = value(formula, point)
        if root is None:
            return False
        steps = [1, 2, 3, 5]
        found = [value(tree, point, **{letter.name: root + step}) for step in (0, *steps)]
        at = [x for x in found if x is not None]
        if len(at) < len(found):
            return False
        zero, *f = alike(at)
        cross = (f[0] - f[2]) * (f[1] - f[3]) * (-1) * (-4), (f[1] - f[2]) * (f[0] - f[3]) * (-2) * (-3)
        if not close(zero + f[0], f[0]) or close(f[0], f[1]) or not close(*cross):
            return False
    for other in names(formula) if strict else ():
        known = [value(tree, 0, **{other: Fraction(0), letter.name: Fraction(n)}) for n in (1, 2)]
        if known == [0, 0] and value(formula, 0, **{other: Fraction(0)}) is not None:
            return False
    return True
