"""Type a problem and watch the base model and the trained one answer it side by side, each with its verdict.

    python tinyr1.py play runs/mini                        then 3 8 5 = 16, or 23*47 where the task multiplies
    python tinyr1.py play runs/mini --once "3 8 5 = 16"
    echo 7 | python tinyr1.py play runs/mini --seed 0      held-out problem 7; an empty line draws one

A run that is still training answers from its last checkpoint. The answers are those that rollout.generate
would give with the same random numbers; the same --seed and the same lines give them again.
"""

import argparse
import random
import shutil
import sys
import unicodedata
from bisect import bisect_right
from dataclasses import replace
from itertools import accumulate, count, zip_longest
from pathlib import Path

import torch

import tasks
import tinyr1
from commands.eval import Eval, load
from engine import rollout
from engine.generic import forward, forward_whole
from engine.policy import position_limit
from runtime import config
from runtime.models import sampling_dtype, stop_ids
from runtime.problems import pose

WIDE = 90  # columns of a terminal from which on the answers stand side by side
AHEAD = 12  # rows by which one of them may be longer before it waits for the other


# ---------------------------------------------------------------- problems


def find_problem(text: str, task, held: list[tinyr1.Problem], cfg, tokenizer, rng) -> tinyr1.Problem:
    """The problem that was typed, or the held-out one with this number, or for "" a random one of them.

    Errors: tasks.TaskError if the text is none of these.
    """
    text = text.strip()
    if not text:
        return rng.choice(held)
    if text.isdecimal() and int(text[:9]) < len(held):
        return held[int(text)]
    if not hasattr(task, "parse"):
        raise tasks.TaskError(
            f"{cfg.task} takes held-out problems: give a number from 0 to {len(held) - 1}, or an empty line."
        )
    return pose(task, held[0].example | task.parse(text), cfg, tokenizer)


def lines(once: str | None):
    """What is asked: `once` alone, or line after line of the standard input."""
    if once is not None:
        yield once
        return
    try:
        import readline  # noqa: F401  (the arrow keys, where Python has it)
    except ImportError:
        pass
    try:
        while True:
            yield input("\n> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        print()


# ---------------------------------------------------------------- one answer, token by token


@torch.inference_mode()
def sample_tokens(model, ids: list[int], cfg, seed: int):
    """Endless tokens behind a prompt, by the model's own forward pass with its cache if that can be used:
    what rollout.generate samples first with this seed.
    """
    zero = torch.zeros(1, dtype=torch.long, device=model.device)
    whole = rollout.sampling_path(model) == "whole"
    run, key = forward_whole if whole else forward, rollout.random_keys(seed, zero, zero)
    cache: dict = {}
    new = torch.tensor([ids], device=model.device)
    for at in count():
        logits, cache = run(model, new, cache)
        u = rollout.random_uniform(key, zero + at)
        token = rollout.sample_tokens(logits, u, cfg.temperature, cfg.top_p, 0)[0][:, None]  # (1,1)
        new = torch.cat((new, token), 1) if whole else token
        yield token.item()


class Answer:
    """A model's answer in the making. Errors: tasks.TaskError if the problem leaves no room for one."""

    def __init__(self, name: str, model, tokenizer, cfg, problem: tinyr1.Problem, seed: int):
        room = position_limit(model)
        self.cap = min(cfg.max_new_tokens, room - len(problem.prompt_ids))
        if self.cap < 1:
            raise tasks.TaskError(f"The problem is too long: the model knows only {room} positions.")
        self.name, self.tokenizer, self.problem = name, tokenizer, problem
        self.ends, self.stops = stop_ids(model, tokenizer, cfg.template), tasks.STOPS.get(cfg.template, ())
        self.tokens = sample_tokens(model, problem.prompt_ids, cfg, seed)
        # the answer includes a <think> with which the prompt ends
        self.opened = "<think>" if problem.prompt.rstrip().endswith("<think>") else ""
        self.ids: list[int] = []
        self.text, self.length, self.finished = "", 0, False

    @property
    def going(self) -> bool:
        return not self.finished and self.length < self.cap

    def advance(self) -> None:
        token, self.length = next(self.tokens), self.length + 1
        if token in self.ends:
            self.finished = True
            return
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        self.text = self.opened + text
        self.finished = any(stop in text for stop in self.stops)

    @property
    def shown(self) -> str:
        """The text as a terminal may have it: no control characters, no half a letter at its end."""
        text = self.text.rstrip("\ufffd") if self.going else self.text
        return "".join(c if c.isprintable() or c == "\n" else "·" for c in text.expandtabs(4))

    def verdict(self, task) -> str:
        result = tinyr1.score(task, [self.problem], [self.text], 1)[0]
        said = "✓ right" if result["correct"] else "✗ wrong"
        said = f"the verifier failed ({result.get('error')})" if result["verifier_error"] else said
        cut = "" if self.finished else ", cut off"
        return f"{said}, reward {result['reward']:g}, {self.length} tokens{cut}"


# ---------------------------------------------------------------- on the terminal


def columns(letter: str) -> int:
    """Columns of a terminal that it takes: Chinese and emoji two, an accent of the letter before none."""
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def rows(text: str, width: int) -> list[str]:
    """The text in rows of at most `width` columns. When it grows, only its last row changes."""
    found = []
    for line in text.split("\n"):
        while (ends := [*accumulate(map(columns, line))]) and ends[-1] > width:
            fit = max(bisect_right(ends, width), 1)  # letters
            space = line.rfind(" ", 1, fit + 1)
            cut = space if space > 0 else fit
            found.append(line[:cut])
            line = line[cut:].removeprefix(" ")
        found.append(line)
    return found


def one_by_one(answers: list[Answer], task) -> None:
    for answer in answers:
        print(f"\n[{answer.name}]")
        written = 0
        while answer.going:
            answer.advance()
            print(answer.shown[written:], end="", flush=True)
            written = len(answer.shown)
        print(f"\n{answer.verdict(task)}", flush=True)


def side_by_side(answers: list[Answer], task, wide: int) -> None:
    """Two columns that grow together. Rows that may still change are drawn again from the cursor's place."""
    width = (wide - 3) // 2
    pad = lambda cell: cell + " " * (width - sum(map(columns, cell)))
    draw = lambda cells: print(" │ ".join(map(pad, cells)).rstrip() + "\x1b[K")
    draw(f"[{answer.name}]" for answer in answers)
    settled = 0  # rows that stay as they are
    while True:
        texts = [rows(answer.shown, width) for answer in answers]
        open_ = [len(text) - 1 for answer, text in zip(answers, texts) if answer.going]
        below = [*zip_longest(*(text[settled:] for text in texts), fillvalue="")]
        for cells in below:
            draw(cells)
        if not open_:
            break
        stay = min(open_) - settled
        print(f"\x1b[{len(below) - stay}A", end="", flush=True)
        settled += stay
        for answer, text in zip(answers, texts):
            if answer.going and len(text) - 1 <= min(open_) + AHEAD:
                answer.advance()
    draw(answer.verdict(task) for answer in answers)


# ---------------------------------------------------------------- the command


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "tinyr1.py play", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--once", metavar="PROBLEM", help="answer this one and stop")
    parser.add_argument("--temperature", type=float, help="of the answers (default: the run's; 0: no chance)")
    parser.add_argument("--seed", type=int, help="of draws and answers (default: another one each time)")
    args = parser.parse_args(argv)
    cfg = Eval(**Eval.of_run(args.run) | {"name": args.run.resolve().name})
    if args.temperature is not None:
        cfg = replace(cfg, temperature=args.temperature)
    cfg = config.resolve(cfg, saved={})
    models = {"base": load(replace(cfg, model=cfg.base, checkpoint="")), "trained": load(cfg)}
    for model, _ in models.values():
        model.to(sampling_dtype(model, cfg.precision)).eval()
    task, tokenizer = tasks.load(cfg.task), models["base"][1]
    held = tinyr1.held_out(task, cfg, tokenizer)
    seed = random.randrange(2**31) if args.seed is None else args.seed
    rng, wide = random.Random(seed), shutil.get_terminal_size((0, 0)).columns
    if args.once is None and sys.stdin.isatty():
        typed = "Type a problem, or the number" if hasattr(task, "parse") else "Type the number"
        print(f"{typed} of a held-out one (0 to {len(held) - 1}); an empty line draws one, Ctrl-D ends.")
    for number, line in enumerate(lines(args.once)):
        try:
            problem = find_problem(line, task, held, cfg, tokenizer, rng)
            answers = [
                Answer(name, model, tokenizer, cfg, problem, seed + number)
                for name, (model, tokenizer) in models.items()
            ]
            print(problem.prompt.strip())
            if sys.stdout.isatty() and wide >= WIDE:
                side_by_side(answers, task, wide)
            else:
                one_by_one(answers, task)
        except tasks.TaskError as error:
            if args.once is not None:
                raise
            print(error)
        except KeyboardInterrupt:  # enough of this answer
            print("\x1b[J" if sys.stdout.isatty() else "")
    return 0
