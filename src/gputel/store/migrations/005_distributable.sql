-- What Citus asks of the tables that it distributes by gpu_id, and what plain PostgreSQL is no
-- worse for: gpu_id is part of every key, and the inventory, of which each node then has a copy,
-- changes rarely.

-- When each GPU was seen last changes all the time; beside the samples it costs no other node
-- anything.
CREATE TABLE gpu_seen (
    gpu_id    bigint PRIMARY KEY,
    last_seen timestamptz NOT NULL
) WITH (fillfactor = 50); -- with room in the page, no index needs to know of an update
INSERT INTO gpu_seen (gpu_id, last_seen) SELECT gpu_id, last_seen FROM gpu;

DROP VIEW IF EXISTS gpu_latest;
ALTER TABLE gpu DROP COLUMN last_seen;
ALTER TABLE gpu RESET (fillfactor);

-- 0: an event of the collector itself, or of a GPU that nothing else was ever known of.
ALTER TABLE event ADD COLUMN gpu_id bigint NOT NULL DEFAULT 0;
UPDATE event e SET gpu_id = g.gpu_id FROM gpu g WHERE g.uuid = e.gpu_uuid AND g.node = e.node;
ALTER TABLE event ALTER COLUMN gpu_id DROP DEFAULT;
ALTER TABLE event DROP CONSTRAINT event_pkey;
ALTER TABLE event ADD PRIMARY KEY (gpu_id, event_id);
CREATE INDEX event_gpu_id ON event (gpu_id, time);
