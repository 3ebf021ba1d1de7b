"""What a response does, measured from its text; the samples of a run, problem by problem."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from plots.runs import number
from tasks._text import attempts

# ---------------------------------------------------------------- one response

# Words that announce self-reflection. English: as published. Chinese: ours, the sources have none.
KEYWORDS = {
    # sail-sg/understand-r1-zero, analysis/keyword_count.py (2503.20783, "Oat-Zero")
    "oat": "recheck rethink reassess reevaluate re-evaluate reevaluation re-examine reexamine reconsider "
    "reanalyze double-check check_again think_again verify_again go_over_the_steps "
    "重新检查 再检查 重新思考 再想想 重新评估 重新考虑 重新审视 再验证 再核对",
    # SimpleRL-Zoo's authors (2503.18892), as their 2505.15612 uses them: 2502.03373's five words and two more
    "simplerl": "recheck rethink try_again wait alternatively retry however 再试 等等 等一下 或者 然而 但是",
}


def word_pattern(words: str) -> re.Pattern:
    """Any of the words, of which `_` joins several; whole words where a script has them."""
    every = words.split()
    latin = "|".join(re.escape(word).replace("_", r"\s") for word in every if word.isascii())
    return re.compile("|".join([rf"\b(?:{latin})\b", *(word for word in every if not word.isascii())]))


PATTERNS = {name: word_pattern(words) for name, words in KEYWORDS.items()}
SCRIPTS = [
    re.compile(f"[{letters}]")
    for letters in ("A-Za-zÀ-ɏ", "Ͱ-Ͽ", "Ѐ-ӿ", "֐-׿", "؀-ۿ", "ऀ-ॿ", "฀-๿", "぀-ヿ㐀-䶿一-鿿", "가-힣")
]
TAGS = re.compile(r"</?\w+>|\\[a-z]+")
# share of a response's letters from which on a second script counts as mixing
MIXED = 0.05


def find_words(text: str) -> dict[str, list[tuple[int, int]]]:
    """{list of KEYWORDS: spans of its words in the text}."""
    # far faster than a pattern that ignores case
    lower = text.lower()
    lower = lower if len(lower) == len(text) else text
    return {name: [word.span() for word in pattern.finditer(lower)] for name, pattern in PATTERNS.items()}


def measure(text: str, example: dict, reading, words: dict) -> dict[str, float]:
    """What a response does; a key that does not apply to it is left out. reading: from attempts.read, None
    if it is not Countdown; words: from find_words.

    Of Countdown (`nums` and `target` in the example): attempts, checks, backtracks (attempts left for another
    one), repeats (combinations tried before), equations, wrong_equations, verdicts_right, from_success (the
    answer copies an attempt that came to the target). Of other tasks: equations, wrong_equations, and steps,
    the equations that are more than a product stated at once. Of all: oat and simplerl (words of KEYWORDS),
    code and mixed (1.0 if it writes code, if it mixes scripts), reflects (1.0 if it checks, backtracks,
    decomposes or says one of oat's words).
    """
    found = {name: len(spans) for name, spans in words.items()}
    if reading:
        target, equations, checks = example["target"], reading.equations, reading.checks
        found |= {"attempts": len(reading.attempts), "checks": len(checks)}
        found["backtracks"] = sum(attempts.abandoned(reading, target))
        found["repeats"] = sum(attempts.repeats(reading))
        found["verdicts_right"] = sum(check.right for check in checks)
        if (source := attempts.source_of_answer(text, reading, target)) and reading.attempts:
            found["from_success"] = source == "reached"
        reflects = checks or found["backtracks"]
    else:
        equations = attempts.equations(text)
        found["steps"] = reflects = sum(not at_once(equation, example) for equation in equations)
    wrong = sum(not equation.holds for equation in equations)
    found |= {"equations": len(equations), "wrong_equations": wrong}
    found["reflects"] = bool(reflects or found["oat"])
    found |= {"code": bool(attempts.CODE.search(text)), "mixed": mixes(text)}
    return {key: float(value) for key, value in found.items()}


def mixes(text: str) -> bool:
    """Whether a second script has a share of the letters; tags and LaTeX commands do not count."""
    if text.isascii():
        return False
    plain = TAGS.sub("", text)
    letters = sorted(len(script.findall(plain)) for script in SCRIPTS)
    return letters[-2] > MIXED * sum(letters)


def countdown_like(example: dict) -> bool:
    nums, target = example.get("nums"), example.get("target")
    return isinstance(nums, list) and all(type(n) is int for n in nums) and type(target) is int


def at_once(equation, example: dict) -> bool:
    """Whether it is the problem's own product, stated."""
    factors = sorted(n for n in example.values() if type(n) is int)
    return sorted(equation.operands) == factors and len(equation.operations) == 1


# ---------------------------------------------------------------- samples


def measure_samples(path: Path, field: str = "completion") -> list[dict]:
    """Rows of a JSONL file whose `field` is a text, as `measured`; [] without a file."""
    return [measured(row, row[field]) for row in read_rows(path, field)]


def measured(row: dict, text: str) -> dict:
    """A sample and its text, with the `key` of its problem, the `reading` (None if it is not Countdown), the
    `words`, and what the response `does`.
    """
    example = row["example"] if isinstance(row.get("example"), dict) else row
    reading = attempts.read(text, example) if countdown_like(example) else None
    words = find_words(text)
    added = {"completion": text, "example": example, "key": problem_key(row), "reading": reading}
    return row | added | {"words": words, "does": measure(text, example, reading, words)}


def read_rows(path: Path, field: str) -> Iterator[dict]:
    """Rows of a JSONL file whose `field` is a text."""
    for line in path.read_text(errors="replace").split("\n") if path.exists() else ():
        try:
            row = json.loads(line)
            if isinstance(row[field], str):
                yield row
        # empty, half-written by a run in progress, or of another kind
        except (ValueError, KeyError, TypeError, RecursionError):
            pass


def problem_key(row: dict) -> str:
    """What identifies the problem of a sample."""
    problem = row.get("example") or row.get("problem")
    return str(row.get("prompt") or json.dumps(problem, sort_keys=True, default=str))


def run_samples(folder: Path) -> list[dict]:
    """A run's samples. Where eval_samples.jsonl has rows of a step, they replace the few held-out ones that
    samples.jsonl has of it. Those of the last folder are kept while its files stay as they are.
    """
    files = [folder / "eval_samples.jsonl", folder / "samples.jsonl"]
    stamps = tuple((path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.exists())
    return samples_as_of(folder.resolve(), stamps)


@lru_cache(maxsize=1)
def samples_as_of(folder: Path, stamps: tuple) -> list[dict]:
    """The samples of run_samples, as of these sizes and times of its files."""
    full = measure_samples(folder / "eval_samples.jsonl")
    steps = {row.get("step") for row in full}
    few = [
        sample
        for sample in measure_samples(folder / "samples.jsonl")
        if sample.get("split") != "test" or sample.get("step") not in steps
    ]
    return [{"split": "test"} | row for row in full] + few


def evaluations(samples: list[dict]) -> dict[int, dict[str, list[dict]]]:
    """{step: {problem: its held-out samples}}, in order of the steps."""
    found = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if sample.get("split") == "test" and math.isfinite(number(sample.get("step"))):
            found[sample["step"]][sample["key"]].append(sample)
    return {step: dict(found[step]) for step in sorted(found)}


def per_problem(problems: dict[str, list[dict]], key: str) -> dict[str, float]:
    """Mean of a behaviour, or of `correct` or `tokens`, over each problem's samples that have it."""
    found = {}
    for name, samples in problems.items():
        values = [value for sample in samples if math.isfinite(value := value_of(sample, key))]
        if values:
            found[name] = sum(values) / len(values)
    return found


def value_of(sample: dict, key: str) -> float:
    return number(sample["does"].get(key, sample.get(key)))


def searches(evals: dict) -> bool:
    """Whether attempts are counted, as they are in Countdown."""
    every = (sample for problems in evals.values() for samples in problems.values() for sample in samples)
    return any("attempts" in sample["does"] for sample in every)
