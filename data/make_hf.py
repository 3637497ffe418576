#!/usr/bin/env python3
"""Make fixture/hf: a small ImageGPT as Hugging Face saves it, in BF16, and what it computes.

    pip install torch torchvision transformers safetensors numpy pillow
    python data/make_hf.py data/fixture/hf

Hugging Face shifts nothing itself: its input is sos and then all colours but the last.
"""
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTImageProcessor

PX, K, IMAGES = 4, 12, 3


def main(out):
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    config = ImageGPTConfig(vocab_size=K + 1, n_positions=PX * PX, n_embd=8, n_layer=2, n_head=2)
    model = ImageGPTForCausalImageModeling(config).eval()
    with torch.no_grad():  # so large that every part counts; no biases, as in OpenAI's models
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif ".ln_" in name:
                p.normal_(1, 0.2)
            else:
                p.normal_(0, 0.4)
    model.to(torch.bfloat16).save_pretrained(out)
    clusters = rng.uniform(-1, 1, (K, 3)).astype(np.float32).tolist()
    processor = ImageGPTImageProcessor(clusters=clusters, size={"height": PX, "width": PX})
    processor.save_pretrained(out)

    tokens = rng.integers(0, K, (IMAGES, PX * PX))
    shifted = np.concatenate([np.full((IMAGES, 1), K), tokens[:, :-1]], axis=1)
    with torch.no_grad():
        logits = model.float()(torch.tensor(shifted)).logits.numpy()
    rgb = rng.integers(0, 256, (IMAGES, PX, PX, 3), dtype=np.uint8)
    indices = processor([Image.fromarray(image) for image in rgb], return_tensors="np").input_ids
    save_file({"tokens": tokens, "logits": logits, "rgb": rgb.astype(np.int64),
               "indices": np.asarray(indices).astype(np.int64)}, out + "/expected.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
