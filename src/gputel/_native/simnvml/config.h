/* GPUTEL_SIM: what the simulated node is like. docs/reference/simulated-nvml.md has the keys. */
#ifndef GPUTEL_SIM_CONFIG_H
#define GPUTEL_SIM_CONFIG_H

#include "faults.h"
#include "mig.h"
#include "profiles.h"

#define SIM_GPUS_MAX 64
#define SIM_PIDS_MAX 16
#define SIM_CONFIG_FAULTS_MAX 128
#define SIM_MIG_TEXT_BYTES_MAX 128
#define SIM_ANCHOR_AGE_MAX_NS (24ULL * 3600 * 1000000000) /* what is caught up at the start */

typedef enum { SIM_IDLE, SIM_TRAINING, SIM_INFERENCE, SIM_MIXED } sim_workload;

typedef struct {
    unsigned gpus;
    const sim_profile *profile;
    uint64_t seed;
    sim_workload workload;
    uint64_t refresh_ns;
    uint64_t latency_ns[SIM_FUNCTIONS], latency_others_ns;
    bool spin;       /* latency burns CPU, else it sleeps */
    bool manual;     /* the clock moves by gputelSimSetTime alone */
    bool timing;
    bool accounting;
    char driver[32];
    unsigned branch; /* of the driver: its version's first number */
    uint64_t anchor_unix_ns; /* 0: the first nvmlInit */
    unsigned pids[SIM_PIDS_MAX];
    unsigned pid_count; /* 0: this process and its ancestors */
    struct {
        sim_fault fault;
        int gpu;
    } faults[SIM_CONFIG_FAULTS_MAX];
    unsigned fault_count;
    sim_mig mig[SIM_GPUS_MAX];
    char mig_text[SIM_GPUS_MAX][SIM_MIG_TEXT_BYTES_MAX]; /* as it was given; empty: MIG is off */
} sim_config;

/* Read `text`, the value of GPUTEL_SIM (NULL: all defaults). False, after a message on
 * stderr that names the key and what is allowed, when it is not understood. */
bool sim_config_read(const char *text, sim_config *config);

#endif
