"""What somebody who edits a task wants to see: examples, the prompt, and what good and bad answers earn.

python -m tasks countdown                                      problems as the options' defaults give them
python -m tasks countdown numbers=4 high=99 reward=simplerl    with options of the task
python -m tasks ./my_task.py --template r1                     a task of your own, in another template
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

from tasks import TEMPLATES, TaskError, load, render

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
# Where a task has no fixture of its own, these show what it does with any answer.
STOCK = [
    {"completion": "", "why": "nothing at all"},
    {"completion": "<answer></answer>", "why": "an empty answer"},
    {"completion": "<think>one moment", "why": "cut off while thinking"},
    {"completion": ["<answer>", {"repeat": "(", "times": 100_000}, "</answer>"], "why": "100 kB of brackets"},
]


def completion_of(case):
    """A fixture's completion: a text, or a list of texts and {"repeat": text, "times": n}, to be joined."""
    parts = case["completion"] if isinstance(case["completion"], list) else [case["completion"]]
    return "".join(part if isinstance(part, str) else part["repeat"] * part["times"] for part in parts)


def cases(name, example):
    """(completion, example, why) of every answer to show: from the task's fixture, if it has one."""
    path = FIXTURES / f"{name}_answers.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else STOCK
    for case in known:
        fields = {key: case[key] for key in case if key in example}
        yield completion_of(case), {**example, **fields}, case["why"]


def show(name, options, template, number):
    task = load(name)
    for split in ("train", "test"):
        print(f"# {split}")
        for example in islice(task.examples(split, **options), number):
            print(json.dumps(example, ensure_ascii=False, default=str))
    first = next(iter(task.examples("test", **options)))
    print(f"\n# a prompt, in the template {template!r}")
    print(render(template, task.question(first)))
    print("\n# rewards")
    for completion, example, why in cases(Path(name).stem, first):
        result = task.reward(completion, example)
        text = completion.replace("\n", "⏎").encode(errors="replace").decode()
        text = text if len(text) <= 60 else text[:20] + " … " + text[-37:]
        print(f"{result['reward']:5.1f} {'✓' if result['correct'] else '·'}  {text:60}  {why}")


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tasks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", help="a task's name, or the path of a task file")
    parser.add_argument("options", nargs="*", metavar="key=value", help="options of the task")
    parser.add_argument("--template", default="tinyzero", help=f"one of {', '.join(TEMPLATES)}")
    parser.add_argument("-n", type=int, default=3, metavar="N", help="examples of each split")
    args = parser.parse_args()
    if bad := [option for option in args.options if "=" not in option]:
        parser.error(f"options are written key=value, not {bad[0]!r}")
    try:
        show(args.task, dict(option.split("=", 1) for option in args.options), args.template, args.n)
    except TaskError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
