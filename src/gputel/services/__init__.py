"""One thin main per service, and what runs them all on one machine.

process.py       what every service process does: config, logs, status port, ready, stop
heap.py          what the allocator keeps, where messages of half a MiB pass
broker.py sink.py streamer.py api.py collector.py
                 wiring of one stage
announcement.py  what a child tells its supervisor
child.py         one supervised process: spawn, ready, end
nats.py, postgres.py
                 servers that are no code of ours, as parts like the others
supervisor.py    order, restarts with back-off, stop from source to sink
lineup.py        which parts there are, who needs whom, and what each is told
up.py            one run of `gputel up`
state.py         the data directory's lock and what `gputel doctor` reads
doctor.py        checks of the machine and of a running pipeline
"""
