"""Type a problem and watch the base model and the trained one answer it side by side, each with its verdict.

    python tinyr1.py play runs/mini                        then type 3 8 5 = 16 (Countdown) or 23*47
    python tinyr1.py play runs/mini --once "3 8 5 = 16"
    echo 7 | python tinyr1.py play runs/mini --seed 0      held-out problem 7; an empty line draws one

A run that is still training answers from its last checkpoint. The same --seed and the same lines give the
same answers. They are sampled as during training (engine.rollout.generate).
"""

import random
import shutil
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate, count, zip_longest
from pathlib import Path
from typing import Any

import torch

import tasks
import tinyr1
from commands import make_parser
from commands.eval import Eval, load
from engine import rollout
from engine.generic import forward, forward_whole
from engine.policy import position_limit
from runtime import config
from runtime.models import sampling_dtype, stop_ids
from runtime.problems import held_out, pose

# Columns that a terminal needs to show the answers side by side.
WIDE = 90
# Rows by which one answer may be longer before it waits for the other.
AHEAD = 12


# ---------------------------------------------------------------- problems


def find_problem(
    text: str, task: Any, held: list[tinyr1.Problem], cfg: Eval, tokenizer: Any, rng: random.Random
) -> tinyr1.Problem:
    """The problem that was typed, or the held-out one with this number, or a random held-out one for "".

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


def lines(once: str | None) -> Iterator[str]:
    """`once` alone, or the lines of the standard input."""
    if once is not None:
        yield once
        return
    try:
        # makes the arrow keys work
        import readline  # noqa: F401
    except ImportError:
        pass
    try:
        while True:
            yield input("\n> " if sys.stdin.isatty() else "")
    except (EOFError, KeyboardInterrupt):
        print()


# ---------------------------------------------------------------- one answer, token by token


@torch.inference_mode()
def sample_tokens(model: Any, ids: list[int], cfg: Eval, seed: int) -> Iterator[int]:
    """The tokens after a prompt, without end: those of the first sample of rollout.generate with this seed.
    Uses the model's own forward pass, with its cache if that works.
    """
    zero = torch.zeros(1, dtype=torch.long, device=model.device)
    whole = rollout.sampling_path(model) == "whole"
    run, key = forward_whole if whole else forward, rollout.random_keys(seed, zero, zero)
    cache: dict = {}
    new = torch.tensor([ids], device=model.device)
    for at in count():
        logits, cache = run(model, new, cache)
        u = rollout.random_uniform(key, zero + at)
        # (1,1)
        token = rollout.sample_tokens(logits, u, cfg.temperature, cfg.top_p, 0)[0][:, None]
        new = torch.cat((new, token), 1) if whole else token
        yield int(token)


class Answer:
    """A model's answer while it is sampled. Errors: tasks.TaskError if the problem leaves no room for one."""

    def __init__(
        self, name: str, model: Any, tokenizer: Any, cfg: Eval, problem: tinyr1.Problem, seed: int
    ) -> None:
        room = position_limit(model)
        self.cap = min(cfg.max_new_tokens, room - len(problem.prompt_ids))
        if self.cap < 1:
            raise tasks.TaskError(
                f"The problem is too long: the model takes at most {room} tokens. Type a shorter one."
            )
        self.name, self.tokenizer, self.problem = name, tokenizer, problem
        self.ends, self.stops = stop_ids(model, tokenizer, cfg.template), tasks.STOPS.get(cfg.template, ())
        self.tokens = sample_tokens(model, problem.prompt_ids, cfg, seed)
        # the answer includes a <think> with which the prompt ends
        self.opened = "<think>" if problem.prompt.rstrip().endswith("<think>") else ""
        self.ids: list[int] = []
        self.text, self.length, self.finished = "", 0, False

    @property
    def going(self) -> bool:
        """Whether there are more tokens to come."""
        return not self.finished and self.length < self.cap

    def advance(self) -> None:
        """Sample one more token."""
        token = next(self.tokens)
        self.length += 1
        if token in self.ends:
            self.finished = True
            return
        self.ids.append(token)
        text = self.tokenizer.decode(self.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        self.text = self.opened + text
        self.finished = any(stop in text for stop in self.stops)

    @property
    def shown(self) -> str:
        """The text without control characters, and without an incomplete letter at its end."""
        text = self.text.rstrip("\ufffd") if self.going else self.text
        return "".join(c if c.isprintable() or c == "\n" else "·" for c in text.expandtabs(4))

    def verdict(self, task: tasks.Task) -> str:
        """One line: whether the answer is right, its reward and its length."""
        result = tinyr1.score(task, [self.problem], [self.text], 1)[0]
        said = "✓ right" if result["correct"] else "✗ wrong"
        said = f"the verifier failed ({result.get('error')})" if result["verifier_error"] else said
        cut = "" if self.finished else ", cut off"
        return f"{said}, reward {result['reward']:g}, {self.length} tokens{cut}"


# ---------------------------------------------------------------- on the terminal


def columns(letter: str) -> int:
    """Columns that a letter takes in a terminal: two for Chinese and emoji, none for a combining accent."""
    if unicodedata.category(letter) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def rows(text: str, width: int) -> list[str]:
    """The text in rows of at most `width` columns. When it grows, only its last row changes."""
    found = []
    for line in text.split("\n"):
        while (ends := [*accumulate(map(columns, line))]) and ends[-1] > width:
            # in letters
            fit = max(bisect_right(ends, width), 1)
            space = line.rfind(" ", 1, fit + 1)
            cut = space if space > 0 else fit
            found.append(line[:cut])
            line = line[cut:].removeprefix(" ")
        found.append(line)
    return found


def one_by_one(answers: list[Answer], task: tasks.Task) -> None:
    """Print one answer after the other, each as it is sampled."""
    for answer in answers:
        print(f"\n[{answer.name}]")
        written = 0
        while answer.going:
            answer.advance()
            print(answer.shown[written:], end="", flush=True)
            written = len(answer.shown)
        print(f"\n{answer.verdict(task)}", flush=True)


def side_by_side(answers: list[Answer], task: tasks.Task, wide: int) -> None:
    """Print two columns that grow together. Rows that may still change are drawn again."""
    width = (wide - 3) // 2

    def draw(cells: Iterable[str]) -> None:
        padded = (cell + " " * (width - sum(map(columns, cell))) for cell in cells)
        print(" │ ".join(padded).rstrip() + "\x1b[K")

    draw(f"[{answer.name}]" for answer in answers)
    # the number of rows that will not change
    settled = 0
    while True:
        texts = [rows(answer.shown, width) for answer in answers]
        unfinished = [len(text) - 1 for answer, text in zip(answers, texts) if answer.going]
        below = [*zip_longest(*(text[settled:] for text in texts), fillvalue="")]
        for cells in below:
            draw(cells)
        if not unfinished:
            break
        stay = min(unfinished) - settled
        print(f"\x1b[{len(below) - stay}A", end="", flush=True)
        settled += stay
        for answer, text in zip(answers, texts):
            if answer.going and len(text) - 1 <= min(unfinished) + AHEAD:
                answer.advance()
    draw(answer.verdict(task) for answer in answers)


# ---------------------------------------------------------------- the command


def main(argv: list[str]) -> int:
    parser = make_parser("play", "RUN [--option value ...]", __doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="run folder")
    parser.add_argument("--once", metavar="PROBLEM", help="answer this problem and stop")
    parser.add_argument("--temperature", type=float, help="of the answers; 0 is greedy (default: the run's)")
    parser.add_argument("--seed", type=int, help="of the draws and answers (default: a new one each time)")
    args = parser.parse_args(argv)
    cfg = Eval(**Eval.of_run(args.run) | {"name": args.run.resolve().name})
    if args.temperature is not None:
        cfg = replace(cfg, temperature=args.temperature)
        config.check_ranges(cfg)
    cfg = config.resolve(cfg, saved={})
    models = {"base": load(replace(cfg, model=cfg.base, checkpoint="")), "trained": load(cfg)}
    for model, _ in models.values():
        model.to(sampling_dtype(model, cfg.precision)).eval()
    answer_lines(cfg, models, args.once, random.randrange(2**31) if args.seed is None else args.seed)
    return 0


def answer_lines(cfg: Eval, models: dict[str, tuple[Any, Any]], once: str | None, seed: int) -> None:
    """Answer `once`, or each line of the standard input, with the {name: (model, tokenizer)}.

    Errors: tasks.TaskError if `once` is no problem; such a line is reported and skipped.
    """
    task, tokenizer = tasks.load(cfg.task), models["base"][1]
    held = held_out(task, cfg, tokenizer)
    rng, wide = random.Random(seed), shutil.get_terminal_size((0, 0)).columns
    if once is None and sys.stdin.isatty():
        typed = "Type a problem, or the number" if hasattr(task, "parse") else "Type the number"
        print(f"{typed} of a held-out one (0 to {len(held) - 1}); an empty line draws one, Ctrl-D ends.")
    for number, line in enumerate(lines(once)):
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
            if once is not None:
                raise
            print(error)
        except KeyboardInterrupt:
            # ends this answer only
            print("\x1b[J" if sys.stdout.isatty() else "")
