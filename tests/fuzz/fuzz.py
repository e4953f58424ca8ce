#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Search with libFuzzer, and keep what it finds in a form that a repository can hold.

    fuzz.py search TARGET SECONDS    from what is kept and from the seeds; what it finds stays in build/fuzz
    fuzz.py keep TARGET              the least that reaches as much, into corpus/TARGET.txt
    fuzz.py planted                  the bug of planted.c must be found

A corpus is a text file with an input a line: printable bytes as they are, NUL as \\0, others and the backslash as
\\xNN. Inputs that broke something are files of their own, regressions/TARGET/WHAT.
"""
import os
import random
import re
import shutil
import subprocess
import sys

import seeds

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BUILD = os.path.join(ROOT, "build", "fuzz")
MOST_BYTES, MOST_INPUT = 200 << 10, 4096    # of a corpus, and of one input that is kept
FEWER = {"serve": 64 << 10, "diff": 96 << 10, "http": MOST_BYTES}    # of a corpus that has some inputs of all sizes
LENGTHS = {"number": 64, "query": 1024, "criterion": 2048, "generator": 2048, "options": 512, "diff": 2048,
           "serve": 2560, "store": 256}
DICTIONARIES = {"guard": "http", "http": "http json", "options": "options", "query": "json", "number": "", "coding": "",
                "store": "", "diff": "", "serve": ""}
# the daemon keeps buffers, and a sanitizer keeps what was freed
MEMORY = {"http": 1024, "serve": 1024, "diff": 768}
PATIENCE = {"http": 20, "serve": 20}    # seconds of one input, where threads take turns
PLAIN = frozenset(range(0x20, 0x7f)) - {0x5c}


def escape(data):
    text = "".join(chr(c) if c in PLAIN else "\\x%02x" % c if c else "\\0" for c in data)
    return text[:-1] + "\\x20" if text.endswith(" ") else text


def unescape(line):
    return re.sub(rb"\\(?:x([0-9a-f]{2})|0)", lambda m: bytes([int(m.group(1) or b"0", 16)]), line.encode("ascii"))


def corpus_file(target):
    return os.path.join(HERE, "corpus", target + ".txt")


def directory(name, target):
    path = os.path.join(BUILD, name, target)
    os.makedirs(path, exist_ok=True)
    return path


def write_inputs(path, inputs):
    for i, data in enumerate(inputs):
        with open(os.path.join(path, "kept-%04d" % i), "wb") as f:
            f.write(data)


def kept(target):
    """What the repository has, and the seeds."""
    inputs = []
    if os.path.exists(corpus_file(target)):
        with open(corpus_file(target), encoding="ascii") as f:
            inputs = [unescape(line.rstrip("\n")) for line in f]
    known = os.path.join(HERE, "regressions", target)
    for name in sorted(os.listdir(known)) if os.path.isdir(known) else []:
        with open(os.path.join(known, name), "rb") as f:
            inputs.append(f.read())
    return inputs + list(seeds.of(target))


def options(target):
    path, names = os.path.join(directory("dict", target), "words"), DICTIONARIES.get(target, "json").split()
    with open(path, "w", encoding="ascii") as out:
        for name in names:
            with open(os.path.join(HERE, "dict", name + ".dict"), encoding="ascii") as f:
                out.write(f.read())
    return ["-dict=" + path] * bool(names) + [
        "-rss_limit_mb=%d" % MEMORY.get(target, 512), "-malloc_limit_mb=256", "-timeout=%d" % PATIENCE.get(target, 2),
        "-max_len=%d" % LENGTHS.get(target, MOST_INPUT), "-print_final_stats=1", "-print_funcs=0"]


def environment():
    return dict(os.environ, ASAN_OPTIONS="detect_stack_use_after_return=0:allocator_may_return_null=1",
                UBSAN_OPTIONS="print_stacktrace=1")


def run(target, arguments, log):
    with open(log, "wb") as out:
        return subprocess.call([os.path.join(BUILD, "fuzz", "fuzz_" + target), *arguments], cwd=ROOT, stdout=out, stderr=out,
                               env=environment())


def search(target, seconds):
    found, start = directory("found", target), directory("start", target)
    finds = os.path.join(BUILD, "finds")
    os.makedirs(finds, exist_ok=True)
    shutil.rmtree(start)
    write_inputs(directory("start", target), kept(target))
    log = os.path.join(BUILD, target + ".log")
    code = run(target, options(target) + ["-max_total_time=%d" % seconds, "-artifact_prefix=%s/%s-" % (finds, target),
                                          found, start], log)
    with open(log, errors="replace") as f:
        text = f.read()
    covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/", text)
    stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", text))
    print("%-12s %s executions, %s a second, %s edges, %s inputs, %s MiB" % (
        target, stats.get("number_of_executed_units"), stats.get("average_exec_per_sec"),
        covered[-1][0] if covered else None, covered[-1][2] if covered else None, stats.get("peak_rss_mb")))
    if code:
        at = text.find("==ERROR") if "==ERROR" in text else max(0, len(text) - 4000)
        print(text[max(0, at - 1500):at + 2500])
    return code


def least(target, name, *more):
    """Of everything that there is, few inputs that reach as much."""
    kept_there, everything = directory(name, target), directory("everything", target)
    shutil.rmtree(kept_there)
    shutil.rmtree(everything)
    write_inputs(directory("everything", target), kept(target))
    code = run(target, options(target) + ["-set_cover_merge=1", *more, directory(name, target), everything,
                                          directory("found", target)], os.path.join(BUILD, target + ".merge.log"))
    inputs = []
    for file in os.listdir(kept_there):
        with open(os.path.join(kept_there, file), "rb") as f:
            inputs.append(f.read())
    inputs.sort(key=lambda data: (len(data), data))
    return code, inputs


def keep(target):
    """First what reaches every edge, then what reaches some of them more often."""
    code, first = least(target, "edges", "-use_counters=0")
    worse, inputs = least(target, "least")
    rest = [data for data in inputs if data not in first]
    if target in FEWER:
        random.Random(1).shuffle(rest)
    size, lines = 0, []
    for data in first + rest:
        line = escape(data)
        size += len(line)
        if size > FEWER.get(target, MOST_BYTES):
            break
        lines.append(line + "\n")
    os.makedirs(os.path.dirname(corpus_file(target)), exist_ok=True)
    with open(corpus_file(target), "w", encoding="ascii") as f:
        f.writelines(sorted(lines))
    print("%-12s %d of %d inputs, %d for every edge, %d bytes" % (
        target, len(lines), len(first + rest), len(first), sum(map(len, lines))))
    return code or worse


def planted():
    start = directory("start", "planted")
    write_inputs(start, [b'{"priors":[[0.5,0.5,1,1]]}'])
    log = os.path.join(BUILD, "planted.log")
    code = run("planted", ["-seed=1", "-print_final_stats=1", "-max_total_time=120", "-artifact_prefix=%s/planted-" % BUILD, start], log)
    with open(log, errors="replace") as f:
        text = f.read()
    found = code != 0 and "heap-buffer-overflow" in text and "__wrap_proto_number_read" in text
    executions = re.search(r"stat::number_of_executed_units:\s+(\d+)", text)
    print("the planted bug was %sfound in %s executions" % ("" if found else "not ",
                                                           executions.group(1) if executions else "some"))
    return 0 if found else 1


if __name__ == "__main__":
    if sys.argv[1] == "search":
        sys.exit(search(sys.argv[2], int(sys.argv[3])) != 0)
    sys.exit(keep(sys.argv[2]) if sys.argv[1] == "keep" else planted())
