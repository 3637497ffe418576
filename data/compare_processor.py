#!/usr/bin/env python3
"""Hold the tokens of transformers' ImageGPT processors against igpt's, for the README's figures.

    pip install torch==2.13.0 torchvision transformers numpy pillow
    python3 data/compare_processor.py [MODEL] [SIDE ...]

On the test pictures of data/emoji, 32 x 32: for each side (16 8 24 20 14), processor and resample (2 bilinear, 4 box), the
share of tokens equal to igpt's; at the model's own side (data/emoji-ar: 24) also the loss, in nats a pixel, of those tokens
under its weights in transformers. igpt's tokens come out of igpt.c itself, compiled as a shared library with cc.
SPDX-License-Identifier: MIT
"""
import ctypes
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

ROOT = pathlib.Path(__file__).parent.parent
SOURCE = 32


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def library():
    with tempfile.TemporaryDirectory() as folder:
        path = folder + "/igpt.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-fopenmp", "-DIGPT_NO_MAIN", "-o", path, ROOT / "igpt.c", "-lm"],
                       check=True)
        return ctypes.CDLL(path)


def igpt_tokens(igpt, pictures, clusters, side):
    """image_resize and palette_index (igpt.h); its Size is a long long, its real a float."""
    size, small = ctypes.c_longlong, np.empty((len(pictures), side, side, 3), np.uint8)
    for picture, out in zip(pictures, small):
        assert igpt.image_resize(pointer(picture), size(SOURCE), size(SOURCE), pointer(out), size(side)) == 0
    tokens = np.empty((len(pictures), side * side), np.uint16)
    palette = np.ascontiguousarray(clusters, np.float32)
    assert igpt.palette_index(pointer(tokens), pointer(small), size(tokens.size), pointer(palette), size(len(palette))) == 0
    return tokens.astype(np.int64)


@torch.no_grad()
def loss(model, tokens):
    """Mean of -log p in nats; the input is sos, then all tokens but the last."""
    total = 0.0
    for part in torch.from_numpy(tokens).split(32):
        sos = torch.full_like(part[:, :1], model.config.vocab_size - 1)
        logits = model(torch.cat((sos, part[:, :-1]), 1)).logits
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), part.flatten(), reduction="sum").item()
    return total / tokens.size


def main(folder, sides):
    records = np.fromfile(ROOT / "data/emoji/test_batch.bin", np.uint8).reshape(-1, 1 + 3 * SOURCE * SOURCE)
    pictures = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, SOURCE, SOURCE).transpose(0, 2, 3, 1))
    images = [Image.fromarray(picture) for picture in pictures]
    model = transformers.ImageGPTForCausalImageModeling.from_pretrained(folder).float().eval()
    igpt = library()
    classes = {"Pillow": ImageGPTImageProcessorPil}
    if transformers.utils.is_torchvision_available():
        classes["torchvision"] = transformers.ImageGPTImageProcessor
    print("side  processor    resample  equal tokens  loss")
    for side in sides:
        def line(name, resample, tokens, own):
            nats = f"{loss(model, tokens):.5f}" if side * side == model.config.n_positions else ""
            print(f"{side:4}  {name:11}  {resample:8}  {100 * np.mean(tokens == own):10.3f} %  {nats}", flush=True)

        own = igpt_tokens(igpt, pictures, ImageGPTImageProcessorPil.from_pretrained(folder).clusters, side)
        line("igpt", "", own, own)
        for name, kind in classes.items():
            processor = kind.from_pretrained(folder, size={"height": side, "width": side})
            for resample in 2, 4:
                try:
                    theirs = processor(images, resample=resample, return_tensors="np").input_ids
                except Exception as error:  # torchvision has no box for tensors
                    print(f"{side:4}  {name:11}  {resample:8}  fails: {str(error).splitlines()[0]}")
                    continue
                line(name, resample, np.asarray(theirs).reshape(own.shape).astype(np.int64), own)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "data/emoji-ar"),
         [int(side) for side in sys.argv[2:]] or [16, 8, 24, 20, 14])
