#!/usr/bin/env python3
"""Make fixture/tiny.safetensors and fixture/trace.safetensors: PyTorch's numbers for a tiny model, in double.

    pip install torch numpy
    python3 data/make_fixture.py OUTDIR [SEED]

Parameters and inputs are those of data/fixture/tiny.safetensors, taken as they are, or drawn anew with SEED; all
else is computed. Without SEED it says how far that is from data/fixture's, and writes nothing beyond 1e-12.
SPDX-License-Identifier: MIT
"""
import json
import os
import sys

import numpy as np
import torch

PX, K, D, H, L, C, B = 4, 12, 16, 2, 2, 5, 3
T = PX * PX
FIXTURE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixture")
TYPES = {"F64": "<f8", "I64": "<i8"}


def read(path):
    with open(path, "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        data = f.read()
    header.pop("__metadata__", None)
    return {name: torch.tensor(np.frombuffer(data[slice(*t["data_offsets"])], TYPES[t["dtype"]]).reshape(t["shape"]))
            for name, t in header.items()}


def write(path, tensors, **metadata):
    header, data = {"__metadata__": {k: str(v) for k, v in metadata.items()}}, b""
    for name, x in tensors.items():
        dtype = "F64" if x.is_floating_point() else "I64"
        more = x.detach().numpy().astype(TYPES[dtype]).tobytes()
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [len(data), len(data) + len(more)]}
        data += more
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + data)


def draw(seed):
    """Parameters and inputs, so large that every part counts."""
    rng = np.random.default_rng(seed)
    shapes = {"transformer.wte.weight": (K + 1, D), "transformer.wpe.weight": (T, D)}
    for l in range(L):
        shapes |= {f"transformer.h.{l}.{name}.weight": shape for name, shape in (
            ("ln_1", (D,)), ("attn.c_attn", (D, 3 * D)), ("attn.c_proj", (D, D)),
            ("ln_2", (D,)), ("mlp.c_fc", (D, 4 * D)), ("mlp.c_proj", (4 * D, D)))}
    shapes |= {"transformer.ln_f.weight": (D,), "lm_head.weight": (K, D), "score.weight": (C, D)}
    params = {name: rng.normal(".ln_" in name, 0.2 if ".attn." in name else 0.1, s) for name, s in shapes.items()}
    zeros = {name[:-6] + "bias": np.zeros(w.shape[-1]) for name, w in params.items() if "_attn" in name or "c_" in name}
    mask = rng.random((B, T)).argsort(1) < T // 4
    inputs = {"input.tokens": rng.integers(0, K, (B, T)), "input.labels": rng.integers(0, C, B),
              "input.mask": mask.astype(np.int64)}
    return {name: torch.tensor(x) for name, x in (params | zeros | inputs).items()}


def norm(x, gain):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * gain


def network(p, tokens, mask, trace=None):
    """n^L (B, T, D) and the features of every layer. Without mask: AR. Intermediate results go to trace."""
    def kept(name, x):
        if trace is not None:
            x.retain_grad()
            trace[name] = x
        return x

    def heads(x):
        return x.view(B, T, H, D // H).transpose(1, 2)

    wte, features = p["transformer.wte.weight"], []
    if mask is None:  # position t sees the colour at t - 1, the first one sos
        content = wte[torch.cat((torch.full((B, 1), K), tokens[:, :-1]), 1)]
        hidden = torch.ones(T, T, dtype=torch.bool).triu(1)
    else:  # every position sees all, the masked ones without their colour
        content = wte[tokens] * (1 - mask)[:, :, None]
        hidden = torch.zeros(T, T, dtype=torch.bool)
    h = kept("h.0", content + p["transformer.wpe.weight"])
    for l in range(L):
        def w(name):
            return p[f"transformer.h.{l}.{name}.weight"]

        b = f"block.{l}."
        n = kept(b + "ln_1", norm(h, w("ln_1")))
        features.append(n.mean(1))
        qkv = kept(b + "c_attn", n @ w("attn.c_attn"))
        q, k, v = (heads(x) for x in qkv.split(D, 2))
        scores = kept(b + "scores", (q @ k.transpose(2, 3) / (D // H) ** 0.5).masked_fill(hidden, -torch.inf))
        probs = kept(b + "probs", scores.softmax(-1))
        joined = kept(b + "heads", (probs @ v).transpose(1, 2).reshape(B, T, D))
        a = kept(b + "a", h + joined @ w("attn.c_proj"))
        u = kept(b + "c_fc", kept(b + "ln_2", norm(a, w("ln_2"))) @ w("mlp.c_fc"))
        h = kept(f"h.{l + 1}", a + kept(b + "gelu", u * torch.sigmoid(1.702 * u)) @ w("mlp.c_proj"))
    n = kept("ln_f", norm(h, p["transformer.ln_f.weight"]))
    return n, features + [n.mean(1)], kept


def losses(p, data, mask=None, trace=None):
    """L_GEN and L_CLF, means over pictures; the logits; the features."""
    n, features, kept = network(p, data["input.tokens"], mask, trace)
    logits = kept("logits", n @ p["lm_head.weight"].T)
    nll = kept("nll", -logits.log_softmax(2).gather(2, data["input.tokens"][:, :, None])[:, :, 0])
    counts = torch.ones(B, T, dtype=torch.float64) if mask is None else mask.double()
    gen = ((nll * counts).sum(1) / counts.sum(1)).mean()
    classes = (features[-1] @ p["score.weight"].T).log_softmax(1)
    return gen, -classes.gather(1, data["input.labels"][:, None]).mean(), logits, features


def gradients(prefix, loss, p):
    """Zero for score where the loss is L_GEN alone."""
    grads = torch.autograd.grad(loss, p.values(), retain_graph=True, allow_unused=True)
    return {prefix + name: torch.zeros_like(x) if g is None else g for (name, x), g in zip(p.items(), grads)}


def adam3(p, data):
    p = {name: x.detach().clone().requires_grad_() for name, x in p.items()}
    adam = torch.optim.Adam(p.values(), lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(3):
        adam.zero_grad()
        gen, clf, _, _ = losses(p, data)
        (gen + clf).backward()
        adam.step()
    return {"adam3." + name: x for name, x in p.items()}


def main(out, seed=None):
    data = draw(int(seed)) if seed else read(os.path.join(FIXTURE, "tiny.safetensors"))
    data = {name: x for name, x in data.items() if name.startswith(("transformer.", "lm_head.", "score.", "input."))}
    p = {name: x.requires_grad_() for name, x in data.items() if name.endswith("weight")}
    gen, clf, logits, features = losses(p, data)
    tiny = data | {"ar.loss": gen[None], "ar.logits": logits} | gradients("ar.grad.", gen, p)
    bert, _, bert_logits, _ = losses(p, data, data["input.mask"])
    tiny |= {"bert.loss": bert[None], "bert.logits": bert_logits} | gradients("bert.grad.", bert, p)
    tiny |= {"joint.gen_loss": gen[None], "joint.clf_loss": clf[None]} | gradients("joint.grad.", gen + clf, p)
    tiny |= {f"features.{l}": x for l, x in enumerate(features)} | adam3(p, data)
    trace = {}
    losses(p, data, trace=trace)[0].backward()
    traced = {"ar." + name: x for name, x in trace.items() if "scores" not in name}  # they hold -inf
    traced |= {"ar.d_" + name: x.grad for name, x in trace.items()}

    os.makedirs(out, exist_ok=True)
    about = {"n_head": H, "n_layer": L, "made_with": "PyTorch " + torch.__version__}
    for name, tensors, more in (("tiny", tiny, {}), ("trace", traced, {"order": " ".join(trace)})):
        if not seed:  # before it is written: out may be the fixture itself
            old = read(os.path.join(FIXTURE, name + ".safetensors"))
            if list(old) != list(tensors) or any(old[k].shape != x.shape for k, x in tensors.items()):
                sys.exit(f"{name}: other names or shapes than data/fixture's")
            apart = max((x - old[k]).abs().max().item() for k, x in tensors.items() if k not in data)
            print(f"{name}: {len(tensors)} tensors, at most {apart:.1e} from data/fixture's")
            if not apart < 1e-12:
                sys.exit(f"{name}: not written")
        write(os.path.join(out, name + ".safetensors"), tensors, **more, **about)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
