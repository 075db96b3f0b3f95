"""The fastio daemon: serves datasets to training processes over TCP and Unix sockets.

Start reading at :mod:`fastio_server.session` (what a connection may do, as a pure state machine), then
:mod:`fastio_server.connection` (the socket around it), :mod:`fastio_server.worker` and
:mod:`fastio_server.supervisor` (the processes around that).
"""
