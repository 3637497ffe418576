#!/usr/bin/env python3
# findings_charts.py - the README's charts of findings.csv
# SPDX-License-Identifier: MIT
#
#   python3 data/findings_charts.py [data/findings.csv [DIR]]
#
# Writes findings-tuning.svg, findings-loss.svg and findings-resolution.svg beside the table or into DIR, each
# where the table has rows for it. Bars are one standard error to each side. Python's own library is enough.
import csv
import math
import os
import sys

LEFT, RIGHT, TOP, BOTTOM = 70, 670, 40, 365  # the plot's sides
COLOURS = ["#c0392b", "#7aa6d6", "#2e8b57", "#8a6d9e"]


def text(x, y, anchor, words, more=""):
    rim = 'stroke="#fff" stroke-width="4" paint-order="stroke"'  # of white, where it crosses a line
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {rim} {more}>{words}</text>'


def chart(path, title, x_name, series, place, ticks):
    """series: name -> (x, accuracy, error) in rising x, where place(x) is 0 at the left and 1 at the
    right; ticks: (x, its name)."""
    points = [p for line in series.values() for p in line]
    low = 5 * math.floor(20 * min(p[1] - p[2] for p in points))  # in percent
    high = 5 * math.ceil(20 * max(p[1] + p[2] for p in points))
    step = 5 if high - low > 10 else 1

    def at_x(x):
        return LEFT + (RIGHT - LEFT) * (0.03 + 0.94 * place(x))

    def at_y(percent):
        return BOTTOM - (BOTTOM - TOP) * (percent - low) / (high - low)

    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="860" height="420" font-family="sans-serif" '
           'font-size="13" fill="#333">', '<rect width="100%" height="100%" fill="#fff"/>',
           text(LEFT, 24, "start", title, 'font-size="16" font-weight="bold"')]
    for percent in range(low, high + 1, step):
        out.append(f'<path d="M{LEFT} {at_y(percent):.1f}H{RIGHT}" stroke="#ddd"/>')
        out.append(text(LEFT - 8, at_y(percent) + 4, "end", f"{percent} %"))
    for x, name in ticks:
        out.append(f'<path d="M{at_x(x):.1f} {BOTTOM}v5" stroke="#888"/>')
        out.append(text(at_x(x), BOTTOM + 20, "middle", name))
    out.append(text(RIGHT, BOTTOM + 42, "end", x_name))
    ends = []
    for k, (name, line) in enumerate(series.items()):
        colour = COLOURS[k % len(COLOURS)]
        corners = " ".join(f"{at_x(x):.1f},{at_y(100 * y):.1f}" for x, y, _ in line)
        out.append(f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        for x, y, error in line:
            top, bottom = at_y(100 * (y + error)), at_y(100 * (y - error))
            out.append(f'<path d="M{at_x(x):.1f} {top:.1f}V{bottom:.1f}" stroke="{colour}"/>')
            out.append(f'<circle cx="{at_x(x):.1f}" cy="{at_y(100 * y):.1f}" r="3" fill="{colour}"/>')
        x, y, _ = max(line, key=lambda point: at_x(point[0]))
        ends.append((at_y(100 * y), at_x(x), name, colour))
    below = 0  # names stand at the lines' ends, far enough apart to be read
    for y, x, name, colour in sorted(ends):
        below = max(below, y + 4)
        out.append(text(x + 12, below, "start", name, f'fill="{colour}"'))
        below += 17
    with open(path, "w") as file:
        file.write("\n".join(out) + "\n</svg>\n")
    print(path)


def mean(rows):
    """Of several seeds: their mean, and its error from the seeds and from the test pictures."""
    values = [float(row["accuracy"]) for row in rows]
    n, p = len(values), sum(values) / len(values)
    if n == 1:
        return p, float(rows[0]["standard_error"])
    seeds = sum((v - p) ** 2 for v in values) / (n - 1) / n
    return p, math.sqrt(seeds + p * (1 - p) / int(rows[0]["n_test"]))


def lines(rows, column, names):
    """A series for each name, of the rows whose `what` it is; "all" labels come last."""
    def order(point):
        return math.inf if point[0] == "all" else float(point[0])

    series = {}
    for name in names:
        groups = {}
        for row in rows:
            if row["what"] == name:
                groups.setdefault(row[column], []).append(row)
        if groups:
            series[name] = sorted(((x, *mean(group)) for x, group in groups.items()), key=order)
    return series


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    table = sys.argv[1] if len(sys.argv) > 1 else os.path.join(here, "findings.csv")
    folder = sys.argv[2] if len(sys.argv) > 2 else os.path.dirname(table)
    with open(table) as file:
        rows = list(csv.DictReader(file))

    def of(*findings):
        return [row for row in rows if row["finding"] in findings]

    series = lines(of("tuning"), "labels_per_class",
                   ["best probe", "fine-tuned", "from scratch", "raw pixels"])
    labels = [point[0] for point in series.get("best probe", [])]
    if len(labels) > 1:  # 10, 50, 250, all: as far from one another as their logarithms
        chart(os.path.join(folder, "findings-tuning.svg"), "Accuracy by number of labels",
              "labels of each class", series, lambda x: labels.index(x) / (len(labels) - 1),
              [(x, x) for x in labels])

    # Compared by probes on the same labels, with the first model among them.
    first = [row for row in of("middle") if row["data"] == "cifar-10k"]

    def network(row):
        return f'{row["n_px"]} pixels, {row["layers"]} layers'

    networks = {network(row) for row in of("loss")}
    series = {}
    for row in first + of("resolution", "loss"):
        if row["what"] == "best probe" and network(row) in networks:
            series.setdefault(network(row), []).append((float(row["loss"]), *mean([row])))
    losses = sorted(point[0] for line in series.values() for point in line)
    if len(losses) > 1:
        low, high = losses[0], losses[-1]
        tenths = range(math.ceil(low * 10), math.floor(high * 10) + 1, max(1, int(2 * (high - low))))
        chart(os.path.join(folder, "findings-loss.svg"), "Best probe by loss",
              "test loss, nats per pixel", {name: sorted(line) for name, line in series.items()},
              lambda x: (high - x) / (high - low), [(t / 10, t / 10) for t in tenths])

    seen = {row["pictures_seen"] for row in of("resolution")}  # other networks saw as many
    series = lines([row for row in first if row["pictures_seen"] in seen] + of("resolution"), "n_px",
                   ["best probe", "raw pixels"])
    sides = [int(point[0]) for point in series.get("best probe", [])]
    if len(sides) > 1:
        chart(os.path.join(folder, "findings-resolution.svg"), "Best probe by size of the pictures",
              "pixels a side", series, lambda x: (int(x) - sides[0]) / (sides[-1] - sides[0]),
              [(n, n) for n in sides])


main()
