/* The work on a GPU: which job runs when, and what it asks of the hardware at an instant. */
#ifndef GPUTEL_SIM_JOBS_H
#define GPUTEL_SIM_JOBS_H

#include "config.h"

typedef enum { SIM_JOB_NONE, SIM_JOB_TRAINING, SIM_JOB_INFERENCE, SIM_JOB_VIDEO } sim_job_kind;

typedef struct {
    sim_job_kind kind;
    uint64_t start_ns, end_ns; /* of a job, or of the pause before the next */
    uint64_t ramp_ns;          /* until the data are loaded */
    uint64_t iteration_ns;     /* compute, then exchange */
    uint64_t checkpoint_period_ns, checkpoint_ns;
    double intensity;          /* around 1: how much power its kernels draw */
    double load;               /* share of time with a kernel running */
    double memory;             /* share of the memory it takes in the end */
    unsigned number;           /* of the jobs of this GPU, from 1 */
} sim_job;

typedef struct {
    sim_workload workload;
    uint64_t random;
    double wander; /* slow changes of the load, -1 to 1 */
    sim_job job;
} sim_jobs;

/* Shares from 0 to 1 of what the hardware can do. */
typedef struct {
    double graphics, sm, occupancy, tensor, dram;
    double integer, fp16, fp32, fp64;
    double decoder, encoder, jpeg, ofa;
    double pcie_tx, pcie_rx, nvlink, memory;
} sim_demand;

/* A random number; `state` is the whole generator (splitmix64). */
static inline uint64_t sim_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9E3779B97F4A7C15ULL);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
    return z ^ (z >> 31);
}

/* From 0 to below 1. */
static inline double sim_uniform(uint64_t *state)
{
    return (double)(sim_random(state) >> 11) * 0x1p-53;
}

/* Training keeps all GPUs of a node in step: their jobs depend on the seed alone. */
void sim_jobs_start(sim_jobs *jobs, sim_workload workload, uint64_t seed, unsigned gpu);

/* Move to `now`, and say what is asked of the hardware; `noise` is from -1 to 1. */
void sim_jobs_demand(sim_jobs *jobs, uint64_t now_ns, double noise, sim_demand *demand);

#endif
