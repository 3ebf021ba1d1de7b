"""How fast this machine samples and trains, compared with other engines on the same weights.

    python tinyr1.py bench                              the miniature on Countdown
    python tinyr1.py bench --model FOLDER --lengths skewed --prompts 8 --group 8
    python tinyr1.py bench --random qwen2.5-1.5b --prompts 32 --group 8 --max_new_tokens 1024 --lengths fixed
    python tinyr1.py bench --against hf,static,generate_batch,vllm --json bench.json

All engines run in one process and take turns: one round to warm up, then --repeats timed rounds; seconds are
medians. The memory limit is the time to read the weights once per step, and every cached key and value once
per token, at the bandwidth with which this machine reads a large tensor. --random needs no download: it takes
the shape of a published model with random weights.
"""

import copy
import importlib.metadata
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, StoppingCriteria

import tasks
import tinyr1
from commands import make_parser
from engine import rollout
from runtime import cpu
from runtime.config import COUNT, Options, check_ranges, groups_of, option
from runtime.learner import Learner
from runtime.models import load_model, peak_gb, pick_attention, pick_device, pick_precision, sampling_dtype
from runtime.problems import Problems
from runtime.runfolder import UserError, environment

# Architecture, hidden size, layers, heads, key-value heads, intermediate size, tied embeddings, vocabulary;
# from the config.json of each model.
SHAPES = {
    "25m": ("qwen2", 512, 8, 8, 2, 2048, True, 4096),
    "smollm2-135m": ("llama", 576, 30, 9, 3, 1536, True, 49152),
    "qwen2.5-0.5b": ("qwen2", 896, 24, 14, 2, 4864, True, 151936),
    "qwen2.5-1.5b": ("qwen2", 1536, 28, 12, 2, 8960, True, 151936),
    "qwen2.5-3b": ("qwen2", 2048, 36, 16, 2, 11008, True, 151936),
    "qwen2.5-7b": ("qwen2", 3584, 28, 28, 4, 18944, False, 152064),
}


@dataclass
class BenchModel(Options):
    _argument_group_name = "model"
    model: str = option("minibase", "Hugging Face folder or hub id; minibase is the miniature shipped here")
    random: str = option("", f"random weights in the shape of one of {', '.join(SHAPES)}")
    device: str = option("auto", "auto: cuda if there is a GPU, else cpu", ["auto", "cuda", "cpu"])
    precision: str = option(
        "auto", "of the training step, and on a GPU of sampling too", ["auto", "fp32", "bf16"]
    )


@dataclass
class BenchWork(Options):
    _argument_group_name = "work"
    RANGES = {"prompts group prompt_tokens max_new_tokens": COUNT}
    prompts: int = option(16, "number of prompts")
    group: int = option(16, "samples per prompt")
    prompt_tokens: int = option(
        64, "random tokens per prompt; with --lengths eos the prompts are Countdown's"
    )
    max_new_tokens: int = option(160, "maximum tokens per response")
    lengths: str = option(
        "",
        "eos: until the model ends; fixed: all at the maximum; skewed: most short, few at the maximum "
        "(default: eos for the miniature, else skewed)",
        ["", "eos", "fixed", "skewed"],
    )


@dataclass
class BenchMeasurement(Options):
    _argument_group_name = "measurement"
    RANGES = {"repeats": COUNT}
    against: str = option("hf", "other engines, of hf,static,generate_batch,vllm; none: only tinyr1")
    repeats: int = option(3, "timed rounds")
    slots: int = option(0, "samples decoded at once; 0: as many as fit")
    train: bool = option(True, "also time a training step")
    beside: int = option(0, "number of busy processes that run during the measurement")
    profile: bool = option(False, "print which operations take the time of sampling")
    json: str = option("", "write the figures to this file")


@dataclass
class Bench(BenchModel, BenchWork, BenchMeasurement):
    """All options of the command."""

    def check(self) -> None:
        check_ranges(self)
        if self.random and self.random not in SHAPES:
            raise UserError(f"Unknown shape {self.random!r}: --random takes one of {', '.join(SHAPES)}.")
        if self.lengths == "eos" and self.random:
            raise UserError("--lengths eos has no meaning for --random weights: give fixed or skewed.")
        if unknown := set(self.engines) - set(ENGINES):
            others = ", ".join([*ENGINES][1:])
            raise UserError(f"Unknown engine {unknown.pop()!r}: --against takes {others} or none.")
        if self.json and (Path(self.json).is_dir() or not Path(self.json).absolute().parent.is_dir()):
            raise UserError(f"--json {self.json}: give the path of a file, in a folder that exists.")

    @property
    def engines(self) -> list[str]:
        return ["tinyr1", *([] if self.against == "none" else self.against.split(","))]


@dataclass
class Work:
    """What every engine does: G samples per prompt, sample i until caps[i] tokens or an EOS."""

    prompts: list[list[int]]
    G: int
    # (N,)
    caps: list[int]
    # empty unless the lengths are the model's own
    eos: list[int]

    @property
    def rows(self) -> list[list[int]]:
        return [p for p in self.prompts for _ in range(self.G)]


class Skip(Exception):
    """This engine cannot run here; the message says why."""


# ---------------------------------------------------------------- engines: run(work, seed) -> lengths (N,)

Run = Callable[[Work, int], list[int]]


class Ours:
    """Our sampler; `rollout` is the last result."""

    rollout: rollout.Rollout

    def __init__(self, model: Any, dtype: torch.dtype, args: Bench) -> None:
        self.model, self.dtype, self.slots = model, dtype, args.slots or None

    def __call__(self, work: Work, seed: int) -> list[int]:
        self.rollout = rollout.generate(
            self.model,
            work.prompts,
            work.G,
            max_new_tokens=work.caps if len(set(work.caps)) > 1 else work.caps[0],
            eos_ids=work.eos,
            seed=seed,
            slots=self.slots,
            dtype=self.dtype,
        )
        return self.rollout.length.tolist()


class Caps(StoppingCriteria):
    """Ends row i after caps[i] tokens."""

    def __init__(self, caps: list[int], prompt: int) -> None:
        self.total = torch.tensor(caps) + prompt

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((len(ids),), ids.shape[1], device=ids.device) >= self.total.to(ids.device)


def hugging_face(model: Any, dtype: torch.dtype, args: Bench, cache: str | None = None) -> Run:
    """`generate` of transformers, all rows at once: a finished row is computed until the longest one ends."""
    model = in_precision(model, dtype)
    pad = model.config.pad_token_id or 0

    def run(work: Work, seed: int) -> list[int]:
        torch.manual_seed(seed)
        rows, width = work.rows, max(map(len, work.prompts))
        ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=model.device)
        out = model.generate(
            ids,
            attention_mask=mask,
            generation_config=sampling_config(model, work, work.eos or None, cache_implementation=cache),
            stopping_criteria=[Caps(work.caps, width)],
        )
        return lengths(out[:, width:].tolist(), work)

    return run


def generate_batch(model: Any, dtype: torch.dtype, args: Bench) -> Run:
    """transformers' continuous batching, request by request so that each has its own cap."""
    try:
        # without it transformers sees no memory on a CPU
        import psutil  # noqa: F401
        from transformers.generation import ContinuousBatchingConfig
    except ImportError as error:
        raise Skip(f"it needs a newer transformers, and psutil ({error})") from error
    model = in_precision(model, dtype)

    def run(work: Work, seed: int) -> list[int]:
        torch.manual_seed(seed)
        config = sampling_config(model, work, work.eos or -1)
        found: dict[int, list[int]] = {}
        # room for all samples at once; by default the cache would fill the memory
        pages = sum((len(row) + cap) // 256 + 1 for row, cap in zip(work.rows, work.caps))
        size = ContinuousBatchingConfig(max_batch_tokens=2048, page_size=256, num_blocks=pages + 8)
        with model.continuous_batching_context_manager(
            generation_config=config, persistent_manager=True, continuous_batching_config=size
        ) as manager:
            # the first call makes the manager and its cache, later calls reuse them
            for i, (row, cap) in enumerate(zip(work.rows, work.caps)):
                manager.add_request(row, request_id=str(i), max_new_tokens=cap)
            while len(found) < len(work.caps):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    found[int(result.request_id)] = result.generated_tokens
                elif result is None and not manager.is_running():
                    raise Skip("generate_batch stopped before the last sample")
        return lengths([found[i] for i in range(len(work.caps))], work)

    return run


def vllm(model: Any, dtype: torch.dtype, args: Bench) -> Run:
    """vLLM in this process; its worker processes are suspended between its turns."""
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise Skip("vllm is not installed in this environment") from error
    # in GB
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    folder = tempfile.mkdtemp()
    in_precision(model, dtype).save_pretrained(folder)
    engine = LLM(
        folder,
        skip_tokenizer_init=True,
        dtype=str(dtype).removeprefix("torch."),
        max_num_seqs=256,
        max_model_len=args.prompt_tokens + args.max_new_tokens + 64,
        disable_log_stats=True,
    )
    # vLLM requires it
    import psutil

    processes = psutil.Process().children(recursive=True)

    def run(work: Work, seed: int) -> list[int]:
        params = [
            SamplingParams(
                temperature=1.0, max_tokens=cap, detokenize=False, stop_token_ids=work.eos, ignore_eos=True
            )
            for cap in work.caps
        ]
        for process in processes:
            process.resume()
        out = engine.generate([{"prompt_token_ids": r} for r in work.rows], params, use_tqdm=False)
        # idle processes would keep polling and slow the other engines down
        for process in processes:
            process.suspend()
        return [len(o.outputs[0].token_ids) for o in out]

    # a suspended process could not end
    weakref.finalize(run, lambda: [process.resume() for process in processes])

    return run


ENGINES: dict[str, Callable[[Any, torch.dtype, Bench], Run]] = {
    "tinyr1": Ours,
    "hf": hugging_face,
    "static": lambda model, dtype, args: hugging_face(model, dtype, args, "static"),
    "generate_batch": generate_batch,
    "vllm": vllm,
}


def sampling_config(model: Any, work: Work, eos: list[int] | int | None, **options: Any) -> GenerationConfig:
    """Settings of transformers for samples at temperature 1 that end at EOS."""
    return GenerationConfig(
        do_sample=True,
        top_k=0,
        max_new_tokens=max(work.caps),
        eos_token_id=eos,
        pad_token_id=model.config.pad_token_id or 0,
        **options,
    )


def in_precision(model: Any, dtype: torch.dtype) -> Any:
    """The model itself if it has that precision, else a copy."""
    return model if model.dtype == dtype else copy.deepcopy(model).to(dtype)


def lengths(rows: list[list[int]], work: Work) -> list[int]:
    """Tokens per row up to the cap or the first EOS, which counts."""
    ends = ([i for i, t in enumerate(row) if t in work.eos] for row in rows)
    return [min(end[0] + 1 if end else len(row), cap) for row, end, cap in zip(rows, ends, work.caps)]


# ---------------------------------------------------------------- the work


def random_model(name: str, device: torch.device) -> Any:
    """A model with random weights in a shape of SHAPES."""
    kind, hidden, layers, heads, kv, inner, tied, vocab = SHAPES[name]
    config = AutoConfig.for_model(
        kind,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=inner,
        tie_word_embeddings=tied,
        vocab_size=vocab,
        max_position_embeddings=32768,
        eos_token_id=0,
        bos_token_id=None,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config).eval()


def make_work(args: Bench, model: Any, tokenizer: Any) -> Work:
    """The prompts and the lengths that the options ask for; only --lengths eos needs the tokenizer."""
    N = args.prompts * args.group
    rng = np.random.default_rng(0)
    # the median is an eighth of the cap; one in fifty reaches the cap
    if args.lengths == "skewed":
        caps = np.exp(rng.normal(math.log(args.max_new_tokens / 8), 1.0, N)).round().astype(int)
        caps = caps.clip(1, args.max_new_tokens).tolist()
    else:
        caps = [args.max_new_tokens] * N
    eos = sorted({tokenizer.eos_token_id}) if args.lengths == "eos" else []
    if args.lengths == "eos":
        cfg = tinyr1.parse(["mini"])[0]
        stream = Problems(tasks.load("countdown"), "train", cfg, tokenizer)
        prompts = [p.prompt_ids for p in islice(stream, args.prompts)]
    else:
        prompts = rng.integers(5, model.config.vocab_size - 5, (args.prompts, args.prompt_tokens)).tolist()
    return Work(prompts, args.group, caps, eos)


# ---------------------------------------------------------------- measuring


def synchronize(device: torch.device) -> None:
    """Wait until the GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def bandwidth(device: torch.device) -> float:
    """Bytes per second at which a large tensor is read."""
    # 1 GiB
    x = torch.ones(2**28, device=device)
    times = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        x.sum().item()
        times.append(time.perf_counter() - start)
    return x.numel() * 4 / min(times)


def timed(run: Callable, work: Any, seed: int, device: torch.device) -> tuple[float, Any]:
    """Seconds of run(work, seed), and its result."""
    synchronize(device)
    start = time.perf_counter()
    found = run(work, seed)
    synchronize(device)
    return time.perf_counter() - start, found


def decode_bytes(model: Any, dtype: torch.dtype, work: Work, found: list[int], steps: int) -> float:
    """Bytes that decoding lengths `found` (N,) reads: the weights once per step, and every earlier key and
    value once per token.
    """
    c = model.config
    dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    place = 2 * c.num_hidden_layers * c.num_key_value_heads * dim * dtype.itemsize
    weights = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    if not c.tie_word_embeddings:
        # only some rows of the embedding are read
        weights -= model.get_input_embeddings().weight.numel() * dtype.itemsize
    # the first token comes with the prompt; token j reads the prompt and the j before it
    context = sum((n - 1) * len(p) + n * (n - 1) // 2 for p, n in zip(work.rows, found))
    return steps * weights + context * place


def train_step(model: Any, args: Bench, samples: rollout.Rollout, precision: str) -> float:
    """Median seconds of the update on these samples, with random advantages: every row has a gradient."""
    device = model.device
    cfg = tinyr1.Train(precision=precision, max_new_tokens=args.max_new_tokens)
    pick_attention(model, precision)
    learner = Learner(tinyr1.Policy(model, cfg.temperature, precision), lr=0.0)
    reward = torch.randn(args.prompts, args.group, generator=torch.Generator().manual_seed(0)).to(device)
    every = torch.ones(len(samples.input_ids), dtype=torch.bool, device=device)
    batch = tinyr1.Batch(cfg, 0, 0.0, samples, reward, reward > 0, every, every)
    # not those of a group: it may have one sample
    batch.advantages = reward.view(-1, 1) * batch.loss_mask

    def run(*_: Any) -> None:
        tinyr1.update(learner, batch, cfg)

    return statistics.median(timed(run, None, 0, device)[0] for _ in range(args.repeats + 1))


PRODUCTS = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::linear",
    "aten::mkldnn_linear",
    "mkldnn::_linear_pointwise",
)


def profile(run: Run, work: Work, device: torch.device) -> dict[str, float]:
    """Shares 0..1 of the operations' own time: matrix products, attention, the rest."""
    with torch.profiler.profile() as recorded:
        run(work, 0)
    cuda = device.type == "cuda"
    events = recorded.key_averages()
    own = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in events}
    total = sum(own.values())
    attention = sum(t for k, t in own.items() if "scaled_dot_product" in k or "attention" in k or "fmha" in k)
    products = sum(t for k, t in own.items() if k in PRODUCTS or "gemm" in k)
    return {
        "matrix products": products / total,
        "attention": attention / total,
        "rest": 1 - (products + attention) / total,
    }


class Timing(NamedTuple):
    """One timed round of an engine."""

    seconds: float
    # tokens of each sample (N,)
    lengths: list[int]
    peak_gb: float

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


def start_engines(args: Bench, model: Any, dtype: torch.dtype, work: Work) -> dict[str, Run]:
    """The engines that run here, after one round each to warm up; tells which are skipped and why."""
    runs: dict[str, Run] = {}
    for engine in args.engines:
        try:
            run = ENGINES[engine](model, dtype, args)
            timed(run, work, 99, model.device)
            runs[engine] = run
        except Skip as reason:
            print(f"{engine}: skipped, {reason}")
    return runs


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many other processes compute during the body."""
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        if count:
            # until cpu.Watch has measured once
            time.sleep(1.5 * cpu.SECONDS)
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()


def take_turns(
    args: Bench, runs: dict[str, Run], work: Work, device: torch.device
) -> dict[str, list[Timing]]:
    """--repeats rounds of every engine."""
    measured: dict[str, list[Timing]] = {engine: [] for engine in runs}
    for seed in range(args.repeats):
        for engine, run in runs.items():
            peak_gb(device.type, reset=True)
            seconds, lengths = timed(run, work, seed, device)
            measured[engine].append(Timing(seconds, lengths, peak_gb(device.type)))
    return measured


def engine_figures(rounds: list[Timing]) -> dict[str, Any]:
    """Medians over the rounds: seconds, tokens, tokens per second; and the largest peak in GB."""
    speed = [one.tokens / one.seconds for one in rounds]
    return {
        "seconds": statistics.median(one.seconds for one in rounds),
        "tokens": statistics.median(one.tokens for one in rounds),
        "tokens_s": statistics.median(speed),
        "tokens_s_range": [min(speed), max(speed)],
        "peak_gb": max(one.peak_gb for one in rounds),
    }


def sampling_figures(
    model: Any, dtype: torch.dtype, work: Work, ours: Ours, last: Timing, seed: int, gb_s: float
) -> dict[str, float]:
    """Our engine's time split into prefill and decoding, and decoding compared with the memory limit, which
    is `gb_s` GB/s. `last` is a round with this seed.
    """
    first_tokens = Work(work.prompts, work.G, [1] * len(work.caps), [])
    prefill = statistics.median(timed(ours, first_tokens, s, model.device)[0] for s in range(3))
    # once more, for its number of steps
    ours(work, seed)
    decode, steps = max(last.seconds - prefill, 1e-9), ours.rollout.steps
    limit = decode_bytes(model, dtype, work, last.lengths, steps) / (gb_s * 1e9)
    return {
        "prefill_tokens_s": sum(map(len, work.prompts)) / prefill,
        "decode_tokens_s": last.tokens / decode,
        "steps": steps,
        "mean_tokens": last.tokens / len(last.lengths),
        "share_of_memory_limit": limit / decode,
    }


def measure(
    args: Bench, model: Any, dtype: torch.dtype, work: Work, runs: dict[str, Run], gb_s: float, precision: str
) -> dict[str, Any]:
    """The figures of the engines, and of the parts of ours and of a training step."""
    measured, ours = take_turns(args, runs, work, model.device), runs["tinyr1"]
    assert isinstance(ours, Ours)
    engines = {engine: engine_figures(rounds) for engine, rounds in measured.items()}
    last = measured["tinyr1"][-1]
    sampling = sampling_figures(model, dtype, work, ours, last, args.repeats - 1, gb_s)
    figures: dict[str, Any] = {"engines": engines, "sampling": sampling}
    if args.profile:
        figures["profile"] = profile(ours, work, model.device)
    if args.train:
        update = train_step(model, args, ours.rollout, precision)
        figures["step"] = {"sample": engines["tinyr1"]["seconds"], "precision": precision, "update": update}
    return figures


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a table and some lines."""
    own = figures["engines"]["tinyr1"]
    heads = f"{'tokens/s':>10}{'range':>18}{'seconds':>9}{'tokens':>9}{'peak GB':>9}{'tinyr1 is':>11}"
    print(f"\n{'engine':<16}{heads}")
    for engine, e in figures["engines"].items():
        low, high = e["tokens_s_range"]
        ratio = f"{own['tokens_s'] / e['tokens_s']:.1f}x" if engine != "tinyr1" else ""
        print(
            f"{engine:<16}{e['tokens_s']:>10,.0f}{f'{low:,.0f}-{high:,.0f}':>18}{e['seconds']:>9.2f}"
            f"{e['tokens']:>9,.0f}{e['peak_gb']:>9.2f}{ratio:>11}"
        )
    s, limit = figures["sampling"], figures["bandwidth_gb_s"]
    print(f"\ntinyr1: prefill {s['prefill_tokens_s']:,.0f}, decoding {s['decode_tokens_s']:,.0f} tokens/s")
    print(f"{s['steps']} steps, {s['mean_tokens']:.0f} tokens per sample")
    print(f"{s['share_of_memory_limit']:.0%} of the memory limit ({limit:.0f} GB/s measured)")
    if "profile" in figures:
        print("time of sampling: " + ", ".join(f"{k} {v:.0%}" for k, v in figures["profile"].items()))
    if "step" in figures:
        t = figures["step"]
        print(
            f"training step: {t['sample'] + t['update']:.2f} s = sampling {t['sample']:.2f} + update "
            f"{t['update']:.2f} ({t['precision']})"
        )
    if "beside" in figures:
        print(f"with {figures['beside']} busy processes")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "transformers"))
    print(f"{versions}; {time.strftime('%Y-%m-%d')}")


# ---------------------------------------------------------------- the command


def main(argv: list[str]) -> int:
    parser = make_parser("bench", "[--option value ...]", __doc__, groups_of(Bench))
    args = Bench(**vars(parser.parse_args(argv)))
    args.check()
    args.lengths = args.lengths or ("eos" if args.model == "minibase" and not args.random else "skewed")
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    model, tokenizer = (
        (random_model(args.random, device), None) if args.random else load_model(args.model, device)
    )
    dtype = sampling_dtype(model, precision)
    work = make_work(args, model, tokenizer)
    gb_s = bandwidth(device) / 1e9
    print(
        f"{args.random or args.model} ({model.num_parameters() / 1e6:.1f} M parameters), "
        f"{args.prompts} prompts x {args.group} samples of at most {args.max_new_tokens} tokens, "
        f"lengths: {args.lengths}; {device.type}, {dtype}"
    )
    figures: dict[str, Any] = {
        "command": asdict(args),
        "environment": environment(),
        "parameters": model.num_parameters(),
        "bandwidth_gb_s": gb_s,
    }
    runs = start_engines(args, model, dtype, work)
    if args.beside:
        figures["beside"] = args.beside
    with busy_processes(args.beside):
        figures |= measure(args, model, dtype, work, runs, gb_s, precision)
    show(figures)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0
