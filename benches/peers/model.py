"""The two model families in plain eager PyTorch, as the peers of our benches train them.

Written for speed within eager mode: one product for query, key and value, one for gate and up, and torch's fused
attention. Same sizes, same initial deviations and same arithmetic as ours; nothing is split over processes.

Shape letters: b batch, s sequence, d width, h query heads, g key/value heads, k head width, f MLP width, v vocabulary.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Sizes:
    """A model's shape, named as in the `[model]` section of our configuration."""

    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    vocab: int
    max_seq: int
    tie_embeddings: bool
    bias: bool
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self):
        """Width of one head."""
        return self.hidden // self.heads


def norm_of(sizes):
    """Returns the family's norm over the width."""
    if sizes.architecture == "gpt2":
        return nn.LayerNorm(sizes.hidden, eps=sizes.norm_eps, bias=sizes.bias)
    return nn.RMSNorm(sizes.hidden, eps=sizes.norm_eps)


def rotary_table(sizes):
    """Returns cos and sin of every angle, each `[max_seq, k]`, both halves alike."""
    k = sizes.head_dim
    frequencies = sizes.rope_theta ** (-torch.arange(0, k, 2, dtype=torch.float64) / k)
    angles = torch.outer(torch.arange(sizes.max_seq, dtype=torch.float64), frequencies)
    return torch.cat((angles, angles), dim=-1).cos().float(), torch.cat((angles, angles), dim=-1).sin().float()


def rotate(x_bhsk, cos_sk, sin_sk):
    """Turns the pairs (first half, second half) of each head by the table's angles."""
    first, second = x_bhsk.chunk(2, dim=-1)
    return x_bhsk * cos_sk + torch.cat((-second, first), dim=-1) * sin_sk


class Attention(nn.Module):
    """Causal attention; query heads in groups of h / g read one key/value head."""

    def __init__(self, sizes):
        super().__init__()
        self.sizes = sizes
        self.widths = [heads * sizes.head_dim for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads)]
        self.query_key_value = nn.Linear(sizes.hidden, sum(self.widths), bias=sizes.bias)
        self.output = nn.Linear(sizes.hidden, sizes.hidden, bias=sizes.bias)

    def forward(self, x_bsd, rotary):
        b, s, d = x_bsd.shape
        q, k, v = (
            part.view(b, s, -1, self.sizes.head_dim).transpose(1, 2)
            for part in self.query_key_value(x_bsd).split(self.widths, dim=-1)
        )
        if rotary is not None:
            cos, sin = (table[:s].to(q.dtype) for table in rotary)
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.sizes.kv_heads < self.sizes.heads:
            readers = self.sizes.heads // self.sizes.kv_heads
            k, v = k.repeat_interleave(readers, dim=1), v.repeat_interleave(readers, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(y.transpose(1, 2).reshape(b, s, d))


class Mlp(nn.Module):
    """GPT-2: down(gelu(up(x))), tanh form. Llama: down(silu(gate(x)) · up(x))."""

    def __init__(self, sizes):
        super().__init__()
        self.gated = sizes.architecture == "llama"
        self.up = nn.Linear(sizes.hidden, (2 if self.gated else 1) * sizes.ffn, bias=sizes.bias)
        self.down = nn.Linear(sizes.ffn, sizes.hidden, bias=sizes.bias)

    def forward(self, x):
        if self.gated:
            gate, up = self.up(x).chunk(2, dim=-1)
            return self.down(F.silu(gate) * up)
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Layer(nn.Module):
    """x + attention(norm(x)), then the same with the MLP."""

    def __init__(self, sizes):
        super().__init__()
        self.attention_norm, self.attention = norm_of(sizes), Attention(sizes)
        self.mlp_norm, self.mlp = norm_of(sizes), Mlp(sizes)

    def forward(self, x, rotary):
        x = x + self.attention(self.attention_norm(x), rotary)
        return x + self.mlp(self.mlp_norm(x))


class LanguageModel(nn.Module):
    """Either family, from token ids to the mean cross-entropy in nats."""

    def __init__(self, sizes):
        super().__init__()
        self.embedding = nn.Embedding(sizes.vocab, sizes.hidden)
        self.positions = nn.Embedding(sizes.max_seq, sizes.hidden) if sizes.architecture == "gpt2" else None
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.final_norm = norm_of(sizes)
        self.head = nn.Linear(sizes.hidden, sizes.vocab, bias=False)
        if sizes.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.rotary = sizes.architecture == "llama"
        if self.rotary:
            cos, sin = rotary_table(sizes)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.initialise(sizes)

    def initialise(self, sizes):
        """Draws every matrix with deviation 0.02, residual outputs with 0.02/√(2·layers); biases are 0, norms 1."""
        for name, parameter in self.named_parameters():
            if name.endswith(("output.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * sizes.layers))
            elif parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens_bs, targets_bs):
        x = self.embedding(tokens_bs)
        if self.positions is not None:
            x = x + self.positions.weight[: tokens_bs.shape[1]]
        rotary = (self.cos, self.sin) if self.rotary else None
        for layer in self.layers:
            x = layer(x, rotary)
        logits = self.head(self.final_norm(x))
        return F.cross_entropy(logits.flatten(0, 1), targets_bs.flatten())


def adamw(model, lr, betas, weight_decay):
    """Returns torch's fused AdamW, on the CPU too, with decay on matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)


def clip(model, norm):
    """Clips the global gradient norm and returns it; on CPUs the foreach form has to be asked for."""
    return nn.utils.clip_grad_norm_(model.parameters(), norm, foreach=True)
