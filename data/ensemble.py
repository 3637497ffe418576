#!/usr/bin/env python3
# ensemble.py - the test accuracy of two classifiers, and of the average of their logits
# SPDX-License-Identifier: MIT
#
#   igpt probe --data DATA --model A --features A.features        and the same of B
#   python3 data/ensemble.py A A.features B B.features
#
# A and B are folders that finetune has written. Class logits are linear in the last layer's features: what the
# probe has written, of BERT averaged over its masks, times score.weight. Python's own library is enough.
import array
import json
import operator
import sys

TEST = 2  # the probe's number for that part


def tensor(path, name):
    """The numbers of an F32 tensor, and its shape."""
    with open(path, "rb") as f:
        start = 8 + int.from_bytes(f.read(8), "little")
        entry = json.loads(f.read(start - 8))[name]
        begin, end = entry["data_offsets"]
        f.seek(start + begin)
        numbers = array.array("f", f.read(end - begin))
    assert entry["dtype"] == "F32", f"{path}: {name} is {entry['dtype']}"
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers, entry["shape"]


def class_logits(model, features):
    """The logits of all test pictures, and their labels."""
    x, (n, layers, d) = tensor(features, "features")
    score, (n_class, _) = tensor(model + "/model.safetensors", "score.weight")
    labels, parts = tensor(features, "labels")[0], tensor(features, "parts")[0]
    rows = [score[k * d:(k + 1) * d] for k in range(n_class)]
    test = [i for i in range(n) if parts[i] == TEST]
    last = [x[((i + 1) * layers - 1) * d:(i + 1) * layers * d] for i in test]
    return [[sum(map(operator.mul, f, row)) for row in rows] for f in last], [labels[i] for i in test]


def show(name, logits, labels):
    accuracy = sum(row.index(max(row)) == label for row, label in zip(logits, labels)) / len(labels)
    print(f"{name} {accuracy:.4f}")


a, labels = class_logits(*sys.argv[1:3])
b, labels_b = class_logits(*sys.argv[3:5])
assert labels == labels_b, "the pictures are not the same"
show("first", a, labels)
show("second", b, labels)
show("average", [list(map(operator.add, *pair)) for pair in zip(a, b)], labels)
