"""Who waits for gRPC's sockets. Imported before gRPC, which looks at its experiments once.

    experiment on     socket -> poller -> a thread of its pool -> completion queue -> event loop
    experiment off    socket ------------------------------------> completion queue -> event loop

By default gRPC's event engine reads, on threads of its own, and wakes the thread that waits at the
completion queue. Without it that thread waits for the sockets itself: two thread switches fewer for
all that comes and for each write that has to wait. Whoever sets GRPC_EXPERIMENTS decides.
"""

import os
from typing import Final

EXPERIMENTS: Final = "-event_engine_client,-event_engine_listener"

os.environ.setdefault("GRPC_EXPERIMENTS", EXPERIMENTS)
