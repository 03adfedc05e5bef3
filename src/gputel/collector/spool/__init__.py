"""The frames of a live collector on this node's disk, until the broker has them.

    place.py      where it is
    entry.py      one frame as a record: the bytes
    files.py      segments on disk: append, read, release, drop the oldest
    ledger.py     what became of every frame, and which losses are still to be told
    watermark.py  the ledger's numbers where kill -9 can't reach them
    backlog.py    memory and disk as one queue
    offering.py   what of it has its turn at the broker

docs/reference/spool.md says what is lost when, at most.
"""
