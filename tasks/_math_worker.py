"""A process that does the algebra: reads lines of JSON, answers each with a line of JSON, and may be killed.

Started by `_workers.py` as `python tasks/_math_worker.py SECONDS`; imports math-verify, never torch.
A verdict that takes longer than SECONDS ends the process by a signal whose default action needs no Python:
no computation that hangs survives, not even if the parent is gone.
"""

import json
import os
import random
import signal
import sys
from functools import lru_cache

MEMORY = 2 << 30  # bytes of address space
DIGITS = 30  # to which two values must agree
POINTS = 4  # at which two expressions must agree
DEGREES = r"(?P<value>[0-9.]+|\\frac\{[0-9]+\}\{[0-9]+\}|\([^()]*\)|[a-z]|\\theta)\^\{\\circ\}"


@lru_cache(maxsize=4096)
def expression(latex):
    """The sympy object that a LaTeX text means, unevaluated. Errors: any, of a text that means none."""
    import re

    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

    latex = latex.replace("%", r"\cdot\frac{1}{100}")
    latex = re.sub(DEGREES, r"(\\frac{\\pi}{180}\\cdot \g<value>)", latex)
    latex = re.sub(r"\\sqrt\[([357])\]\{-([^-+{}]+)\}", r"(-\\sqrt[\1]{\2})", latex)  # the real root
    latex = re.sub(r"\\overline(?=\{[A-Z]+\})", "", latex)
    latex = re.sub(r"(?<=[0-9])\(", r"\\cdot (", latex)  # else 3(4) is read as a mixed number, 7
    latex = re.sub(r"(?<![0-9}.])([0-9]*)\.([0-9]+)", _exact, latex)
    config = ConversionConfig(lowercase_symbols=False)
    return latex2sympy(latex, is_real=None, normalization_config=None, conversion_config=config)


def _exact(match):
    """A decimal as the fraction that it is: a rounded value equals no other."""
    return f"\\frac{{{int(match[1] + match[2])}}}{{{10 ** len(match[2])}}}"


def value(name, point, scale=1):
    """What an unknown of this name is at sample point `point`, in every expression."""
    from sympy import E, I, Rational

    if name in ("i", "e"):
        return I if name == "i" else E
    rng = random.Random(f"{name} {point}")
    size = scale * Rational(rng.randrange(300, 1700), 1000)
    return size if point < 2 or rng.random() < 0.3 else -size


def at(expression, point, scale=1):
    """(real, imaginary) of the expression's value at the sample point, None if it has none."""
    from sympy import Derivative, Expr, Integral, Limit, Product, Sum, nan, oo, zoo
    from sympy.core.function import AppliedUndef

    if not isinstance(expression, Expr):
        return None
    if expression.has(oo, -oo, zoo, nan, Sum, Product, Integral, Limit, Derivative):
        raise ValueError("arithmetic with infinity, or an answer left to be worked out")
    calls = {}  # f(2 - x) is an unknown that is named by f and the value of 2 - x
    for call in expression.atoms(AppliedUndef):
        arguments = [[str(part.round(15)) for part in at(a, point, scale) or ()] for a in call.args]
        calls[call] = value(f"{call.func}{arguments}", point)
    symbols = {s: value(s.name, point, scale) for s in expression.free_symbols}
    found = expression.xreplace(calls).evalf(DIGITS + 5, subs=symbols, maxn=400)
    real, imaginary = found.as_real_imag()
    return (real, imaginary) if real.is_Float or real.is_Rational else None


def samples(*expressions):
    """Values of the expressions at the sample points: rows of complex numbers; None if there are too few.

    At positive points all must be defined. Elsewhere a point at which a value is not real says nothing, as
    in x√x = √x³, unless the expressions are complex by themselves.
    """
    import mpmath
    from sympy import Mod, ceiling, floor

    steps = any(hasattr(e, "has") and e.has(floor, ceiling, Mod) for e in expressions)
    points, scale = (16, 100) if steps else (POINTS, 1)  # steps are seen from afar: floor(x/2) is 0 up to 2
    with mpmath.workdps(DIGITS + 10):
        rows = []
        constant = not any(getattr(e, "free_symbols", None) for e in expressions)
        imaginary = any(s.name == "i" for e in expressions for s in getattr(e, "free_symbols", ()))
        for point in range(1 if constant else points):
            found = [at(e, point, scale) for e in expressions]
            if None in found:
                if point < 2:
                    return None
                continue
            row = [mpmath.mpc(mpmath.mpf(str(re)), mpmath.mpf(str(im))) for re, im in found]
            if not all(mpmath.isfinite(x) for x in row):
                return None
            if point < 2 or imaginary or all(abs(x.imag) <= 1e-20 * abs(x) for x in row):
                rows.append(row)
        return rows


def close(x, y):
    import mpmath

    with mpmath.workdps(DIGITS + 10):
        return abs(x - y) <= mpmath.mpf(10) ** (5 - DIGITS) * max(abs(x), abs(y)) + mpmath.mpf(10) ** -60


def library(gold, answer):
    """math-verify's own verdict, without its time-outs: they need signals and whole seconds."""
    from math_verify import verify

    return bool(verify(gold, answer, timeout_seconds=None, raise_on_error=True))


def equal(gold, answer):
    """Whether two expressions are the same: by values at sample points, else by math-verify.

    Values come first: they see that 1/2^98 is not 1/2^99, and are a hundred times faster than to simplify.
    """
    gold, answer = expression(gold), expression(answer)
    rows = samples(gold, answer)
    return library(gold, answer) if rows is None else all(close(x, y) for x, y in rows)


def proportional(gold, answer, positive):
    """Whether two equations, as pairs of sides, say the same: lhs - rhs in a constant (positive) ratio."""
    import mpmath

    (a, b), (c, d) = (map(expression, sides) for sides in (gold, answer))
    rows = samples(a - b, c - d)
    if not rows or any(not x or not y for x, y in rows):
        return False
    with mpmath.workdps(DIGITS + 10):
        ratios = [y / x for x, y in rows]
    return all(close(ratios[0], r) for r in ratios) and (not positive or ratios[0].real > 0)


def judge(kind, gold, answer):
    if kind == "equal":
        return equal(gold, answer)
    if kind == "set":
        return library(expression(gold), expression(answer))
    return proportional(gold, answer, kind == "inequality")


def decide(kind, gold, answer):
    """`judge`, where an expression that cannot be read is one that is not equal."""
    try:
        return judge(kind, gold, answer)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # the library raises plain Exceptions on a text that is no mathematics
        return False


def main(seconds):
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody else writes where the replies go
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # not on every system
        pass
    from tasks._answers import same

    decide("equal", "x^{2}", r"\frac{1}{2}\sqrt{x}")  # imports, and builds the parser's tables
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            reply = {"same": bool(same(*json.loads(line), decide))}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
