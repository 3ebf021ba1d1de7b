"""The fast path of the rollout: Qwen2, Qwen3 and Llama over a pre-allocated key-value cache."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FAST = ("qwen2", "qwen3", "llama")
PLAIN = (nn.Linear, nn.Embedding, nn.ModuleList, nn.SiLU)
PACKS = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")


def has_fast_path(model: Any) -> bool:
    """Whether `Decoder` reproduces this model exactly: it reads the weights of plain layers."""
    config = model.config
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return (
        config.model_type in FAST
        and config.hidden_act == "silu"
        and not getattr(config, "use_sliding_window", False)
        and rope in ("default", "linear", "llama3", "yarn")
        and all(map(is_plain, model.modules()))
    )


def is_plain(module: nn.Module) -> bool:
    """Whether a module is one of torch or transformers and computes what its weights say. An adapter, a
    quantised layer, a parametrisation, a hook or a replaced forward pass is not plain.
    """
    kind = type(module)
    known = kind in PLAIN or kind.__module__.startswith(("transformers.models.", "transformers.activations"))
    replaced = "forward" in vars(module) and next(module.parameters(recurse=False), None) is not None
    return known and not (module._forward_hooks or module._forward_pre_hooks or replaced)


class Product:
    """x @ weight.T + bias. On a CPU in fp32 the weight is laid out for oneDNN once per call of `generate`,
    which is faster than F.linear with MKL (plots/reference/bench.md).

    The two operators of torch.ops.mkldnn are private: PACKS checks that this torch has them.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int):
        self.weight, self.bias = weight, bias
        self.packed = weight.device.type == "cpu" and weight.dtype == torch.float32 and PACKS
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


class Norm(NamedTuple):
    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Layer(NamedTuple):
    """One decoder layer, with fused projections."""

    attention_norm: Norm
    qkv: Product
    # Qwen3 alone normalises queries and keys
    q_norm: Norm | None
    k_norm: Norm | None
    output: Product
    mlp_norm: Norm
    gate_up: Product
    down: Product


class Prefix(NamedTuple):
    """n prefilled prompts, right-padded to P tokens."""

    # (layers,n,kv,P,dim)
    keys: Tensor
    values: Tensor
    # (n,V) of the token after each prompt
    logits: Tensor


def make_norm(module: Any, dtype: torch.dtype) -> Norm:
    return Norm(module.weight.to(dtype), module.variance_epsilon)


def fuse(*linears: Any, dtype: torch.dtype, rows: int) -> Product:
    """One product that gives the outputs of all these linear layers."""
    weight = torch.cat([linear.weight.to(dtype) for linear in linears])
    if linears[0].bias is None:
        return Product(weight, None, rows)
    return Product(weight, torch.cat([linear.bias.to(dtype) for linear in linears]), rows)


def make_layer(module: Any, dtype: torch.dtype, rows: int) -> Layer:
    attention, mlp = module.self_attn, module.mlp
    has_qk_norm = getattr(attention, "q_norm", None) is not None
    return Layer(
        attention_norm=make_norm(module.input_layernorm, dtype),
        qkv=fuse(attention.q_proj, attention.k_proj, attention.v_proj, dtype=dtype, rows=rows),
        q_norm=make_norm(attention.q_norm, dtype) if has_qk_norm else None,
        k_norm=make_norm(attention.k_norm, dtype) if has_qk_norm else None,
        output=fuse(attention.o_proj, dtype=dtype, rows=rows),
        mlp_norm=make_norm(module.post_attention_layernorm, dtype),
        gate_up=fuse(mlp.gate_proj, mlp.up_proj, dtype=dtype, rows=rows),
        down=fuse(mlp.down_proj, dtype=dtype, rows=rows),
    )


class Decoder:
    """The model's forward pass with fused q/k/v and gate/up projections, in the weights' precision `dtype`.

    On a CPU, attention is bound by reading keys and values from memory. Hence the layout of the cache, in
    which the keys of one head are contiguous.
    """

    def __init__(self, model: Any, slots: int, length: int, dtype: torch.dtype):
        config = model.config
        self.dtype = dtype
        self.heads, self.kv = config.num_attention_heads, config.num_key_value_heads
        self.dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        embed = model.model.embed_tokens.weight
        self.embed = embed.to(dtype)
        self.device = self.embed.device
        tied = model.lm_head.weight is embed
        self.head = Product(self.embed if tied else model.lm_head.weight.to(dtype), None, slots)
        self.layers = [make_layer(module, dtype, slots) for module in model.model.layers]
        self.norm = make_norm(model.model.norm, dtype)

        positions = torch.arange(length, device=self.device)[None]
        cos, sin = model.model.rotary_emb(torch.zeros(1, dtype=torch.float32, device=self.device), positions)
        # rotate_half(x) * sin is x rolled by half, times sin with its first half negated
        half = self.dim // 2
        # (length,dim)
        self.cos = cos[0].to(dtype)
        self.sin = torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1).to(dtype)

        shape = (len(self.layers), slots, self.kv, length, self.dim)
        self.k, self.v = (torch.zeros(shape, dtype=dtype, device=self.device) for _ in range(2))
        # where the heads of each slot begin in a layer's cache, seen as rows of `dim` numbers
        self.begin = torch.arange(slots * self.kv, device=self.device).view(slots, self.kv) * length

    def project(self, x: Tensor, layer: Layer, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (..., heads, dim), k and v (..., kv, dim) of the input x (..., H), rotated."""
        x = layer.qkv(layer.attention_norm(x)).view(*x.shape[:-1], self.heads + 2 * self.kv, self.dim)
        qk, v = x[..., : self.heads + self.kv, :], x[..., self.heads + self.kv :, :]
        if layer.q_norm and layer.k_norm:
            q, k = qk[..., : self.heads, :], qk[..., self.heads :, :]
            qk = torch.cat((layer.q_norm(q), layer.k_norm(k)), -2)
        qk = torch.addcmul(qk * cos, qk.roll(self.dim // 2, -1), sin)
        return qk[..., : self.heads, :], qk[..., self.heads :, :], v

    def finish_layer(self, x: Tensor, attended: Tensor, layer: Layer) -> Tensor:
        """Output projection and MLP with their residuals; x and attended (..., H)."""
        x = x + layer.output(attended)
        gate, up = layer.gate_up(layer.mlp_norm(x)).chunk(2, -1)
        return x + layer.down(F.silu(gate) * up)

    def prefill(self, prompts: list[list[int]]) -> Prefix:
        """Compute the keys, values and next logits of the prompts."""
        length = torch.tensor([len(p) for p in prompts], device=self.device)
        ids = nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], batch_first=True)
        # (n,P)
        ids = ids.to(self.device)
        # (P,1,dim)
        cos, sin = self.cos[: ids.shape[1], None], self.sin[: ids.shape[1], None]
        x = F.embedding(ids, self.embed)
        keys, values = [], []
        for layer in self.layers:
            # (n,heads,P,dim)
            q, k, v = (z.transpose(1, 2) for z in self.project(x, layer, cos, sin))
            keys.append(k)
            values.append(v)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv)
            x = self.finish_layer(x, a.transpose(1, 2).flatten(2), layer)
        # (n,H)
        last = x[torch.arange(len(prompts), device=self.device), length - 1]
        return Prefix(torch.stack(keys), torch.stack(values), self.head(self.norm(last)))

    def put(self, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Give the slots (m,) the prefixes (layers,m,kv,P,dim)."""
        for cache, prefix in ((self.k, keys), (self.v, values)):
            cache[:, slots, :, : prefix.shape[3]] = prefix

    def step(self, token: Tensor, position: Tensor, width: int) -> Tensor:
        """Logits (n,V) after `token` at `position`, both (n,), of the first n slots; attention reads `width`
        columns. Shapes depend on n and width alone, so that a CUDA graph can hold it.
        """
        n = len(token)
        # (n,1,dim)
        cos, sin = self.cos[position][:, None], self.sin[position][:, None]
        later = torch.arange(width, device=self.device) > position[:, None]
        bias = torch.zeros(n, 1, 1, width, dtype=self.dtype, device=self.device)
        bias.masked_fill_(later[:, None, None], -math.inf)
        # (n*kv,) where the new keys and values go
        cell = (self.begin[:n] + position[:, None]).flatten()
        # (n,H)
        x = F.embedding(token, self.embed)
        for i, layer in enumerate(self.layers):
            q, k, v = self.project(x, layer, cos, sin)
            self.k[i].view(-1, self.dim).index_copy_(0, cell, k.reshape(-1, self.dim))
            self.v[i].view(-1, self.dim).index_copy_(0, cell, v.reshape(-1, self.dim))
            # the query heads that share a key-value head take the dimension of a sequence of queries
            q = q.view(n, self.kv, -1, self.dim)
            # (n,kv,width,dim)
            k, v = self.k[i, :n, :, :width], self.v[i, :n, :, :width]
            a = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = self.finish_layer(x, a.reshape(n, -1), layer)
        return self.head(self.norm(x))

    def move(self, source: Tensor, target: Tensor, width: int) -> None:
        """Copy the first `width` columns of the slots `source` (m,) to the slots `target` (m,)."""
        for cache in (self.k, self.v):
            cache[:, target, :, :width] = cache[:, source, :, :width]
