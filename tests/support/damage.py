"""Bytes as a hostile or broken peer might send them."""

from __future__ import annotations

import random


def damaged(rng: random.Random, data: bytes) -> bytes:
    """`data` with one to three places flipped, filled in, cut out or cut off."""
    whole = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(whole) + 1)
        kind = rng.randrange(4)
        if kind == 0 and at < len(whole):
            whole[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            whole[at:at] = rng.randbytes(rng.randint(1, 12))
        elif kind == 2:
            del whole[at : at + rng.randint(1, 12)]
        else:
            del whole[at:]
    return bytes(whole)
