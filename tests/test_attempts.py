"""The parser of attempts against hand labels: tests/fixtures/labelled_attempts.jsonl.

A label is the response itself with marks in it: ⟦an attempt⟧ and ⟨a verdict⟩. ⟦ is followed by ! (an equation
in it is wrong), ~ (the same combination as an earlier attempt, up to the order in sums and products) and ^
(left for another attempt); ⟨ is followed by + or - (it says that the target is reached, or not) and ? (it is
wrong about the value). `answer`: whether the answer copies an attempt that came to the target ("reached") or
not ("other").
"""

from pathlib import Path

import pytest

from tasks import read_jsonl
from tasks._text import attempts

FIXTURE = Path(__file__).parent / "fixtures/labelled_attempts.jsonl"
OPENING, CLOSING = {"⟦": "attempt", "⟨": "check"}, "⟧⟩"


def unmark(marked):
    """(text, [(kind, start, end, flags)] in order of their starts)."""
    text, spans, open_, flags = [], [], [], None
    for letter in marked:
        if letter in OPENING:
            flags = {"kind": OPENING[letter], "start": len(text), "flags": ""}
            open_.append(flags)
        elif letter in CLOSING:
            span = open_.pop()
            spans.append((span["kind"], span["start"], len(text), span["flags"]))
        elif flags and letter in "!~^+-?" and len(text) == flags["start"]:
            flags["flags"] += letter
        else:
            flags = None
            text.append(letter)
    return "".join(text), sorted(spans, key=lambda span: span[1])


CASES = read_jsonl(FIXTURE)


def found_in(text, case):
    """The parser's spans and answer in the form of the labels."""
    reading = attempts.read(text, case)
    again, left = attempts.repeats(reading), attempts.abandoned(reading, case["target"])
    spans = []
    for i, a in enumerate(reading.attempts):
        flags = "!" * (not a.holds) + "~" * again[i] + "^" * left[i]
        spans.append(("attempt", a.start, a.end, flags))
        spans += [("check", c.start, c.end, "-+"[c.yes] + "?" * (not c.right)) for c in a.checks]
    return spans, attempts.source_of_answer(text, reading, case["target"])


def paired(labels, found):
    """Pairs that share at least half of the shorter one's characters, each used once."""
    pairs, free = [], list(found)
    for label in labels:
        for other in free:
            common = min(label[2], other[2]) - max(label[1], other[1])
            if label[0] == other[0] and 2 * common >= min(label[2] - label[1], other[2] - other[1]):
                pairs.append((label, other))
                free.remove(other)
                break
    return pairs


def score(cases):
    """{what: [true positives, labelled, found]} over the cases, and lines that say where they differ."""
    counts, report = {}, []

    def count(what, both, labelled, found):
        row = counts.setdefault(what, [0, 0, 0])
        for i, n in enumerate((both, labelled, found)):
            row[i] += n

    names = {
        "!": "wrong arithmetic",
        "~": "repeats",
        "^": "backtracking",
        "?": "wrong verdicts",
        "+": "says yes",
    }
    for case in cases:
        text, labels = unmark(case["marked"])
        found, answer = found_in(text, case)
        pairs = paired(labels, found)
        for kind in OPENING.values():
            of_kind = [sum(span[0] == kind for span in spans) for spans in (labels, found)]
            count(kind + "s", sum(label[0] == kind for label, _ in pairs), *of_kind)
        for flag, name in names.items():
            both = sum(flag in a[3] and flag in b[3] for a, b in pairs)
            count(name, both, *(sum(flag in span[3] for span in spans) for spans in (labels, found)))
        is_reached = [case["answer"] == "reached", answer == "reached"]
        count("answer from success", all(is_reached), *is_reached)
        missed = [span for span in labels if span not in [a for a, _ in pairs]]
        extra = [span for span in found if span not in [b for _, b in pairs]]
        other = [(a, b) for a, b in pairs if sorted(a[3]) != sorted(b[3])]
        if missed or extra or other or answer != case["answer"]:
            report.append(
                f"--- {case['nums']} -> {case['target']}: {case['answer']} / {answer}\n{case['marked']}"
                + "".join(f"\n  missed {s} {text[s[1] : s[2]]!r}" for s in missed)
                + "".join(f"\n  extra  {s} {text[s[1] : s[2]]!r}" for s in extra)
                + "".join(f"\n  flags  {a[3]!r} / {b[3]!r} {text[a[1] : a[2]]!r}" for a, b in other)
            )
    return counts, report


def test_the_fixture_is_rich():
    texts = [unmark(case["marked"])[0] for case in CASES]
    assert len(set(texts)) == len(CASES) >= 100
    sources = [case["source"].split()[0] for case in CASES]
    assert sources.count("prose") >= 50 and len(CASES) - sources.count("prose") >= 40
    assert not any(letter in text for text in texts for letter in "⟦⟧⟨⟩")


@pytest.mark.parametrize("kind", ["prose", "miniature", "all"])
def test_parser_agrees_with_hand_labels(kind):
    cases = [case for case in CASES if kind in ("all", "prose" if case["source"] == "prose" else "miniature")]
    counts, report = score(cases)
    for what, (both, labelled, found) in counts.items():
        precision, recall = both / max(found, 1), both / max(labelled, 1)
        print(f"{kind:10} {what:20} precision {precision:6.1%}  recall {recall:6.1%}  of {labelled}")
    print("\n".join(report))
    for what, (both, labelled, found) in counts.items():
        # Of fewer than 20, one is more than 5 %.
        if labelled >= 20:
            assert both >= 0.95 * found and both >= 0.95 * labelled, what
        else:
            assert found - both <= 1 + 0.05 * found and labelled - both <= 1 + 0.05 * labelled, what


def test_every_span_lies_in_the_text_and_on_what_it_says():
    for text in ("ǰİ 3+5=8, 8*8=64, want 16: no\n", "𝟛 \\(3 \\times 5 = 15\\) no", "3＋5＝8 wrong"):
        reading = attempts.read(text, {"nums": [3, 5, 8], "target": 16})
        (attempt,) = reading.attempts
        assert text[attempt.start] == "3" and text[attempt.end - 1].isdigit()
        (check,) = reading.checks
        assert text[check.start : check.end] in ("want 16: no", "no", "wrong") and not check.yes


def equations(text):
    return [*attempts._equations(attempts._plain(text))]


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("3+5=8, 8*8=64", "8*(5+3) = 64", True),
        ("3+5=8, 8*8=64", "8*8=64, 64+3=67", False),
        ("1+2=3, 3+4=7", "4+2=6, 6+1=7", True),
        ("9-4=5, 5-2=3", "9-2=7, 7-4=3", True),
        ("9-4=5, 5-2=3", "4-2=2, 9-2=7", False),
        ("8/4=2, 2*3=6", "3*8=24, 24/4=6", True),
        # The combination counts, whatever its value.
        ("91+1=102, 102-2=100", "91-2=89, 89+1=90", True),
        ("10/10=1, 2*1=2", "10-10=0, 2-0=2", False),
    ],
)
def test_combinations_are_equal_up_to_order(one, other, same):
    forms = [attempts.combination(equations(text)) for text in (one, other)]
    assert (forms[0] == forms[1]) == same


@pytest.mark.parametrize(
    "completion, code",
    [
        ("<think>```python\nx = 1\n```</think>", 1),
        ("<think>for x in range(3):\n    print(x)\n</think>\n<answer>3+5</answer>", 1),
        ("<think>3+5=8, want 16: no\n</think>\n<answer>3+5</answer>", 0),
        ("<think>for each of these, print (3)</think>", 0),
        # Only the thinking counts.
        ("<think>8*2=16</think>\n<answer>print(16)</answer>\nprint(16)", 0),
        ("\n".join(["def f(" * 2000, " " * 10_000, "for a" + ", b" * 3000]), 0),
    ],
)
def test_code_in_the_thinking_is_told(completion, code):
    assert attempts.behaviours(completion, {"nums": [3, 5, 8], "target": 16})["code_share"] == code
