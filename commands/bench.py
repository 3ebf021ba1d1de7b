"""How fast this machine samples and trains, compared with other engines on the same weights.

    python tinyr1.py bench                              the miniature on Countdown, until its own EOS
    python tinyr1.py bench --model FOLDER --lengths skewed --prompts 8 --group 8
    python tinyr1.py bench --random qwen2.5-1.5b --prompts 32 --group 8 --max_new_tokens 1024 --lengths fixed
    python tinyr1.py bench --against hf,static,generate_batch,vllm --json bench.json

All engines run in one process and take turns: one round to warm up, then `repeats` timed rounds; seconds are
medians. The memory's limit is the time to read the weights once per step and every cached key and value once
per token, at the bandwidth that reading a large tensor reaches here. `--random` needs no download: the shape
of a published model, with random weights.
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
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, StoppingCriteria

import tasks
import tinyr1
from engine import rollout
from runtime import cpu
from runtime.config import Parser, option
from runtime.learner import Learner
from runtime.models import load_model, peak_gb, pick_attention, pick_device, pick_precision
from runtime.runfolder import UserError, environment

# hidden, layers, heads, key-value heads, intermediate, tied embeddings, vocabulary; config.json of each model
SHAPES = {
    "25m": ("qwen2", 512, 8, 8, 2, 2048, True, 4096),
    "smollm2-135m": ("llama", 576, 30, 9, 3, 1536, True, 49152),
    "qwen2.5-0.5b": ("qwen2", 896, 24, 14, 2, 4864, True, 151936),
    "qwen2.5-1.5b": ("qwen2", 1536, 28, 12, 2, 8960, True, 151936),
    "qwen2.5-3b": ("qwen2", 2048, 36, 16, 2, 11008, True, 151936),
    "qwen2.5-7b": ("qwen2", 3584, 28, 28, 4, 18944, False, 152064),
}


@dataclass
class Bench:
    model: str = option("minibase", "Hugging Face folder or hub id; minibase is the miniature shipped here")
    random: str = option("", f"random weights in the shape of {', '.join(SHAPES)}")
    prompts: int = option(16, "prompts")
    group: int = option(16, "samples per prompt")
    prompt_tokens: int = option(
        64, "tokens per prompt of random tokens (--lengths eos takes Countdown's prompts)"
    )
    max_new_tokens: int = option(160, "cap on the tokens of a response")
    lengths: str = option(
        "", "eos: as the model ends; fixed: all at the cap; skewed: most short, few at the cap; empty: eos "
        "of the miniature, else skewed",
        ["", "eos", "fixed", "skewed"],
    )  # fmt: skip
    against: str = option("hf", "engines to compare with, of hf,static,generate_batch,vllm; none for none")
    repeats: int = option(3, "timed rounds")
    slots: int = option(0, "samples decoded at once; 0 for as many as fit")
    train: bool = option(True, "time a training step, too")
    beside: int = option(0, "busy processes that run during the measurement")
    profile: bool = option(False, "print where the time of sampling goes")
    device: str = option("auto", "cuda if there, else cpu", ["auto", "cuda", "cpu"])
    precision: str = option(
        "auto", "precision of the training step, and of sampling on a GPU", ["auto", "fp32", "bf16"]
    )
    json: str = option("", "write the figures to this file")


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


def ours(model, dtype, args):
    def run(work: Work, seed: int) -> list[int]:
        most = work.caps if len(set(work.caps)) > 1 else work.caps[0]
        run.out = rollout.generate(
            model, work.prompts, work.G, max_new_tokens=most, eos_ids=work.eos, seed=seed,
            slots=args.slots or None, dtype=dtype,
        )  # fmt: skip
        return run.out.length.tolist()

    return run


class Caps(StoppingCriteria):
    def __init__(self, caps, prompt: int):
        self.total = torch.tensor(caps) + prompt

    def __call__(self, ids, scores, **_):
        return torch.full((len(ids),), ids.shape[1], device=ids.device) >= self.total.to(ids.device)


def hugging_face(model, dtype, args, cache=None):
    """`generate` of transformers, all rows at once: it computes a finished row until the longest one ends."""
    model = in_precision(model, dtype)
    pad = model.config.pad_token_id or 0

    def run(work: Work, seed: int) -> list[int]:
        torch.manual_seed(seed)
        rows, width = work.rows, max(map(len, work.prompts))
        ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=model.device)
        config = GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=max(work.caps), eos_token_id=work.eos or None,
            pad_token_id=pad, cache_implementation=cache,
        )  # fmt: skip
        out = model.generate(
            ids, attention_mask=mask, generation_config=config, stopping_criteria=[Caps(work.caps, width)]
        )
        return lengths(out[:, width:].tolist(), work)

    return run


def generate_batch(model, dtype, args):
    """transformers' continuous batching, request by request so that each has its own cap."""
    try:
        import psutil  # noqa: F401  (without it transformers sees no memory on a CPU)
        from transformers.generation import ContinuousBatchingConfig
    except ImportError as error:
        raise Skip(f"it needs a newer transformers, and psutil ({error})") from error
    model = in_precision(model, dtype)

    def run(work: Work, seed: int) -> list[int]:
        torch.manual_seed(seed)
        config = GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=max(work.caps), eos_token_id=work.eos or -1,
            pad_token_id=model.config.pad_token_id or 0,
        )  # fmt: skip
        # room for all samples at once; by default the cache would fill the memory
        found, pages = {}, sum((len(row) + cap) // 256 + 1 for row, cap in zip(work.rows, work.caps))
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


def vllm(model, dtype, args):
    try:
        from vllm import LLM, SamplingParams
    except ImportError as error:
        raise Skip("vllm is not installed in this environment") from error
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GB
    folder = tempfile.mkdtemp()
    in_precision(model, dtype).save_pretrained(folder)
    engine = LLM(
        folder, skip_tokenizer_init=True, dtype=str(dtype).removeprefix("torch."), max_num_seqs=256,
        max_model_len=args.prompt_tokens + args.max_new_tokens + 64, disable_log_stats=True,
    )  # fmt: skip

    import psutil  # vLLM brings it

    processes = psutil.Process().children(recursive=True)

    def run(work: Work, seed: int) -> list[int]:
        params = [
            SamplingParams(temperature=1.0, max_tokens=cap, detokenize=False, stop_token_ids=work.eos,
                           ignore_eos=True)
            for cap in work.caps
        ]  # fmt: skip
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


ENGINES = {
    "tinyr1": ours,
    "hf": hugging_face,
    "static": lambda model, dtype, args: hugging_face(model, dtype, args, "static"),
    "generate_batch": generate_batch,
    "vllm": vllm,
}


def in_precision(model, dtype):
    """The model itself if it has that precision, else a copy."""
    return model if model.dtype == dtype else copy.deepcopy(model).to(dtype)


def lengths(rows: list[list[int]], work: Work) -> list[int]:
    """Tokens up to the first EOS (with it) or the cap."""
    ends = ([i for i, t in enumerate(row) if t in work.eos] for row in rows)
    return [min(end[0] + 1 if end else len(row), cap) for row, end, cap in zip(rows, ends, work.caps)]


# ---------------------------------------------------------------- the work


def random_model(name: str, device: torch.device):
    if name not in SHAPES:
        raise UserError(f"Unknown shape {name!r}: --random takes one of {', '.join(SHAPES)}.")
    kind, hidden, layers, heads, kv, inner, tied, vocab = SHAPES[name]
    config = AutoConfig.for_model(
        kind, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, vocab_size=vocab,
        num_key_value_heads=kv, intermediate_size=inner, tie_word_embeddings=tied, eos_token_id=0,
        bos_token_id=None, pad_token_id=0, max_position_embeddings=32768,
    )  # fmt: skip
    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config).eval(), None


def make_work(args: Bench, model, tokenizer) -> Work:
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
        stream = tinyr1.Problems(tasks.load("countdown"), "train", cfg, tokenizer)
        prompts = [p.prompt_ids for p in islice(stream, args.prompts)]
    else:
        prompts = rng.integers(5, model.config.vocab_size - 5, (args.prompts, args.prompt_tokens)).tolist()
    return Work(prompts, args.group, caps, eos)


# ---------------------------------------------------------------- measuring


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def bandwidth(device) -> float:
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


def timed(run, work, seed, device) -> tuple[float, list[int]]:
    synchronize(device)
    start = time.perf_counter()
    found = run(work, seed)
    synchronize(device)
    return time.perf_counter() - start, found


def decode_bytes(model, dtype, work: Work, found: list[int], steps: int) -> float:
    """Bytes that decoding reads: weights once per step, every earlier key and value once per token."""
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


def train_step(model, args: Bench, roll, precision: str, device) -> float:
    """Median seconds of the update on these samples, with random advantages: every row has a gradient."""
    cfg = tinyr1.Train(precision=precision, max_new_tokens=args.max_new_tokens)
    pick_attention(model, precision)
    learner = Learner(tinyr1.Policy(model, cfg.temperature, precision), lr=0.0)
    reward = torch.randn(args.prompts, args.group, generator=torch.Generator().manual_seed(0)).to(device)
    every = torch.ones(len(roll.input_ids), dtype=torch.bool, device=device)
    batch = tinyr1.Batch(cfg, 0, 0.0, roll, reward, reward > 0, every, every)
    tinyr1.compute_advantages(batch, cfg)

    def run(*_):
        tinyr1.update(learner, batch, cfg)

    return statistics.median(timed(run, None, 0, device)[0] for _ in range(args.repeats + 1))


PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::mkldnn_linear",
            "mkldnn::_linear_pointwise")  # fmt: skip


def profile(run, work, device) -> dict:
    """Shares of the operations' own time: matrix products, attention, the rest."""
    with torch.profiler.profile() as recorded:
        run(work, 0)
    cuda = device.type == "cuda"
    events = recorded.key_averages()
    own = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in events}
    total = sum(own.values())
    attention = sum(t for k, t in own.items() if "scaled_dot_product" in k or "attention" in k or "fmha" in k)
    products = sum(t for k, t in own.items() if k in PRODUCTS or "gemm" in k)
    return {"matrix products": products / total, "attention": attention / total,
            "rest": 1 - (products + attention) / total}  # fmt: skip


# ---------------------------------------------------------------- the command


def main(argv: list[str]) -> int:
    args = Parser(
        Bench, prog="tinyr1.py bench", description=__doc__.split("\n")[0]
    ).parse_args_into_dataclasses(argv)[0]
    args.lengths = args.lengths or ("eos" if args.model == "minibase" and not args.random else "skewed")
    if args.lengths == "eos" and args.random:
        raise UserError("--lengths eos has no meaning for --random weights: use fixed or skewed.")
    asked = [] if args.against == "none" else args.against.split(",")
    if unknown := set(asked) - set(ENGINES):
        raise UserError(
            f"Unknown engine {unknown.pop()!r}: --against takes {', '.join([*ENGINES][1:])} or none."
        )
    device = pick_device(args.device)
    precision = pick_precision(args.precision, device)
    dtype = torch.bfloat16 if device.type == "cuda" and precision == "bf16" else torch.float32
    model, tokenizer = random_model(args.random, device) if args.random else load_model(args.model, device)
    work = make_work(args, model, tokenizer)
    figures = {"command": asdict(args), "environment": environment(), "engines": {}}
    figures["parameters"] = model.num_parameters()
    figures["bandwidth_gb_s"] = bandwidth(device) / 1e9
    name = args.random or args.model
    print(
        f"{name} ({model.num_parameters() / 1e6:.1f} M), {args.prompts} prompts x {args.group} samples, "
        f"at most {args.max_new_tokens} new tokens, lengths: {args.lengths}; {device.type}, {dtype}"
    )
    runs = {}
    for engine in ["tinyr1", *asked]:
        try:
            runs[engine] = ENGINES[engine](model, dtype, args)
            # warms up
            timed(runs[engine], work, 99, device)
        except Skip as reason:
            runs.pop(engine, None)
            print(f"{engine}: skipped, {reason}")
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(args.beside)]
    try:
        measure(args, model, dtype, work, runs, figures, precision)
    finally:
        for neighbour in neighbours:
            neighbour.kill()
    show(figures)
    if args.json:
        Path(args.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def measure(args: Bench, model, dtype, work: Work, runs: dict, figures: dict, precision: str) -> None:
    """Time the engines in turns, then the parts of ours and a training step."""
    device = model.device
    if args.beside:
        # the first measurement of cpu.Watch
        time.sleep(1.5 * cpu.SECONDS)
        figures["beside"] = args.beside
    measured = {engine: [] for engine in runs}
    for seed in range(args.repeats):
        for engine, run in runs.items():
            peak_gb(device.type, reset=True)
            seconds, found = timed(run, work, seed, device)
            measured[engine].append((seconds, sum(found), peak_gb(device.type), found))
    for engine, rows in measured.items():
        speed = [tokens / seconds for seconds, tokens, *_ in rows]
        figures["engines"][engine] = {
            "seconds": statistics.median(r[0] for r in rows), "tokens": statistics.median(r[1] for r in rows),
            "tokens_s": statistics.median(speed), "tokens_s_range": [min(speed), max(speed)],
            "peak_gb": max(r[2] for r in rows),
        }  # fmt: skip
    sampling(model, dtype, work, runs["tinyr1"], measured["tinyr1"], figures, device)
    if args.profile:
        figures["profile"] = profile(runs["tinyr1"], work, device)
    if args.train:
        figures["step"] = {"sample": figures["engines"]["tinyr1"]["seconds"], "precision": precision}
        figures["step"]["update"] = train_step(model, args, runs["tinyr1"].out, precision, device)


def sampling(model, dtype, work, run, rows, figures, device) -> None:
    """Split our engine's time into prefill and decoding, and compare decoding with the memory's limit."""
    first = Work(work.prompts, work.G, [1] * len(work.caps), [])
    prefill = statistics.median(timed(run, first, s, device)[0] for s in range(3))
    seconds, _, _, found = rows[-1]
    # for its number of steps
    timed(run, work, len(rows) - 1, device)
    decode, steps = max(seconds - prefill, 1e-9), run.out.steps
    limit = decode_bytes(model, dtype, work, found, steps) / (figures["bandwidth_gb_s"] * 1e9)
    figures["sampling"] = {
        "prefill_tokens_s": sum(map(len, work.prompts)) / prefill,
        "decode_tokens_s": sum(found) / decode, "steps": steps, "mean_tokens": sum(found) / len(found),
        "share_of_memory_limit": limit / decode,
    }  # fmt: skip


def show(figures: dict) -> None:
    own = figures["engines"]["tinyr1"]
    heads = f"{'tokens/s':>10}{'range':>18}{'seconds':>9}{'tokens':>9}{'peak GB':>9}{'tinyr1 is':>11}"
    print(f"\n{'engine':<16}{heads}")
    for engine, e in figures["engines"].items():
        low, high = e["tokens_s_range"]
        ratio = f"{own['tokens_s'] / e['tokens_s']:.1f}x" if engine != "tinyr1" else ""
        print(f"{engine:<16}{e['tokens_s']:>10,.0f}{f'{low:,.0f}-{high:,.0f}':>18}{e['seconds']:>9.2f}"
              f"{e['tokens']:>9,.0f}{e['peak_gb']:>9.2f}{ratio:>11}")  # fmt: skip
    s, limit = figures["sampling"], figures["bandwidth_gb_s"]
    print(f"\ntinyr1: prefill {s['prefill_tokens_s']:,.0f}, decoding {s['decode_tokens_s']:,.0f} tokens/s")
    print(f"{s['steps']} steps, {s['mean_tokens']:.0f} tokens per sample")
    print(f"{s['share_of_memory_limit']:.0%} of the memory's limit ({limit:.0f} GB/s measured)")
    if "profile" in figures:
        print("time of sampling: " + ", ".join(f"{k} {v:.0%}" for k, v in figures["profile"].items()))
    if "step" in figures:
        t = figures["step"]
        print(f"a training step: {t['sample'] + t['update']:.2f} s = sampling {t['sample']:.2f} + update "
              f"{t['update']:.2f} ({t['precision']})")  # fmt: skip
    if "beside" in figures:
        print(f"with {figures['beside']} busy processes")
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "transformers"))
    print(f"{versions}; {time.strftime('%Y-%m-%d')}")
