"""What a response to Countdown does while it thinks: attempts, checks, giving up, read from its text.

`read` is the one parser: `behaviours` counts for the trainer, `plots/` colours the text by its spans.
tests/fixtures/labelled_attempts.jsonl holds it to hand labels.
"""

import re
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import islice

from tasks import TAIL, extract_answer
from tasks._text.arithmetic import TYPOGRAPHIC, evaluate, read_equation

MAX_READ, MAX_EQUATIONS = 12_000, 200  # characters of the thinking, and equations in it, that are read
REACH = 120  # characters behind an equation in which a verdict on it may stand

# Linear time on any text: a run is one class of characters, and a verdict is looked for within REACH only.
RUN = re.compile(r"[(0-9](?:[-+*/()=0-9 ]|\.(?=[0-9]))*")
STATED = re.compile(  # behind an expression without `=`: its value in words
    r"""[?.,;:]?\s{0,2}(?:(?:which|that|this|it)\s?)?
        (?:(?:is|['’]s|equals|makes|gives(?:\ us)?|yields|results\ in|comes\ to)\ |[→≈⇒]\s?)
        (?P<value>-?[0-9]+(?:\.[0-9]+)?)(?![0-9]|\ ?[-+*/(]\ ?[0-9])""",
    re.VERBOSE,
)
MARKUP = re.compile(  # what stands around arithmetic in Markdown and LaTeX, and the numbering of a list
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
    """Characters start..end of the response; operations as in tasks._text.arithmetic.evaluate."""

    start: int
    end: int
    operands: tuple
    value: int | Fraction  # as stated
    holds: bool
    operations: tuple


@dataclass(slots=True)
class Check:
    """A stated verdict on a value: characters start..end, whether it says that the target is reached."""

    start: int
    end: int
    yes: bool
    right: bool  # about the value


@dataclass(slots=True)
class Attempt:
    """A chain of equations, each from the problem's numbers towards the target."""

    equations: list
    left: list  # what the chain may still use; [] once it has used every number
    checks: list = field(default_factory=list)
    made: tuple | None = None  # combination(equations), once it was asked for

    @property
    def start(self):
        return self.equations[0].start

    @property
    def end(self):
        return self.equations[-1].end

    @property
    def value(self):
        return self.equations[-1].value

    @property
    def holds(self):
        return all(equation.holds for equation in self.equations)

    @property
    def combination(self):
        if self.made is None:
            self.made = combination(self.equations)
        return self.made


@dataclass(slots=True)
class Reading:
    """Attempts and equations of the thinking, which ends at character `end`; finished: it was not cut off."""

    attempts: list
    equations: list
    end: int
    finished: bool

    @property
    def checks(self):
        return [check for attempt in self.attempts for check in attempt.checks]


def read(completion, example):
    """The Reading of a response.

    An equation continues a chain if it consumes what the chain has left: its values and the unused numbers.
    One that only works out again what has just reached the target verifies it and is no attempt. What is
    read ends with the thinking, or where the answer begins, or after MAX_READ characters or MAX_EQUATIONS
    equations. Prose is read by its commonest phrases: good for a curve, less for one response.
    """
    nums, target = example["nums"], example["target"]
    thinking, finished = _thinking(completion)
    found, attempts = [*islice(_equations(thinking), MAX_EQUATIONS)], []
    chain, open_, text = None, False, "\n"  # the last attempt, whether it may go on, the text behind
    for i, equation in enumerate(found):
        following = found[i + 1].start if i + 1 < len(found) else len(thinking)
        same_sentence = "\n" not in text and ". " not in text
        text = thinking[equation.end : min(following, equation.end + REACH)]
        if not (chain and _restates(equation, chain, nums, target)):
            if open_ and _in_full(equation, chain):
                chain.left = list(nums)
            elif not (chain and _continues(equation, chain, open_, same_sentence, nums)):
                foreign = len(set(equation.operands) - set(nums))
                if foreign and same_sentence or foreign == len(set(equation.operands)):
                    continue
                attempts.append(chain := Attempt([], list(nums)))
            chain.equations.append(equation)
            chain.left, open_ = _consume(chain.left, equation), True
        if check := _check(text, equation, target):
            chain.checks.append(check)
            open_ = False  # what follows a verdict is an attempt of its own, unless it takes up the value
    return Reading(attempts, found, len(thinking), finished)


def behaviours(completion, example):
    """Dict of what the thinking does; a key that does not apply to it is left out.

    attempts                chains of equations, each from the problem's numbers towards the target
    checks                  verdicts on their values: "want 24: no", "too low", "✓"
    code_share              1.0 if it writes code, else 0.0
    search_share            1.0 if the response searches (two attempts, or a check), else 0.0
    attempts_within_search  attempts, of a searching response only, as is
    give_up_share           1.0 if the thinking ended although its last verdict was negative, else 0.0
    verdict_accuracy        share of the verdicts that are right about the value stated
    arithmetic_accuracy     share of the equations that hold
    """
    reading = read(completion, example)
    attempts, checks = len(reading.attempts), reading.checks
    searches = attempts > 1 or bool(checks)
    stats = {"attempts": attempts, "checks": len(checks), "search_share": float(searches)}
    stats["code_share"] = float(CODE.search(completion, 0, reading.end) is not None)
    if searches:
        stats["attempts_within_search"] = attempts
        stats["give_up_share"] = float(reading.finished and bool(checks) and not checks[-1].yes)
    if checks:
        stats["verdict_accuracy"] = sum(check.right for check in checks) / len(checks)
    if reading.equations:
        stats["arithmetic_accuracy"] = sum(e.holds for e in reading.equations) / len(reading.equations)
    return stats


# ---------------------------------------------------------------- what plots/ asks of a reading


def equations(completion):
    """The equations of any response's thinking, whatever its task; at most MAX_EQUATIONS."""
    return [*islice(_equations(_thinking(completion)[0]), MAX_EQUATIONS)]


def abandoned(reading, target):
    """For each attempt, whether it was left for another one without having been taken for the solution."""
    return [
        later and not (a.value == target and not a.left and (not a.checks or a.checks[-1].yes))
        for a, later in zip(reading.attempts, [True] * (len(reading.attempts) - 1) + [False])
    ]


def repeats(reading):
    """For each attempt, whether an earlier one tried the same combination, up to the order in sums and
    products, whatever it came to.
    """
    forms, again = set(), []
    for attempt in reading.attempts:
        again.append(attempt.combination in forms)
        forms.add(attempt.combination)
    return again


def source_of_answer(completion, reading, target):
    """The attempt that the answer copies: "reached" if it came to the target by its own account, "other" if
    the answer is no such attempt; None without an answer.
    """
    if (answer := extract_answer(completion)) is None:
        return None
    found = evaluate(_plain(answer).split("=")[0].strip())
    form = found and combination([Equation(0, 0, found[1], found[0], True, found[2])])
    reached = any(a.value == target and a.combination == form for a in reading.attempts)
    return "reached" if form and reached else "other"


def combination(equations):
    """What a chain of equations combines, hashable: sums and products flattened, their order forgotten."""
    made = {}  # value -> forms that have it and are not yet used

    def take(pair):
        value = _value(pair)
        return made[value].pop() if made.get(value) else value

    for equation in equations:
        form = None
        for sign, left, right in equation.operations:
            b, a = take(right), take(left)
            kind = sign in "+-"
            terms = _terms(a, kind, 1) + _terms(b, kind, 1 if sign in "+*" else -1)
            form = (kind, tuple(sorted(terms, key=repr)))
            forms = made.setdefault(_apply(sign, _value(left), _value(right)), [])
            if form not in forms:  # else it is worked out again
                forms.append(form)
        if form:  # known from here on by the value stated, be it right or wrong
            forms = next(forms for forms in made.values() if form in forms)
            forms.remove(form)
            made.setdefault(equation.value, []).append(form)
    return tuple(sorted((form for forms in made.values() for form in forms), key=repr))


def _terms(form, kind, sign):
    if isinstance(form, tuple) and form[0] == kind:
        return [(sign * s, term) for s, term in form[1]]
    return [(sign, form)]


def _value(pair):
    a, b = pair
    return Fraction(a, b) if a % b else a // b


def _apply(sign, a, b):
    return a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else Fraction(a) / b


# ---------------------------------------------------------------- reading


def _plain(text):
    """The text in plain signs and small letters; every character keeps its place."""

    def pad(found):
        sign = "*" if found["times"] or found["x"] else "/" if found["div"] else ""
        sign = f"{found['a']}/{found['b']}" if found["a"] else sign
        return sign.center(len(found[0]))

    small = text.lower()
    if len(small) != len(text):  # a few letters are longer when small
        small = "".join(low if len(low := letter.lower()) == 1 else letter for letter in text)
    return MARKUP.sub(pad, small.translate(SIGNS))


def read_thinking(completion):
    """(the thinking, at most MAX_READ characters, whether it ended): up to </think>, or to the answer."""
    tail = completion[-TAIL:]
    end = tail.rfind("</think>")
    end = tail.rfind("<answer>") if end < 0 else end
    stop = len(completion) - len(tail) + end if end >= 0 else MAX_READ
    return completion[: min(stop, MAX_READ)], end >= 0


def _thinking(completion):
    text, ended = read_thinking(completion)
    return _plain(text), ended


def _equations(thinking):
    for run in RUN.finditer(thinking):
        text, end = run[0], run.end()
        if "=" not in text:
            stated = any(map(text.__contains__, "+-*/")) and STATED.match(thinking, run.end())
            if not stated:
                continue
            text, end = f"{text.rstrip()}={stated['value']}", stated.end()
        if found := read_equation(text):
            start = run.start() + len(run[0]) - len(run[0].lstrip())
            yield Equation(start, start + len(thinking[start:end].rstrip(" =(+-*/")), *found)


def _restates(equation, chain, nums, target):
    """Whether it only says again what the chain has found: a full expression, or a step of a success."""
    if chain.checks and not chain.checks[-1].yes:
        return False
    if not chain.left and equation.value == chain.value and len(equation.operands) >= len(nums):
        return True
    return chain.value == target and _steps([equation]) <= _steps(chain.equations)


def _in_full(equation, chain):
    """Whether it is the chain so far in one expression, and more: `5-3=2, so 8*(5-3)=16`."""
    longer = len(equation.operations) > sum(len(e.operations) for e in chain.equations)
    return longer and _steps(chain.equations) < _steps([equation])


def _steps(equations):
    """Their operations as a set in which a+b is b+a."""
    steps = set()
    for equation in equations:
        for sign, *sides in equation.operations:
            a, b = map(_value, sides)
            steps.add((sign, *sorted((a, b))) if sign in "+*" else (sign, a, b))
    return steps


def _continues(equation, chain, open_, same_sentence, nums):
    takes_up = chain.value in equation.operands
    if not chain.left:
        return False
    if not open_:  # judged: it goes on only with the value that was judged
        return takes_up and chain.value not in nums
    operands = equation.operands
    if all(operands.count(n) <= chain.left.count(n) for n in operands):
        return True
    slips = any(n in chain.left for n in operands) and not all(n in nums for n in operands)
    return same_sentence and (takes_up or slips)  # a slip: 11*2=22, 21+6=27


def _consume(numbers, equation):
    """`numbers` without the operands but with the result; [] when that completes the chain."""
    left = list(numbers)
    for n in equation.operands:
        if n in left:
            left.remove(n)
    return [*left, equation.value] if left else []


def _check(text, equation, target):
    """The first verdict in the text behind an equation; None if there is none."""
    if found := _verdict(text, target):
        start, end, yes = found
        return Check(equation.end + start, equation.end + end, yes, yes == (equation.value == target))
    return None


@lru_cache(maxsize=1 << 14)
def _verdict(text, target):
    """(start, end, whether it says yes) of the first verdict in a text, with what leads up to it."""
    for verdict in VERDICT.finditer(text):
        if verdict["is"] and int(verdict["is"]) != target:  # "that is 62": the value again, no verdict
            continue
        start = len(text) - len(text.lstrip(" \n.,;:!?()*→-"))
        return min(start, verdict.start()), verdict.end(), bool(verdict["yes"] or verdict["tick"])
    return None
