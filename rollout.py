"""Fast batched sampling from a causal language model; it knows no rewards and no loss.

    out = generate(model, prompts, G, max_new_tokens=256, eos_ids=[2], seed=7)      # N = len(prompts)*G rows

The weights of the training module are read at every call and no copy outlives it, so there is nothing to
synchronise. Samples live in *slots* of a pre-allocated key-value cache. A finished sample leaves its slot
to the next waiting one; when none waits, the remaining slots are moved together so that the batch shrinks.
A prompt is prefilled once for its group.

Every sample has a random stream of its own, a hash of (seed, prompt index, sample index, position): the
same seed gives the same samples whatever the number of slots (up to rounding in the matrix products).
"""

import bisect
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from decoder import Decoder, fast_path
from generic import decode_generic
from policy import evaluating, own_logp, position_limit, random_ids, rounding

BLOCK = 16  # attention reads the cache up to a multiple of it: few distinct shapes
SHRINK = 0.75  # slots are moved together when fewer than this share is busy
REFILL = 16  # waiting samples start when one slot in so many is idle
PREFILL = 2**15  # tokens of the prompts that are prefilled at once, about
# steps between two looks at what has ended: (on a GPU, with stop strings) -> steps
CHECK = {(False, False): 1, (False, True): 8, (True, False): 16, (True, True): 16}


@dataclass
class Rollout:
    """N samples, right-padded to L; T = L-1. Position t of `logp` and `mask` speaks of the token ids[:,
    t+1].
    """

    ids: torch.Tensor  # (N,L) prompt and completion, padded with `pad_id`
    prompt_len: torch.Tensor  # (N,)
    length: torch.Tensor  # (N,) tokens of the completion, the EOS that the policy chose included
    logp: (
        torch.Tensor
    )  # (N,T) log-probability of the token at the sampling temperature, 0 where mask is False
    finished: torch.Tensor  # (N,) True if the sample ended by itself, False if it was cut at max_new_tokens
    steps: int = 0  # forward passes of decoding that it took

    @property
    def mask(self) -> torch.Tensor:
        """(N,T) True on completion tokens; made from lengths, because pad may equal eos."""
        t = torch.arange(
            1, self.ids.shape[1], device=self.ids.device
        )  # the index of the token that position t-1 speaks of
        return (t >= self.prompt_len[:, None]) & (t < (self.prompt_len + self.length)[:, None])

    def completions(self) -> list[list[int]]:
        rows = zip(self.ids.tolist(), self.prompt_len.tolist(), self.length.tolist())
        return [ids[start : start + n] for ids, start, n in rows]


def join(parts: list[Rollout]) -> Rollout:
    """One Rollout of all rows, padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    L = max(part.ids.shape[1] for part in parts)

    def wide(x, width):  # (n,w) -> (n,width); what is behind a sample's end means nothing
        return F.pad(x, (0, width - x.shape[1]))

    ids, logp = (torch.cat(x) for x in zip(*((wide(p.ids, L), wide(p.logp, L - 1)) for p in parts)))
    prompt_len, length, finished = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("prompt_len", "length", "finished")
    )
    return Rollout(ids, prompt_len, length, logp, finished, sum(part.steps for part in parts))


# ---------------------------------------------------------------- random numbers, one stream a sample


def _mix(x: torch.Tensor) -> torch.Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014) on int64; multiplication wraps, shifts are made
    logical.
    """
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def stream(seed: int, prompt: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """(n,) int64 keys of independent random streams."""
    key = torch.full_like(prompt, seed)
    for number, odd in ((0, 0x1E3779B97F4A7C15), (prompt, 0x2545F4914F6CDD1D), (sample, 0x632BE59BD9B4E019)):
        key = _mix(key + (number + 1) * odd)  # + 1, or zeros would stay zero
    return key


def uniform(key: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """(n,) float32 in [0,1) with 24 random bits."""
    return ((_mix(key + position * -0x61C8864680B583EB) >> 40) & 0xFFFFFF).float() / (1 << 24)


def sample(logits: torch.Tensor, u: torch.Tensor, temperature: float, top_p: float, top_k: int):
    """Tokens (n,) and their log-probabilities (n,) from logits (n,V) and one uniform number a row, by
    inverse CDF.

    Greedy if temperature is 0. The log-probability is that of the whole distribution at this temperature
    (at 1 if greedy), because that is what the trainer scores; top-p and top-k only narrow the choice.
    """
    logp = F.log_softmax(logits.float() / (temperature or 1.0), dim=-1)  # (n,V)
    if temperature == 0:
        token = logp.argmax(-1)
    else:
        probs = logp.exp()
        if top_p < 1 or top_k:
            ordered, order = probs.sort(-1, descending=True)
            before = ordered.cumsum(-1) - ordered
            drop = (before >= top_p) | (
                torch.arange(probs.shape[1], device=probs.device) >= (top_k or probs.shape[1])
            )
            probs = torch.zeros_like(probs).scatter_(-1, order, ordered.masked_fill(drop, 0))
        cdf = probs.cumsum(-1)
        token = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0].clamp_(
            max=cdf.shape[1] - 1
        )
    return token, logp.gather(-1, token[:, None])[:, 0]


def slots_that_fit(model, length: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many key-value caches of `length` tokens fit: a quarter of a CPU's memory (of all of it, so that
    a resumed run samples in the same batches), or 80 % of what is free on a GPU.
    """
    c = model.config.get_text_config()
    try:
        heads = getattr(c, "num_key_value_heads", c.num_attention_heads)
        width = heads * (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    except (AttributeError, RuntimeError, TypeError, ValueError):  # no attention, or layers that differ
        width = c.hidden_size
    row = 2 * c.num_hidden_layers * length * width * dtype.itemsize
    if device.type == "cuda":
        weights = sum(p.numel() for p in model.parameters()) * dtype.itemsize
        torch.cuda.empty_cache()  # what training has left in the allocator's cache is free as well
        memory = 0.8 * (torch.cuda.mem_get_info(device)[0] - weights)
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 4
    return max(1, int(memory // row))


# ---------------------------------------------------------------- the samples in the making


def first_stop(ids: list[int], stop: list[str], decode) -> int | None:
    """How many of the tokens it takes until their text contains one of the strings; None if it never does."""
    if not any(s in decode(ids) for s in stop):
        return None
    return bisect.bisect_left(range(len(ids)), True, key=lambda n: any(s in decode(ids[:n]) for s in stop))


class Samples:
    """The tokens chosen so far for N = len(prompts)*G samples; the row N stands for none (an idle slot)."""

    def __init__(self, prompts, G, caps, eos_ids, stop, decode, pad_id, choose, seed, device):
        self.prompts, self.G, self.N, self.pad_id, self.choose = prompts, G, len(prompts) * G, pad_id, choose
        self.stop, self.decode, self.every = list(stop), decode, CHECK[device.type == "cuda", bool(stop)]
        self.most = caps if isinstance(caps, int) else max(caps)  # tokens of the longest sample
        self.index = torch.arange(self.N + 1, device=device)
        self.key = stream(seed, self.index // G, self.index % G)
        self.eos = torch.tensor(list(eos_ids), device=device, dtype=torch.long)
        self.cap = torch.full_like(self.index, self.most)
        self.cap[: self.N] = torch.as_tensor(caps, device=device)
        self.tokens = torch.full((self.N + 1, self.most), pad_id, device=device)
        self.logp = torch.zeros(self.N + 1, self.most, device=device)
        self.length, self.finished = torch.zeros_like(self.index), torch.zeros_like(self.index) > 0

    def settle(self, rows, logits):
        """Choose the next tokens (n,) of the samples `rows` (n,) from logits (n,V), and say which go on."""
        at = self.length[rows]
        token, logp = sample(logits, uniform(self.key[rows], at), *self.choose)
        done = torch.isin(token, self.eos)
        self.tokens[rows, at], self.logp[rows, at] = token, logp
        self.length[rows], self.finished[rows] = at + 1, done
        self.length[self.N] = 0
        return token, (rows < self.N) & ~done & (at + 1 < self.cap[rows])

    def stopped(self, rows):
        """Which of the samples `rows` (n,) have come to a stop string within the last `every` tokens."""
        window = self.every + max(len(s.encode()) for s in self.stop)
        columns = self.length[rows][:, None] - torch.arange(window, 0, -1, device=rows.device)  # (n,window)
        recent = self.tokens[rows[:, None], columns.clamp(min=0)].tolist()
        new = (ids[max(0, window - n) :] for ids, n in zip(recent, self.length[rows].tolist()))
        return torch.tensor(
            [any(s in self.decode(ids) for s in self.stop) for ids in new], device=rows.device
        )

    def rollout(self, steps: int) -> Rollout:
        device, G, N = self.index.device, self.G, self.N
        for i in range(N if self.stop else 0):
            if cut := first_stop(self.tokens[i, : self.length[i]].tolist(), self.stop, self.decode):
                self.length[i], self.finished[i] = cut, True
        prompt_len = torch.tensor([len(p) for p in self.prompts], device=device).repeat_interleave(G)
        length = self.length[:N]
        L = int((prompt_len + length).max())
        ids = torch.full((N, L), self.pad_id, device=device)
        logp = torch.zeros(N, L - 1, device=device)
        column = torch.arange(self.most, device=device)
        written = column < length[:, None]  # (N,most)
        rows = self.index[:N, None].expand_as(written)[written]
        columns = (prompt_len[:, None] + column)[written]
        ids[rows, columns], logp[rows, columns - 1] = self.tokens[:N][written], self.logp[:N][written]
        for i, p in enumerate(self.prompts):
            ids[i * G : (i + 1) * G, : len(p)] = torch.tensor(p, device=device)
        return Rollout(ids, prompt_len, length, logp, self.finished[:N], steps)


# ---------------------------------------------------------------- the fast path


class Graphs:
    """Replays step(n, width) as one CUDA graph for each pair, captured at its second use (the first one, run
    as it is, warms the libraries up). They share one memory pool and live as long as the cache they read.
    """

    def __init__(self, step):
        self.step, self.graphs, self.pool = step, {}, torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream()  # the default one cannot be captured

    def __call__(self, n: int, width: int) -> None:
        if (n, width) not in self.graphs:
            self.graphs[n, width] = None
            return self.step(n, width)
        if self.graphs[n, width] is None:
            graph = self.graphs[n, width] = torch.cuda.CUDAGraph()
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                graph.capture_begin(pool=self.pool)
                self.step(n, width)
                graph.capture_end()
            torch.cuda.current_stream().wait_stream(self.stream)
        self.graphs[n, width].replay()


def _decode_fast(model, samples: Samples, slots: int, dtype: torch.dtype) -> int:
    """Decode all samples, `slots` at a time, and return the number of steps. An idle slot goes on computing
    into the void; the host looks every `samples.every` steps what has ended.
    """
    prompts, G, N, every = samples.prompts, samples.G, samples.N, samples.every
    cuda = model.device.type == "cuda"
    block, shrink = (256, 0.5) if cuda else (BLOCK, SHRINK)  # a GPU wants few shapes: each is a graph
    longest = -(-(max(map(len, prompts)) + samples.most) // block) * block
    decoder = Decoder(model, slots, longest, dtype)
    prompt_len = torch.tensor([len(p) for p in prompts], device=model.device)
    row = torch.full((slots,), N, device=model.device)  # (slots,) which sample lives in each
    token, position = torch.zeros_like(row), torch.zeros_like(row)
    started, n, steps = 0, slots, 0
    held = (0, 0)  # first and last+1 of the prompts that are prefilled, and their keys, values and logits

    def begin(idle):
        """Start the next samples in the slots `idle`."""
        nonlocal started, held
        while len(idle) and started < N:
            first = started // G
            if first >= held[1]:
                last = min(-(-min(N, started + len(idle)) // G), first + max(1, PREFILL // longest))
                held = (first, last, *decoder.prefill(prompts[first:last]))
            new = torch.arange(started, min(started + len(idle), held[1] * G), device=model.device)
            group, started = new // G, started + len(new)
            chosen, live = samples.settle(new, held[4][group - held[0]])
            into, new, group, chosen = idle[: len(new)][live], new[live], group[live], chosen[live]
            decoder.put(into, *(x[:, group - held[0]] for x in held[2:4]))
            row[into], token[into], position[into] = new, chosen, prompt_len[group]
            idle = idle[~torch.isin(idle, into)]
        rest = held[1] - 1 - held[0]  # only the last prompt can have samples that wait
        held = (held[0] + rest, held[1], *(x[:, rest:].clone() for x in held[2:4]), held[4][rest:].clone())

    def step(n, width):
        chosen, live = samples.settle(row[:n], decoder.step(token[:n], position[:n], width))
        token[:n].copy_(chosen)
        position[:n].add_(1).mul_(live)
        row[:n].masked_fill_(~live, N)

    run = Graphs(step) if cuda else step
    while True:
        if samples.stop:
            row[:n].masked_fill_(samples.stopped(row[:n]), N)
        idle = torch.nonzero(row[:n] == N)[:, 0]
        if started < N and len(idle) >= min(N - started, max(1, n // REFILL)):
            begin(idle)
            continue
        if len(idle) == n:
            return steps
        width = min(longest, -(-(int(position[:n].max()) + every) // block) * block)
        if started == N and n - len(idle) < shrink * n:
            n -= len(idle)  # the samples beyond move into the gaps before
            gaps, beyond = idle[idle < n], n + torch.nonzero(row[n : n + len(idle)] < N)[:, 0]
            decoder.move(beyond, gaps, width)
            for x in (row, token, position):
                x[gaps] = x[beyond]
            continue
        for _ in range(every):
            run(n, width)
        steps += every


# ---------------------------------------------------------------- which path

# The ways of sampling, fastest first; all but the first are (padded, cached) of the generic path.
PATHS = {"fast": None, "padded": (True, True), "equal": (False, True), "whole": (False, False)}
SLOWER = {
    "padded": "takes the generic, slower path (its own forward pass)",
    "equal": "takes the generic, slower path, prompts of one length at a time (padding would change it)",
    "whole": "takes the slowest path: without a usable cache, every token computes its whole row again",
}


def decode_by(model, samples: Samples, slots: int, dtype: torch.dtype, path: str) -> int:
    """Decode all samples on this path, and return the number of steps."""
    if path == "fast":
        return _decode_fast(model, samples, slots, dtype)
    return decode_generic(model, samples, slots, *PATHS[path])


def probe(model, path: str) -> Rollout:
    """A few samples of random prompts of two lengths, which end at different steps."""
    ids = random_ids(model, 10).tolist()
    choose = (1.0, 1.0, 0)
    samples = Samples([ids[:3], ids[3:]], 2, [2, 5, 3, 4], (), (), None, 0, choose, 0, model.device)
    steps = decode_by(model, samples, samples.N, model.dtype, path)
    return samples.rollout(steps)


def sampling_path(model) -> str:
    """The first of PATHS that samples from this model: a few samples' log-probabilities are those of its own
    forward pass over each row alone. Found once a model. Errors: ValueError if there is none.
    """
    known = getattr(model, "_sampling_path", None)
    if known and (known != "fast" or fast_path(model)):  # an adapter may have been added since
        return known
    failures = []
    for path in PATHS:
        if path == "fast" and not fast_path(model):
            continue
        try:
            with torch.inference_mode():
                roll = probe(model, path)
            expected, spread = own_logp(model, roll)
            gap = (roll.logp - expected).abs().max().item()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model's own code raises on inputs that it does not take
            failures.append(f"{path}: {type(error).__name__}: {' '.join(str(error).split())[:150]}")
            continue
        if gap <= rounding(model) * spread:
            model._sampling_path = path
            return path
        failures.append(f"{path}: off by {gap:.2g} nats")
    raise ValueError(
        f"no way of sampling from {model.config.model_type} gives the log-probabilities of its own forward "
        f"pass over a row alone ({'; '.join(failures)}). Choose another model"
    )


# ---------------------------------------------------------------- the interface

_announced = set()


def announce(line: str) -> None:
    """Print a line once in the life of the process."""
    if line not in _announced:
        _announced.add(line)
        print(f"rollout: {line}")


def longest_prompt(model, max_new_tokens: int) -> float:
    """Tokens that a prompt may have, so that a response of max_new_tokens fits into the model's positions."""
    return position_limit(model) - max_new_tokens


def _check(model, prompts, most: int) -> int:
    """Tokens of the longest prompt with its response. Errors: ValueError if it does not fit."""
    if not prompts or not all(prompts):
        raise ValueError(
            "generate() was given no prompt or an empty one: every prompt needs at least one token"
        )
    longest = max(map(len, prompts))
    if longest > (room := longest_prompt(model, most)):
        raise ValueError(
            f"the longest prompt has {longest} tokens and max_new_tokens is {most}, but the model "
            f"knows only {room + most} positions (or encodes all of them differently beyond that): lower "
            "--max_new_tokens"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if (largest := max(map(max, prompts))) >= rows:
        raise ValueError(
            f"a prompt has the token {largest}, but the model's embedding has only {rows} rows: model and "
            "tokenizer do not belong together"
        )
    return longest + most


@torch.no_grad()
def generate(
    model,
    prompts: list[list[int]],
    G: int = 1,
    *,
    max_new_tokens: int | list[int],
    eos_ids=(),
    stop=(),
    decode=None,
    pad_id: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    slots: int | None = None,
    dtype: torch.dtype | None = None,
) -> Rollout:
    """G samples for each of the prompts (lists of token ids), as a `Rollout` of N = len(prompts)*G rows,
    prompt by prompt.

    A sample ends with one of `eos_ids`, with the token that completes one of the strings `stop` (`decode`
    turns a list of ids into text), or after max_new_tokens (one number, or one for each of the N samples).
    temperature 0 is greedy and equals Hugging Face `generate`. `slots` bounds how many samples are decoded
    at once (default: what fits in memory; fewer if that was too many). `dtype` is the precision of the
    computation (default: that of the weights). Raises ValueError for an empty prompt or one that leaves no
    room within the model's positions.
    """
    device, dtype = model.device, dtype or model.get_input_embeddings().weight.dtype
    choose = (temperature, top_p, top_k)
    samples = Samples(prompts, G, max_new_tokens, eos_ids, stop, decode, pad_id, choose, seed, device)
    width = _check(model, prompts, samples.most)
    with evaluating(model):
        path = sampling_path(model)
    if path != "fast":
        announce(f"{model.config.model_type} {SLOWER[path]}")
    slots = min(samples.N, slots or slots_that_fit(model, width, dtype, device))
    if slots < samples.N:
        announce(f"{slots} samples of up to {width} tokens at a time (slots, or memory, for no more)")
    mixed = path != "fast" and dtype != torch.float32
    while True:
        samples.length.zero_()
        autocast = torch.autocast(device.type, dtype, enabled=mixed)
        with evaluating(model), torch.inference_mode(), autocast:
            try:
                steps = decode_by(model, samples, slots, dtype, path)
                break
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if slots == 1 or "memory" not in str(error):
                    raise
        slots = -(-slots // 2)  # a sample is the same however many stand beside it
        print(f"rollout: out of memory, so the samples are decoded anew, {slots} at a time")
    return samples.rollout(steps)
