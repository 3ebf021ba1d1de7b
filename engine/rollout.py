"""Fast batched sampling from a causal language model; it knows no rewards and no loss.

    out = generate(model, prompts, G, max_new_tokens=256, eos_ids=[2], seed=7)      # N = len(prompts)*G rows

`generate` reads the weights of the training module at every call and keeps no copy, so there is nothing to
synchronise. Samples live in *slots* of a pre-allocated key-value cache. A finished sample leaves its slot to
the next waiting one; when none waits, the remaining slots are moved together so that the batch shrinks. A
prompt is prefilled once for its group.

Every sample has its own random stream, a hash of (seed, prompt index, sample index, position): the same seed
gives the same samples for any number of slots (up to rounding in the matrix products).
"""

import bisect
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine import round_up
from engine.decoder import Decoder, Prefix, has_fast_path
from engine.generic import decode_generic
from engine.policy import evaluating, model_logprobs, position_limit, random_ids, rounding_tolerance

# attention reads the cache up to a multiple of BLOCK: few distinct shapes
BLOCK = 16
# slots are moved together when fewer than this share is busy
SHRINK = 0.75
# waiting samples start when one slot in REFILL is idle
REFILL = 16
# tokens of the prompts that are prefilled at once, about
PREFILL = 2**15
# steps between two checks for finished samples: (on a GPU, with stop strings) -> steps
CHECK = {(False, False): 1, (False, True): 8, (True, False): 16, (True, True): 16}


@dataclass
class Rollout:
    """N samples of prompts and completions, right-padded to L tokens; T = L-1.

    Position t of `logprobs` and `mask` refers to the token input_ids[:, t+1]: the first token of a row has
    no log-probability. Two samples (N=2, L=5, pad_id=0, EOS 2), a prompt of two tokens and one of one:

        input_ids = [[11, 12, 31, 32,  2],        prompt_len = [2, 1]
                     [13, 33,  2,  0,  0]]        length     = [3, 2]
        mask      = [[ F,  T,  T,  T],            # 31, 32, 2
                     [ T,  T,  F,  F]]            # 33, 2
        logprobs  = [[ 0., -.7, -.2, -.1],
                     [-.9, -.3,  0.,  0.]]
    """

    # (N,L) prompt and completion, padded with `pad_id`
    input_ids: Tensor
    # (N,) tokens of the prompt
    prompt_len: Tensor
    # (N,) tokens of the completion, with the EOS that the policy chose
    length: Tensor
    # (N,T) log-probability of the token at the sampling temperature, 0 where mask is False
    logprobs: Tensor
    # (N,) True if the sample ended by itself, False if it was cut at max_new_tokens
    finished: Tensor
    # forward passes of decoding that it took
    steps: int = 0

    @property
    def mask(self) -> Tensor:
        """(N,T) True on completion tokens; made from lengths, because pad may equal EOS."""
        # the index of the token that each position refers to
        token = torch.arange(1, self.input_ids.shape[1], device=self.input_ids.device)
        end = self.prompt_len + self.length
        return (token >= self.prompt_len[:, None]) & (token < end[:, None])

    def completions(self) -> list[list[int]]:
        rows = zip(self.input_ids.tolist(), self.prompt_len.tolist(), self.length.tolist())
        return [ids[start : start + n] for ids, start, n in rows]


def join(parts: list[Rollout]) -> Rollout:
    """One Rollout of all rows, padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    L = max(part.input_ids.shape[1] for part in parts)

    def concatenate(name: str, width: int | None = None) -> Tensor:
        tensors: list[Tensor] = [getattr(part, name) for part in parts]
        if width is not None:
            tensors = [F.pad(x, (0, width - x.shape[1])) for x in tensors]
        return torch.cat(tensors)

    return Rollout(
        input_ids=concatenate("input_ids", L),
        prompt_len=concatenate("prompt_len"),
        length=concatenate("length"),
        logprobs=concatenate("logprobs", L - 1),
        finished=concatenate("finished"),
        steps=sum(part.steps for part in parts),
    )


# ---------------------------------------------------------------- random numbers, one stream per sample


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014) on int64; multiplication wraps, shifts are made
    logical.
    """
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def random_keys(seed: int, prompt: Tensor, sample: Tensor) -> Tensor:
    """(n,) int64 keys of independent random streams."""
    key = torch.full_like(prompt, seed)
    for number, odd in ((0, 0x1E3779B97F4A7C15), (prompt, 0x2545F4914F6CDD1D), (sample, 0x632BE59BD9B4E019)):
        # + 1, or zeros would stay zero
        key = _mix(key + (number + 1) * odd)
    return key


def random_uniform(key: Tensor, position: Tensor) -> Tensor:
    """(n,) float32 in [0,1) with 24 random bits."""
    return ((_mix(key + position * -0x61C8864680B583EB) >> 40) & 0xFFFFFF).float() / (1 << 24)


class Choice(NamedTuple):
    """How a token is chosen: greedily if temperature is 0; top_k 0 means any number of tokens."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def sample_tokens(
    logits: Tensor, u: Tensor, temperature: float, top_p: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """Tokens (n,) and their log-probabilities (n,) from logits (n,V) and one uniform number per row, by
    inverse CDF.

    Greedy if temperature is 0. The log-probability is that of the whole distribution at this temperature
    (at 1 if greedy), because that is what the trainer scores; top-p and top-k only narrow the choice.
    """
    # (n,V)
    logprobs = F.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        token = logprobs.argmax(-1)
    else:
        probs = logprobs.exp()
        if top_p < 1 or top_k:
            probs = _narrow(probs, top_p, top_k)
        cdf = probs.cumsum(-1)
        token = torch.searchsorted(cdf, (u * cdf[:, -1])[:, None], right=True)[:, 0]
        token = token.clamp_(max=cdf.shape[1] - 1)
    return token, logprobs.gather(-1, token[:, None])[:, 0]


def _narrow(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """The probabilities (n,V) with those outside top-p and top-k set to 0."""
    ordered, order = probs.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    rank = torch.arange(probs.shape[1], device=probs.device)
    drop = (before >= top_p) | (rank >= (top_k or probs.shape[1]))
    return torch.zeros_like(probs).scatter_(-1, order, ordered.masked_fill(drop, 0))


# ---------------------------------------------------------------- the samples while they are decoded


def find_stop(ids: list[int], stop: Sequence[str], decode: Callable[[list[int]], str]) -> int | None:
    """The number of tokens after which the text contains one of the strings; None if it never does."""

    def contains(count: int) -> bool:
        text = decode(ids[:count])
        return any(s in text for s in stop)

    if not contains(len(ids)):
        return None
    return bisect.bisect_left(range(len(ids)), True, key=contains)


class DecodeState:
    """The tokens chosen so far for N = len(prompts)*G samples; row N is an idle slot."""

    def __init__(
        self,
        prompts: list[list[int]],
        G: int,
        caps: int | Sequence[int],
        *,
        device: torch.device,
        eos_ids: Iterable[int] = (),
        stop: Iterable[str] = (),
        decode: Callable[[list[int]], str] | None = None,
        pad_id: int = 0,
        choice: Choice = Choice(),  # noqa: B008 (immutable)
        seed: int = 0,
        first: int = 0,
    ):
        self.prompts, self.G, self.N = prompts, G, len(prompts) * G
        self.pad_id, self.choice = pad_id, choice
        self.stop, self.decode = list(stop), decode
        self.check_every = CHECK[device.type == "cuda", bool(self.stop)]
        # tokens of the longest sample
        self.max_tokens = caps if isinstance(caps, int) else max(caps)
        # (N+1,)
        self.index = torch.arange(self.N + 1, device=device)
        self.key = random_keys(seed, first + self.index // G, self.index % G)
        self.cap = torch.full_like(self.index, self.max_tokens)
        self.cap[: self.N] = torch.as_tensor(caps, device=device)
        self.length = torch.zeros_like(self.index)
        self.finished = torch.zeros_like(self.index, dtype=torch.bool)
        # (N+1,max_tokens)
        self.tokens = torch.full((self.N + 1, self.max_tokens), pad_id, device=device)
        self.logprobs = torch.zeros(self.N + 1, self.max_tokens, device=device)
        self.eos = torch.tensor(list(eos_ids), device=device, dtype=torch.long)

    def append_tokens(self, rows: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the next tokens (n,) of the samples `rows` (n,) from logits (n,V); also (n,) bool, which of
        these samples continue.
        """
        at = self.length[rows]
        token, logprobs = sample_tokens(logits, random_uniform(self.key[rows], at), *self.choice)
        done = torch.isin(token, self.eos)
        self.tokens[rows, at] = token
        self.logprobs[rows, at] = logprobs
        self.length[rows] = at + 1
        self.finished[rows] = done
        self.length[self.N] = 0
        return token, (rows < self.N) & ~done & (at + 1 < self.cap[rows])

    def find_stopped(self, rows: Tensor) -> Tensor:
        """(n,) bool: which of the samples `rows` (n,) completed a stop string in the last `check_every`
        tokens.
        """
        assert self.decode is not None
        window = self.check_every + max(len(s.encode()) for s in self.stop)
        # (n,window)
        columns = self.length[rows][:, None] - torch.arange(window, 0, -1, device=rows.device)
        recent = self.tokens[rows[:, None], columns.clamp(min=0)].tolist()
        stopped = []
        for ids, length in zip(recent, self.length[rows].tolist()):
            text = self.decode(ids[max(0, window - length) :])
            stopped.append(any(s in text for s in self.stop))
        return torch.tensor(stopped, device=rows.device)

    def cut_at_stop(self) -> None:
        """End each sample with the token that completes its first stop string."""
        assert self.decode is not None
        for i in range(self.N):
            count = find_stop(self.tokens[i, : self.length[i]].tolist(), self.stop, self.decode)
            if count:
                self.length[i], self.finished[i] = count, True

    def rollout(self, steps: int) -> Rollout:
        if self.stop:
            self.cut_at_stop()
        device, G, N = self.index.device, self.G, self.N
        prompt_len = torch.tensor([len(p) for p in self.prompts], device=device).repeat_interleave(G)
        length = self.length[:N]
        L = int((prompt_len + length).max())
        input_ids = torch.full((N, L), self.pad_id, device=device)
        logprobs = torch.zeros(N, L - 1, device=device)
        column = torch.arange(self.max_tokens, device=device)
        # (N,max_tokens)
        written = column < length[:, None]
        rows = self.index[:N, None].expand_as(written)[written]
        columns = (prompt_len[:, None] + column)[written]
        input_ids[rows, columns] = self.tokens[:N][written]
        logprobs[rows, columns - 1] = self.logprobs[:N][written]
        for i, prompt in enumerate(self.prompts):
            input_ids[i * G : (i + 1) * G, : len(prompt)] = torch.tensor(prompt, device=device)
        return Rollout(input_ids, prompt_len, length, logprobs, self.finished[:N], steps)


# ---------------------------------------------------------------- the fast path


class Graphs:
    """Replays step(n, width) as one CUDA graph per (n, width), captured at its second use; the first use runs
    without a graph and warms the libraries up. The graphs share one memory pool and live as long as the cache
    that they read.
    """

    def __init__(self, step: Callable[[int, int], None]):
        self.step = step
        self.graphs: dict[tuple[int, int], torch.cuda.CUDAGraph | None] = {}
        self.pool = torch.cuda.graph_pool_handle()
        # the default stream cannot be captured
        self.stream = torch.cuda.Stream()

    def __call__(self, n: int, width: int) -> None:
        if (n, width) not in self.graphs:
            self.graphs[n, width] = None
            self.step(n, width)
            return
        graph = self.graphs[n, width]
        if graph is None:
            graph = self.graphs[n, width] = self.capture(n, width)
        graph.replay()

    def capture(self, n: int, width: int) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool)
            self.step(n, width)
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph


class SlotDecoder:
    """Decodes all samples, at most `slots` at a time. The first `busy` slots are computed; an idle slot among
    them is computed too, and its result is discarded.
    """

    def __init__(self, model: Any, samples: DecodeState, slots: int, dtype: torch.dtype):
        self.samples, self.device = samples, model.device
        cuda = model.device.type == "cuda"
        # a GPU wants few shapes, because each is a graph
        self.block, self.shrink_below = (256, 0.5) if cuda else (BLOCK, SHRINK)
        prompt_len = [len(p) for p in samples.prompts]
        self.longest = round_up(max(prompt_len) + samples.max_tokens, self.block)
        self.decoder = Decoder(model, slots, self.longest, dtype)
        self.prompt_len = torch.tensor(prompt_len, device=self.device)
        self.run_step: Callable[[int, int], None] = Graphs(self.step) if cuda else self.step
        # (slots,) the sample in each slot, N if it is idle; its last token and that token's position
        self.row = torch.full((slots,), samples.N, device=self.device)
        self.token, self.position = torch.zeros_like(self.row), torch.zeros_like(self.row)
        self.busy = slots
        # samples that have started
        self.started = 0
        # the prefilled prompts begin:end
        self.prefix: Prefix | None = None
        self.begin, self.end = 0, 0

    def decode(self) -> int:
        """Decode all samples and return the number of steps."""
        samples, N, steps = self.samples, self.samples.N, 0
        while True:
            row = self.row[: self.busy]
            if samples.stop:
                row.masked_fill_(samples.find_stopped(row), N)
            idle = torch.nonzero(row == N)[:, 0]
            waiting = N - self.started
            if waiting and len(idle) >= min(waiting, max(1, self.busy // REFILL)):
                self.start(idle)
                continue
            if len(idle) == self.busy:
                return steps
            end = int(self.position[: self.busy].max()) + samples.check_every
            width = min(self.longest, round_up(end, self.block))
            if not waiting and self.busy - len(idle) < self.shrink_below * self.busy:
                self.shrink(idle, width)
                continue
            for _ in range(samples.check_every):
                self.run_step(self.busy, width)
            steps += samples.check_every

    def step(self, n: int, width: int) -> None:
        """One token for each of the first n slots."""
        row, token, position = self.row[:n], self.token[:n], self.position[:n]
        chosen, live = self.samples.append_tokens(row, self.decoder.step(token, position, width))
        token.copy_(chosen)
        position.add_(1).mul_(live)
        row.masked_fill_(~live, self.samples.N)

    def start(self, idle: Tensor) -> None:
        """Start the next samples in the slots `idle`."""
        samples = self.samples
        while len(idle) and self.started < samples.N:
            prefix = self.prefill(self.started + len(idle))
            end = min(self.started + len(idle), self.end * samples.G)
            new = torch.arange(self.started, end, device=self.device)
            self.started = end
            prompt = new // samples.G
            token, live = samples.append_tokens(new, prefix.logits[prompt - self.begin])
            slot, new, prompt, token = idle[: len(new)][live], new[live], prompt[live], token[live]
            at = prompt - self.begin
            self.decoder.put(slot, prefix.keys[:, at], prefix.values[:, at])
            self.row[slot] = new
            self.token[slot] = token
            self.position[slot] = self.prompt_len[prompt]
            idle = idle[~torch.isin(idle, slot)]
        self.keep_last_prefix()

    def prefill(self, until: int) -> Prefix:
        """Prefill the prompts of the samples started:until, or as many as PREFILL allows, unless the next
        sample's prompt is prefilled already.
        """
        samples = self.samples
        first = self.started // samples.G
        if self.prefix is None or first >= self.end:
            wanted = round_up(min(samples.N, until), samples.G) // samples.G
            self.begin, self.end = first, min(wanted, first + max(1, PREFILL // self.longest))
            self.prefix = self.decoder.prefill(samples.prompts[self.begin : self.end])
        return self.prefix

    def keep_last_prefix(self) -> None:
        """Forget all prefilled prompts but the last: only that one can have samples that wait."""
        if self.prefix is not None:
            keys, values, logits = self.prefix
            self.prefix = Prefix(keys[:, -1:].clone(), values[:, -1:].clone(), logits[-1:].clone())
            self.begin = self.end - 1

    def shrink(self, idle: Tensor, width: int) -> None:
        """Compute only as many slots as have a sample: samples beyond them move into the gaps before."""
        n = self.busy - len(idle)
        gaps = idle[idle < n]
        beyond = n + torch.nonzero(self.row[n : self.busy] < self.samples.N)[:, 0]
        self.decoder.move(beyond, gaps, width)
        for x in (self.row, self.token, self.position):
            x[gaps] = x[beyond]
        self.busy = n


# ---------------------------------------------------------------- which path


class SamplingPath(NamedTuple):
    """A way of sampling. `note` says why it is slow."""

    fast: bool
    padded: bool = False
    cached: bool = True
    note: str = ""


# fastest first
PATHS = {
    "fast": SamplingPath(fast=True),
    "padded": SamplingPath(
        fast=False, padded=True, note="takes the generic, slower path (its own forward pass)"
    ),
    "equal": SamplingPath(
        fast=False,
        note="takes the generic, slower path, prompts of one length at a time (padding would change it)",
    ),
    "whole": SamplingPath(
        fast=False,
        cached=False,
        note="takes the slowest path: it has no usable cache, so every token computes its whole row again",
    ),
}


def decode_samples(model: Any, samples: DecodeState, slots: int, dtype: torch.dtype, name: str) -> int:
    """Decode all samples on this path, and return the number of steps."""
    path = PATHS[name]
    if path.fast:
        return SlotDecoder(model, samples, slots, dtype).decode()
    return decode_generic(model, samples, slots, path.padded, path.cached)


@torch.inference_mode()
def probe_path(model: Any, name: str) -> Rollout:
    """A few samples of random prompts of two lengths, which end at different steps."""
    ids = random_ids(model, 10).tolist()
    samples = DecodeState([ids[:3], ids[3:]], 2, [2, 5, 3, 4], device=model.device)
    return samples.rollout(decode_samples(model, samples, samples.N, model.dtype, name))


def sampling_path(model: Any) -> str:
    """The first of PATHS that samples from this model: the log-probabilities of a few samples equal those of
    the model's own forward pass over each row alone. Found once per model. Errors: ValueError if there is
    none.
    """
    known = getattr(model, "_sampling_path", None)
    # an adapter may have been added since
    if known and (known != "fast" or has_fast_path(model)):
        return known
    failures = []
    for name, path in PATHS.items():
        if path.fast and not has_fast_path(model):
            continue
        try:
            roll = probe_path(model, name)
            expected, spread = model_logprobs(model, roll)
            gap = (roll.logprobs - expected).abs().max().item()
        except torch.OutOfMemoryError:
            raise
        # whatever a model's own code raises on inputs that it does not take
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:150]}")
            continue
        if gap <= rounding_tolerance(model) * spread:
            model._sampling_path = name
            return name
        failures.append(f"{name}: off by {gap:.2g} nats")
    raise ValueError(
        f"no way of sampling from {model.config.model_type} gives the log-probabilities of its own forward "
        f"pass over a row alone ({'; '.join(failures)}). Choose another model"
    )


# ---------------------------------------------------------------- the interface

_announced: set[str] = set()


def announce(line: str) -> None:
    """Print a line once per process."""
    if line not in _announced:
        _announced.add(line)
        print(f"rollout: {line}")


def longest_prompt(model: Any, max_new_tokens: int) -> float:
    """Tokens that a prompt may have, so that a response of max_new_tokens fits into the model's positions."""
    return position_limit(model) - max_new_tokens


def fit_slots(model: Any, length: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many key-value caches of `length` tokens fit: a quarter of a CPU's memory (of all of it, so that
    a resumed run samples in the same batches), or 80 % of what is free on a GPU.
    """
    config = model.config.get_text_config()
    try:
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        width = heads * (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
    # no attention, or layers that differ
    except (AttributeError, RuntimeError, TypeError, ValueError):
        width = config.hidden_size
    row = 2 * config.num_hidden_layers * length * width * dtype.itemsize
    if device.type == "cuda":
        weights = sum(p.numel() for p in model.parameters()) * dtype.itemsize
        # what training has left in the allocator's cache is free as well
        torch.cuda.empty_cache()
        memory = 0.8 * (torch.cuda.mem_get_info(device)[0] - weights)
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 4
    return max(1, int(memory // row))


def check_prompts(model: Any, prompts: list[list[int]], max_new_tokens: int) -> int:
    """Tokens of the longest prompt with its response. Errors: ValueError if it does not fit."""
    if not prompts or not all(prompts):
        raise ValueError(
            "generate() was given no prompt or an empty one: every prompt needs at least one token"
        )
    longest = max(map(len, prompts))
    room = longest_prompt(model, max_new_tokens)
    if longest > room:
        raise ValueError(
            f"the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, but the model "
            f"knows only {room + max_new_tokens} positions (or encodes all of them differently beyond that): "
            "lower --max_new_tokens"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(map(max, prompts))
    if largest >= rows:
        raise ValueError(
            f"a prompt has the token {largest}, but the model's embedding has only {rows} rows: model and "
            "tokenizer do not belong together"
        )
    return longest + max_new_tokens


@torch.no_grad()
def generate(
    model: Any,
    prompts: list[list[int]],
    G: int = 1,
    *,
    max_new_tokens: int | list[int],
    eos_ids: Iterable[int] = (),
    stop: Iterable[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    pad_id: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    first: int = 0,
    slots: int | None = None,
    dtype: torch.dtype | None = None,
) -> Rollout:
    """G samples for each of the prompts (lists of token ids), as a `Rollout` of N = len(prompts)*G rows,
    prompt by prompt.

    A sample ends with one of `eos_ids`, with the token that completes one of the strings `stop` (`decode`
    turns a list of ids into text), or after max_new_tokens (one number, or one for each of the N samples).
    temperature 0 is greedy and equals Hugging Face `generate`. `first` is the index of the first prompt among
    all prompts: generate(prompts[2:], first=2) gives the samples that generate(prompts) gives for these
    prompts. `slots` bounds how many samples are decoded at once (default: what fits in memory; fewer if that
    was too many). `dtype` is the precision of the computation (default: that of the weights). Raises
    ValueError for an empty prompt or one that leaves no room within the model's positions.
    """
    device, dtype = model.device, dtype or model.get_input_embeddings().weight.dtype
    samples = DecodeState(
        prompts,
        G,
        max_new_tokens,
        eos_ids=eos_ids,
        stop=stop,
        decode=decode,
        pad_id=pad_id,
        choice=Choice(temperature, top_p, top_k),
        seed=seed,
        first=first,
        device=device,
    )
    width = check_prompts(model, prompts, samples.max_tokens)
    with evaluating(model):
        path = sampling_path(model)
    if path != "fast":
        announce(f"{model.config.model_type} {PATHS[path].note}")
    slots = min(samples.N, slots or fit_slots(model, width, dtype, device))
    if slots < samples.N:
        announce(f"{slots} samples of up to {width} tokens at a time (limited by `slots` or by memory)")
    return samples.rollout(_decode_in_memory(model, samples, slots, dtype, path))


def _decode_in_memory(model: Any, samples: DecodeState, slots: int, dtype: torch.dtype, path: str) -> int:
    """Decode all samples and return the number of steps. Where memory runs out, start again with half the
    slots: a sample does not depend on the others in its batch.
    """
    mixed = path != "fast" and dtype != torch.float32
    while True:
        samples.length.zero_()
        autocast = torch.autocast(model.device.type, dtype, enabled=mixed)
        with evaluating(model), torch.inference_mode(), autocast:
            try:
                return decode_samples(model, samples, slots, dtype, path)
            # torch.OutOfMemoryError is one
            except RuntimeError as error:
                if slots == 1 or "memory" not in str(error):
                    raise
        slots = round_up(slots, 2) // 2
        print(f"rollout: out of memory: starting again, {slots} at a time")
