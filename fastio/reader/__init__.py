"""Executes plans: threads, look-ahead, completion out of order, delivery in order.

    pool.py     the threads
    fetch.py    one piece of a plan -> bytes in the ring (the system calls)
    late.py     resident bytes that are read only when they are sent
    sources.py  a dataset's columns -> what the planner takes: strategy chosen, bits looked up
    batches.py  which batches a stream has, one plan after another; a batch that is ready
    pieces.py   a planned batch -> pieces for the threads, and reads left until it is sent
    stream.py   one stream: plans batches ahead as far as its ring has room, hands them out in order
    reader.py   the process-wide owner of all of these

The way of a batch: the planner thread plans it and leases a region of the stream's ring; its reads, cut into pieces,
go to the read threads in any order; the piece that finishes last makes the batch ready; the consumer takes ready
batches in order and releases each when it has been sent, which makes room for the next plan.
"""

from fastio.reader.batches import ReadyBatch
from fastio.reader.reader import Reader
from fastio.reader.sources import choose_strategies
from fastio.reader.statistics import ReaderStatistics, StreamStatistics
from fastio.reader.stream import ReadStream

__all__ = ["ReadStream", "Reader", "ReaderStatistics", "ReadyBatch", "StreamStatistics", "choose_strategies"]
