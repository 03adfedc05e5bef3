"""Random chunks and random damage for as long as FUZZ_SECONDS says, 30 in the suite.

`make fuzz SECONDS=600` does it on the sanitizer build. The seed is printed; FUZZ_SEED repeats it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from gputel.errors import ChunkCorrupt
from support.codecs import NATIVE, REFERENCE, arguments_of, content, outcome, seal

SECONDS = float(os.environ.get("FUZZ_SECONDS", "30"))
SEED = int(os.environ.get("FUZZ_SEED", time.time_ns() % 2**32))
DATA = Path(__file__).parent.parent / "data"
CORPUS_MAX = 256
# What the twin reads in a millisecond: larger chunks are only given to the native codec.
TWIN_SAMPLES_MAX = 400
INTERESTING = np.array([0, 1, 2, 0x06, 0x16, 0x20, 0x26, 0x3F, 0x40, 0x7F, 0x80, 0xC0, 0xFF], "u1")


def damaged(corpus: list[bytes], random: np.random.Generator) -> bytes:
    """One of the chunks, without its checksum, changed in one to five places."""
    body = bytearray(corpus[int(random.integers(len(corpus)))][:-4])
    for _ in range(int(random.integers(1, 6))):
        at = int(random.integers(3, len(body))) if len(body) > 3 else 0
        match int(random.integers(6)):
            case 0:
                body[at : at + 1] = bytes((body[at] ^ 1 << int(random.integers(8)),))
            case 1:
                body[at : at + 1] = random.choice(INTERESTING).tobytes()
            case 2:
                del body[at : at + int(random.integers(1, 20))]
            case 3:
                body[at:at] = random.bytes(int(random.integers(1, 20)))
            case 4:
                other = corpus[int(random.integers(len(corpus)))]
                start = int(random.integers(len(other)))
                body[at : at + 16] = other[start : start + int(random.integers(1, 40))]
            case _:
                body[at : at + 10] = b"\xff" * 9 + b"\x01"
        if len(body) <= 3:
            break
    return bytes(body)


def fuzz_once(corpus: list[bytes], random: np.random.Generator) -> bool:
    """One chunk written, some read; was one of the damaged ones accepted?"""
    storages = "".join(random.choice(list("fdqQ"), int(random.integers(1, 9))))
    arguments = arguments_of(storages, int(random.choice([1, 2, 5, 17, 33, 70, 200])), random)
    payload = NATIVE.encode_chunk(*arguments)
    assert payload == REFERENCE.encode_chunk(*arguments)
    assert content(NATIVE.decode_chunk(payload)) == content(REFERENCE.decode_chunk(payload))
    corpus[int(random.integers(len(corpus)))] = payload
    accepted = False
    for _ in range(20):
        body = damaged(corpus, random)
        for data in (body, seal(body)):
            found = outcome(NATIVE, data)
            try:
                samples = NATIVE.read_chunk_header(data).samples
            except ChunkCorrupt:
                assert found is None
                samples = 0
            if samples <= TWIN_SAMPLES_MAX:
                assert found == outcome(REFERENCE, data), data.hex()
            accepted = accepted or found is not None
    return accepted


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
def test_random_damage_for_a_while() -> None:
    print(f"FUZZ_SEED={SEED}")
    random = np.random.default_rng(SEED)
    corpus = [path.read_bytes() for path in sorted(DATA.glob("v[12]/*.chunk"))]
    corpus = (corpus * CORPUS_MAX)[:CORPUS_MAX]
    rounds = accepted = 0
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        accepted += fuzz_once(corpus, random)
        rounds += 1
    print(f"{rounds} rounds, a damaged chunk was accepted in {accepted}")
    assert rounds
    assert accepted, "damage under a right checksum often is another chunk"
