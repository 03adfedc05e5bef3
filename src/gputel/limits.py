"""Every bound of the pipeline, named with its unit last, and how the bounds relate.

A bound that is configurable has its default in the stage's settings; what stands here
holds whatever is configured.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB

# Rows and chunks.
SET_COLUMNS_MAX = 64  # a row's validity is one u64
GPUS_PER_NODE_MAX = 64
GPUS_PER_COLLECTOR_MAX = 65_536  # a row's gpu slot; a replay may hold many nodes
CHUNK_SAMPLES_MAX = 65_536
CHUNK_BYTES_MAX = 256 * KIB
CHUNK_DIRECT_SAMPLES_MIN = 32  # from here on the store keeps a chunk as it is

# Frames and messages.
FRAME_BYTES_TARGET = 64 * KIB
FRAME_BYTES_MAX = 512 * KIB
FRAME_GPUS_MAX = GPUS_PER_NODE_MAX
FRAME_CELLS_MAX = 8 * MIB  # decoded: constant columns take next to no bytes on the wire
KEY_BYTES_MAX = 512
PRODUCER_BYTES_MAX = 512
TOPIC_BYTES_MAX = 128
# Dead letters carry a payload of full size in an envelope with the names around it.
PAYLOAD_BYTES_MAX = FRAME_BYTES_MAX + 8 * KIB
RECORD_HEADER_BYTES = 52
RECORD_BYTES_MAX = RECORD_HEADER_BYTES + PRODUCER_BYTES_MAX + KEY_BYTES_MAX + PAYLOAD_BYTES_MAX

# Broker.
PARTITIONS_MAX = 256
SEGMENT_BYTES_DEFAULT = 64 * MIB
SEGMENT_BYTES_MIN = 1 * MIB
COMMIT_BYTES_MAX = 4 * MIB  # one group commit
BATCH_BYTES_MAX = 1 * MIB  # messages put into one request or response
GRPC_MESSAGE_BYTES_MAX = BATCH_BYTES_MAX + 64 * KIB
PENDING_BYTES_MAX = 32 * MIB  # accepted and not yet committed, over all partitions
TAIL_BYTES_MAX = 32 * MIB  # committed and kept in memory for readers at the tail
READ_AHEAD_BYTES_MAX = 32 * MIB  # read from disk for consumers before they have taken the last
TOPICS_MAX = 256
GROUPS_PER_TOPIC_MAX = 256
PRODUCERS_PER_PARTITION_MAX = 131_072
GROUP_WINDOW_MAX = 65_536  # delivered beyond the first message that is not acknowledged
DEAD_REASON_BYTES_MAX = 1 * KIB
BROKER_STREAMS_MAX = 4096
NATS_PAYLOAD_BYTES_MAX = 1 * MIB  # of one message with its headers, in the servers we start
BROKER_CALLS_MAX = BROKER_STREAMS_MAX + 256  # streams, those that are being opened, and unary calls
UNACKED_RUNS_MAX = 4096  # of a Publish stream; its producer may leave its acks unread

# Queries.
QUERY_POINTS_DEFAULT = 100_000
QUERY_POINTS_MAX = 1_000_000
QUERY_GPUS_PAGE_MAX = 10_000
QUERY_ROWS_DEFAULT = 1000  # events, processes
QUERY_ROWS_MAX = 10_000

# Live stream.
WS_MESSAGE_BYTES_MAX = 64 * KIB
WS_CLIENTS_MAX = 10_000

assert CHUNK_BYTES_MAX <= FRAME_BYTES_MAX
assert FRAME_BYTES_TARGET <= FRAME_BYTES_MAX < PAYLOAD_BYTES_MAX < BATCH_BYTES_MAX
assert BATCH_BYTES_MAX <= COMMIT_BYTES_MAX <= SEGMENT_BYTES_DEFAULT
assert FRAME_BYTES_MAX <= SEGMENT_BYTES_MIN <= SEGMENT_BYTES_DEFAULT
assert max(PRODUCER_BYTES_MAX, KEY_BYTES_MAX) < 1 << 16  # their lengths are u16 in a record
assert RECORD_BYTES_MAX < NATS_PAYLOAD_BYTES_MAX
assert RECORD_BYTES_MAX <= COMMIT_BYTES_MAX <= PENDING_BYTES_MAX
assert CHUNK_SAMPLES_MAX * SET_COLUMNS_MAX <= FRAME_CELLS_MAX
assert CHUNK_DIRECT_SAMPLES_MIN <= CHUNK_SAMPLES_MAX
assert QUERY_POINTS_DEFAULT <= QUERY_POINTS_MAX
# All metrics of all sets of one sample of every GPU of a node fit one frame uncompressed.
assert FRAME_GPUS_MAX * SET_COLUMNS_MAX * 8 * 4 <= FRAME_BYTES_MAX
