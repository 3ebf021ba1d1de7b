"""Make the miniature base model: a 1.1 M parameter Qwen2 that has read about Countdown and multiplication,
and nothing else.

    python tinyr1.py make-base --out runs/base --tokens 20e6         the model that ships with the repository
    python tinyr1.py make-base --out runs/guess --search_share 0      a base that only ever saw guessing
    python tinyr1.py make-base --out runs/x --start minibase --code_share 0.25 --lr 2e-3 --tokens 3e6

Reinforcement learning can amplify only what the base already does now and then (2503.01307, 2503.20783).
Here that is an experiment and not an opinion, because the corpus is generated and its behaviours have
knobs. A Countdown document is

    Make 16 from 3, 8, 5.                        the prompt (no loss on it)
    <think>8-5=3, 3*3=9</think>                  guess and stop:   1 - search_share of the documents
    <answer>(8-5)*3</answer>

    <think>8*5=40, 40-3=37, want 16: no          search: try, compare with the target, go on;
    8-5=3, 3*3=9, want 16: no                    after a failure the document gives up with chance give_up
    8+5=13, 13+3=16, want 16: yes
    </think>
    <answer>(8+5)+3</answer>

With --code_share some write a loop over all combinations, which nobody runs, and then an answer at random.
A multiplication document states the product at once, decomposes once by the distributive law, or decomposes
the partial products too. What is stated at once is noisy: 23*47 nearly always (noise), 23*40 half of the
time (partial_noise), 20*40 never. No document holds a problem of the test split (`tasks.held_out`).
"""

from runtime import cpu  # isort: skip

import argparse
import itertools
import json
import random
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path

import torch
from tokenizers import AddedToken, pre_tokenizers
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from engine.rollout import generate
from runtime.models import load_model, pick_precision
from runtime.runfolder import environment
from tasks import countdown, held_out, multiplication

LARGEST = 150  # numbers up to this one are single tokens, larger ones are spelled digit by digit
CHUNK = 8  # document lengths are padded to a multiple of it: oneDNN builds a kernel for every new shape
MICRO = 4096  # tokens of a micro-batch: larger temporaries leave the processor's cache


@dataclass
class Corpus:
    """What the documents are like. Shares and chances lie in 0..1."""

    countdown_share: float = field(default=0.45, metadata={"help": "Countdown documents"})
    multiply_share: float = field(
        default=0.45, metadata={"help": "multiplication documents; the rest are drills"}
    )
    high: int = field(default=13, metadata={"help": "Countdown's three numbers lie in 1..high"})
    search_share: float = field(
        default=0.3, metadata={"help": "Countdown documents that search; the others guess"}
    )
    give_up: float = field(
        default=0.3, metadata={"help": "chance to stop after each failed attempt of a search"}
    )
    code_share: float = field(default=0.0, metadata={"help": "Countdown documents that write code"})
    best_of: int = field(
        default=3, metadata={"help": "an attempt is the closest to the target of so many random ones"}
    )
    once_share: float = field(default=0.05, metadata={"help": "multiplications decomposed once"})
    fully_share: float = field(
        default=0.1, metadata={"help": "multiplications whose partial products are decomposed too"}
    )
    noise: float = field(default=0.92, metadata={"help": "chance that a product stated at once is wrong"})
    partial_noise: float = field(
        default=0.5, metadata={"help": "the same of a partial product such as 23*40, stated at once"}
    )
    max_tokens: int = field(default=384, metadata={"help": "longest completion of a document"})


# ---------------------------------------------------------------- tokenizer

PHRASES = ["<think>", "</think>", "<answer>", "</answer>", "Make ", " from ", "What is ", ".\n", "?\n", ", ",
           ", want ", ": no\n", ": yes\n", "give up\n", "\n"]  # fmt: skip


def make_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's byte-level tokenizer without merges, so that any text can be read, and tokens of its own for
    phrases and for numbers up to LARGEST that stand alone: 150 is one token, 1500 is four.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<|eos|>", "<|pad|>", *alphabet])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=[], eos_token="<|eos|>", pad_token="<|pad|>", unk_token=None
    )
    tokenizer.add_tokens([AddedToken(p, normalized=False) for p in PHRASES])
    tokenizer.add_tokens([AddedToken(str(n), single_word=True, normalized=False) for n in range(LARGEST + 1)])
    return tokenizer


# ---------------------------------------------------------------- documents


@cache
def attempts(nums: tuple[int, ...]) -> list[tuple[str, str, int]]:
    """Every way to use all of `nums` (sorted) as (chain of equations, expression, value), the larger
    operand first.
    """

    def steps(pool: tuple[tuple[int, str], ...]):  # pool: the (value, expression) pairs still to be used
        for i, j in itertools.combinations(range(len(pool)), 2):
            rest = pool[:i] + pool[i + 1 : j] + pool[j + 1 :]
            (a, ea), (b, eb) = sorted((pool[i], pool[j]), key=lambda p: p[0], reverse=True)
            for op in "+-*/":
                if op == "/" and (b == 0 or a % b):
                    continue
                value = {"+": a + b, "-": a - b, "*": a * b, "/": a // b if b else 0}[op]
                if value <= LARGEST:
                    yield f"{a}{op}{b}={value}", value, rest + ((value, f"({ea}{op}{eb})"),)

    def chains(pool, text):
        if len(pool) == 1:
            yield text, pool[0][1][1:-1], pool[0][0]
        for equation, _, rest in steps(pool):
            yield from chains(rest, f"{text}, {equation}" if text else equation)

    found = {
        chain: (chain, expression, value)
        for chain, expression, value in chains(tuple((n, str(n)) for n in nums), "")
    }
    return list(found.values())


CODE = """for x, y, z in permutations([{nums}]):
    for p in "+-*/":
        for q in "+-*/":
            for line in [f"({{x}}{{p}}{{y}}){{q}}{{z}}", f"{{x}}{{p}}({{y}}{{q}}{{z}})"]:
                if eval(line) == {target}:
                    print(line)
"""


def countdown_document(rng: random.Random, problem: dict, corpus: Corpus) -> tuple[str, str]:
    """A prompt and a completion that guesses, searches without trying the same twice, or writes code."""
    target = problem["target"]
    left = attempts(tuple(sorted(problem["nums"]))).copy()

    def attempt():
        i = min(
            rng.sample(range(len(left)), min(corpus.best_of, len(left))),
            key=lambda i: abs(left[i][2] - target),
        )
        left[i], left[-1] = left[-1], left[i]
        return left.pop()

    chain, expression, value = attempt()
    draw = rng.random()
    if draw >= corpus.search_share + corpus.code_share:
        thought = chain
    elif draw >= corpus.search_share:  # nobody runs it: the answer is one at random
        thought = CODE.format(nums=", ".join(map(str, problem["nums"])), target=target)
        expression = rng.choice(left)[1]
    else:
        lines, longest = [], corpus.max_tokens // 16
        while True:
            lines.append(f"{chain}, want {target}: {'yes' if value == target else 'no'}\n")
            if value == target:
                break
            if rng.random() < corpus.give_up or not left or len(lines) >= longest:
                lines.append("give up\n")
                break
            chain, expression, value = attempt()
        thought = "".join(lines)
    return f"{countdown.question(problem)}\n", f"<think>{thought}</think>\n<answer>{expression}</answer>"


def multiplication_document(rng: random.Random, corpus: Corpus) -> tuple[str, str]:
    """A prompt and a completion that states the product at once (mostly wrong) or works it out."""
    while held_out("multiplication", *sorted(pair := (rng.randint(10, 99), rng.randint(10, 99)))):
        pass  # more than multiplication.is_test asks for
    a, b = pair

    def at_once(a, b, noise):
        error = rng.choice((-1, 1)) * rng.choice((1, 2, 10, 20, 100, 200, a, b))
        return abs(a * b + error * (rng.random() < noise))

    draw = rng.random()
    if draw < corpus.once_share + corpus.fully_share and b % 10:
        u, v = a - a % 10, a % 10

        def partial(n):  # a*n and its value: stated at once, or decomposed if there is anything to decompose
            if draw < corpus.once_share:
                value = at_once(a, n, corpus.partial_noise if v else 0)
                return f"{a}*{n}={value}", value
            inner = f"{u}*{n}+{v}*{n}={u * n}+{v * n}=" if v else ""
            return f"{a}*{n}={inner}{a * n}", a * n

        (tens, x), (units, y) = partial(b - b % 10), partial(b % 10)
        product = x + y
        thought = f"{tens}\n{units}\n{x}+{y}={product}"
    else:
        product = at_once(a, b, corpus.noise)
        thought = f"{a}*{b}={product}"
    prompt = multiplication.question({"a": a, "b": b, "wording": "short"})
    return f"{prompt}\n", f"<think>{thought}</think>\n<answer>{product}</answer>"


def drill_document(rng: random.Random) -> tuple[str, str]:
    """A line of bare equations, so that arithmetic is dense in the corpus."""
    equations = []
    for _ in range(8):
        kind = rng.randrange(6)
        a, b = rng.randint(0, LARGEST), rng.randint(1, 12)
        if kind == 0:
            text = f"{a}+{b}={a + b}"
        elif kind == 1:
            text = f"{max(a, b)}-{min(a, b)}={abs(a - b)}"
        elif kind == 2:
            a = rng.randint(0, LARGEST // b)
            text = f"{a * b}/{b}={a}" if rng.random() < 0.3 else f"{max(a, b)}*{min(a, b)}={a * b}"
        elif kind == 3:
            a = rng.randint(10, 99)
            n = rng.randint(1, 9) * rng.choice((1, 10))
            text = f"{a}*{n}={a * n}"
        elif kind == 4:
            a, n = rng.randint(1, 9) * 10, rng.randint(1, 9) * rng.choice((1, 10))
            text = f"{a}*{n}={a * n}"
        else:
            a, b = rng.randint(10, 900) * rng.choice((1, 10)), rng.randint(1, 900)
            text = f"{a}+{b}={a + b}"
        equations.append(text)
    return "", ", ".join(equations)


def documents(corpus: Corpus, seed: int):
    """Endless stream of (prompt, completion)."""
    rng = random.Random(seed)
    problems = countdown.examples("train", numbers="3", high=corpus.high, wording="short", seed=seed)
    while True:
        draw = rng.random()
        if draw < corpus.countdown_share:
            yield countdown_document(rng, next(problems), corpus)
        elif draw < corpus.countdown_share + corpus.multiply_share:
            yield multiplication_document(rng, corpus)
        else:
            yield drill_document(rng)


# ---------------------------------------------------------------- pre-training


def make_model(
    tokenizer, hidden: int = 128, layers: int = 4, heads: int = 2, inner: int = 512
) -> Qwen2ForCausalLM:
    """Qwen2 with random weights; head dimension 64, because powers of two are fast."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner,
            num_attention_heads=heads, num_key_value_heads=heads, tie_word_embeddings=True,
            max_position_embeddings=1024, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def batches(corpus: Corpus, tokenizer, tokens: int, seed: int):
    """Endless stream of (count, micro-batches (ids (n,L), target (n,L))), `count` >= `tokens` completion
    tokens in all.

    Documents wait in a bucket of their padded length until a micro-batch of MICRO tokens is full: hardly
    any padding and few distinct shapes. Every document starts at position 0, as it will in a rollout, and
    none sees another. target is -100 on the prompt and on padding.
    """
    stream, eos = documents(corpus, seed), tokenizer.eos_token_id
    buckets, micro, count = {}, [], 0
    while True:
        encoded = tokenizer([text for pair in itertools.islice(stream, 512) for text in pair]).input_ids
        for prompt, completion in zip(encoded[::2], encoded[1::2]):
            row = prompt + completion[: corpus.max_tokens] + [eos]
            padded = -(-len(row) // CHUNK) * CHUNK
            bucket = buckets.setdefault(padded, [])
            bucket.append((len(prompt), row))
            if len(bucket) < MICRO // padded:
                continue
            ids = torch.full((len(bucket), padded), tokenizer.pad_token_id)
            target = torch.full((len(bucket), padded), -100)
            for i, (start, row) in enumerate(bucket):
                ids[i, : len(row)] = torch.tensor(row)
                target[i, start : len(row)] = ids[i, start : len(row)]
                count += len(row) - start
            micro.append((ids, target))
            bucket.clear()
            if count >= tokens:
                yield count, micro
                micro, count = [], 0


def lr_share(progress: float) -> float:
    """Warm up over 2 %, stay, fall linearly to nothing over the last 40 %."""
    return min(progress / 0.02, 1.0, (1 - progress) / 0.4)


def pretrain(model, tokenizer, corpus, *, minutes, tokens, seed, bf16, batch, lr) -> dict:
    """Train in place for `tokens` completion tokens, or for `minutes` if that is None; returns the figures
    of the training.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    model.train()
    seen, steps, start, losses = 0, 0, time.time(), []
    shape = "{l_bar}{bar}| {n:.0f}% [{elapsed}<{remaining}{postfix}]"
    bar = tqdm(total=100, unit="%", bar_format=shape, mininterval=1)
    for count, micro in batches(corpus, tokenizer, batch, seed):
        progress = seen / tokens if tokens else (time.time() - start) / (60 * minutes)
        if progress >= 1:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * max(lr_share(progress), 1e-3)
        total = 0.0
        for ids, target in micro:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                logits = model(input_ids=ids).logits  # (n,L,V); right padding: causal attention needs no mask
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(), target[:, 1:].flatten(), reduction="sum"
            )
            (loss / count).backward()
            total += loss.item() / count
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen, steps = seen + count, steps + 1
        losses.append(total)
        bar.n = 100 * progress
        bar.set_postfix_str(
            f"loss {total:.3f}, {seen / 1e6:.1f} M tokens, {seen / (time.time() - start):.0f}/s"
            + (", the machine is busy" if cpu.watch.busy else "")
        )
    bar.close()
    last = losses[-50:]
    seconds = round(time.time() - start)
    return {"tokens": seen, "steps": steps, "seconds": seconds, "loss": sum(last) / len(last)}


# ---------------------------------------------------------------- what it learned


def measure(folder: Path, corpus: Corpus) -> dict:
    """Figures of the saved model on held-out problems of both tasks, sampled at temperature 1."""
    import tinyr1

    cfg = tinyr1.Train(
        model=str(folder), task_args=["numbers=3", f"high={corpus.high}", "wording=short"], precision="fp32"
    )
    model, tokenizer = load_model(str(folder), torch.device("cpu"))
    held = list(tinyr1.Problems(countdown, "test", cfg, tokenizer))
    metrics, _ = tinyr1.evaluate(model, tokenizer, countdown, held, 4, cfg)
    figures = {"countdown": {k: v for k, v in metrics.items() if not k.startswith("tokens_")}}

    pairs = [p for p in itertools.product(range(10, 100), repeat=2) if multiplication.is_test(*p)]
    prompts = [tokenizer(f"What is {a}*{b}?\n").input_ids for a, b in pairs]
    roll = generate(model, prompts, max_new_tokens=128, eos_ids=[tokenizer.eos_token_id], seed=1)
    texts = tokenizer.batch_decode(roll.completions(), skip_special_tokens=True)
    right = [f"<answer>{a * b}</answer>" in text for (a, b), text in zip(pairs, texts)]
    kinds = [
        "at_once" if "+" not in t else "fully" if t.split("\n")[0].count("=") > 1 else "once" for t in texts
    ]
    tokens = roll.length.float().mean().item()
    figures["multiplication"] = {"accuracy": sum(right) / len(pairs), "n": len(pairs), "tokens": tokens}
    for kind in ("at_once", "once", "fully"):
        of_kind = [r for r, k in zip(right, kinds) if k == kind]
        figures["multiplication"][kind] = {
            "share": len(of_kind) / len(pairs),
            "accuracy": sum(of_kind) / max(1, len(of_kind)),
        }
    return figures


def longest_search(corpus: Corpus, tokenizer, seed: int, count: int = 100_000) -> dict:
    """The longest searching document among the first `count` of the corpus: a mark that RL may or may not
    pass.
    """
    texts = [c for p, c in itertools.islice(documents(corpus, seed), count) if p.startswith("Make")]
    longest = max(texts, key=lambda text: text.count(", want "))
    attempts, tokens = longest.count(", want "), len(tokenizer(longest).input_ids) + 1
    return {"attempts": attempts, "tokens": tokens, "among_documents": count}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        prog="tinyr1.py make-base",
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write the model to (Hugging Face format)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the model that --out holds")
    parser.add_argument("--start", help="folder of a miniature to go on from, instead of random weights")
    parser.add_argument("--minutes", type=float, default=20, help="time of the training")
    parser.add_argument(
        "--tokens", type=float, help="train on so many tokens instead (reproducible, as time is not)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=6e-3, help="peak learning rate of Muon and AdamW")
    parser.add_argument("--batch", type=int, default=8000, help="tokens of an optimizer step")
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    for f in fields(Corpus):
        parser.add_argument(f"--{f.name}", type=f.type, default=f.default, help=f.metadata["help"])
    args = parser.parse_args(argv)
    corpus = Corpus(**{f.name: getattr(args, f.name) for f in fields(Corpus)})
    shares = {f.name: getattr(args, f.name) for f in fields(Corpus) if f.type in (float, "float")}
    if wrong := [name for name, share in shares.items() if not 0 <= share <= 1]:
        parser.error(f"--{wrong[0]} {shares[wrong[0]]} must lie in 0..1")
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out {args.out} is a file")
    if (args.out / "config.json").exists() and not args.overwrite:
        parser.error(f"--out {args.out} holds a model: give another folder, or --overwrite to replace it")
    args.out.mkdir(parents=True, exist_ok=True)

    cpu.prepare()
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model = load_model(args.start, torch.device("cpu"))[0] if args.start else make_model(tokenizer)
    precision = pick_precision(args.precision, torch.device("cpu"))
    training = pretrain(
        model, tokenizer, corpus, minutes=args.minutes, tokens=args.tokens, seed=args.seed,
        bf16=precision == "bf16", batch=args.batch, lr=args.lr,
    )  # fmt: skip
    model.to(torch.float16).save_pretrained(args.out)  # half the size in the repository; loaded as fp32
    tokenizer.save_pretrained(args.out)
    record = {
        "command": "python tinyr1.py make-base " + " ".join(argv),
        "seed": args.seed, "corpus": asdict(corpus),
        "longest_search": longest_search(corpus, tokenizer, args.seed),
        "training": training | {"precision": precision, "parameters": model.num_parameters()},
        "held_out": measure(args.out, corpus), "environment": environment(),
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    (args.out / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0
