"""What somebody who edits a task wants to see: examples, the prompt, and what good and bad answers earn.

python tinyr1.py tasks countdown                                   problems as the options' defaults give them
python tinyr1.py tasks countdown numbers=4 high=99 reward=simplerl  with options of the task
python tinyr1.py tasks ./my_task.py --template r1                   a task of your own, in another template
python tinyr1.py tasks competition_math --attack                    tries hostile and mutated gold answers:
                                                                    fails on a wrong or slow verdict

A task's fixture is tests/fixtures/NAME_answers.json: completions with their verdicts; beside it there may be
NAME_pairs.json: gold answers with answers to accept and to refuse.
"""

import argparse
import json
import re
import sys
import time
import traceback
from itertools import islice
from pathlib import Path

from runtime.scoring import check_some_succeeded, verdict_of
from tasks import TEMPLATES, TaskError, in_both_splits, load, render

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
# Where a task has no fixture of its own, these show what it does with any answer.
STOCK = [
    {"completion": "", "why": "nothing at all"},
    {"completion": "<answer></answer>", "why": "an empty answer"},
    {"completion": "<think>one moment", "why": "cut off while thinking"},
    {"completion": ["<answer>", {"repeat": "(", "times": 100_000}, "</answer>"], "why": "100 kB of brackets"},
]
SECONDS = 60.0  # until a verdict counts as failed, as in training
SLOWEST = 2.0  # seconds that a verdict may take
MUTATED, COMPARED = 50, 1000  # test problems whose gold answers are mutated; examples that are compared
NEVER = {  # answers that are right nowhere
    "": "an empty answer",
    "?": "a question mark",
    "{" * 100_000: "100 kB of braces",
    "(" * 500: "500 brackets",
    "9" * 3000: "3,000 nines",
    "9^{9^{9^9}}": "a power tower",
    "9**9**9**9": "a power tower in Python",
    "__import__('os')._exit(1)": "code",
    "eval('1')": "more code",
    "\0": "a NUL byte",
}
FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")


def completion_of(case):
    """A fixture's completion: a text, or a list of texts and {"repeat": text, "times": n}, to be joined."""
    parts = case["completion"] if isinstance(case["completion"], list) else [case["completion"]]
    return "".join(part if isinstance(part, str) else part["repeat"] * part["times"] for part in parts)


def fixture(name, kind="answers", default=()):
    path = FIXTURES / f"{name}_{kind}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default


def cases(name, example):
    """(completion, example, case) of every answer to show: from the task's fixture, if it has one."""
    for case in fixture(name, default=STOCK):
        fields = {key: case[key] for key in case if key in example}
        yield completion_of(case), {**example, **fields}, case


def first_example(task, name, options):
    """A test problem, else one of the fixture's: a task may ship no problems. Errors: TaskError."""
    try:
        for example in task.examples("test", **options):
            return example
        raise TaskError(f"The task {name} has no test problems.")
    except TaskError:
        if options or not (known := fixture(name)):
            raise
        return {key: value for key, value in known[0].items() if key not in ("completion", "correct", "why")}


def right_answer(task, example):
    """The task's own right answer, as a completion; None where it has none to show."""
    if not (hasattr(task, "gold") and hasattr(task, "state")):
        return None
    answer = task.gold(example)
    return None if answer is None else task.state(answer, example)


def show(task, name, options, template, number):
    for split in ("train", "test"):
        print(f"# {split}")
        try:
            for example in islice(task.examples(split, **options), number):
                print(json.dumps(example, ensure_ascii=False, default=str))
        except TaskError as error:
            if options:
                raise
            print(error)
    first = first_example(task, name, options)
    print(f"\n# a prompt, in the template {template!r}")
    print(render(template, task.question(first)))
    print("\n# rewards: ✓ right, · wrong; some answers are to a problem of their own, named at the end")
    answers = [*cases(name, first)]
    if (right := right_answer(task, first)) is not None:
        answers.insert(0, (right, first, {"why": "the task's own right answer"}))
    verdicts = [verdict_of(task, completion, example, SECONDS) for completion, example, _ in answers]
    for (completion, example, case), v in zip(answers, verdicts):
        earns = v.get("error") or f"{v['reward']:5.1f} {'✓' if v['correct'] else '·'}"
        text = "".join(c if c.isprintable() else "⏎" if c == "\n" else "�" for c in completion)
        text = text if len(text) <= 60 else text[:20] + " … " + text[-37:]
        own = ", ".join(f"{key} {value}" for key, value in example.items() if first.get(key) != value)
        print(f"{earns}  {text:60}  {case['why']}"
              + (f"  ({own[:80]})" if own else ""))  # fmt: skip
    check_some_succeeded(task, verdicts)
    if right is None:
        print(
            "To see what a right answer earns, give the task gold(example) -> a right answer, and "
            "state(answer, example) -> a completion that states it."
        )


# ---------------------------------------------------------------- the attack


def mutations(answer, wrong, state):
    """(completion, whether it is right, what was done) made of a right and a wrong answer."""
    right = state(answer)
    yield right, True, "the gold answer"
    yield f"<think>hm</think>\n{right}", True, "the gold answer behind a thinking"
    yield right[: right.rindex(answer) + len(answer)], False, "truncated before the end of its mark-up"
    yield state(wrong), False, "a digit perturbed"
    yield state(f"{wrong} {right}"), False, "nested in a wrong one"
    yield f"{right} or {state(wrong)}", False, "the right one first, then a wrong one"
    yield f"<think>{right}</think>", False, "in the thinking only"
    yield f"<think>{right}", False, "in a thinking without end"
    yield answer, False, "without mark-up"
    if re.search("[0-9]", answer):
        yield state(answer.translate(FULL_WIDTH)), False, "in full-width digits"
    for text, why in NEVER.items():
        yield state(text), False, why


def perturbed(answer):
    """The answer with its first digit changed; another word if it has none."""
    digit = re.search("[0-9]", answer)
    return f"{answer[: digit.start()]}{(int(digit[0]) + 1) % 10}{answer[digit.end() :]}" if digit else "zebra"


def trials(task, name, options):
    """(completion, example, expected verdict or None, description) of the whole attack."""
    first = first_example(task, name, options)
    for completion, example, case in cases(name, first):
        yield completion, example, case.get("correct"), f"fixture: {case['why']}"
    golds = []
    if hasattr(task, "gold") and hasattr(task, "state"):
        for case in fixture(name, "pairs"):
            pair = {**first, "answer": case["answer"]}
            golds.append(pair)
            for verdict in ("accept", "refuse"):
                for answer in case[verdict]:
                    what = f"{case['kind']}: {verdict} {answer} for {case['answer']}"
                    yield task.state(answer, pair), pair, verdict == "accept", what
        try:
            golds += islice(task.examples("test", **options), MUTATED)
        except TaskError:
            pass  # it ships no problems
    for example in golds:
        if answer := task.gold(example):
            made = mutations(answer, perturbed(answer), lambda text, e=example: task.state(text, e))
            for completion, expected, what in made:
                yield completion, example, expected, f"{answer}: {what}"


def compare_splits(task, options):
    """Print the size of the splits and return what is wrong with them."""
    twice = {
        split: [list(islice(task.examples(split, **options), COMPARED)) for _ in range(2)]
        for split in ("train", "test")
    }
    wrong = []
    if any([*map(task.question, one)] != [*map(task.question, two)] for one, two in twice.values()):
        wrong.append("examples: another order or other problems the second time")
    train, test = twice["train"][0], twice["test"][0]
    shared = in_both_splits(train, test)
    print(f"{len(train)} training and {len(test)} test problems, {len(shared)} in both splits")
    if shared:
        such = task.question(shared[0])[:80]
        wrong.append(f"examples: {len(shared)} problems are in both splits, such as {such!r}")
    return wrong


def attack(task, name, options):
    """Print what is checked and every wrong verdict; return how many there are."""
    wrong, tried, slowest = [], 0, (0.0, "")
    for completion, example, expected, what in trials(task, name, options):
        tried += 1
        start = time.perf_counter()
        try:
            result = verdict_of(task, completion, example, SECONDS)
            slowest = max(slowest, (time.perf_counter() - start, what))
            found = bool(result["correct"])
            if result["verifier_error"]:
                wrong.append(f"{what}: {result['error']}")
            elif expected is not None and found != expected:
                wrong.append(f"{what}: {'accepted' if found else 'refused'}")
            if verdict_of(task, completion, example, SECONDS) != result:
                wrong.append(f"{what}: another verdict the second time")
        except TaskError:
            raise
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {error}")
    print(f"{tried} answers, {len(wrong)} wrong verdicts; slowest {slowest[0]:.3f} s ({slowest[1][:60]})")
    if slowest[0] > SLOWEST:
        wrong.append(f"{slowest[1]}: took {slowest[0]:.1f} s, more than {SLOWEST}")
    if not (hasattr(task, "gold") and hasattr(task, "state")):
        print("no gold answers were mutated: that needs gold(example) and state(answer, example) in the task")
    try:
        wrong += compare_splits(task, options)
    except TaskError as error:
        print(f"splits not compared: {error}")
    for line in wrong:
        print(f"WRONG  {line.encode(errors='replace').decode()}")
    return len(wrong)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python tinyr1.py tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("task", help="a task's name, or the path of a task file")
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of the task")
    parser.add_argument("--template", default="tinyzero", help=f"one of {', '.join(TEMPLATES)}")
    parser.add_argument("-n", type=int, default=3, metavar="N", help="examples of each split")
    parser.add_argument(
        "--attack", action="store_true", help="try every hostile answer; fail on a wrong verdict"
    )
    args = parser.parse_args(argv)
    if bad := [option for option in args.options if "=" not in option]:
        parser.error(f"options are written key=value, not {bad[0]!r}")
    try:
        task, name = load(args.task), Path(args.task).stem
        options = dict(option.split("=", 1) for option in args.options)
        if args.attack:
            return min(1, attack(task, name, options))
        show(task, name, options, args.template, args.n)
        return 0
    except TaskError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # python tinyr1.py tasks NAME | head
        sys.exit(1)
    except (Exception, SystemExit) as error:  # the task's own mistake
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).stem == name]
        if not own:
            sys.exit(
                f"error: examples() or question() of the task {args.task} returned what cannot be used "
                f"({type(error).__name__}: {error}); expected an iterator of dicts, and a text."
            )
        where = own[-1]
        sys.exit(
            f"error: the task {args.task} fails in {where.name}, line {where.lineno} of {where.filename}: "
            f"{type(error).__name__}: {error}"
        )
