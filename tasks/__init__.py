"""What every task shares: the protocol, loading, prompt templates, the held-out split, rows from a file."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

# The tasks import these from here.
from tasks._text.rows import BadRow, TaskError, json_lines, read_jsonl, read_rows  # noqa: F401

# A problem, and what `reward` says of a response. Each task chooses the keys.
Example = dict[str, Any]
Verdict = dict[str, Any]
Options = dict[str, Any]


@runtime_checkable
class Task(Protocol):
    """A task: a module with these three functions, in this folder or in a file of your own.

    Such a file needs no import and no annotation. It may have more, which `getattr` finds:

    OPTIONS           {option of `examples`: its default}
    SETS              names of problem sets that the option `data` takes, such as math500
    FOR_TEMPLATE      {template: the options that it changes}
    REPLACES          {option: the options that cannot be given together with it}
    gold(example)     -> str, a right answer; None where there is none
    state(answer, example)
                      -> str, a completion that states the answer; `python tinyr1.py tasks NAME` uses both
    equivalent(answer, other)
                      -> bool, whether the two count as one in a majority vote; without it, equal texts do
    parse(text)       -> the keys of an example that a problem typed by the user sets, for `tinyr1.py play`;
                      the other keys are those of a test problem. Errors: TaskError.
    """

    # The module's.
    __name__: str

    def examples(self, split: str, **options: Any) -> Iterable[Example]:
        """Problems of the split "train", which may be endless, or "test", which is finite.

        Equal arguments give equal examples, and no problem is in both splits. Errors: TaskError.
        """

    def question(self, example: Example) -> str:
        """The user's text; `render` puts it into the prompt template."""

    def reward(self, completion: str, example: Example) -> Verdict:
        """{"reward": float, "correct": bool, ...} of a completion, the text without its prompt. Never raises.

        "answer" is the answer that the text states, None if it states none. An evaluation counts the
        responses without one; the others vote (cons@k). Where the key is missing, `find_answer` looks in the
        text, and there is no vote if it finds no answer in a right response.

        "accepted", 1 or 0, is for a task whose reward is wrong on purpose: what training is told instead of
        "correct". It and every other numeric key becomes a curve: the mean over the responses that have the
        key, so leave it out where it does not apply.
        """


PROTOCOL = ("examples", "question", "reward")
# One problem in HELD_OUT belongs to the test split.
HELD_OUT = 10
# An answer is looked for in the last TAIL characters of a completion, far more than any length cap allows.
TAIL = 100_000

TEMPLATES: dict[str, str | None] = {
    # DeepSeek-R1-Zero's: arXiv 2501.12948, Table 1.
    "r1": "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. "
    "The assistant first thinks about the reasoning process in the mind and then provides the user with the "
    "answer. The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> "
    "tags, respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. "
    "User: {question}. Assistant:",
    # TinyZero's for base models (examples/data_preprocess/countdown.py); it opens the thinking itself.
    "tinyzero": "A conversation between User and Assistant. The user asks a question, and the Assistant "
    "solves it. The assistant first thinks about the reasoning process in the mind and then provides the "
    "user with the answer.\nUser: {question}\nAssistant: Let me solve this step by step.\n<think>",
    # The tokenizer's own chat template, as instruct models expect it.
    "chat": None,
    # Qwen2.5-Math's, as in SimpleRL and in "Understanding R1-Zero-Like Training" (2503.20783).
    "qwen-math": "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}."
    "<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
    # Abel's, which SimpleRL-Zoo (2503.18892) gives to models that do not follow a chat format.
    "abel": "Question:\n{question}\nAnswer:\nLet's think step by step.\n",
    "none": "{question}\n",
}

# What a base model writes when it continues after its answer, by template: the response ends there.
STOPS = {
    "r1": ["\nUser:"],
    "tinyzero": ["\nUser:"],
    "qwen-math": ["<|im_end|>"],
    "abel": ["\nQuestion:"],
}


def choose(kind: str, name: str, known: Collection[str]) -> str:
    """`name`, if it is one of `known`. Errors: TaskError, which lists them and guesses what was meant."""
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise TaskError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")


def available() -> list[str]:
    """Names of the tasks in this folder, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py") if path.stem != "rewards")


def load(name: str) -> Task:
    """The task, by name (`countdown`) or from a file (`./my_task.py`). Errors: TaskError."""
    path = Path(name)
    from_file = path.suffix == ".py"
    if not from_file:
        choose("task", name, available())
    elif not path.is_file():
        raise TaskError(f"No task file {name!r} (looked for {path.resolve()}).")
    try:
        module = _import_file(path) if from_file else importlib.import_module(f"{__name__}.{name}")
    except (Exception, SystemExit) as error:
        raise TaskError(f"The task {name!r} fails on import: {type(error).__name__}: {error}") from error
    missing = [function for function in PROTOCOL if not callable(getattr(module, function, None))]
    if missing or not isinstance(module, Task):
        raise TaskError(
            f"The task {name!r} lacks {', '.join(missing)}(): a task defines {', '.join(PROTOCOL)}."
        )
    return module


def _import_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickle look a module up by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def find(name: str) -> tuple[Task, Options]:
    """(task, options) of a task's name, a task file, or a set of problems such as math500.

    Errors: TaskError.
    """
    if name.endswith(".py") or name in available():
        return load(name), {}
    sets = {known: task for task in map(load, available()) for known in getattr(task, "SETS", ())}
    return sets[choose("task", name, [*available(), *sets])], {"data": name}


def join_options(task: Task | None, given: Options, more: Options) -> Options:
    """The options `given` by a preset or a run, updated by `more`.

    An option of `more` removes the given ones that it replaces (the task's REPLACES); an empty value, as in
    `data=`, removes the option itself.
    """
    replaces = getattr(task, "REPLACES", {})
    replaced = {old for name, value in more.items() if value for old in replaces.get(name, ())}
    kept = {name: value for name, value in given.items() if name not in replaced}
    return {name: value for name, value in (kept | more).items() if value}


def read_options(options: Mapping[str, Any], defaults: Options) -> Options:
    """`defaults` updated by `options`, each converted to its default's type (the command line gives strings).

    A value of None means the default. Errors: TaskError where an option is unknown or does not convert.
    """
    values = dict(defaults)
    for name, value in options.items():
        kind = type(defaults[choose("task option", name, defaults)])
        try:
            values[name] = defaults[name] if value is None else kind(value)
        except (TypeError, ValueError) as error:
            expected = f"expected {kind.__name__}, such as {name}={defaults[name]}"
            raise TaskError(f"Task option {name}={value!r}: {expected}.") from error
    return values


def check_options(
    split: str, options: Mapping[str, Any], defaults: Options, choices: Mapping[str, Collection[str]]
) -> Options:
    """The options of `examples` as `read_options` gives them, checked. Errors: TaskError.

    choices: the known values of the options that have few. The option `limit` counts examples; 0 is no limit.
    """
    choose("split", split, ("train", "test"))
    values = read_options(options, defaults)
    for name, known in choices.items():
        choose(name, values[name], known)
    if values["limit"] < 0:
        raise TaskError(
            f"Task option limit={values['limit']}: expected a number of examples, or 0 for no limit."
        )
    return values


def held_out(*key: object) -> bool:
    """Whether the problem with this key (values that JSON can hold) is a test problem: one in HELD_OUT is.

    It depends on the problem alone and is the same on every machine, so that all who generate problems agree
    on the split.
    """
    digest = blake2b(json.dumps(key, default=int).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT == 0


def in_both_splits(train: Iterable[Example], test: Iterable[Example]) -> list[Example]:
    """The test examples that are training examples as well."""
    seen = {json.dumps(example, default=str) for example in train}
    return [example for example in test if json.dumps(example, default=str) in seen]


def render(template: str, question: str, tokenizer: Any = None) -> str:
    """The prompt's text. `template`: a name in TEMPLATES, or a text that contains {question}.

    tokenizer: of Transformers, for the template "chat". Errors: TaskError.
    """
    text = template if "{question}" in template else TEMPLATES[choose("template", template, TEMPLATES)]
    if text is None:
        if not getattr(tokenizer, "chat_template", None):
            raise TaskError(
                "The template 'chat' is the tokenizer's own, and this tokenizer has none, as base models "
                "often do. Choose another: " + ", ".join(name for name in TEMPLATES if name != "chat") + "."
            )
        message = {"role": "user", "content": question}
        return str(tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True))
    # R1's template has the full stop.
    if "{question}." in text:
        question = question.removesuffix(".")
    return text.replace("{question}", question)


def after_thinking(completion: str) -> str:
    """The end of a completion (at most TAIL characters) that is no thinking.

    What precedes the last </think>, or follows a <think> that is never closed, is thinking; without either
    tag nothing is, as in TinyZero.
    """
    text = completion[-TAIL:]
    # All of it where there is no </think>; else most of the tag remains, which does no harm.
    text = text[text.rfind("</think>") + 1 :]
    return text[: text.find("<think>")] if "<think>" in text else text


def extract_answer(completion: str) -> str | None:
    """Content of the last <answer>…</answer> after the thinking, stripped; None where there is none.

    Nested tags stay in the content, so that a verifier refuses them. Linear time, and only the last TAIL
    characters are read.
    """
    text = after_thinking(completion)
    last = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if last < 0:
        return None
    # It differs from `last` where answers are nested.
    first = text.find("<answer>", max(text.rfind("</answer>", 0, last), 0))
    return text[first + len("<answer>") : text.find("</answer>", last)].strip()


BOX = re.compile(
    r"\\(?:boxed|fbox)(?:\s*\{|\s*(-?[0-9](?:[0-9.,]*[0-9])?|\\frac\s*(?:[0-9]{2}|\{[^{}]*\}\s*\{[^{}]*\})"
    r"|\s[a-zA-Z](?![a-zA-Z])))|\\.|[{}]",
    re.DOTALL,
)


def last_box(text: str) -> str | None:
    r"""Content of the last closed \boxed{...}, the outermost of nested ones; None if there is none.

    Also of \boxed 3, without braces. An empty box counts where there is no other. Linear time, one pass with
    a stack of the open braces; only the last TAIL characters are read.
    """
    text = text[-TAIL:]
    # Of each open brace: where a box's content begins, None of any other brace.
    opened: list[int | None] = []
    found: str | None = None
    for sign in BOX.finditer(text):
        content = sign[1]
        if sign[0][-1] == "{" and sign[0] != r"\{":
            opened.append(sign.end() if len(sign[0]) > 1 else None)
        elif sign[0] == "}" and opened and (start := opened.pop()) is not None:
            content = text[start : sign.start()]
        if content is not None:
            found = content.strip() or found or ""
    return found


def find_answer(completion: str) -> str | None:
    """The answer that a completion states after the thinking: in tags, else boxed; None if there is none."""
    answer = extract_answer(completion)
    return last_box(after_thinking(completion)) if answer is None else answer
