"""Fast batched sampling from a causal language model; it knows no rewards and no loss.

    out = generate(model, prompts, G, max_new_tokens=256, eos_ids=[2], seed=7)      # N = len(prompts)*G rows

The weights of the training module are read at every call and no copy outlives it, so there is nothing to
synchronise. Samples live in *slots* of a pre-allocated key-value cache. A finished sample leaves its slot
to the next waiting one; when none waits, the remaining slots are moved together so that the batch shrinks.
A prompt is prefilled once for its group.

Every sample has a random stream of its own, a hash of (seed, prompt index, sample index, position): the
same seed gives the same samples whatever the number of slots (up to rounding in the matrix products).
"""

import math
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F

FAST = ("qwen2", "qwen3", "llama")
BLOCK = 16  # attention reads the cache up to a multiple of it: few distinct shapes
SHRINK = 0.75  # slots are moved together when fewer than this share is busy


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
    finished: torch.Tensor  # (N,) True if the sample ended with an EOS, False if it was cut at max_new_tokens

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


def keep_memory() -> None:
    """Tell glibc to keep freed memory: on some machines returning every large temporary to the kernel
    halves the speed.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # not Linux, or not glibc
        return
    for parameter, value in (
        (-3, 1 << 30),
        (-1, (1 << 31) - 1),
        (-2, 1 << 27),
    ):  # mmap and trim thresholds, top padding
        mallopt(parameter, value)


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


# ---------------------------------------------------------------- the fast path: Qwen2, Qwen3, Llama


def fast_path(model) -> bool:
    """Whether `Decoder` reproduces this model exactly."""
    c = model.config
    rope = (getattr(c, "rope_parameters", None) or {}).get("rope_type", "default")
    dense = c.model_type in FAST and c.hidden_act == "silu" and not getattr(c, "use_sliding_window", False)
    return (
        dense and rope in ("default", "linear", "llama3", "yarn") and type(model.lm_head) is torch.nn.Linear
    )


class Decoder:
    """The model's forward pass over a pre-allocated cache, with fused q/k/v and gate/up projections."""

    def __init__(self, model, slots: int, length: int, dtype: torch.dtype):
        c, self.dtype = model.config, dtype
        self.heads, self.kv = c.num_attention_heads, c.num_key_value_heads
        self.dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.embed, tied = (
            model.model.embed_tokens.weight.to(dtype),
            model.lm_head.weight is model.model.embed_tokens.weight,
        )
        self.head = self.embed if tied else model.lm_head.weight.to(dtype)
        self.device = self.embed.device

        def fused(*linears):
            bias = torch.cat([x.bias.to(dtype) for x in linears]) if linears[0].bias is not None else None
            return torch.cat([x.weight.to(dtype) for x in linears]), bias

        def norm(module):
            return (module.weight.to(dtype), module.variance_epsilon) if module is not None else None

        self.layers = [
            (
                norm(x.input_layernorm),
                fused(x.self_attn.q_proj, x.self_attn.k_proj, x.self_attn.v_proj),
                norm(getattr(x.self_attn, "q_norm", None)),
                norm(getattr(x.self_attn, "k_norm", None)),
                fused(x.self_attn.o_proj),
                norm(x.post_attention_layernorm),
                fused(x.mlp.gate_proj, x.mlp.up_proj),
                fused(x.mlp.down_proj),
            )
            for x in model.model.layers
        ]
        self.norm = norm(model.model.norm)
        positions = torch.arange(length, device=self.device)[None]
        cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=torch.float32, device=self.device), positions)
        half = self.dim // 2  # rotate_half(x)*sin is x rolled by half, times sin with its first half negated
        self.cos, self.sin = (
            cos[0].to(dtype),
            torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1).to(dtype),
        )  # (length,dim)
        shape = (len(self.layers), slots, length, self.kv, self.dim)
        self.k, self.v = (torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2))

    def rms(self, x, norm):
        weight, eps = norm
        return F.rms_norm(x, (x.shape[-1],), weight, eps)

    def project(self, x, layer, cos, sin):
        """q (..., heads, dim), k and v (..., kv, dim) of the input x (..., H), rotated."""
        norm, qkv, q_norm, k_norm = layer[:4]
        x = F.linear(self.rms(x, norm), *qkv).view(*x.shape[:-1], self.heads + 2 * self.kv, self.dim)
        qk, v = x[..., : self.heads + self.kv, :], x[..., self.heads + self.kv :, :]
        if q_norm:
            q, k = qk[..., : self.heads, :], qk[..., self.heads :, :]
            qk = torch.cat((self.rms(q, q_norm), self.rms(k, k_norm)), -2)
        qk = torch.addcmul(qk * cos, qk.roll(self.dim // 2, -1), sin)
        return qk[..., : self.heads, :], qk[..., self.heads :, :], v

    def finish_layer(self, x, attended, layer):
        """Output projection and MLP with their residuals; x and attended (..., H)."""
        _, _, _, _, out, norm, gate_up, down = layer
        x = x + F.linear(attended, *out)
        gate, up = F.linear(self.rms(x, norm), *gate_up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, *down)

    def prefill(self, prompts: list[list[int]]):
        """Keys and values (layers,n,P,kv,dim) of right-padded prompts and the logits (n,V) behind their
        last tokens.
        """
        length = torch.tensor([len(p) for p in prompts], device=self.device)
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True).to(
            self.device
        )  # (n,P)
        cos, sin = self.cos[: ids.shape[1], None], self.sin[: ids.shape[1], None]  # (P,1,dim)
        x, keys, values = F.embedding(ids, self.embed), [], []
        for layer in self.layers:
            q, k, v = self.project(x, layer, cos, sin)
            keys.append(k), values.append(v)
            q, k, v = (z.transpose(1, 2) for z in (q, k, v))  # (n,heads,P,dim)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv)
            x = self.finish_layer(x, a.transpose(1, 2).flatten(2), layer)
        last = x[torch.arange(len(prompts), device=self.device), length - 1]  # (n,H)
        return torch.stack(keys), torch.stack(values), F.linear(self.rms(last, self.norm), self.head)

    def step(self, token, position, busy: int, width: int):
        """Logits (busy,V) behind `token` at `position`, both (busy,); attention reads `width` columns."""
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]  # (busy,1,dim)
        columns = torch.arange(width, device=self.device)
        bias = torch.zeros(busy, 1, 1, width, dtype=self.dtype, device=self.device)
        bias.masked_fill_((columns > position[:, None])[:, None, None], -math.inf)
        # where this token's key and value go
        cell = torch.arange(busy, device=self.device) * self.k.shape[2] + position
        x = F.embedding(token, self.embed)  # (busy,H)
        for i, layer in enumerate(self.layers):
            q, k, v = self.project(x, layer, cos, sin)
            self.k[i].view(-1, self.kv, self.dim).index_copy_(0, cell, k)
            self.v[i].view(-1, self.kv, self.dim).index_copy_(0, cell, v)
            k, v = (
                cache[i, :busy, :width].transpose(1, 2) for cache in (self.k, self.v)
            )  # (busy,kv,width,dim)
            # the query heads that share a key-value head stand where a sequence of queries would
            q = q.view(busy, self.kv, -1, self.dim)
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = self.finish_layer(x, a.reshape(busy, -1), layer)
        return F.linear(self.rms(x, self.norm), self.head)

    def move(self, source: torch.Tensor) -> None:
        """Put the contents of the slots `source` (ascending) into the slots 0, 1, ..."""
        n = len(source)
        for cache in (self.k, self.v):
            for layer in cache:
                layer[:n] = layer[source]


def slots_that_fit(model, length: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many key-value caches of `length` tokens fit: a quarter of a CPU's memory (of all of it, so that
    a resumed run samples in the same batches), or 80 % of what is free on a GPU.
    """
    c = model.config
    dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    row = (
        2
        * c.num_hidden_layers
        * length
        * getattr(c, "num_key_value_heads", c.num_attention_heads)
        * dim
        * dtype.itemsize
    )
    if device.type == "cuda":
        weights = sum(p.numel() for p in model.parameters()) * dtype.itemsize
        torch.cuda.empty_cache()  # what training has left in the allocator's cache is free as well
        memory = 0.8 * (torch.cuda.mem_get_info(device)[0] - weights)
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 4
    return max(1, int(memory // row))


def _decode_fast(model, prompts, G, settle, most, slots, dtype):
    """Decode G samples of every prompt, `most` tokens at most. settle(rows, logits) chooses and notes a token
    for each of the samples `rows`, and returns the tokens and which samples go on.
    """
    longest = -(-(max(map(len, prompts)) + most) // BLOCK) * BLOCK
    device, total = model.get_input_embeddings().weight.device, len(prompts) * G
    slots = min(total, slots or slots_that_fit(model, longest, dtype, device))
    decoder = Decoder(model, slots, longest, dtype)
    row = torch.empty(
        0, dtype=torch.long, device=device
    )  # (busy,) which sample lives in each slot, -1 for none
    token, position = row.clone(), row.clone()
    prompt_len = torch.tensor([len(p) for p in prompts], device=device)
    started, held = (
        0,
        None,
    )  # samples 0..started-1 have begun; held: the prefilled prompt still in use

    while started < total or len(row):
        if started < total and len(row) < slots:
            new = torch.arange(started, min(total, started + slots - len(row)), device=device)
            started += len(new)
            group = new // G
            first, last = int(group[0]), int(group[-1])
            if held is None or held[0] != first:
                held = (first, *decoder.prefill(prompts[first : last + 1]))
            elif last > first:
                more = decoder.prefill(prompts[first + 1 : last + 1])
                width = max(held[1].shape[2], more[0].shape[2])
                pad = [F.pad(x, (0, 0, 0, 0, 0, width - x.shape[2])) for x in (*held[1:3], *more[:2])]
                held = (
                    first,
                    torch.cat((pad[0], pad[2]), 1),
                    torch.cat((pad[1], pad[3]), 1),
                    torch.cat((held[3], more[2])),
                )
            chosen, alive = settle(new, held[3][group - first])
            new, group, chosen = new[alive], group[alive], chosen[alive]
            into = slice(len(row), len(row) + len(new))
            for cache, prefix in ((decoder.k, held[1]), (decoder.v, held[2])):
                cache[:, into, : prefix.shape[2]] = prefix[:, group - first]
            row, token, position = (
                torch.cat((row, new)),
                torch.cat((token, chosen)),
                torch.cat((position, prompt_len[group])),
            )
            held = (last, *(x[:, last - first :].clone() for x in held[1:3]), held[3][last - first :].clone())
        if not len(row):
            continue
        width = min(longest, -(-(int(position.max()) + 1) // BLOCK) * BLOCK)
        logits = decoder.step(token, position, len(row), width)
        # a slot whose sample has ended goes on computing into the void until the slots are moved together
        alive_rows = torch.nonzero(row >= 0)[:, 0]
        chosen, alive = settle(row[alive_rows], logits[alive_rows])
        token[alive_rows], position = chosen, (position + 1).clamp_(max=longest - 1)
        row[alive_rows[~alive]] = -1
        busy = torch.nonzero(row >= 0)[:, 0]
        if len(busy) < SHRINK * len(row) or (started < total and len(busy) < len(row)):
            decoder.move(busy)
            row, token, position = row[busy], token[busy], position[busy]


# ---------------------------------------------------------------- the generic path: whatever Hugging Face
# can run


def _decode_generic(model, prompts, G, settle, most, slots, dtype):
    """The same with the model's own forward pass and cache; left-padded, a chunk of prompts at a time."""
    device = model.get_input_embeddings().weight.device
    slots = slots or slots_that_fit(model, max(map(len, prompts)) + most, dtype, device)
    per_chunk = max(1, slots // G)
    for start in range(0, len(prompts), per_chunk):
        chunk = prompts[start : start + per_chunk]
        width = max(map(len, chunk))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in chunk], device=device)  # (n,P)
        attend = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in chunk], device=device)
        position = (attend.cumsum(-1) - 1).clamp_(min=0)
        result = model(input_ids=ids, attention_mask=attend, position_ids=position, use_cache=True)
        cache = result.past_key_values
        cache.batch_repeat_interleave(G)
        rows = torch.arange(start * G, (start + len(chunk)) * G, device=device)
        logits = result.logits[:, -1].repeat_interleave(G, 0)
        attend, position = (x.repeat_interleave(G, 0) for x in (attend, position[:, -1:]))
        while True:
            token, alive = settle(rows, logits)
            alive = torch.nonzero(alive)[:, 0]
            if not len(alive):
                break
            if len(alive) < len(rows):
                cache.batch_select_indices(alive)
                rows, attend, position, token = rows[alive], attend[alive], position[alive], token[alive]
            attend, position = torch.cat((attend, attend.new_ones(len(rows), 1)), 1), position + 1
            inputs = {"input_ids": token[:, None], "attention_mask": attend, "position_ids": position}
            result = model(**inputs, past_key_values=cache, use_cache=True)
            cache, logits = result.past_key_values, result.logits[:, -1]


# ---------------------------------------------------------------- the interface

_announced = set()


@torch.no_grad()
def generate(
    model,
    prompts: list[list[int]],
    G: int = 1,
    *,
    max_new_tokens: int,
    eos_ids=(),
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

    temperature 0 is greedy and equals Hugging Face `generate`. `slots` bounds how many samples are decoded
    at once (default: what fits in memory). `dtype` is the precision of the computation (default: that of
    the weights). Raises ValueError for an empty prompt or one that leaves no room within the model's
    positions.
    """
    if not prompts or not all(prompts):
        raise ValueError(
            "generate() was given no prompt or an empty one: every prompt needs at least one token"
        )
    limit = getattr(model.config, "max_position_embeddings", None) or math.inf
    if (longest := max(map(len, prompts))) + max_new_tokens > limit:
        raise ValueError(
            f"the longest prompt has {longest} tokens and max_new_tokens is {max_new_tokens}, but the model "
            f"knows only {limit} positions: lower --max_new_tokens"
        )
    device = model.get_input_embeddings().weight.device
    dtype = dtype or model.get_input_embeddings().weight.dtype
    N = len(prompts) * G
    index = torch.arange(N, device=device)
    keys = stream(seed, index // G, index % G)
    eos = torch.tensor(list(eos_ids), device=device, dtype=torch.long)
    tokens = torch.full((N, max_new_tokens), pad_id, device=device)
    logps = torch.zeros(N, max_new_tokens, device=device)
    length = torch.zeros(N, dtype=torch.long, device=device)
    finished = torch.zeros(N, dtype=torch.bool, device=device)

    def settle(rows, logits):
        at = length[rows]
        token, logp = sample(logits, uniform(keys[rows], at), temperature, top_p, top_k)
        tokens[rows, at], logps[rows, at], length[rows] = token, logp, at + 1
        finished[rows] = (token[:, None] == eos).any(-1)
        return token, ~finished[rows] & (at + 1 < max_new_tokens)

    training, kind = model.training, model.config.model_type
    decode = _decode_fast if fast_path(model) else _decode_generic
    if decode is _decode_generic and kind not in _announced:
        _announced.add(kind)
        print(f"rollout: {kind} takes the generic, slower path (its own forward pass)")
    model.eval()
    with torch.autocast(device.type, dtype, enabled=decode is _decode_generic and dtype != torch.float32):
        decode(model, prompts, G, settle, max_new_tokens, slots, dtype)
    model.train(training)

    prompt_len = torch.tensor([len(p) for p in prompts], device=device).repeat_interleave(G)
    L = int((prompt_len + length).max())
    ids = torch.full((N, L), pad_id, device=device)
    logp = torch.zeros(N, L - 1, device=device)
    step = torch.arange(max_new_tokens, device=device)
    written = step < length[:, None]  # (N,max_new_tokens)
    rows, columns = index[:, None].expand_as(written)[written], (prompt_len[:, None] + step)[written]
    ids[rows, columns], logp[rows, columns - 1] = tokens[written], logps[written]
    for i, p in enumerate(prompts):
        ids[i * G : (i + 1) * G, : len(p)] = torch.tensor(p, device=device)
    return Rollout(ids, prompt_len, length, logp, finished)
