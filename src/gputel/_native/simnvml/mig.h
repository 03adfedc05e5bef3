/* The MIG instances of a GPU: fixed from the start, as GPUTEL_SIM's key `mig` says. */
#ifndef GPUTEL_SIM_MIG_H
#define GPUTEL_SIM_MIG_H

#include "profiles.h"

#include <stdbool.h>
#include <stddef.h>

#define SIM_MIG_MAX 7    /* instances of a GPU */
#define SIM_MIG_EIGHTHS 8 /* memory is divided into these, compute into one less */

/* One kind of GPU instance. */
typedef struct {
    const char *name; /* 3g.40gb */
    unsigned slices;  /* sevenths of the GPU's multiprocessors */
    unsigned eighths; /* of its memory */
    unsigned first_id;
} sim_mig_profile;

/* A GPU instance with one compute instance that takes all of it. */
typedef struct {
    const sim_mig_profile *profile;
    unsigned id;
} sim_mig_instance;

typedef struct {
    bool on; /* MIG mode, also without an instance */
    unsigned count;
    sim_mig_instance instances[SIM_MIG_MAX];
} sim_mig;

/* Read profiles joined by '+' for a GPU of `model`. False, with the reason in `problem`, for
 * a name that the model has not, and for more than fits. */
bool sim_mig_read(const char *text, const sim_profile *model, sim_mig *mig, char *problem,
                  size_t problem_bytes);

#endif
