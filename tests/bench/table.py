# SPDX-License-Identifier: Apache-2.0
"""The rows of the benchmark: a figure of ours, the same of a named peer in the same run, their ratio and the goal."""
import json

import numpy as np

COLUMNS = ("what", "ours", "unit", "peer", "theirs", "ratio", "quartiles", "goal", "met")


def number(x):
    return "" if x is None else f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3g}"


def quartiles(ratios):
    """-> median, (lower, upper)"""
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return float(middle), (float(low), float(high))


class Table:
    def __init__(self):
        self.rows, self.growth = [], []

    def add(self, what, unit, ours, peer, theirs, ratios, least=None, most=None, stretch=None, goal=None, met=None,
            **more):
        """`ratios`: one of each round or pair. The goal is a bound of their median, or a text of its own and `met`;
        `stretch` is a bound only wished for."""
        ratio, spread = quartiles(ratios)
        if least is not None:
            goal, met = f">= {least}", ratio >= least
        if most is not None:
            goal, met = f"<= {most}", ratio <= most
        if stretch is not None:
            goal = f"{goal} ({stretch})"
        self.rows.append({"what": what, "ours": ours, "unit": unit, "peer": peer, "theirs": theirs, "ratio": ratio,
                          "quartiles": spread if np.size(ratios) > 1 else None, "goal": goal, "met": met, **more})
        print(f"  {what}: {number(ours)} {unit}; {peer}: {number(theirs)}; ratio {ratio:.3g}", flush=True)

    def grow(self, dimension, of, unit, values, figures):
        self.growth.append({"growth": dimension, "of": of, "unit": unit, "values": values, "figures": figures})
        print(f"  {dimension}: " + ", ".join(f"{v}: {number(f)}" for v, f in zip(values, figures)), flush=True)

    def write(self, path):
        with open(path, "w") as f:
            for row in self.rows + self.growth:
                f.write(json.dumps(row) + "\n")

    def print(self):
        cells = [[r["what"], number(r["ours"]), r["unit"], r["peer"], number(r["theirs"]), f"{r['ratio']:.3g}",
                  "{:.3g} .. {:.3g}".format(*r["quartiles"]) if r["quartiles"] else "", r["goal"] or "",
                  {None: "", True: "yes", False: "no"}[r["met"]]] for r in self.rows]
        if cells:
            markdown(COLUMNS, cells)
        if self.growth:
            markdown(("growth", "of", "unit", "", "", "", ""),
                     [[g["growth"], g["of"], g["unit"], *(f"{v}: {number(f)}" for v, f in
                                                          zip(g["values"], g["figures"]))] for g in self.growth])


def markdown(head, rows):
    """A table that reads well as it stands and can be pasted into a README."""
    rows = [list(row) + [""] * (len(head) - len(row)) for row in rows]
    wide = [max(len(row[i]) for row in [head] + rows) for i in range(len(head))]
    line = lambda row: print("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, wide)) + " |")
    print()
    line(head)
    print("|" + "|".join("-" * (w + 2) for w in wide) + "|")
    for row in rows:
        line(row)
