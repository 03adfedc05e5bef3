#include "model.h"

#include <math.h>
#include <string.h>

#define STEP_NS_MAX 20000000ULL
#define S 1000000000.0
#define MIB (1ULL << 20)

/* Time constants, s. The heat sink of an air-cooled board; core and HBM above it. */
#define SINK_S 45.0
#define CORE_S 2.5
#define MEMORY_S 12.0
#define AVERAGE_S 1.0 /* nvmlDeviceGetPowerUsage is a 1 s average since Ampere */

#define SINK_SHARE 0.62         /* of the temperature rise */
#define SBE_MEAN_S (6 * 3600.0) /* between corrected errors of one GPU */
#define BUSY 0.005              /* graphics share above which a GPU isn't idle */
#define CLOCK_STEP_MHZ 15

/* The share of the way to a target that one step covers. */
static double gain(double step_s, double constant_s)
{
    return 1 - exp(-step_s / constant_s);
}

void sim_model_draw_sbe(sim_model *model)
{
    double wait_s = -log(1 - sim_uniform(&model->random)) * SBE_MEAN_S;
    bool has = sim_has(model->profile, SIM_ECC);
    model->next_sbe_ns = has ? model->time_ns + (uint64_t)(wait_s * S) + 1 : UINT64_MAX;
}

/* One in eight boards stands in warm air, and one in ten has a history of errors. */
static void draw_board(sim_model *model)
{
    const sim_profile *profile = model->profile;
    double place = sim_uniform(&model->random);
    double flow = place < 0.125 ? 1.45 : 0.85 + 0.35 * sim_uniform(&model->random);
    model->air_celsius = 24 + 6 * sim_uniform(&model->random) + (place < 0.125 ? 6 : 0);
    double rise = profile->celsius_per_watt * flow / 1000;
    model->sink_celsius_per_mw = rise * SINK_SHARE;
    model->core_celsius_per_mw = rise * (1 - SINK_SHARE);
    if (sim_has(profile, SIM_ECC) && sim_uniform(&model->random) < 0.1) {
        model->sbe_aggregate = 1 + sim_random(&model->random) % 20;
        model->remapped_correctable = model->sbe_aggregate > 12;
    }
}

static void take_readings(sim_model *model)
{
    model->seen = model->live;
}

static void settle_idle(sim_model *model)
{
    const sim_profile *profile = model->profile;
    double idle_mw = profile->power_idle_mw;
    model->sink_celsius = model->air_celsius + model->sink_celsius_per_mw * idle_mw;
    model->core_celsius = model->sink_celsius + model->core_celsius_per_mw * idle_mw;
    model->memory_celsius = model->sink_celsius + 4;
    model->power_average_mw = idle_mw;
    model->live.power_mw = model->live.power_average_mw = profile->power_idle_mw;
    model->live.core_celsius = (int)lround(model->core_celsius);
    model->live.memory_celsius = (int)lround(model->memory_celsius);
    model->live.sm_mhz = profile->sm_idle_mhz;
    model->live.memory_mhz = profile->memory_idle_mhz;
    model->live.video_mhz = profile->sm_idle_mhz;
    model->live.event_reasons = nvmlClocksEventReasonGpuIdle;
    model->live.pstate = sim_has(profile, SIM_GEFORCE) ? NVML_PSTATE_8 : NVML_PSTATE_0;
    model->live.link_generation = sim_has(profile, SIM_GEFORCE) ? 1 : profile->pcie_generation;
}

void sim_model_start(sim_model *model, const sim_config *config, unsigned gpu)
{
    *model = (sim_model){.profile = config->profile, .clock_scale = 1, .thermal_scale = 1};
    model->random = (config->seed ^ 0x706879736963ULL) + 0x9FB21C651E98DF25ULL * (gpu + 1);
    sim_random(&model->random);

    uint64_t refresh_us = config->refresh_ns / 1000;
    uint64_t steps = (config->refresh_ns + STEP_NS_MAX - 1) / STEP_NS_MAX;
    while (refresh_us % steps) /* ends at refresh_us at the latest */
        steps++;
    model->steps_per_refresh = steps;
    model->step_us = refresh_us / steps;
    model->step_ns = model->step_us * 1000;
    double step_s = (double)model->step_ns / S;
    model->sink_gain = gain(step_s, SINK_S);
    model->core_gain = gain(step_s, CORE_S);
    model->memory_gain = gain(step_s, MEMORY_S);
    model->average_gain = gain(step_s, AVERAGE_S);
    model->utilization_due_ns = SIM_UTILIZATION_PERIOD_NS;

    model->pid_count = config->pid_count;
    /* GPUs begin with different processes of the list. */
    for (unsigned i = 0; i < model->pid_count; i++)
        model->pids[i] = config->pids[(i + gpu) % config->pid_count];

    draw_board(model);
    settle_idle(model);
    take_readings(model);
    sim_model_draw_sbe(model);
    sim_jobs_start(&model->jobs, config->workload, config->seed, gpu);
}

unsigned sim_model_pid(const sim_model *model)
{
    const sim_job *job = &model->jobs.job;
    if (job->kind == SIM_JOB_NONE || model->pid_count == 0)
        return 0;
    return model->pids[(job->number - 1) % model->pid_count];
}

/* The clock that power and heat allow, the power drawn at it, and the reasons. */
static void clock_and_power(sim_model *model, double noise)
{
    const sim_profile *profile = model->profile;
    const sim_demand *demand = &model->demand;
    sim_readings *live = &model->live;
    uint64_t reasons = 0;
    double idle_mw = profile->power_idle_mw, limit_mw = profile->power_default_mw;
    double work = 0.55 * demand->sm + 0.25 * demand->dram + 0.25 * demand->tensor +
                  0.06 * demand->nvlink + 0.04 * demand->decoder;
    double intensity = model->jobs.job.kind == SIM_JOB_NONE ? 1 : model->jobs.job.intensity;
    /* Dynamic power goes with the square of the clock: half of it is the voltage's share. */
    double dynamic_mw = (limit_mw - idle_mw) * 1.25 * work * intensity * (1 + 0.03 * noise);
    bool idle = demand->graphics < BUSY;

    double scale = 1;
    if (dynamic_mw > limit_mw - idle_mw) {
        scale = sqrt((limit_mw - idle_mw) / dynamic_mw);
        reasons |= nvmlClocksEventReasonSwPowerCap;
    }
    if (model->core_celsius > profile->gpu_max_celsius)
        model->thermal_scale = fmax(model->thermal_scale - 0.004, 0.5);
    else if (model->core_celsius < profile->gpu_max_celsius - 2)
        model->thermal_scale = fmin(model->thermal_scale + 0.001, 1);
    if (model->thermal_scale < scale) {
        scale = model->thermal_scale;
        reasons = nvmlClocksEventReasonSwThermalSlowdown;
    }
    if (idle)
        reasons = nvmlClocksEventReasonGpuIdle;
    model->clock_scale = scale;

    unsigned mhz = idle ? profile->sm_idle_mhz : (unsigned)(profile->sm_max_mhz * scale);
    live->sm_mhz = mhz - mhz % CLOCK_STEP_MHZ;
    live->video_mhz = idle ? profile->sm_idle_mhz
                           : (unsigned)(profile->video_max_mhz * scale) / CLOCK_STEP_MHZ *
                                 CLOCK_STEP_MHZ;
    live->event_reasons = reasons;

    /* The board's own capacitors: a step does not jump all the way. */
    double target_mw = idle_mw * (1 + 0.004 * noise) + dynamic_mw * scale * scale;
    if (target_mw > limit_mw)
        target_mw = limit_mw;
    live->power_mw = (unsigned)(live->power_mw + (target_mw - live->power_mw) * 0.6);
    model->power_average_mw += (live->power_mw - model->power_average_mw) * model->average_gain;
    live->power_average_mw = (unsigned)lround(model->power_average_mw);
}

static void temperatures(sim_model *model)
{
    double power_mw = model->live.power_mw;
    double sink = model->air_celsius + model->sink_celsius_per_mw * power_mw;
    model->sink_celsius += (sink - model->sink_celsius) * model->sink_gain;
    double core = model->sink_celsius + model->core_celsius_per_mw * power_mw;
    model->core_celsius += (core - model->core_celsius) * model->core_gain;
    double memory = model->sink_celsius + 4 + 14 * model->demand.dram +
                    0.6 * model->core_celsius_per_mw * power_mw;
    model->memory_celsius += (memory - model->memory_celsius) * model->memory_gain;
    model->live.core_celsius = (int)lround(model->core_celsius);
    model->live.memory_celsius = (int)lround(model->memory_celsius);
    if (model->profile->fans) {
        double percent = model->core_celsius < 48 ? 0 : 30 + 2 * (model->core_celsius - 48);
        model->live.fan_percent = (unsigned)fmin(percent, 100);
    }
}

static void performance_state(sim_model *model)
{
    const sim_profile *profile = model->profile;
    sim_readings *live = &model->live;
    if (!sim_has(profile, SIM_GEFORCE))
        return;
    bool idle = model->demand.graphics < BUSY;
    live->pstate = idle ? NVML_PSTATE_8 : NVML_PSTATE_2;
    live->memory_mhz = idle ? profile->memory_idle_mhz : profile->memory_mhz;
    live->link_generation = idle ? 1 : profile->pcie_generation;
}

static void count_traffic(sim_model *model, double noise)
{
    const sim_profile *profile = model->profile;
    const sim_demand *demand = &model->demand;
    sim_readings *live = &model->live;
    sim_integrals *sum = &model->integrals;
    double step_s = (double)model->step_ns / S;
    live->pcie_tx_rate = profile->pcie_rate * demand->pcie_tx * (1 + 0.1 * noise);
    live->pcie_rx_rate = profile->pcie_rate * demand->pcie_rx * (1 + 0.1 * noise);
    double nvlink = profile->nvlink_rate * demand->nvlink * (1 + 0.02 * noise);
    sum->pcie_tx += live->pcie_tx_rate * step_s;
    sum->pcie_rx += live->pcie_rx_rate * step_s;
    sum->nvlink_tx += nvlink * step_s;
    sum->nvlink_rx += nvlink * step_s;
    live->pcie_tx_bytes = (uint64_t)sum->pcie_tx;
    live->pcie_rx_bytes = (uint64_t)sum->pcie_rx;
    live->nvlink_tx_bytes = (uint64_t)sum->nvlink_tx;
    live->nvlink_rx_bytes = (uint64_t)sum->nvlink_rx;
}

static void integrate(sim_model *model)
{
    const sim_demand *demand = &model->demand;
    sim_integrals *sum = &model->integrals;
    double ns = (double)model->step_ns;
    sum->time_ns = model->time_ns;
    sum->graphics += demand->graphics * ns;
    sum->sm += demand->sm * ns;
    sum->occupancy += demand->occupancy * ns;
    sum->integer += demand->integer * ns;
    sum->tensor += demand->tensor * ns;
    sum->dram += demand->dram * ns;
    sum->fp64 += demand->fp64 * ns;
    sum->fp32 += demand->fp32 * ns;
    sum->fp16 += demand->fp16 * ns;
    sum->decoder += demand->decoder * ns;
    sum->jpeg += demand->jpeg * ns;
    sum->ofa += demand->ofa * ns;
    if (model->profile->encoders)
        model->encoder_integral += demand->encoder * ns;
}

static void count_violations(sim_model *model)
{
    sim_readings *live = &model->live;
    if (live->event_reasons & nvmlClocksEventReasonSwPowerCap)
        live->power_violation_ns += model->step_ns;
    if (live->event_reasons & nvmlClocksEventReasonSwThermalSlowdown)
        live->thermal_violation_ns += model->step_ns;
    if (live->event_reasons & nvmlClocksEventReasonGpuIdle)
        live->idle_ns += model->step_ns;
    if (live->sm_mhz < model->profile->sm_base_mhz)
        live->below_base_ns += model->step_ns;
}

static unsigned percent(double now, double before, double ns)
{
    double share = 100 * (now - before) / ns;
    return share < 0 ? 0 : share > 100 ? 100 : (unsigned)lround(share);
}

static void sample_utilization(sim_model *model)
{
    const sim_integrals *now = &model->integrals, *from = &model->utilization_from;
    double ns = (double)(now->time_ns - from->time_ns);
    sim_utilization_sample *sample =
        &model->utilization[model->utilization_count++ % SIM_UTILIZATION_SAMPLES];
    *sample = (sim_utilization_sample){
        .time_ns = model->time_ns,
        .gpu = percent(now->graphics, from->graphics, ns),
        .memory = percent(now->dram, from->dram, ns),
        .encoder = percent(model->encoder_integral, model->encoder_from, ns),
        .decoder = percent(now->decoder, from->decoder, ns),
        .jpeg = percent(now->jpeg, from->jpeg, ns),
        .ofa = percent(now->ofa, from->ofa, ns),
        .sm_mhz = model->live.sm_mhz,
        .memory_mhz = model->live.memory_mhz,
        .pid = sim_model_pid(model),
    };
    model->utilization_from = *now;
    model->encoder_from = model->encoder_integral;
    model->utilization_due_ns += SIM_UTILIZATION_PERIOD_NS;
}

const sim_utilization_sample *sim_model_utilization(const sim_model *model)
{
    static const sim_utilization_sample none;
    if (model->utilization_count == 0)
        return &none;
    return &model->utilization[(model->utilization_count - 1) % SIM_UTILIZATION_SAMPLES];
}

static void keep_account(sim_model *model)
{
    unsigned pid = sim_model_pid(model);
    for (unsigned i = 0; i < SIM_PIDS_MAX; i++) {
        sim_account *account = &model->accounts[i];
        if (account->pid == 0 && pid)
            *account = (sim_account){.pid = pid, .start_ns = model->time_ns};
        account->running = account->pid == pid && pid;
        if (!account->running)
            continue;
        account->active_ns += model->step_ns;
        account->graphics += model->demand.graphics * (double)model->step_ns;
        account->dram += model->demand.dram * (double)model->step_ns;
        if (model->live.memory_used_bytes > account->memory_max_bytes)
            account->memory_max_bytes = model->live.memory_used_bytes;
        pid = 0; /* the others are not running */
    }
}

static void use_memory(sim_model *model)
{
    const sim_profile *profile = model->profile;
    double room = (double)(profile->memory_bytes - profile->reserved_bytes);
    uint64_t used = (uint64_t)(room * model->demand.memory);
    model->live.memory_used_bytes = used / (2 * MIB) * (2 * MIB); /* pages of 2 MiB */
}

void sim_model_step(sim_model *model)
{
    /* Two shares of one draw, from -1 to 1. */
    uint64_t draw = sim_random(&model->random);
    double noise = (double)(draw >> 32) * 0x1p-31 - 1;
    double more_noise = (double)(draw & 0xFFFFFFFF) * 0x1p-31 - 1;

    model->time_ns += model->step_ns;
    sim_jobs_demand(&model->jobs, model->time_ns, noise, &model->demand);
    clock_and_power(model, more_noise);
    model->energy_nj += model->live.power_mw * model->step_us;
    temperatures(model);
    performance_state(model);
    use_memory(model);
    count_traffic(model, noise);
    integrate(model);
    count_violations(model);
    keep_account(model);

    model->power[model->power_count++ % SIM_POWER_SAMPLES] =
        (sim_power_sample){model->time_ns, model->live.power_mw};
    if (model->time_ns >= model->utilization_due_ns)
        sample_utilization(model);
    if (++model->steps % model->steps_per_refresh == 0)
        take_readings(model);
}

void sim_model_reset(sim_model *model)
{
    sim_readings *live = &model->live;
    model->reset_ns = model->time_ns;
    model->energy_nj = 0;
    model->sbe_volatile = model->dbe_volatile = 0;
    model->remapped_uncorrectable += model->remap_pending;
    model->remap_pending = false;
    model->integrals.pcie_tx = model->integrals.pcie_rx = 0;
    model->integrals.nvlink_tx = model->integrals.nvlink_rx = 0;
    live->pcie_tx_bytes = live->pcie_rx_bytes = live->nvlink_tx_bytes = live->nvlink_rx_bytes = 0;
    live->power_violation_ns = live->thermal_violation_ns = 0;
    live->idle_ns = live->below_base_ns = 0;
    memset(model->accounts, 0, sizeof model->accounts);
    take_readings(model);
}

void sim_model_correct_errors(sim_model *model, uint64_t count)
{
    model->sbe_volatile += count;
    model->sbe_aggregate += count;
}

void sim_model_fail_memory(sim_model *model, uint64_t count)
{
    model->dbe_volatile += count;
    model->dbe_aggregate += count;
    model->remap_pending = true; /* the row is remapped at the next reset */
}
