"""The contestant that everybody writes first: py-lmdb's ``get``, one key after another, in a process of its own.

Run as ``python -m fastio_bench.lmdb_get PATH READAHEAD`` with hexadecimal keys on stdin; prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time

import lmdb


def main() -> None:
    path, readahead = sys.argv[1], sys.argv[2] == "1"
    keys = [bytes.fromhex(line) for line in sys.stdin.read().split()]
    moved_bytes = 0
    with (
        lmdb.open(path, readonly=True, lock=False, readahead=readahead, subdir=os.path.isdir(path)) as environment,
        environment.begin() as transaction,
    ):
        cpu_s, begin_s = time.process_time(), time.perf_counter()
        for key in keys:
            moved_bytes += len(transaction.get(key, b""))
        seconds, cpu_s = time.perf_counter() - begin_s, time.process_time() - cpu_s
    result = {"records": len(keys), "payload_bytes": moved_bytes, "seconds": seconds, "client_cpu_s": cpu_s}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
