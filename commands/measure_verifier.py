r"""Count the verdicts that each rule of the mathematics verifier changes; a rule that changes none can go.

    TINYR1_DATA=FOLDER python tinyr1.py measure_verifier   all rules; two minutes
    python tinyr1.py measure_verifier --oracle             pairs that only math-verify judges correctly

Three kinds of answers are judged: the pairs of the fixture (accept and refuse), real golds of MATH in other
spellings, and real golds with one digit changed (the last two from FOLDER/math_train.jsonl, if it is there).
One rule at a time is switched off, everything is judged again, and the verdicts that changed are counted.
"""

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from commands import make_parser
from runtime.runfolder import UserError
from tasks._math import answers, latex
from tasks._math.latex import TooComplex

PAIRS = Path(__file__).parents[1] / "tests" / "fixtures" / "competition_math_pairs.json"
GOLDS = 1500
# A pattern that matches nothing.
OFF = re.compile("(?!)" + "()" * 9)
# Functions of `_math/answers.py` that make a Node or a verdict; off means that they find nothing.
FUNCTIONS: dict[str, tuple[Any, str, Any]] = {
    "choices with a text": (answers, "LABEL", OFF),
    "thousands": (answers, "GROUPED", OFF),
    "thousands with blanks": (answers, "SPACED", OFF),
    "times": (answers, "TIME", OFF),
    "bases": (answers, "BASE", OFF),
    "matrices": (answers, "MATRIX", OFF),
    "strings of capitals": (answers, "STRING", OFF),
    "units": (answers, "split_unit", lambda text: (text, "")),
    "units that differ": (answers, "same_unit", lambda unit, other: True),
    "words": (answers, "same_words", lambda g, a: False),
    "names of values": (answers, "is_name", lambda node, loose=False: False),
    "equations": (answers, "same_equation", lambda g, a: False),
    "inequalities": (answers, "same_inequality", lambda g, a: False),
    "regions": (answers, "same_region", lambda g, a, unknown: False),
    "formulas": (answers, "equal", lambda g, a: False),
    "lead": (latex, "LEAD", OFF),
    "bold": (latex, "BOLD", OFF),
    "box in an answer": (latex, "BOX", OFF),
    "scripts": (latex, "SCRIPT", OFF),
    "combinations": (latex, "COMBINATIONS", OFF),
    "permutations": (latex, "PERMUTATIONS", OFF),
    "for integer k": (latex, "INTEGER", OFF),
    "text": (latex, "TEXT", OFF),
}


def variants(gold: str) -> Iterator[str]:
    """Other spellings of a gold answer."""
    yield f"${gold}$"
    yield f"\\({gold}\\)"
    yield f"\\boxed{{{gold}}}"
    yield f"**{gold}**"
    yield f"The answer is ${gold}$."
    yield gold + "."
    yield gold.replace("\\frac", "\\dfrac").replace("\\left", "").replace("\\right", "")
    yield re.sub(r"\{([0-9])\}", r"\1", gold)
    yield re.sub(r"\\sqrt\{([0-9]+)\}", r"√\1", gold).replace("\\pi", "π")
    if re.fullmatch("[0-9]+", gold):
        yield from (f"x={gold}", f"\\text{{{gold}}}", f"{gold}\\text{{ units}}", f"{int(gold):,}")
    if simple := re.fullmatch(r"\\frac\{([0-9]+)\}\{([0-9]+)\}", gold):
        yield f"{simple[1]}/{simple[2]}"


def cases() -> Iterator[tuple[str, str, str, bool]]:
    """(source, gold, answer, whether it is right)"""
    for pair in json.loads(PAIRS.read_text(encoding="utf-8")):
        for answer in pair["accept"] + pair["refuse"]:
            yield "pairs", pair["answer"], answer, answer in pair["accept"]
    path = Path(os.environ.get("TINYR1_DATA", "nowhere")) / "math_train.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rng = random.Random(0)
    for line in rng.sample(lines, min(GOLDS, len(lines))):
        gold = json.loads(line)["answer"]
        for answer in variants(gold):
            yield "spellings", gold, answer, True
        if digits := [*re.finditer("[0-9]", gold)]:
            at = rng.choice(digits).start()
            digit = rng.choice([d for d in "123456789" if d != gold[at]])
            yield "digits", gold, gold[:at] + digit + gold[at + 1 :], False


def verdict(gold: str, answer: str) -> bool:
    """Whether the answer equals the gold one; False if it is too complex to tell."""
    try:
        return answers.same(gold, answer)
    except (TooComplex, RecursionError):
        return False


def wrong(judged: list[tuple[str, str, str, bool]]) -> dict[str, list[tuple[str, str]]]:
    """{source: [(gold, answer), ...]} of the wrong verdicts."""
    answers.read.cache_clear()
    found: dict[str, list[tuple[str, str]]] = {"pairs": [], "spellings": [], "digits": []}
    for source, gold, answer, right in judged:
        try:
            if verdict(gold, answer) != right:
                found[source].append((gold, answer))
        except Exception as error:
            found[source].append((gold, f"{type(error).__name__}: {error}"))
    return found


def rules() -> Iterator[tuple[str, Any, str, Any]]:
    """(name, module, attribute, value that switches it off) of every rule."""
    for name, where in FUNCTIONS.items():
        yield name, *where
    for table in ("LAYOUT", "SPELLING"):
        whole = getattr(latex, table)
        for i, (pattern, _) in enumerate(whole):
            yield pattern.pattern[:60], latex, table, whole[:i] + whole[i + 1 :]
    yield "signs of Unicode", latex, "PRIVATE", {}


def measure() -> None:
    """Print how many verdicts of each source change without each rule."""
    judged = list(cases())
    base = wrong(judged)
    print("judged:", len(judged), "wrong:", {source: len(found) for source, found in base.items()})
    print(f"{'rule':62}{'pairs':>8}{'spellings':>11}{'digits':>8}   verdicts that change without it")
    for name, module, attribute, off in rules():
        kept = getattr(module, attribute)
        setattr(module, attribute, off)
        without = wrong(judged)
        setattr(module, attribute, kept)
        changed = [len(set(without[source]) ^ set(base[source])) for source in base]
        note = "" if any(changed) else "   NONE"
        print(f"{name:62}{changed[0]:8}{changed[1]:11}{changed[2]:8}{note}", flush=True)


def oracle() -> None:
    """Print the pairs that math-verify judges correctly and we do not. Errors: UserError if it is absent."""
    try:
        from math_verify import parse, verify
    except ImportError as error:
        raise UserError("math-verify is not installed: python -m pip install math-verify") from error
    counts: dict[tuple[bool, bool], int] = {}
    for source, gold, answer, right in cases():
        if source != "pairs":
            continue
        parsed = [parse(f"${text}$", parsing_timeout=2) for text in (gold, answer)]
        theirs = verify(*parsed, timeout_seconds=2)
        key = (verdict(gold, answer) == right, bool(theirs) == right)
        counts[key] = counts.get(key, 0) + 1
        if key == (False, True):
            print("math-verify is right:", repr(gold), repr(answer))
    for (ours, theirs), n in sorted(counts.items()):
        print(f"ours {'right' if ours else 'wrong'}, math-verify {'right' if theirs else 'wrong'}: {n}")


def main(argv: list[str]) -> int:
    parser = make_parser("measure_verifier", "[--oracle]", __doc__)
    parser.add_argument("--oracle", action="store_true", help="compare with math-verify instead")
    if parser.parse_args(argv).oracle:
        oracle()
    else:
        measure()
    return 0
