"""A task's examples with their prompts. What a task does wrong here becomes one paragraph that names it."""

import copy
import inspect
import itertools
import math
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tasks
from runtime.models import prompt_ids
from runtime.runfolder import UserError
from runtime.scoring import name_of
from tasks import Example, Task, TaskError

# Overlong prompts in a row after which there is no hope for another one.
MOST_OVERLONG = 1000
# Training problems among which held-out ones are looked for.
COMPARED = 1000


@dataclass
class Problem:
    """A task's example with its prompt."""

    example: Example
    prompt: str
    prompt_ids: list[int]


def failure(task: Task, function: str, error: BaseException) -> TaskError:
    """What the user reads when a function of a task raises."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == name_of(task)]
    where = f" at line {frames[-1].lineno} (`{frames[-1].line}`)" if frames else ""
    return TaskError(
        f"{function}() of the task {name_of(task)} failed{where}: {type(error).__name__}: {error}."
    )


def pose(task: Task, example: Example, cfg: Any, tokenizer: Any) -> Problem:
    """The problem of an example. Errors: TaskError."""
    try:
        # a copy, as for reward(): the example stays as examples() made it
        question = task.question(copy.deepcopy(example))
    except (KeyboardInterrupt, TaskError):
        raise
    except BaseException as error:
        raise failure(task, "question", error) from error
    if not isinstance(question, str):
        raise TaskError(
            f"question() of the task {name_of(task)} returned {type(question).__name__}; expected a text, "
            f"for the example {str(example)[:200]}."
        )
    try:
        prompt = tasks.render(cfg.template, question, tokenizer)
    except TaskError:
        raise
    # whatever a chat template of the tokenizer raises
    except Exception as error:
        raise UserError(
            f"The chat template of {cfg.model} does not take a user's question ({type(error).__name__}: "
            f"{error}). Choose another --template, such as r1."
        ) from error
    try:
        return Problem(example, prompt, prompt_ids(tokenizer, prompt, cfg.template))
    # half a character, for example, is text to Python alone
    except Exception as error:
        raise TaskError(
            f"The tokenizer cannot encode a question of the task {name_of(task)} ({type(error).__name__}: "
            f"{str(error)[:100]}): {question[:200]!r}."
        ) from error


class Problems:
    """Iterator of the Problems of a split; the training split starts again when it is used up.

    Prompts of more than `room` tokens are left out and counted in `overlong`. Errors: UserError, TaskError.
    """

    def __init__(self, task: Task, split: str, cfg: Any, tokenizer: Any, room: float = math.inf):
        self.task, self.split, self.cfg, self.tokenizer, self.room = task, split, cfg, tokenizer, room
        self.overlong = 0
        self.options = self.read_options()
        self.stream = self.problems()

    def __iter__(self) -> Iterator[Problem]:
        return self

    def __next__(self) -> Problem:
        return next(self.stream)

    def read_options(self) -> dict[str, Any]:
        """Options for examples(): the template's, then --task_args. Errors: UserError."""
        task, cfg = self.task, self.cfg
        options: dict[str, Any] = dict(option.split("=", 1) for option in cfg.task_args)
        signature = inspect.signature(task.examples)
        # the run's seed also draws the training problems
        if "seed" in [*signature.parameters, *getattr(task, "OPTIONS", ())]:
            options.setdefault("seed", cfg.seed)
        options = getattr(task, "FOR_TEMPLATE", {}).get(cfg.template, {}) | options
        try:
            signature.bind(self.split, **options)
        except TypeError as error:
            raise UserError(
                f"The task {cfg.task} does not take the options {cfg.task_args}: {error}."
            ) from error
        return options

    def examples(self) -> Iterator[Example]:
        """One pass over the task's examples of this split. Errors: TaskError."""
        try:
            for example in self.task.examples(self.split, **self.options):
                if not isinstance(example, dict):
                    raise TaskError(
                        f"examples() of the task {name_of(self.task)} yielded {type(example).__name__}; "
                        "expected a dict for each problem."
                    )
                yield example
        except (KeyboardInterrupt, GeneratorExit, TaskError):
            raise
        except BaseException as error:
            raise failure(self.task, "examples", error) from error

    def problems(self) -> Iterator[Problem]:
        in_a_row = 0
        while True:
            count = 0
            for example in self.examples():
                count += 1
                problem = pose(self.task, example, self.cfg, self.tokenizer)
                if len(problem.prompt_ids) <= self.room:
                    in_a_row = 0
                    yield problem
                    continue
                self.overlong += 1
                in_a_row += 1
                if in_a_row == MOST_OVERLONG:
                    raise self.too_long(len(problem.prompt_ids))
            if self.split == "test":
                return
            if not count:
                raise UserError(
                    f"The task {self.cfg.task} has no training examples with the options "
                    f"{self.cfg.task_args}."
                )
            if in_a_row >= count:
                raise self.too_long(len(problem.prompt_ids))

    def too_long(self, length: int) -> UserError:
        return UserError(
            f"No {self.split} prompt of {self.cfg.task} fits: the last one has {length} tokens, and "
            f"--max_new_tokens {self.cfg.max_new_tokens} leaves room for {self.room}. Lower it, or choose "
            "shorter problems or a model with more positions."
        )


def held_out(task: Task, cfg: Any, tokenizer: Any, room: float = math.inf) -> list[Problem]:
    """The first eval_problems of the test split whose prompts fit. Errors: UserError, TaskError."""
    stream = Problems(task, "test", cfg, tokenizer, room)
    held = list(itertools.islice(stream, cfg.eval_problems))
    if not held and stream.overlong:
        raise UserError(
            f"None of the {stream.overlong} held-out problems of {cfg.task} fits: --max_new_tokens "
            f"{cfg.max_new_tokens} leaves room for prompts of {max(room, 0)} tokens, because the model knows "
            f"{room + cfg.max_new_tokens} positions. Lower it."
        )
    if not held:
        raise UserError(f"The task {cfg.task} has no held-out problems with {' '.join(cfg.task_args)}.")
    if stream.overlong:
        print(
            f"{stream.overlong} held-out problems of {cfg.task} are left out: their prompts have more than "
            f"the {room} tokens for which --max_new_tokens {cfg.max_new_tokens} leaves room"
        )
    return held


def check_splits(stream: Problems, held: list[Problem]) -> None:
    """Warn if held-out problems are among the first training problems. Errors: those of the training split
    come here, before the first evaluation.
    """
    first = itertools.islice(stream, COMPARED)
    shared = tasks.in_both_splits([p.example for p in first], [p.example for p in held])
    if shared:
        print(
            f"warning: {len(shared)} of the {len(held)} held-out problems are training problems, too, such "
            f"as {str(shared[0])[:80]}: the accuracy says little about new ones. Keep the task's splits "
            "apart (tasks.held_out does it)."
        )
