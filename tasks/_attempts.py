"""What a response to Countdown does while it thinks: attempts, checks, giving up, read from its text."""

import re
from itertools import islice

from tasks import TAIL
from tasks._arithmetic import TYPOGRAPHIC, read_equation

MAX_READ, MAX_EQUATIONS = 12_000, 200  # characters of the thinking, and equations in it, that are read
REACH = 120  # characters behind an equation in which a verdict on it may stand

# Linear time on any text: a run is one class of characters, and a verdict is looked for within REACH only.
RUN = re.compile(r"[(0-9](?:[-+*/()=0-9 ]|\.(?=[0-9]))*")
VERDICT = re.compile(
    r"""\b(?:(?P<no> no(?=\s?(?:[.,;:!\n<]|\Z)) | wrong\b | incorrect\b | fail(?:s|ed)\b
            | too\ (?:low|high|small|large|big|much|little|far)\b
            | (?:less|more|greater|higher|lower|larger|smaller|bigger)\ than\b
            | (?:not|\w{2,5}n['’]t)\ (?:quite\ |exactly\ )?
              (?:equal|the|our|what|work|correct|right|enough|match|reach|valid|hit|[0-9]))
        | (?P<yes> yes\b | works\b | correct\b
            | (?:equals?(?:\ to)?|is|matches|reaches|hits)\ (?:exactly\ )?(?:the|our)\ (?:target|goal)))
    | (?P<cross>[✗✘❌≠]) | (?P<tick>[✓✔✅])""",
    re.VERBOSE,
)


def behaviours(completion, example):
    """Dict of what the thinking does; a key that does not apply to it is left out.

    attempts                chains of equations, each from the problem's numbers towards the target
    checks                  attempts whose value is followed by a verdict: "want 24: no", "too low", "✓"
    search_share            1.0 if the response searches (two attempts, or a check), else 0.0
    attempts_within_search  attempts, of a searching response only, as is
    give_up_share           1.0 if the thinking ended although its last verdict was negative, else 0.0
    verdict_accuracy        share of the verdicts that are right about the value stated
    arithmetic_accuracy     share of the equations that hold

    An equation continues a chain if it consumes what the chain has left: its values and the unused numbers.
    What is read ends with the thinking, or where the answer begins, or after MAX_READ characters or
    MAX_EQUATIONS equations. Prose is read by its commonest phrases: good for a curve, less for one response.
    """
    nums, target = example["nums"], example["target"]
    thinking, finished = read_thinking(completion)
    runs = ((*run.span(), read_equation(run[0])) for run in RUN.finditer(thinking) if "=" in run[0])
    found = [*islice((run for run in runs if run[2]), MAX_EQUATIONS)]
    attempts, verdicts = 0, []
    left, value, text = [], None, "\n"  # of the chain: what it may still use, its last value, the text behind
    for (_, end, (operands, result, _)), (start, *_) in zip(found, [*found[1:], (len(thinking),)]):
        same_sentence = "\n" not in text and ". " not in text
        text = thinking[end : min(start, end + REACH)]
        if left or result != value or len(operands) < len(nums):  # else it restates what the chain has found
            if not left or not (_within(operands, left) or value in operands and same_sentence):
                if not set(operands) & set(nums):
                    continue
                attempts, left = attempts + 1, list(nums)
            left, value = _consume(left, operands, result), result
        if verdict := VERDICT.search(text):
            verdicts.append((verdict.lastgroup in ("yes", "tick"), result == target))
            left, value = [], value if verdicts[-1][0] else None  # what follows a no is an attempt of its own
    searches = attempts > 1 or bool(verdicts)
    stats = {"attempts": attempts, "checks": len(verdicts), "search_share": float(searches)}
    if searches:
        stats["attempts_within_search"] = attempts
        stats["give_up_share"] = float(finished and bool(verdicts) and not verdicts[-1][0])
    if verdicts:
        stats["verdict_accuracy"] = sum(said == true for said, true in verdicts) / len(verdicts)
    if found:
        stats["arithmetic_accuracy"] = sum(holds for *_, (_, _, holds) in found) / len(found)
    return stats


def read_thinking(completion):
    """(the thinking in plain signs and small letters, whether it ended): up to </think>, or to the answer."""
    tail = completion[-TAIL:]
    end = tail.rfind("</think>")
    end = tail.rfind("<answer>") if end < 0 else end
    stop = len(completion) - len(tail) + end if end >= 0 else MAX_READ
    return completion[: min(stop, MAX_READ)].translate(TYPOGRAPHIC).lower(), end >= 0


def _within(operands, numbers):
    return all(operands.count(n) <= numbers.count(n) for n in operands)


def _consume(numbers, operands, result):
    """`numbers` without the operands but with the result; [] when that completes the chain."""
    left = list(numbers)
    for n in operands:
        if n in left:
            left.remove(n)
    return [*left, result] if left else []
