#!/usr/bin/env python3
"""Time PyTorch's training step of the same network as `make bench`, for the README's comparison.

    pip install torch==2.13.0 numpy
    python3 data/compare_pytorch.py [THREADS]

On the CPU, scaled_dot_product_attention, fused Adam; the median of seven steps after two. As it is (float32), compiled
(torch.compile, which needs a C++ compiler), and both in bfloat16 by autocast, which only processors with AVX512-BF16 or AMX
compute in that type. FLOPs are counted as igpt counts them: 6 x parameters in matrix products x positions, plus 6 L T^2 d
an image for attention.
SPDX-License-Identifier: MIT
"""
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F


class Norm(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(d))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.gain, 1e-5)


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = Norm(d), Norm(d)
        self.c_attn = nn.Linear(d, 3 * d, bias=False)
        self.c_proj = nn.Linear(d, d, bias=False)
        self.c_fc = nn.Linear(d, 4 * d, bias=False)
        self.mlp_proj = nn.Linear(4 * d, d, bias=False)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.c_attn(self.ln_1(x)).split(d, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).reshape(b, t, d))
        u = self.c_fc(self.ln_2(x))
        return x + self.mlp_proj(u * torch.sigmoid(1.702 * u))


class ImageGPT(nn.Module):
    def __init__(self, layers, d, heads, positions, colours):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(colours + 1, d), nn.Embedding(positions, d)
        self.blocks = nn.Sequential(*(Block(d, heads) for _ in range(layers)))
        self.ln_f, self.lm_head = Norm(d), nn.Linear(d, colours, bias=False)

    def forward(self, x):
        sos = torch.full_like(x[:, :1], self.wte.num_embeddings - 1)
        h = self.wte(torch.cat((sos, x[:, :-1]), 1)) + self.wpe.weight
        return self.lm_head(self.ln_f(self.blocks(h)))


def measure(name, layers, d, heads, px, colours, batch, compiled, bf16):
    model = ImageGPT(layers, d, heads, px * px, colours)
    forward = torch.compile(model) if compiled else model
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    tokens = torch.arange(batch * px * px).view(batch, -1) % colours
    seconds = []
    for _ in range(9):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(forward(tokens).flatten(0, 1), tokens.flatten())
        adam.zero_grad()
        loss.backward()
        adam.step()
        seconds.append(time.perf_counter() - start)
    median = sorted(seconds[2:])[3]
    flops = batch * (6 * (12 * layers * d * d + colours * d) * px**2 + 6 * layers * px**4 * d)
    how = ("bfloat16" if bf16 else "float32") + (", compiled" if compiled else "")
    print(f"PyTorch {torch.__version__}, {name}, {how}: {median:.3f} s, {flops / median / 1e9:.1f} GFLOP/s")


torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
for bf16 in (False, True):
    for compiled in (False, True):
        measure("igpt-s width", 4, 512, 8, 32, 512, 2, compiled, bf16)
        measure("d 128", 4, 128, 4, 16, 64, 16, compiled, bf16)
