"""What a response to Countdown does while it thinks: attempts, checks, giving up, read from its text.

`read` is the one parser: `behaviours` counts for the trainer, `plots/` colours the text by its spans.
Its tests compare it with hand labels (tests/fixtures/labelled_attempts.jsonl).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from tasks import TAIL, Example, extract_answer
from tasks._text.arithmetic import TYPOGRAPHIC, Number, Operation, apply, evaluate, read_equation

# A number, or (whether it is a sum, its sorted terms or factors, each with a sign or an exponent of 1 or -1).
Form = Number | tuple[bool, "tuple[tuple[int, Form], ...]"]

# Characters of the thinking, and equations in it, that are read.
MAX_READ, MAX_EQUATIONS = 12_000, 200
# Characters after an equation in which a verdict on it is looked for.
REACH = 120

# Linear time on any text: a run is one class of characters, and REACH bounds the search for a verdict.
RUN = re.compile(r"[(0-9](?:[-+*/()=0-9 ]|\.(?=[0-9]))*")
# After an expression without `=`: its value in words.
STATED = re.compile(
    r"""[?.,;:]?\s{0,2}(?:(?:which|that|this|it)\s?)?
        (?:(?:is|['’]s|equals|makes|gives(?:\ us)?|yields|results\ in|comes\ to)\ |[→≈⇒]\s?)
        (?P<value>-?[0-9]+(?:\.[0-9]+)?)(?![0-9]|\ ?[-+*/(]\ ?[0-9])""",
    re.VERBOSE,
)
# The mark-up of arithmetic in Markdown and LaTeX, and the numbering of a list.
MARKUP = re.compile(
    r"""\\(?P<times>times|cdot|ast)\b | \\(?P<div>div)\b | \\[a-z]{0,2}frac\{(?P<a>[0-9]+)\}\{(?P<b>[0-9]+)\}
    | \\[()\[\]] | \$ | (?<![0-9)])\*\* | \*\*(?![0-9(])
    | (?P<x>(?<=[0-9)])\ ?x\ ?(?=[0-9(])) | ^[ \t]{0,8}\(?[0-9]{1,2}[.)](?=\s)""",
    re.VERBOSE | re.MULTILINE,
)
SIGNS = TYPOGRAPHIC | str.maketrans("＝＋－＊／（）", "=+-*/()")
VERDICT = re.compile(
    r"""\b(?:(?P<no>no(?=\s?(?:[.,;:!)\n<]|that|\Z)) | nope | wrong | incorrect | fails | failed | fail
            | too\ (?:low|high|small|large|big|much|little|far|many)
            | (?:less|more|greater|higher|lower|larger|smaller|bigger)\ than
            | overshoots | overshoot | exceeds | (?:falls|fall|one|[0-9]+)\ short | off\ by
            | (?:way|also|over|under|above|below)\ (?:over|by|the\ target)
            | but\ (?:we|i)\ (?:need|want|should)
            | (?:not|(?:is|was|are|does|do|did|would|could|ca|has|have)n['’]t)\ (?:quite\ |exactly\ )?
              (?:equal|the|our|what|work|correct|right|enough|match|reach|valid|hit|it|quite|give|[0-9]+))
        | (?P<yes>yes | (?<!if\ this\ )(?<!if\ that\ )(?<!if\ it\ )works | correct | perfect | bingo
            | success | great | done | indeed | good(?=[.!])
            | (?:is|are|looks|look|seems)\ right | checks?\ out | as\ required
            | what\ we\ (?:want|need)(?:ed)? | (?:found|have)\ (?:the|a|our)\ solution
            | (?:equals?(?:\ to)?|is|['’]s|matches|reach(?:es|ed)?|hits?|gives?(?:\ us)?|giving\ us|gets?)
              \ (?:exactly\ )?(?:the|our)\ (?:desired\ |required\ )?(?:target|goal|[0-9]+)
            | target\ (?:number\ )?(?:is\ )?(?:reached|achieved|hit|met)
            | (?:that|this|it|which|equal)(?:['’]s|\ is|\ to|\ equals?|\ gives?(?:\ us)?)
              \ (?:exactly\ |equal\ to\ )?(?P<is>[0-9]+)))\b
    | (?P<cross>[✗✘❌≠] | !=(?=\s?[0-9]) | 不对 | 不等于 | 不是 | 不行 | 错 | 太[大小多少高低])
    | (?P<tick>[✓✔✅] | 正确 | 成功 | 等于目标 | 没错 | 对了)""",
    re.VERBOSE,
)

CODE = re.compile(
    r"```|^[ \t]*(?:import \w|from \w+ import |def \w+\(.*:|for \w+(?:, \w+)* in .*:|print\()", re.MULTILINE
)


@dataclass(slots=True)
class Equation:
    """Characters start..end of the response, and what the equation states, as in arithmetic.Statement."""

    start: int
    end: int
    operands: tuple[int, ...]
    value: Number
    holds: bool
    operations: tuple[Operation, ...]


@dataclass(slots=True)
class Check:
    """A stated verdict on a value: characters start..end of the response.

    yes: it says that the target is reached; right: it is true of the value.
    """

    start: int
    end: int
    yes: bool
    right: bool


@dataclass(slots=True)
class Attempt:
    """A chain of equations from the problem's numbers towards the target, and the verdicts on it.

    left: the numbers that the chain may still use, empty once it has used all; made: combination(equations),
    once it was asked for.
    """

    equations: list[Equation]
    left: list[Number]
    checks: list[Check] = field(default_factory=list)
    made: tuple[Form, ...] | None = None

    @property
    def start(self) -> int:
        return self.equations[0].start

    @property
    def end(self) -> int:
        return self.equations[-1].end

    @property
    def value(self) -> Number:
        return self.equations[-1].value

    @property
    def holds(self) -> bool:
        return all(equation.holds for equation in self.equations)

    @property
    def combination(self) -> tuple[Form, ...]:
        if self.made is None:
            self.made = combination(self.equations)
        return self.made


@dataclass(slots=True)
class Reading:
    """Attempts and equations of the thinking, which ends at character `end`; finished: it was not cut off."""

    attempts: list[Attempt]
    equations: list[Equation]
    end: int
    finished: bool

    @property
    def checks(self) -> list[Check]:
        return [check for attempt in self.attempts for check in attempt.checks]


def read(completion: str, example: Example) -> Reading:
    """The Reading of a response to a problem {"nums", "target"}.

    An equation continues a chain if it consumes what the chain has left: its values and the unused numbers.
    One that only repeats what has just reached the target verifies it and is no attempt. Reading ends with
    the thinking, or where the answer begins, or after MAX_READ characters or MAX_EQUATIONS equations. Of
    prose, only the most common phrases are known: good for a curve, less so for one response.
    """
    nums, target = example["nums"], example["target"]
    thinking, finished = _thinking(completion)
    found = [*islice(_equations(thinking), MAX_EQUATIONS)]
    attempts: list[Attempt] = []
    # The last attempt, whether it may continue, the text after it.
    chain: Attempt | None = None
    open_, text = False, "\n"
    for i, equation in enumerate(found):
        following = found[i + 1].start if i + 1 < len(found) else len(thinking)
        same_sentence = "\n" not in text and ". " not in text
        text = thinking[equation.end : min(following, equation.end + REACH)]
        if chain is None or not _restates(equation, chain, nums, target):
            if chain and open_ and _in_full(equation, chain):
                chain.left = list(nums)
            elif chain is None or not _continues(equation, chain, open_, same_sentence, nums):
                foreign = len(set(equation.operands) - set(nums))
                if foreign and same_sentence or foreign == len(set(equation.operands)):
                    continue
                chain = Attempt([], list(nums))
                attempts.append(chain)
            chain.equations.append(equation)
            chain.left, open_ = _consume(chain.left, equation), True
        if check := _check(text, equation, target):
            chain.checks.append(check)
            # What follows a verdict is a new attempt, unless it uses the value.
            open_ = False
    return Reading(attempts, found, len(thinking), finished)


def behaviours(completion: str, example: Example) -> dict[str, float]:
    """What the thinking does, by name; a name that does not apply is left out. Example: {"nums", "target"}.

    attempts                number of chains of equations from the problem's numbers towards the target
    checks                  number of verdicts on their values: "want 24: no", "too low", "✓"
    code_share              1.0 if it writes code, else 0.0
    search_share            1.0 if the response searches (two attempts, or a check), else 0.0
    attempts_within_search  attempts, only of a response that searches, as is
    give_up_share           1.0 if the thinking ended although its last verdict was negative, else 0.0
    verdict_accuracy        share of the verdicts that are right about the value stated
    arithmetic_accuracy     share of the equations that hold
    """
    reading = read(completion, example)
    attempts, checks = len(reading.attempts), reading.checks
    searches = attempts > 1 or bool(checks)
    stats: dict[str, float] = {"attempts": attempts, "checks": len(checks), "search_share": float(searches)}
    stats["code_share"] = float(CODE.search(completion, 0, reading.end) is not None)
    if searches:
        stats["attempts_within_search"] = attempts
        stats["give_up_share"] = float(reading.finished and bool(checks) and not checks[-1].yes)
    if checks:
        stats["verdict_accuracy"] = sum(check.right for check in checks) / len(checks)
    if reading.equations:
        stats["arithmetic_accuracy"] = sum(e.holds for e in reading.equations) / len(reading.equations)
    return stats


# ---------------------------------------------------------------- for plots/


def equations(completion: str) -> list[Equation]:
    """The equations of any response's thinking, whatever its task; at most MAX_EQUATIONS."""
    return [*islice(_equations(_thinking(completion)[0]), MAX_EQUATIONS)]


def abandoned(reading: Reading, target: int) -> list[bool]:
    """For each attempt, whether another one follows although this one was not taken for the solution."""
    return [
        later and not (a.value == target and not a.left and (not a.checks or a.checks[-1].yes))
        for a, later in zip(reading.attempts, [True] * (len(reading.attempts) - 1) + [False])
    ]


def repeats(reading: Reading) -> list[bool]:
    """For each attempt, whether an earlier one tried the same combination, up to the order in sums and
    products, whatever its value.
    """
    forms: set[tuple[Form, ...]] = set()
    again = []
    for attempt in reading.attempts:
        again.append(attempt.combination in forms)
        forms.add(attempt.combination)
    return again


def source_of_answer(completion: str, reading: Reading, target: int) -> str | None:
    """Whether the answer copies an attempt whose value, as stated, is the target: "reached" or "other".

    None without an answer.
    """
    if (answer := extract_answer(completion)) is None:
        return None
    found = evaluate(_plain(answer).split("=")[0].strip())
    form = found and combination([Equation(0, 0, found.numbers, found.value, True, found.operations)])
    reached = any(a.value == target and a.combination == form for a in reading.attempts)
    return "reached" if form and reached else "other"


def combination(equations: Sequence[Equation]) -> tuple[Form, ...]:
    """What a chain of equations combines: sums and products are flattened, and their order does not count."""
    # By value: the forms that have it and are not yet used.
    made: dict[Number, list[Form]] = {}

    def take(value: Number) -> Form:
        return made[value].pop() if made.get(value) else value

    for equation in equations:
        form: Form | None = None
        for sign, left, right in equation.operations:
            b, a = take(right), take(left)
            is_sum = sign in "+-"
            terms = _terms(a, is_sum, 1) + _terms(b, is_sum, 1 if sign in "+*" else -1)
            form = (is_sum, tuple(sorted(terms, key=repr)))
            forms = made.setdefault(apply(sign, left, right), [])
            # Else it is computed a second time.
            if form not in forms:
                forms.append(form)
        # From here on, a form is known by the value stated, right or wrong.
        if form is not None:
            forms = next(forms for forms in made.values() if form in forms)
            forms.remove(form)
            made.setdefault(equation.value, []).append(form)
    return tuple(sorted((form for forms in made.values() for form in forms), key=repr))


def _terms(form: Form, is_sum: bool, sign: int) -> list[tuple[int, Form]]:
    if isinstance(form, tuple) and form[0] == is_sum:
        return [(sign * s, term) for s, term in form[1]]
    return [(sign, form)]


# ---------------------------------------------------------------- reading


def _plain(text: str) -> str:
    """The text in plain signs and small letters; every character keeps its position."""

    def pad(found: re.Match[str]) -> str:
        sign = "*" if found["times"] or found["x"] else "/" if found["div"] else ""
        sign = f"{found['a']}/{found['b']}" if found["a"] else sign
        return sign.center(len(found[0]))

    small = text.lower()
    # A few letters are longer when small.
    if len(small) != len(text):
        small = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)
    return MARKUP.sub(pad, small.translate(SIGNS))


def read_thinking(completion: str) -> tuple[str, bool]:
    """(the thinking, up to </think> or to the answer, at most MAX_READ characters; whether it ended)."""
    tail = completion[-TAIL:]
    end = tail.rfind("</think>")
    end = tail.rfind("<answer>") if end < 0 else end
    stop = len(completion) - len(tail) + end if end >= 0 else MAX_READ
    return completion[: min(stop, MAX_READ)], end >= 0


def _thinking(completion: str) -> tuple[str, bool]:
    text, ended = read_thinking(completion)
    return _plain(text), ended


def _equations(thinking: str) -> Iterator[Equation]:
    for run in RUN.finditer(thinking):
        text, end = run[0], run.end()
        if "=" not in text:
            stated = STATED.match(thinking, run.end())
            if not stated or not any(sign in text for sign in "+-*/"):
                continue
            text, end = f"{text.rstrip()}={stated['value']}", stated.end()
        if found := read_equation(text):
            start = run.start() + len(run[0]) - len(run[0].lstrip())
            yield Equation(start, start + len(thinking[start:end].rstrip(" =(+-*/")), *found)


def _restates(equation: Equation, chain: Attempt, nums: list[int], target: int) -> bool:
    """Whether it only repeats what the chain has found: a full expression, or a step of a success."""
    if chain.checks and not chain.checks[-1].yes:
        return False
    if not chain.left and equation.value == chain.value and len(equation.operands) >= len(nums):
        return True
    return chain.value == target and _steps([equation]) <= _steps(chain.equations)


def _in_full(equation: Equation, chain: Attempt) -> bool:
    """Whether it is the chain so far in one expression, and more: `5-3=2, so 8*(5-3)=16`."""
    longer = len(equation.operations) > sum(len(e.operations) for e in chain.equations)
    return longer and _steps(chain.equations) < _steps([equation])


def _steps(equations: Iterable[Equation]) -> set[Operation]:
    """Their operations as a set in which a+b is b+a."""
    every = (operation for equation in equations for operation in equation.operations)
    return {(sign, b, a) if sign in "+*" and b < a else (sign, a, b) for sign, a, b in every}


def _continues(equation: Equation, chain: Attempt, open_: bool, same_sentence: bool, nums: list[int]) -> bool:
    """Whether the equation belongs to the chain; `open_`: no verdict on the chain has been given."""
    takes_up = chain.value in equation.operands
    if not chain.left:
        return False
    # After a verdict, only an equation with the value that was judged continues the chain.
    if not open_:
        return takes_up and chain.value not in nums
    operands = equation.operands
    if all(operands.count(n) <= chain.left.count(n) for n in operands):
        return True
    # A slip: 11*2=22, 21+6=27.
    slips = any(n in chain.left for n in operands) and not all(n in nums for n in operands)
    return same_sentence and (takes_up or slips)


def _consume(numbers: Sequence[Number], equation: Equation) -> list[Number]:
    """`numbers` without the operands but with the result; [] where that completes the chain."""
    left = list(numbers)
    for n in equation.operands:
        if n in left:
            left.remove(n)
    return [*left, equation.value] if left else []


def _check(text: str, equation: Equation, target: int) -> Check | None:
    """The first verdict in the text after an equation; None if there is none."""
    if found := _verdict(text, target):
        start, end, yes = found
        return Check(equation.end + start, equation.end + end, yes, yes == (equation.value == target))
    return None


@lru_cache(maxsize=1 << 14)
def _verdict(text: str, target: int) -> tuple[int, int, bool] | None:
    """(start, end, whether it says yes) of the first verdict in a text, with what leads up to it."""
    for verdict in VERDICT.finditer(text):
        # "that is 62" repeats the value and is no verdict.
        if verdict["is"] and int(verdict["is"]) != target:
            continue
        start = len(text) - len(text.lstrip(" \n.,;:!?()*→-"))
        return min(start, verdict.start()), verdict.end(), bool(verdict["yes"] or verdict["tick"])
    return None
