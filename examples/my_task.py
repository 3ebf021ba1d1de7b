"""my_task.py: a two-digit number times a number from 11 to 19."""

import random

from tasks import extract_answer, held_out


# train is endless, test is finite, and they are disjoint
def examples(split, seed=0):
    pairs = [(a, b) for a in range(20, 100) for b in range(11, 20)]
    # the miniature's pre-training left out the products with this key
    chosen = [(a, b) for a, b in pairs if held_out("multiplication", b, a) == (split == "test")]
    rng = random.Random(f"{split} {seed}")
    while True:
        for a, b in rng.sample(chosen, len(chosen)):
            yield {"a": a, "b": b}
        if split == "test":
            return


# worded as in the miniature's pre-training
def question(example):
    return f"What is {example['a']}*{example['b']}?"


# every other numeric key becomes a curve
def reward(completion, example):
    answer = extract_answer(completion)
    right = answer == gold(example)
    more = {"answered": float(answer is not None), "adds": float("+" in completion)}
    return {"reward": float(right), "correct": right, **more}


# optional, as is `state`: with them `python tinyr1.py tasks` knows a right answer
def gold(example):
    return str(example["a"] * example["b"])


def state(answer, example):
    return f"<answer>{answer}</answer>"
