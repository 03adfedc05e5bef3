from collections.abc import Sequence

from gputel._reference.records import Logged, Made, MakeRecord

def encode_records(
    records: Sequence[Logged], first: int, unsynced_offset: int, out: memoryview, filled: int
) -> tuple[int, list[int]]: ...
def decode_records(
    buffer: bytes, position: int, offset_min: int, count_max: int, make: MakeRecord[Made]
) -> list[tuple[Made, int, int]]: ...
