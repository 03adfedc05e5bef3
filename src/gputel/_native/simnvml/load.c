/* Loading and unloading the simulated driver: nvmlInit, nvmlShutdown. */
#include "driver.h"
#include "events.h"
#include "simnvml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CONFIG_BYTES_MAX 65536

static pthread_mutex_t users_lock = PTHREAD_MUTEX_INITIALIZER;
static char *configured; /* the GPUTEL_SIM that `sim` was made of; NULL: none yet */

static const unsigned char buses[] = {0x1B, 0x43, 0x52, 0x61, 0x9D, 0xC3, 0xD1, 0xDF};

static void identify(sim_gpu *gpu, const sim_config *config)
{
    sim_identity *identity = &gpu->identity;
    uint64_t random = config->seed * 0x9E3779B97F4A7C15ULL + gpu->number;
    uint64_t words[2] = {sim_random(&random), sim_random(&random)};
    memcpy(identity->uuid_bytes, words, sizeof words);
    const unsigned char *b = identity->uuid_bytes;
    snprintf(identity->uuid, sizeof identity->uuid,
             "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0],
             b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13],
             b[14], b[15]);
    snprintf(identity->serial, sizeof identity->serial, "165%07u%03u",
             (unsigned)(config->seed % 10000000), gpu->number);
    identity->domain = gpu->number / sizeof buses;
    identity->bus = buses[gpu->number % sizeof buses];
    snprintf(identity->bus_id, sizeof identity->bus_id, "%08X:%02X:00.0", identity->domain,
             identity->bus);
}

/* The process ids of this process and its ancestors: jobs belong to processes that exist. */
static void find_ancestors(sim_config *config)
{
    unsigned pid = (unsigned)getpid();
    while (pid > 0 && config->pid_count < SIM_PIDS_MAX) {
        config->pids[config->pid_count++] = pid;
        char path[64], line[512];
        snprintf(path, sizeof path, "/proc/%u/stat", pid);
        FILE *file = fopen(path, "re");
        size_t length = file ? fread(line, 1, sizeof line - 1, file) : 0;
        if (file)
            fclose(file);
        line[length] = '\0';
        char *name_end = strrchr(line, ')'); /* "pid (name) state parent ..." */
        if (!name_end || sscanf(name_end + 1, " %*c %u", &pid) != 1)
            return;
    }
}

static bool load(const sim_config *config)
{
    if (!sim_clock_start(config->manual, config->refresh_ns, config->anchor_unix_ns,
                         SIM_ANCHOR_AGE_MAX_NS)) {
        fprintf(stderr, "GPUTEL_SIM: anchor: a time within the last 24 hours is allowed\n");
        return false;
    }
    sim.config = *config;
    if (sim.config.pid_count == 0)
        find_ancestors(&sim.config);
    sim.host.faults = (sim_fault_set){0};
    sim.host.due_ns = 0;
    for (unsigned i = 0; i < config->gpus; i++) {
        sim_gpu *gpu = &sim.gpus[i];
        gpu->target.faults = (sim_fault_set){0};
        gpu->target.due_ns = 0;
        gpu->number = i;
        gpu->removed = false;
        gpu->persistence = !sim_has(config->profile, SIM_GEFORCE);
        identify(gpu, config);
        sim_model_start(&gpu->model, &sim.config, i);
    }
    sim_events_clear();
    bool latency = false;
    for (int i = 0; i < SIM_FUNCTIONS; i++)
        latency |= config->latency_ns[i] != 0;
    atomic_store(&sim.timing, config->timing);
    atomic_store(&sim.watchful, config->timing || latency);
    return true;
}

static void lock_all(unsigned gpus)
{
    for (unsigned i = 0; i < gpus; i++)
        pthread_mutex_lock(&sim.gpus[i].target.lock);
    pthread_mutex_lock(&sim.host.lock);
}

static void unlock_all(unsigned gpus)
{
    pthread_mutex_unlock(&sim.host.lock);
    for (unsigned i = 0; i < gpus; i++)
        pthread_mutex_unlock(&sim.gpus[i].target.lock);
}

static void prepare(void)
{
    pthread_mutex_init(&sim.host.lock, NULL);
    for (unsigned i = 0; i < SIM_GPUS_MAX; i++) {
        pthread_mutex_init(&sim.gpus[i].target.lock, NULL);
        for (unsigned j = 0; j < SIM_INCARNATIONS; j++)
            sim_handles[i][j] = (struct nvmlDevice_st){(unsigned char)i, (unsigned char)j, 0};
        for (unsigned j = 0; j < SIM_MIG_MAX; j++)
            sim_mig_handles[i][j] = (struct nvmlDevice_st){(unsigned char)i, 0, (unsigned char)(j + 1)};
    }
}

static nvmlReturn_t load_from(const char *text)
{
    static sim_config config; /* large */
    if (!sim_config_read(text, &config))
        return NVML_ERROR_INVALID_ARGUMENT;
    /* A call that began before the last shutdown may still be in a GPU of the old driver. */
    unsigned gpus = config.gpus > sim.config.gpus ? config.gpus : sim.config.gpus;
    lock_all(gpus);
    bool loaded = load(&config);
    unlock_all(gpus);
    if (!loaded)
        return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned i = 0; i < config.fault_count; i++)
        if (!sim_inject(&config.faults[i].fault, config.faults[i].gpu)) {
            fprintf(stderr, "GPUTEL_SIM: fault: a GPU can have %d\n", SIM_FAULTS_MAX);
            return NVML_ERROR_INVALID_ARGUMENT;
        }
    return NVML_SUCCESS;
}

/* A driver lives on between its users: only another GPUTEL_SIM makes it another one. */
static nvmlReturn_t load_once(void)
{
    static pthread_once_t prepared = PTHREAD_ONCE_INIT;
    pthread_once(&prepared, prepare);
    const char *text = getenv("GPUTEL_SIM");
    text = text ? text : "";
    if (strlen(text) >= CONFIG_BYTES_MAX) {
        fprintf(stderr, "GPUTEL_SIM: longer than %d bytes\n", CONFIG_BYTES_MAX);
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    if (configured && strcmp(configured, text) == 0)
        return NVML_SUCCESS;
    free(configured);
    configured = NULL;
    nvmlReturn_t result = load_from(text);
    if (result == NVML_SUCCESS)
        configured = strdup(text);
    return result;
}

static nvmlReturn_t load_if_unused(void)
{
    pthread_mutex_lock(&users_lock);
    nvmlReturn_t result = atomic_load(&sim.users) ? NVML_SUCCESS : load_once();
    pthread_mutex_unlock(&users_lock);
    return result;
}

/* A user is counted at the end: until nvmlInit returns, other calls are too early. */
static nvmlReturn_t begin_use(sim_function function)
{
    atomic_fetch_add_explicit(&sim.calls[function], 1, memory_order_relaxed);
    nvmlReturn_t result = load_if_unused();
    if (result == NVML_SUCCESS)
        result = sim_host_faulted(SIM_nvmlInit_v2);
    if (result != NVML_SUCCESS)
        return result;
    pthread_mutex_lock(&users_lock);
    atomic_fetch_add(&sim.users, 1);
    pthread_mutex_unlock(&users_lock);
    return result;
}

int gputelSimCheck(void)
{
    return load_if_unused();
}

nvmlReturn_t nvmlInit_v2(void)
{
    return begin_use(SIM_nvmlInit_v2);
}

nvmlReturn_t nvmlInit(void)
{
    return begin_use(SIM_nvmlInit);
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
    if (flags & ~(unsigned)(NVML_INIT_FLAG_NO_GPUS | NVML_INIT_FLAG_NO_ATTACH))
        return NVML_ERROR_INVALID_ARGUMENT;
    return begin_use(SIM_nvmlInitWithFlags);
}

nvmlReturn_t nvmlShutdown(void)
{
    atomic_fetch_add_explicit(&sim.calls[SIM_nvmlShutdown], 1, memory_order_relaxed);
    pthread_mutex_lock(&users_lock);
    unsigned users = atomic_load(&sim.users);
    if (users)
        atomic_store(&sim.users, users - 1);
    pthread_mutex_unlock(&users_lock);
    if (users == 1) /* calls that wait give up */
        sim_changed();
    return users ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
}
