"""I/O benchmarks: what the machine can do, and how much of that fastio delivers.

    results.py    a measured row: value, limit, ratio, target; as JSON and as a table
    calibrate.py  the limits: device, memory, loopback, each measured by the plainest loop there is
    data.py       the dataset that is read: made or given; dropped or warmed, and verified to be so
    daemon.py     the real daemon, as a child process
    arms.py       what is compared: fastio behind its daemon, raw reads, py-lmdb
    io.py         `fastio bench io`: the arms interleaved, the rows that come of them

Every figure is a ratio to a limit that was measured in the same run. Benchmarks check what they read, and never assert
a time.
"""
