-- What ran on which GPU. NULL is what the driver did not tell, '' what /proc did not. A sample
-- belongs to its frame, which is stored once; the key guards against a frame that lists a
-- process twice.
CREATE TABLE process_sample (
    gpu_id                      bigint NOT NULL,
    time                        timestamptz NOT NULL,
    pid                         integer NOT NULL,
    kind                        text NOT NULL,
    memory_used_bytes           bigint,
    sm_utilization_percent      smallint,
    memory_utilization_percent  smallint,
    encoder_utilization_percent smallint,
    decoder_utilization_percent smallint,
    name                        text NOT NULL,
    cgroup                      text NOT NULL,
    container_id                text NOT NULL,
    PRIMARY KEY (gpu_id, time, pid, kind)
) PARTITION BY RANGE (time);
