"""The plan: what the NVML kernels ask a GPU in one sweep of one metric set.

Both kernels, the native one and its readable twin, are given the same plan. It is made of
origins (what is asked) and targets (which cell of the row an answer goes to):

    calls     one function, up to two arguments; its answer is words, see `Shape`
    fields    all of them in one nvmlDeviceGetFieldValues
    gpm       all of them in one GPM sample and one nvmlGpmMetricsGet
    samples   one nvmlDeviceGetSamples each; a row for every timestamp of the driver

A cell is `word * multiply / divide`, and is left out and counted when it is outside
[low, high]. Fields are asked first, then calls in their order, then GPM. A call with `after` is
asked only where origin number `after` is unsupported; origins are numbered calls first, then
fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

NO_ORIGIN = -1
ALL_LINKS = 0xFFFF_FFFF  # scopeId UINT_MAX: the sum over all NVLinks
BY_VALUE_TYPE = -1
GPM_INTERVAL_MIN_NS = 100_000_000  # nvml.h: two samples are more than 100 ms apart
STALLED_NS = 1_000_000_000  # a call this long means that the GPU hangs, not that it is slow
DRAIN_SAMPLES_MAX = 1024  # of one type in one call; the drivers we know of keep 72 to 120
CURSOR_AHEAD_MAX_US = 60_000_000  # beyond it the clock was stepped back: begin anew


class Shape(IntEnum):
    """The C signature of a call, after the device, and the words of its answer."""

    U32 = 0  # (unsigned *) or a struct of unsigned: each is a word
    INT_U32 = 1  # (int, unsigned *)
    U64 = 2  # (unsigned long long *) or a struct of them: each is a word
    INT_U64 = 3  # (int, unsigned long long *) or a struct of them
    INT_INT_U64 = 4  # (int, int, unsigned long long *)
    U32_U32 = 5  # (unsigned *, unsigned *)
    U32_X4 = 6  # (unsigned *, unsigned *, unsigned *, unsigned *)
    MEMORY_V2 = 7  # nvmlMemory_v2_t: total, reserved, free, used
    PAGES = 8  # retired pages of a cause: their number
    LICENSE = 9  # nvmlGridLicensableFeatures_t: state of the first feature, 0 when none


class Member(IntEnum):
    """Members of nvmlValue_t, by the nvmlValueType_t that means them."""

    DOUBLE = 0
    UNSIGNED_INT = 1
    UNSIGNED_LONG = 2
    UNSIGNED_LONG_LONG = 3
    SIGNED_LONG_LONG = 4
    SIGNED_INT = 5
    UNSIGNED_SHORT = 6


class Outcome(IntEnum):
    """What a nvmlReturn_t means for us; `classify` of both kernels yields it."""

    OK = 0
    UNSUPPORTED = 1  # never ask this GPU again
    TRANSIENT = 2  # missing this time
    LOST = 3  # the GPU is gone
    FATAL = 4  # the driver is: this process can't speak to it any more


class Swept(IntEnum):
    """How a sweep ended."""

    DONE = 0
    ABANDONED = 1  # the turn was taken away
    PREEMPTED = 2  # its time was over; the same tick goes on where it stopped


class Note(IntEnum):
    """What a sweep noticed besides values."""

    LOST = 0  # value: the nvmlReturn
    FATAL = 1  # value: the nvmlReturn
    COUNTER_RESET = 2  # column: which; before, value
    REJECTED = 3  # column: which; value, once a GPU and column
    OVERFLOW = 4  # value: notes that found no room


#: What the kernels call besides the calls of the plans.
FUNCTIONS = (
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetSamples",
    "nvmlGpmQueryDeviceSupport",
    "nvmlGpmSampleAlloc",
    "nvmlGpmSampleFree",
    "nvmlGpmSampleGet",
    "nvmlGpmMigSampleGet",
    "nvmlGpmMetricsGet",
)

#: nvmlReturn_t, from nvml.h.
(SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION) = range(5)
NOT_FOUND, INSUFFICIENT_SIZE, DRIVER_NOT_LOADED, TIMEOUT = 6, 7, 9, 10
FUNCTION_NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED, LIB_RM_VERSION_MISMATCH = 13, 15, 16, 18
VGPU_ECC_NOT_SUPPORTED, VERSION_MISMATCH, DEPRECATED, GPU_NOT_FOUND = 22, 25, 26, 28
UNKNOWN = 999

OUTCOMES = {
    **dict.fromkeys(
        (
            INVALID_ARGUMENT,
            NOT_SUPPORTED,
            NO_PERMISSION,
            FUNCTION_NOT_FOUND,
            VGPU_ECC_NOT_SUPPORTED,
            VERSION_MISMATCH,
            DEPRECATED,
        ),
        Outcome.UNSUPPORTED,
    ),
    **dict.fromkeys((GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND), Outcome.LOST),
    **dict.fromkeys((LIB_RM_VERSION_MISMATCH, UNINITIALIZED, DRIVER_NOT_LOADED), Outcome.FATAL),
    SUCCESS: Outcome.OK,
}


def classify(code: int) -> Outcome:
    """The meaning of a nvmlReturn_t; one that is not listed passes."""
    return OUTCOMES.get(code, Outcome.TRANSIENT)


@dataclass(frozen=True, slots=True)
class Target:
    """One cell: `column` of the row, of f64 or i64; both limits are inclusive."""

    column: int
    word: int = 0
    multiply: int = 1
    divide: int = 1
    is_float: bool = False
    is_counter: bool = False
    low: float = 0
    high: float = 0


@dataclass(frozen=True, slots=True)
class CallOp:
    """One function; `address` is 0 when the library has none."""

    symbol: str
    address: int
    shape: Shape
    arguments: tuple[int, ...]
    targets: tuple[Target, ...]
    after: int = NO_ORIGIN


@dataclass(frozen=True, slots=True)
class FieldOp:
    """One nvmlFieldValue_t. `in_rate`: part of the traffic whose rate `Plan.rate` is."""

    field: int
    scope: int = 0
    member: int = BY_VALUE_TYPE
    target: Target | None = None
    in_rate: bool = False


@dataclass(frozen=True, slots=True)
class GpmOp:
    """One GPM metric."""

    metric: int
    target: Target


@dataclass(frozen=True, slots=True)
class SampleOp:
    """One buffer of the driver."""

    type: int
    target: Target


@dataclass(frozen=True, slots=True)
class Plan:
    """One metric set. `rate` is the column of the NVLink rate, in MB/s of KiB counters;
    `xid` that of the last XID."""

    columns: int
    calls: tuple[CallOp, ...] = ()
    fields: tuple[FieldOp, ...] = ()
    gpm: tuple[GpmOp, ...] = ()
    samples: tuple[SampleOp, ...] = ()
    rate: Target | None = None
    xid: Target | None = None

    @property
    def asks(self) -> tuple[str, ...]:
        """The functions whose cost is accounted, in the kernels' order."""
        fields = ("nvmlDeviceGetFieldValues",) if self.fields else ()
        gpm = ("nvmlGpmSampleGet", "nvmlGpmMetricsGet") if self.gpm else ()
        samples = ("nvmlDeviceGetSamples",) if self.samples else ()
        return (*(call.symbol for call in self.calls), *fields, *gpm, *samples)
