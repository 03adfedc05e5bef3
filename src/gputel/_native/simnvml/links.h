/* NVLink of a GPU: its traffic divided by link. */
#ifndef GPUTEL_SIM_LINKS_H
#define GPUTEL_SIM_LINKS_H

#include "driver.h"

typedef enum { SIM_TX, SIM_RX } sim_direction;

/* Bytes of one link, of all for `link` UINT_MAX. */
uint64_t sim_link_bytes(const sim_gpu *gpu, unsigned link, sim_direction direction);

#endif
