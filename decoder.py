"""The fast path of the rollout: Qwen2, Qwen3 and Llama over a pre-allocated key-value cache."""

import math

import torch
import torch.nn.functional as F

FAST = ("qwen2", "qwen3", "llama")
PLAIN = (torch.nn.Linear, torch.nn.Embedding, torch.nn.ModuleList, torch.nn.SiLU)
PACKS = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def fast_path(model) -> bool:
    """Whether `Decoder` reproduces this model exactly: it reads the weights of plain layers."""
    c = model.config
    rope = (getattr(c, "rope_parameters", None) or {}).get("rope_type", "default")
    dense = c.model_type in FAST and c.hidden_act == "silu" and not getattr(c, "use_sliding_window", False)
    return dense and rope in ("default", "linear", "llama3", "yarn") and all(map(is_plain, model.modules()))


def is_plain(module) -> bool:
    """Whether a module is torch's or the library's own and computes what its weights say: an adapter, a
    quantised layer, a parametrisation, a hook or a replaced forward pass would have to be asked.
    """
    kind = type(module)
    known = kind in PLAIN or kind.__module__.startswith(("transformers.models.", "transformers.activations"))
    replaced = "forward" in vars(module) and next(module.parameters(recurse=False), None) is not None
    return known and not (module._forward_hooks or module._forward_pre_hooks or replaced)


class Product:
    """x @ weight.T + bias. On a CPU in fp32 the weight is laid out for oneDNN, once a call of `generate`: for
    64 rows 1.1 to 2 times as fast as F.linear, which takes MKL.
    """

    def __init__(self, weight, bias, rows: int):
        self.weight, self.bias = weight, bias
        self.packed = weight.device.type == "cpu" and weight.dtype == torch.float32 and PACKS
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)

    def __call__(self, x):
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


class Decoder:
    """The model's forward pass with fused q/k/v and gate/up projections, in the weights' precision `dtype`.

    On a CPU it is bound by memory: at 256 rows of the miniature and 130 tokens each, 59 % of the time goes
    into attention, whose keys and values (0.5 MB a row) come from DRAM at 15 GB/s (a bare sum over them reads
    23, one long array 33; matmul or products and sums in the place of SDPA differ by 10 %), 21 % into matrix
    products, the rest into about 100 small operations. Hence the layout below, in which the keys of one head
    are contiguous.
    """

    def __init__(self, model, slots: int, length: int, dtype: torch.dtype):
        c, self.dtype = model.config, dtype
        self.heads, self.kv = c.num_attention_heads, c.num_key_value_heads
        self.dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        embed = model.model.embed_tokens.weight
        self.embed = embed.to(dtype)
        tied = model.lm_head.weight is embed
        self.head = Product(self.embed if tied else model.lm_head.weight.to(dtype), None, slots)
        self.device = self.embed.device

        def fused(*linears):
            bias = torch.cat([x.bias.to(dtype) for x in linears]) if linears[0].bias is not None else None
            return Product(torch.cat([x.weight.to(dtype) for x in linears]), bias, slots)

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
        self.cos = cos[0].to(dtype)  # (length,dim)
        self.sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1).to(dtype)
        shape = (len(self.layers), slots, self.kv, length, self.dim)
        self.k, self.v = (torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2))
        # where the heads of each slot begin in a layer's cache, seen as rows of `dim` numbers
        self.begin = torch.arange(slots * self.kv, device=self.device).view(slots, self.kv) * length

    def rms(self, x, norm):
        weight, eps = norm
        return F.rms_norm(x, (x.shape[-1],), weight, eps)

    def project(self, x, layer, cos, sin):
        """q (..., heads, dim), k and v (..., kv, dim) of the input x (..., H), rotated."""
        norm, qkv, q_norm, k_norm = layer[:4]
        x = qkv(self.rms(x, norm)).view(*x.shape[:-1], self.heads + 2 * self.kv, self.dim)
        qk, v = x[..., : self.heads + self.kv, :], x[..., self.heads + self.kv :, :]
        if q_norm:
            q, k = qk[..., : self.heads, :], qk[..., self.heads :, :]
            qk = torch.cat((self.rms(q, q_norm), self.rms(k, k_norm)), -2)
        qk = torch.addcmul(qk * cos, qk.roll(self.dim // 2, -1), sin)
        return qk[..., : self.heads, :], qk[..., self.heads :, :], v

    def finish_layer(self, x, attended, layer):
        """Output projection and MLP with their residuals; x and attended (..., H)."""
        _, _, _, _, out, norm, gate_up, down = layer
        x = x + out(attended)
        gate, up = gate_up(self.rms(x, norm)).chunk(2, -1)
        return x + down(F.silu(gate) * up)

    def prefill(self, prompts: list[list[int]]):
        """Keys and values (layers,n,kv,P,dim) of right-padded prompts and the logits (n,V) behind their
        last tokens.
        """
        length = torch.tensor([len(p) for p in prompts], device=self.device)
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True)
        ids = ids.to(self.device)  # (n,P)
        cos, sin = self.cos[: ids.shape[1], None], self.sin[: ids.shape[1], None]  # (P,1,dim)
        x, keys, values = F.embedding(ids, self.embed), [], []
        for layer in self.layers:
            q, k, v = (z.transpose(1, 2) for z in self.project(x, layer, cos, sin))  # (n,heads,P,dim)
            keys.append(k), values.append(v)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv)
            x = self.finish_layer(x, a.transpose(1, 2).flatten(2), layer)
        last = x[torch.arange(len(prompts), device=self.device), length - 1]  # (n,H)
        return torch.stack(keys), torch.stack(values), self.head(self.rms(last, self.norm))

    def put(self, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Give the slots (m,) the prefixes (layers,m,kv,P,dim)."""
        for cache, prefix in ((self.k, keys), (self.v, values)):
            cache[:, slots, :, : prefix.shape[3]] = prefix

    def step(self, token, position, width: int):
        """Logits (n,V) behind `token` at `position`, both (n,), of the first n slots; attention reads `width`
        columns. Shapes depend on n and width alone, so that a CUDA graph can hold it.
        """
        n = len(token)
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]  # (n,1,dim)
        later = torch.arange(width, device=self.device) > position[:, None]
        bias = torch.zeros(n, 1, 1, width, dtype=self.dtype, device=self.device)
        bias.masked_fill_(later[:, None, None], -math.inf)
        cell = (self.begin[:n] + position[:, None]).flatten()  # (n*kv,) where its keys and values go
        x = F.embedding(token, self.embed)  # (n,H)
        for i, layer in enumerate(self.layers):
            q, k, v = self.project(x, layer, cos, sin)
            self.k[i].view(-1, self.dim).index_copy_(0, cell, k.reshape(-1, self.dim))
            self.v[i].view(-1, self.dim).index_copy_(0, cell, v.reshape(-1, self.dim))
            # the query heads that share a key-value head stand where a sequence of queries would
            q = q.view(n, self.kv, -1, self.dim)
            k, v = self.k[i, :n, :, :width], self.v[i, :n, :, :width]  # (n,kv,width,dim)
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = self.finish_layer(x, a.reshape(n, -1), layer)
        return self.head(self.rms(x, self.norm))

    def move(self, source: torch.Tensor, target: torch.Tensor, width: int) -> None:
        """Copy the first `width` columns of the slots `source` (m,) to the slots `target` (m,)."""
        for cache in (self.k, self.v):
            cache[:, target, :, :width] = cache[:, source, :, :width]
