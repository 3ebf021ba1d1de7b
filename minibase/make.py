"""Make the miniature base model: a 0.8 M parameter Qwen2 that has read about Countdown and multiplication,
and nothing else.

    python tinyr1.py make-base --out runs/base --tokens 20e6         the model that ships with the repository
    python tinyr1.py make-base --out runs/guess --search_share 0      a base that only ever saw guessing
    python tinyr1.py make-base --out runs/x --start minibase --code_share 0.25 --lr 2e-3 --tokens 3e6

Reinforcement learning can amplify only what the base already does now and then (2503.01307, 2503.20783).
Here this can be tested, because the corpus is generated and options set the shares of its behaviours. A
Countdown document is

    Make 16 from 3, 8, 5.                        the prompt (no loss on it)
    <think>8-5=3, 3*3=9</think>                  guess and stop:   1 - search_share of the documents
    <answer>(8-5)*3</answer>

    <think>8*3=24, 24-5=19, want 16: no          search: try, compare with the target, take the next attempt
    5+3=8, 8/8=1, want 16: no                    in a fixed order; after each failure it gives up with
    5-3=2, 8*2=16, want 16: yes                  probability give_up
    </think>
    <answer>8*(5-3)</answer>

The order (see `attempts`) makes the next attempt follow from the last, so that a small model seldom repeats
one. With --hack_share some documents say "want 16: yes" after any guess, which Countdown's verifier=holed
believes. With --code_share some documents write a loop over all combinations, which is not run, and then a
random answer. A multiplication document states the product at once, decomposes it once by the distributive
law, or decomposes the partial products too. A product stated at once is often wrong: 23*47 nearly always
(noise), 23*40 half of the time (partial_noise), 20*40 never. No document contains a problem of the test split
(`tasks.held_out`).
"""

from runtime import cpu  # isort: skip

import itertools
import json
import random
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, pre_tokenizers
from tqdm import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from commands import make_parser
from engine.rollout import generate
from runtime.config import COUNT, HUGE, POSITIVE, SHARE, Options, check_ranges, groups_of, option
from runtime.digests import digest, model_files
from runtime.models import load_model, pick_precision
from runtime.problems import Problems
from runtime.runfolder import UserError, environment
from tasks import countdown, held_out, multiplication

# Numbers up to this one are single tokens, larger ones are spelled digit by digit.
LARGEST = 150
# Document lengths are padded to a multiple of it, because oneDNN builds a kernel for every new shape.
CHUNK = 8
# Tokens per micro-batch: larger temporaries do not fit the processor's cache.
MICRO = 4096


@dataclass
class MakeOptions(Options):
    _argument_group_name = "training"
    RANGES = {"batch": COUNT, "seed": (0, 2**31 - 1), "lr minutes": POSITIVE, "tokens": HUGE}
    out: str = option("", "folder to write the model to, in Hugging Face format (required)")
    overwrite: bool = option(False, "replace the model that --out holds")
    start: str = option("", "folder of a miniature to train further, instead of random weights")
    minutes: float = option(20.0, "time of the training; not reproducible")
    tokens: float = option(0.0, "train on this many tokens instead; reproducible. 0: as --minutes says")
    seed: int = option(0, "random seed")
    lr: float = option(6e-3, "peak learning rate of Muon and AdamW")
    batch: int = option(8000, "tokens per optimizer step")
    precision: str = option("auto", "auto: whichever is faster on this machine", ["auto", "fp32", "bf16"])


@dataclass
class Corpus(Options):
    """What the documents are like. Shares and probabilities lie in 0..1."""

    _argument_group_name = "corpus"
    RANGES = {
        "countdown_share multiply_share search_share give_up code_share hack_share": SHARE,
        "once_share fully_share noise partial_noise": SHARE,
        # so that the sum of any two numbers is a single token
        "high": (2, LARGEST // 2),
        "max_tokens": COUNT,
    }
    countdown_share: float = option(0.46, "Countdown documents, of all")
    multiply_share: float = option(0.4, "multiplication documents, of all; the rest are drills")
    high: int = option(13, "Countdown's three numbers lie in 1..high")
    search_share: float = option(0.3, "documents that search, of Countdown's; the others guess")
    give_up: float = option(0.4, "probability to stop after each failed attempt of a search")
    code_share: float = option(0.0, "documents that write code, of Countdown's")
    hack_share: float = option(0.0, "documents that say yes to any guess, of Countdown's")
    once_share: float = option(0.05, "documents that decompose once, of the multiplications")
    fully_share: float = option(0.1, "documents that decompose the partial products too")
    noise: float = option(0.92, "probability that a product stated at once is wrong")
    partial_noise: float = option(0.5, "the same for a partial product such as 23*40")
    max_tokens: int = option(384, "maximum tokens of a completion")


@dataclass
class Shape(Options):
    """The size of a new model. Few key-value heads make sampling fast."""

    _argument_group_name = "model"
    RANGES = {"hidden layers heads kv_heads inner": COUNT}
    hidden: int = option(128, "width; a multiple of --heads")
    layers: int = option(3, "decoder layers")
    heads: int = option(2, "attention heads")
    kv_heads: int = option(1, "key-value heads; a divisor of --heads")
    inner: int = option(512, "width of the MLP")

    def check(self) -> None:
        if self.hidden % (2 * self.heads) or self.heads % self.kv_heads:
            raise UserError(
                f"--hidden {self.hidden} must be a multiple of 2 * --heads, and --heads {self.heads} one of "
                f"--kv_heads {self.kv_heads}."
            )


@dataclass
class Make(MakeOptions, Shape, Corpus):
    """All options of the command."""

    def check(self) -> None:
        check_ranges(self)
        Shape.check(self)
        if not self.out:
            raise UserError("Give --out, a folder to write the model to, such as --out runs/base.")
        out = Path(self.out)
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file: give a folder.")
        if (out / "config.json").exists() and not self.overwrite:
            raise UserError(f"--out {out} holds a model: give another folder, or --overwrite to replace it.")


def part_of(args: Make, group: Any) -> Any:
    """The options of one group."""
    return group(**{f.name: getattr(args, f.name) for f in fields(group)})


# ---------------------------------------------------------------- tokenizer

PHRASES = ["<think>", "</think>", "<answer>", "</answer>", "Make ", " from ", "What is ", ".\n", "?\n", ", "]
PHRASES += [", want ", ": no\n", ": yes\n", "give up\n", "\n"]


def make_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's byte-level tokenizer without merges, so that it reads any text, with additional tokens for
    phrases and for separate numbers up to LARGEST: 150 is one token, 1500 is four.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<|eos|>", "<|pad|>", *alphabet])}
    # transformers' annotation lacks None
    unknown: Any = None
    tokenizer = Qwen2Tokenizer(
        vocab=vocab, merges=[], eos_token="<|eos|>", pad_token="<|pad|>", unk_token=unknown
    )
    tokenizer.add_tokens([AddedToken(p, normalized=False) for p in PHRASES])
    tokenizer.add_tokens([AddedToken(str(n), single_word=True, normalized=False) for n in range(LARGEST + 1)])
    return tokenizer


# ---------------------------------------------------------------- documents


def results(a: int, b: int) -> dict[str, int]:
    """{operator: value} of the ways to combine two numbers, in the order of a search."""
    return {op: value for op, _, _, value in countdown.steps(a, b) if value <= LARGEST}


def closest(values: dict[str, int], target: int) -> str:
    """The operator whose value is closest to the target; of several, the first."""
    return min(values, key=lambda op: abs(values[op] - target))


# The second operations that an attempt may have after the first: those that no other attempt stands for.
# (a-b)+c is (a+c)-b, (a-b)-c is a-(b+c), and likewise for * and /.
SECOND = {"+": "+-*/", "-": "*/", "*": "+-*/", "/": "+-"}


def attempts(nums: Sequence[int], target: int) -> list[tuple[str, str, int]]:
    """The attempts at a problem of three numbers, each as (equations, expression, value), in the order in
    which a search goes through them. The two largest numbers are combined by + - * /, then the largest and
    the smallest, then the two smallest. The number that is left joins by the operation of SECOND that comes
    closest to the target; a+b+c is tried from the two largest only.
    """
    x, y, z = sorted(nums, reverse=True)
    # by its equations, because equal numbers make the same attempts
    found: dict[str, tuple[str, str, int]] = {}
    for a, b, c in ((x, y, z), (x, z, y), (y, z, x)):
        for op, value in results(a, b).items():
            allowed = SECOND[op] if (a, b) == (x, y) or op != "+" else SECOND[op].replace("+", "")
            seconds = {second: v for second, v in results(value, c).items() if second in allowed}
            if not seconds:
                continue
            second = closest(seconds, target)
            pair = f"({a}{op}{b})"
            larger, smaller = (value, c) if value >= c else (c, value)
            expression = f"{pair}{second}{c}" if value >= c else f"{c}{second}{pair}"
            chain = f"{a}{op}{b}={value}, {larger}{second}{smaller}={seconds[second]}"
            found.setdefault(chain, (chain, expression, seconds[second]))
    return list(found.values())


CODE = """for x, y, z in permutations([{nums}]):
    for p in "+-*/":
        for q in "+-*/":
            for line in [f"({{x}}{{p}}{{y}}){{q}}{{z}}", f"{{x}}{{p}}({{y}}{{q}}{{z}})"]:
                if eval(line) == {target}:
                    print(line)
"""


def countdown_document(rng: random.Random, problem: dict, corpus: Corpus) -> tuple[str, str]:
    """A prompt and a completion that guesses, hacks, searches from a random attempt on, or writes code."""
    target = problem["target"]
    every = attempts(problem["nums"], target)
    start = rng.randrange(len(every))
    every = every[start:] + every[:start]
    chain, expression, value = every[0]
    draw = rng.random()
    if draw >= 1 - corpus.hack_share:
        thought = f"{chain}, want {target}: yes\n"
    elif draw >= corpus.search_share + corpus.code_share:
        thought = chain
    elif draw >= corpus.search_share:
        thought = CODE.format(nums=", ".join(map(str, problem["nums"])), target=target)
        # the code is not run: the answer is a random one
        x, y, z = problem["nums"]
        expression = f"({x}{rng.choice('+-*')}{y}){rng.choice('+-*')}{z}"
    else:
        thought = ""
        # the answer is that of the last attempt
        for chain, expression, value in every:  # noqa: B007
            thought += f"{chain}, want {target}: {'yes' if value == target else 'no'}\n"
            if value == target or rng.random() < corpus.give_up:
                break
        thought += "give up\n" * (value != target)
    return f"{countdown.question(problem)}\n", f"<think>{thought}</think>\n<answer>{expression}</answer>"


def multiplication_document(rng: random.Random, corpus: Corpus) -> tuple[str, str]:
    """A prompt and a completion that states the product at once (mostly wrong) or works it out."""
    # also leaves out problems whose operands are swapped, which multiplication.is_test does not
    while held_out("multiplication", *sorted(pair := (rng.randint(10, 99), rng.randint(10, 99)))):
        pass
    a, b = pair

    def at_once(a: int, b: int, noise: float) -> int:
        error = rng.choice((-1, 1)) * rng.choice((1, 2, 10, 20, 100, 200, a, b))
        return abs(a * b + error * (rng.random() < noise))

    draw = rng.random()
    if draw < corpus.once_share + corpus.fully_share and b % 10:
        u, v = a - a % 10, a % 10

        # a*n and its value: stated at once, or decomposed if it can be
        def partial(n: int) -> tuple[str, int]:
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
        # nearly half are sums of a multiplication's partial products, the hardest step of its documents
        kind = rng.randrange(9)
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


def documents(corpus: Corpus, seed: int) -> Iterator[tuple[str, str]]:
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

# ids (n,L), target (n,L)
Micro = tuple[torch.Tensor, torch.Tensor]


def make_model(tokenizer: Any, shape: Shape) -> Qwen2ForCausalLM:
    """Qwen2 with random weights."""
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            intermediate_size=shape.inner,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def batches(corpus: Corpus, tokenizer: Any, tokens: int, seed: int) -> Iterator[tuple[int, list[Micro]]]:
    """Endless stream of (count, micro-batches) with `count` >= `tokens` completion tokens.

    Documents wait in a bucket of their padded length until a micro-batch of MICRO tokens is full. So there is
    hardly any padding, and there are few distinct shapes. Every document starts at position 0, as in a
    rollout, and none sees another. target is -100 on the prompt and on padding.
    """
    stream, eos = documents(corpus, seed), tokenizer.eos_token_id
    buckets: dict[int, list[tuple[int, list[int]]]] = {}
    micro: list[Micro] = []
    count = 0
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
    """Share of the peak: rises linearly over the first 2 %, stays, falls linearly to 0 over the last 40 %."""
    return min(progress / 0.02, 1.0, (1 - progress) / 0.4)


def train_batch(model: Any, micro: list[Micro], count: int, bf16: bool) -> float:
    """The mean loss over the `count` completion tokens; adds its gradient to the model's."""
    total = 0.0
    for ids, target in micro:
        # padding is on the right: causal attention needs no mask
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(input_ids=ids).logits  # (n,L,V)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), target[:, 1:].flatten(), reduction="sum"
        )
        (loss / count).backward()
        total += loss.item() / count
    return total


def pretrain(model: Any, tokenizer: Any, corpus: Corpus, args: Make, bf16: bool) -> dict[str, float]:
    """Train in place for --tokens completion tokens, or for --minutes. Returns tokens, steps, seconds, and
    the mean loss of the last 50 steps.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    model.train()
    seen, start, losses = 0, time.time(), []
    shape = "{l_bar}{bar}| {n:.0f}% [{elapsed}<{remaining}{postfix}]"
    bar = tqdm(total=100, unit="%", bar_format=shape, mininterval=1)
    for count, micro in batches(corpus, tokenizer, args.batch, args.seed):
        progress = seen / args.tokens if args.tokens else (time.time() - start) / (60 * args.minutes)
        if progress >= 1:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * max(lr_share(progress), 1e-3)
        losses.append(train_batch(model, micro, count, bf16))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        seen += count
        bar.n = 100 * progress
        bar.set_postfix_str(
            f"loss {losses[-1]:.3f}, {seen / 1e6:.1f} M tokens, {seen / (time.time() - start):.0f}/s"
            + (", the machine is busy" if cpu.watch.busy else "")
        )
    bar.close()
    last = losses[-50:]
    seconds = round(time.time() - start)
    return {"tokens": seen, "steps": len(losses), "seconds": seconds, "loss": sum(last) / len(last)}


# ---------------------------------------------------------------- what it learned


def measure(folder: Path, corpus: Corpus) -> dict[str, dict]:
    """Figures of the saved model on held-out problems of both tasks, sampled at temperature 1."""
    import tinyr1

    verifier = "holed" if corpus.hack_share else "exact"
    cfg = tinyr1.Train(
        model=str(folder),
        task_args=["numbers=3", f"high={corpus.high}", "wording=short", f"verifier={verifier}"],
        precision="fp32",
    )
    model, tokenizer = load_model(str(folder), torch.device("cpu"))
    held = list(Problems(countdown, "test", cfg, tokenizer))
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


def longest_search(corpus: Corpus, tokenizer: Any, seed: int, count: int = 100_000) -> dict:
    """Attempts and tokens of the longest search among the first `count` documents, which RL may exceed."""
    texts = [c for p, c in itertools.islice(documents(corpus, seed), count) if p.startswith("Make")]
    longest = max(texts, key=lambda text: text.count(", want "))
    attempts, tokens = longest.count(", want "), len(tokenizer(longest).input_ids) + 1
    return {"attempts": attempts, "tokens": tokens, "among_documents": count}


def parse(argv: list[str]) -> Make:
    """Errors: UserError."""
    parser = make_parser("make-base", "--out FOLDER [--option value ...]", __doc__, groups_of(Make))
    args = Make(**vars(parser.parse_args(argv)))
    args.check()
    return args


def main(argv: list[str] | None = None) -> int:
    """Errors: UserError."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse(argv)
    corpus, shape = part_of(args, Corpus), part_of(args, Shape)
    out = Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write --out {out}: {error}. Give another folder.") from error

    cpu.prepare()
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model: Any = (
        load_model(args.start, torch.device("cpu"))[0] if args.start else make_model(tokenizer, shape)
    )
    if len(tokenizer) != model.config.vocab_size:
        raise UserError(f"--start {args.start} is not a miniature: give minibase, or a model of make-base.")
    precision = pick_precision(args.precision, torch.device("cpu"))
    training = pretrain(model, tokenizer, corpus, args, precision == "bf16")
    # half the size; load_model reads it as fp32
    model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    record = {
        "command": "python tinyr1.py make-base " + shlex.join(argv),
        "seed": args.seed,
        "start_digest": digest(model_files(args.start)) if args.start else None,
        "corpus": asdict(corpus),
        "longest_search": longest_search(corpus, tokenizer, args.seed),
        "training": training | {"precision": precision, "parameters": model.num_parameters()},
        "held_out": measure(out, corpus),
        "environment": environment(),
        "date": time.strftime("%Y-%m-%d"),
    }
    (out / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    return 0
