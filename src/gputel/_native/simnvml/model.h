/* The physics of one GPU, in fixed steps of at most 20 ms.
 *
 *   job ──> demand ──> clock, limited by power and heat ──> power ──> temperatures
 *                                                             └─────> energy, exactly:
 *                         energy_nj is the sum of power_mw * step_us over all steps
 *
 * Three grids: a step moves the physics, the energy counter and the driver's power buffer;
 * every 1/6 s the utilization is averaged anew; every `refresh_ms` the readings are taken.
 */
#ifndef GPUTEL_SIM_MODEL_H
#define GPUTEL_SIM_MODEL_H

#include "jobs.h"

#define SIM_POWER_SAMPLES 120
#define SIM_UTILIZATION_SAMPLES 72
#define SIM_UTILIZATION_PERIOD_NS 166666667ULL

/* What the API reports until the next refresh. */
typedef struct {
    unsigned power_mw, power_average_mw;
    int core_celsius, memory_celsius;
    unsigned sm_mhz, memory_mhz, video_mhz;
    unsigned pstate, fan_percent, link_generation;
    uint64_t event_reasons;
    uint64_t memory_used_bytes; /* without what the driver reserves */
    uint64_t pcie_tx_bytes, pcie_rx_bytes, nvlink_tx_bytes, nvlink_rx_bytes;
    double pcie_tx_rate, pcie_rx_rate; /* bytes/s */
    uint64_t power_violation_ns, thermal_violation_ns, idle_ns, below_base_ns;
} sim_readings;

typedef struct {
    uint64_t time_ns;
    unsigned power_mw;
} sim_power_sample;

typedef struct {
    uint64_t time_ns;
    unsigned gpu, memory, encoder, decoder, jpeg, ofa; /* percent */
    unsigned sm_mhz, memory_mhz;
    unsigned pid; /* of the job that ran; 0: none */
} sim_utilization_sample;

/* Integrals over driver time since the GPU was reset: share * ns, and bytes. */
typedef struct {
    uint64_t time_ns;
    double graphics, sm, occupancy, integer, tensor, dram, fp64, fp32, fp16;
    double decoder, jpeg, ofa;
    double pcie_tx, pcie_rx, nvlink_tx, nvlink_rx;
} sim_integrals;

/* What a process did on this GPU, over all its jobs. */
typedef struct {
    unsigned pid;
    bool running;
    uint64_t start_ns, active_ns;
    double graphics, dram; /* share * ns */
    uint64_t memory_max_bytes;
} sim_account;

typedef struct {
    const sim_profile *profile;
    uint64_t step_ns, step_us, steps_per_refresh;
    uint64_t time_ns;            /* of the last step */
    uint64_t steps;
    uint64_t reset_ns;           /* when its counters last started from 0 */
    uint64_t random;
    sim_jobs jobs;
    sim_demand demand;
    unsigned pids[SIM_PIDS_MAX], pid_count;

    double clock_scale;          /* of the highest SM clock */
    double thermal_scale;        /* what heat leaves of it */
    double power_average_mw;
    double air_celsius, sink_celsius, core_celsius, memory_celsius;
    double sink_celsius_per_mw, core_celsius_per_mw;
    double sink_gain, core_gain, memory_gain, average_gain;

    uint64_t energy_nj;
    sim_integrals integrals;
    sim_readings live, seen;

    sim_power_sample power[SIM_POWER_SAMPLES];
    uint64_t power_count;        /* ever taken */
    sim_utilization_sample utilization[SIM_UTILIZATION_SAMPLES];
    uint64_t utilization_count;
    uint64_t utilization_due_ns;
    sim_integrals utilization_from;
    double encoder_integral, encoder_from; /* GPM has no encoder */

    uint64_t next_sbe_ns;
    uint64_t sbe_volatile, sbe_aggregate, dbe_volatile, dbe_aggregate;
    unsigned remapped_correctable, remapped_uncorrectable;
    bool remap_pending;

    sim_account accounts[SIM_PIDS_MAX];
} sim_model;

/* A GPU at driver time 0, idle. */
void sim_model_start(sim_model *model, const sim_config *config, unsigned gpu);

/* One step ahead. */
void sim_model_step(sim_model *model);

/* After a reset, a removal or a loss: what counts since the driver took the GPU starts anew. */
void sim_model_reset(sim_model *model);

/* The process of the job that runs now; 0 when there is none. */
unsigned sim_model_pid(const sim_model *model);

/* Corrected (the next one is drawn, too) and uncorrectable errors of the memory. */
void sim_model_correct_errors(sim_model *model, uint64_t count);
void sim_model_fail_memory(sim_model *model, uint64_t count);
void sim_model_draw_sbe(sim_model *model);

/* The newest utilization; all 0 before the first. */
const sim_utilization_sample *sim_model_utilization(const sim_model *model);

#endif
