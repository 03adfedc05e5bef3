#include "jobs.h"

#define S 1000000000.0

static double between(sim_jobs *jobs, double low, double high)
{
    return low + (high - low) * sim_uniform(&jobs->random);
}

static uint64_t ns_between(sim_jobs *jobs, double low_s, double high_s)
{
    return (uint64_t)(between(jobs, low_s, high_s) * S);
}

static sim_job_kind draw_kind(sim_jobs *jobs)
{
    double draw = sim_uniform(&jobs->random);
    switch (jobs->workload) {
    case SIM_IDLE:
        return SIM_JOB_NONE;
    case SIM_TRAINING:
        return SIM_JOB_TRAINING;
    case SIM_INFERENCE:
        return SIM_JOB_INFERENCE;
    case SIM_MIXED:
        return draw < 0.5 ? SIM_JOB_TRAINING : draw < 0.85 ? SIM_JOB_INFERENCE : SIM_JOB_VIDEO;
    }
    return SIM_JOB_NONE;
}

static void begin_job(sim_jobs *jobs, uint64_t now_ns)
{
    unsigned number = jobs->job.number + 1;
    sim_job job = {.kind = draw_kind(jobs), .start_ns = now_ns, .number = number};
    job.intensity = between(jobs, 0.80, 1.12);
    switch (job.kind) {
    case SIM_JOB_NONE:
        job.end_ns = UINT64_MAX;
        job.number = 0;
        break;
    case SIM_JOB_TRAINING:
        job.end_ns = now_ns + ns_between(jobs, 240, 1500);
        job.ramp_ns = ns_between(jobs, 8, 25);
        job.iteration_ns = ns_between(jobs, 0.3, 1.6);
        job.checkpoint_period_ns = ns_between(jobs, 90, 240);
        job.checkpoint_ns = ns_between(jobs, 4, 12);
        job.load = between(jobs, 0.94, 1.0);
        job.memory = between(jobs, 0.55, 0.95);
        break;
    case SIM_JOB_INFERENCE:
        job.end_ns = now_ns + ns_between(jobs, 600, 3600);
        job.ramp_ns = ns_between(jobs, 5, 15);
        job.load = between(jobs, 0.35, 0.75);
        job.memory = between(jobs, 0.80, 0.93);
        break;
    case SIM_JOB_VIDEO:
        job.end_ns = now_ns + ns_between(jobs, 60, 300);
        job.ramp_ns = ns_between(jobs, 1, 3);
        job.load = between(jobs, 0.20, 0.45);
        job.memory = between(jobs, 0.08, 0.20);
        break;
    }
    jobs->job = job;
}

static void begin_pause(sim_jobs *jobs, uint64_t now_ns, double low_s, double high_s)
{
    unsigned number = jobs->job.number;
    jobs->job = (sim_job){.start_ns = now_ns, .number = number};
    jobs->job.end_ns = now_ns + ns_between(jobs, low_s, high_s);
}

void sim_jobs_start(sim_jobs *jobs, sim_workload workload, uint64_t seed, unsigned gpu)
{
    *jobs = (sim_jobs){.workload = workload, .random = seed ^ 0x6A6F6273};
    if (workload != SIM_TRAINING)
        jobs->random += 0xD1342543DE82EF95ULL * (gpu + 1);
    /* Two of three begin with work, so that a short look sees some. */
    if (sim_uniform(&jobs->random) < 0.67)
        begin_pause(jobs, 0, 0.5, 3);
    else
        begin_pause(jobs, 0, 15, 60);
}

static void training_demand(const sim_job *job, uint64_t age_ns, sim_demand *demand)
{
    uint64_t since_checkpoint = age_ns % job->checkpoint_period_ns;
    if (age_ns > job->checkpoint_period_ns && since_checkpoint < job->checkpoint_ns) {
        demand->graphics = 0.08;
        demand->sm = 0.02;
        demand->dram = 0.10;
        demand->pcie_tx = 0.45;
        return;
    }
    /* The last fifth of an iteration exchanges gradients. */
    bool exchange = age_ns % job->iteration_ns * 5 >= job->iteration_ns * 4;
    demand->graphics = job->load;
    demand->sm = exchange ? 0.45 : 0.93;
    demand->occupancy = exchange ? 0.20 : 0.42;
    demand->tensor = exchange ? 0.02 : 0.52;
    demand->dram = exchange ? 0.30 : 0.56;
    demand->fp16 = exchange ? 0.03 : 0.08;
    demand->fp32 = exchange ? 0.05 : 0.12;
    demand->integer = 0.15;
    demand->nvlink = exchange ? 0.80 : 0.06;
    demand->pcie_rx = 0.05;
    demand->pcie_tx = 0.01;
}

static void inference_demand(const sim_job *job, double wander, sim_demand *demand)
{
    double load = job->load + 0.3 * wander;
    load = load < 0.02 ? 0.02 : load > 1 ? 1 : load;
    demand->graphics = load;
    demand->sm = 0.72 * load;
    demand->occupancy = 0.22 * load;
    demand->tensor = 0.24 * load;
    demand->dram = 0.82 * load;
    demand->fp16 = 0.10 * load;
    demand->fp32 = 0.06 * load;
    demand->integer = 0.10 * load;
    demand->nvlink = 0.12 * load;
    demand->pcie_rx = 0.01 * load;
    demand->pcie_tx = 0.01 * load;
}

static void video_demand(const sim_job *job, sim_demand *demand)
{
    demand->graphics = job->load;
    demand->sm = 0.6 * job->load;
    demand->occupancy = 0.25 * job->load;
    demand->dram = 0.5 * job->load;
    demand->fp32 = 0.2 * job->load;
    demand->integer = 0.2 * job->load;
    demand->decoder = 0.75;
    demand->encoder = 0.55;
    demand->jpeg = 0.15;
    demand->ofa = 0.10;
    demand->pcie_rx = 0.03;
    demand->pcie_tx = 0.03;
}

static void loading_demand(double done, sim_demand *demand)
{
    demand->graphics = 0.10 + 0.15 * done;
    demand->sm = 0.05 * done;
    demand->dram = 0.08;
    demand->pcie_rx = 0.40;
}

void sim_jobs_demand(sim_jobs *jobs, uint64_t now_ns, double noise, sim_demand *demand)
{
    while (now_ns >= jobs->job.end_ns) {
        if (jobs->job.kind == SIM_JOB_NONE)
            begin_job(jobs, jobs->job.end_ns);
        else
            begin_pause(jobs, jobs->job.end_ns, 10, 90);
    }
    jobs->wander += 0.04 * noise - 0.01 * jobs->wander;
    *demand = (sim_demand){0};
    const sim_job *job = &jobs->job;
    if (job->kind == SIM_JOB_NONE)
        return;
    uint64_t age_ns = now_ns - job->start_ns;
    if (age_ns < job->ramp_ns) {
        double done = (double)age_ns / (double)job->ramp_ns;
        loading_demand(done, demand);
        demand->memory = job->memory * done;
        return;
    }
    demand->memory = job->memory;
    if (job->kind == SIM_JOB_TRAINING)
        training_demand(job, age_ns - job->ramp_ns, demand);
    else if (job->kind == SIM_JOB_INFERENCE)
        inference_demand(job, jobs->wander, demand);
    else
        video_demand(job, demand);
}
