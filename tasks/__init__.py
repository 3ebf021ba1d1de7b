"""What every task shares: the protocol, loading, prompt templates, the held-out split, rows from a file.

A task is a module (one file in this folder, or any file of your own) with three functions:

    examples(split, **options) -> iterator of dict   split is "train" or "test" (finite); equal arguments give
                                                     equal examples, and no problem is in both splits
    question(example) -> str                         the user's text; `render` puts the template around it
    reward(completion, example) -> dict              {"reward": float, "correct": bool, ...}

and may have more: SETS, names of problem sets that its option `data` takes; FOR_TEMPLATE, options by
template; REPLACES, {option: the options that cannot stand beside it}; gold(example) -> a right answer,
state(answer, example) -> a completion that states it (for `python tinyr1.py tasks NAME` and its --attack);
equivalent(answer, other) -> bool (for a majority vote); parse(text) -> the keys of an example that a problem
typed by hand sets, TaskError if it is none (for `tinyr1.py play`; the other keys are those of a test
problem).

`reward` sees the completion's text alone, never the prompt, and never raises, whatever the text. The key
"answer" is the answer that the text states, None if it states none: an evaluation counts those without one,
and lets the others vote (cons@k). Where a task leaves the key out, `find_answer` looks in the text, and
there is no vote if it finds none in a response that is right. Every other numeric key of the dict becomes a
curve: the mean over the responses in which the key is present, so that a key may be left out where it does
not apply.
"""

import difflib
import importlib
import importlib.util
import json
import re
import sys
from hashlib import blake2b
from pathlib import Path

from tasks._text.rows import BadRow, TaskError, json_lines, read_jsonl, read_rows  # noqa: F401  (to be imported)

PROTOCOL = ("examples", "question", "reward")
HELD_OUT = 10  # one problem in so many belongs to the test split
TAIL = 100_000  # characters at a completion's end in which its answer is looked for: far above any length cap

TEMPLATES = {
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


# What a base model writes when it goes on behind its answer, by template: a response ends there, too.
STOPS = {
    "r1": ["\nUser:"],
    "tinyzero": ["\nUser:"],
    "qwen-math": ["<|im_end|>"],
    "abel": ["\nQuestion:"],
}


def choose(kind, name, known):
    """`name` if it is one of `known`; otherwise a TaskError that lists them and guesses what was meant."""
    if name in known:
        return name
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise TaskError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")


def available():
    """Names of the tasks in this folder, sorted."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py") if path.stem != "rewards")


def load(name):
    """The task's module, by name (`countdown`) or from a file (`./my_task.py`). Errors: TaskError."""
    path = Path(name)
    if from_file := path.suffix == ".py":
        if not path.is_file():
            raise TaskError(f"No task file {name!r} (looked for {path.resolve()}).")
    else:
        choose("task", name, available())
    try:
        if from_file:
            spec = importlib.util.spec_from_file_location(f"task_{path.stem}", path)
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses and pickle look a module up by its name
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(f"{__name__}.{name}")
    except (Exception, SystemExit) as error:
        raise TaskError(f"The task {name!r} fails on import: {type(error).__name__}: {error}") from error
    if missing := [function for function in PROTOCOL if not callable(getattr(module, function, None))]:
        raise TaskError(
            f"The task {name!r} lacks {', '.join(missing)}(): a task defines {', '.join(PROTOCOL)}."
        )
    return module


def find(name):
    """(module, options) of a task, a task file, or a set of problems that some task knows by name, such as
    math500. Errors: TaskError.
    """
    if name.endswith(".py") or name in available():
        return load(name), {}
    modules = [load(task) for task in available()]
    sets = {known: module for module in modules for known in getattr(module, "SETS", ())}
    return sets[choose("task", name, [*available(), *sets])], {"data": name}


def join_options(task, given, more):
    """The options `given` by a preset or a run, and `more` over them. One of `more` takes away the given ones
    that it replaces (the task's REPLACES), and `name=` takes away that one.
    """
    replaces = getattr(task, "REPLACES", {})
    replaced = {old for name, value in more.items() if value for old in replaces.get(name, ())}
    kept = {name: value for name, value in given.items() if name not in replaced}
    return {name: value for name, value in (kept | more).items() if value}


def read_options(options, defaults):
    """`defaults` updated by `options`, each converted to its default's type (the command line gives strings).

    None stands for the default. Errors: TaskError for an unknown option or a value that does not convert.
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


def held_out(*key):
    """Whether the problem with this key (JSON-able) is a test problem: true of one key in HELD_OUT.

    A pure function of the problem, the same on every machine: whoever generates problems agrees on the split.
    """
    digest = blake2b(json.dumps(key, default=int).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % HELD_OUT == 0


def in_both_splits(train, test):
    """The test examples that are training examples, too, as a list."""
    seen = {json.dumps(example, default=str) for example in train}
    return [example for example in test if json.dumps(example, default=str) in seen]


def render(template, question, tokenizer=None):
    """The prompt's text. `template`: a name in TEMPLATES, or a text that contains {question}."""
    if "{question}" in template:
        text = template
    elif (text := TEMPLATES[choose("template", template, TEMPLATES)]) is None:
        if not getattr(tokenizer, "chat_template", None):
            raise TaskError(
                "The template 'chat' is the tokenizer's own, and this tokenizer has none, as base models "
                "often do. Choose another: " + ", ".join(name for name in TEMPLATES if name != "chat") + "."
            )
        message = {"role": "user", "content": question}
        return tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    if "{question}." in text:  # R1's template brings the full stop
        question = question.removesuffix(".")
    return text.replace("{question}", question)


def after_thinking(completion):
    """The end of a completion (at most TAIL characters) that is no thinking.

    What stands before the last </think>, or behind a <think> that is never closed, is thinking; without
    either tag nothing is, as in TinyZero.
    """
    text = completion[-TAIL:]
    text = text[text.rfind("</think>") + 1 :]  # all of it where there is none; else a bit of the tag remains
    return text[: text.find("<think>")] if "<think>" in text else text


def extract_answer(completion):
    """Content of the last <answer>…</answer> after the thinking, stripped; None where there is none.

    Nested tags stay in the content, so that a verifier refuses them. Linear time, and only the last TAIL
    characters are read.
    """
    text = after_thinking(completion)
    last = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if last < 0:
        return None
    first = text.find("<answer>", max(text.rfind("</answer>", 0, last), 0))  # differs from `last` when nested
    return text[first + len("<answer>") : text.find("</answer>", last)].strip()


BOX = re.compile(
    r"\\(?:boxed|fbox)(?:\s*\{|\s*(-?[0-9](?:[0-9.,]*[0-9])?|\\frac\s*(?:[0-9]{2}|\{[^{}]*\}\s*\{[^{}]*\})"
    r"|\s[a-zA-Z](?![a-zA-Z])))|\\.|[{}]",
    re.DOTALL,
)


def last_box(text):
    r"""Content of the last closed \boxed{...}, the outermost of nested ones; None if there is none.

    Also of \boxed 3, without braces. An empty box counts where there is no other. Linear time, one pass with
    a stack of the open braces; only the last TAIL characters are read.
    """
    text, opened, found = text[-TAIL:], [], None
    for sign in BOX.finditer(text):
        content = sign[1]
        if sign[0][-1] == "{" and sign[0] != r"\{":
            opened.append(sign.end() if len(sign[0]) > 1 else None)
        elif sign[0] == "}" and opened and (start := opened.pop()) is not None:
            content = text[start : sign.start()]
        if content is not None:
            found = content.strip() or found or ""
    return found


def find_answer(completion):
    """The answer that a completion states after the thinking: in tags, else boxed; None if there is none."""
    answer = extract_answer(completion)
    return last_box(after_thinking(completion)) if answer is None else answer
