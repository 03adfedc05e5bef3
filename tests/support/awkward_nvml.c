/* An NVML that is nothing like a complete one, for the tests of what gputel assumes.
 *
 * It has a handful of functions and no more: a symbol that is not here does not exist, as on
 * an old driver, on a board partner's build or behind a vGPU. The ABI is written out again on
 * purpose, so that a mistake in gputel's own header is not repeated here.
 *
 * Two builds:
 *
 *   (plain)        the names of a driver since 2015: nvmlInit_v2, nvmlDeviceGetCount_v2, ...
 *   -DOLD_NAMES    only the first names: nvmlInit, nvmlDeviceGetCount, ...
 *
 * Variants, words of the environment variable AWKWARD_NVML:
 *
 *   gpus=N          1 to 3 GPUs; 0: a driver without a GPU         default 2
 *   no_driver       nvmlInit says DRIVER_NOT_LOADED
 *   closed          GPU 0 is counted, but its handle is refused (NO_PERMISSION)
 *   fields          nvmlDeviceGetFieldValues knows power (as a 32 bit value), energy and memory
 *                   temperature; any other field is INVALID_ARGUMENT, one by one
 *   fields_whole    the same, but one unknown field fails the whole call
 *   nonsense        values no GPU can have: 255 %, 0xffffffff milliwatts, 2^31 degrees
 *   lost            GPU 1 answers power with GPU_IS_LOST, utilization with UNKNOWN, and every
 *                   other call as if nothing had happened; while the file $AWKWARD_LOST exists
 *   lost_total      the same, and all its other calls say GPU_IS_LOST as well
 *   unnamed         name and UUID: the name is NOT_SUPPORTED, the UUID fills its buffer
 *
 * GPU n reads: gpu utilization 30+n %, memory 10+n %, power 100000+n mW, temperature 40+n,
 * memory 1000+n MiB of 8000, energy 2^53+1+n mJ (no double holds it) plus 1000 mJ a call.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    UNKNOWN = 999,
};

#define MIB 1048576ULL
#define GPUS_MAX 3
#define ENERGY_MJ 9007199254740993ULL

struct utilization { unsigned int gpu, memory; };
struct memory { unsigned long long total, free, used; };
struct field_value {
    unsigned int field, scope;
    long long timestamp_us, latency_us;
    int value_type; /* 1: unsigned int, 3: unsigned long long */
    int result;
    union { unsigned int ui; unsigned long long ull; } value;
};

struct gpu { int index; unsigned long long energy_calls; };
static struct gpu gpus[GPUS_MAX] = {{0, 0}, {1, 0}, {2, 0}};
static int initialised;

#ifdef OLD_NAMES
#define NAMED(old, newer) old
#else
#define NAMED(old, newer) newer
#endif

static const char *variants(void) {
    const char *text = getenv("AWKWARD_NVML");
    return text ? text : "";
}

static int variant(const char *word) {
    size_t length = strlen(word);
    for (const char *at = variants(); (at = strstr(at, word)); at += length) {
        int begins = at == variants() || at[-1] == ',';
        if (begins && (at[length] == ',' || at[length] == '\0')) return 1;
    }
    return 0;
}

static int count(void) {
    const char *text = strstr(variants(), "gpus=");
    int n = text ? atoi(text + 5) : 2;
    return n < 0 ? 0 : n > GPUS_MAX ? GPUS_MAX : n;
}

static int is_lost(const struct gpu *gpu, const char *how) {
    const char *file = getenv("AWKWARD_LOST");
    return gpu->index == 1 && variant(how) && file && access(file, F_OK) == 0;
}

/* What a call answers before it looks at its arguments. */
static int check(const struct gpu *gpu, const void *answer) {
    if (!initialised) return UNINITIALIZED;
    if (!gpu || !answer) return INVALID_ARGUMENT;
    return is_lost(gpu, "lost_total") ? GPU_IS_LOST : SUCCESS;
}

static unsigned long long energy_mj(struct gpu *gpu) {
    return ENERGY_MJ + (unsigned)gpu->index + 1000 * gpu->energy_calls++;
}

int NAMED(nvmlInit, nvmlInit_v2)(void) {
    if (variant("no_driver")) return DRIVER_NOT_LOADED;
    initialised = 1;
    return SUCCESS;
}

#ifndef OLD_NAMES
int nvmlInitWithFlags(unsigned int flags) { (void)flags; return nvmlInit_v2(); }
#endif

int nvmlShutdown(void) {
    initialised = 0;
    return SUCCESS;
}

int NAMED(nvmlDeviceGetCount, nvmlDeviceGetCount_v2)(unsigned int *n) {
    if (!initialised) return UNINITIALIZED;
    *n = (unsigned)count();
    return SUCCESS;
}

int NAMED(nvmlDeviceGetHandleByIndex, nvmlDeviceGetHandleByIndex_v2)(unsigned int index,
                                                                     struct gpu **gpu) {
    if (!initialised) return UNINITIALIZED;
    if (index >= (unsigned)count()) return INVALID_ARGUMENT;
    if (index == 0 && variant("closed")) return NO_PERMISSION;
    *gpu = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetUUID(struct gpu *gpu, char *uuid, unsigned int length) {
    if (!initialised) return UNINITIALIZED;
    if (!gpu || !uuid) return INVALID_ARGUMENT;
    /* A GPU's UUID has 40 characters; the first buffers had 80 bytes. */
    int needed = variant("unnamed") ? 79 : 40;
    if (length <= (unsigned)needed) return INSUFFICIENT_SIZE;
    snprintf(uuid, length, "GPU-awkward0-0000-0000-0000-%012d", gpu->index);
    for (int i = (int)strlen(uuid); i < needed; i++) uuid[i] = 'f';
    uuid[needed] = '\0';
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct gpu **gpu) {
    char own[96];
    for (int i = 0; i < count(); i++)
        if (nvmlDeviceGetUUID(&gpus[i], own, sizeof own) == SUCCESS && !strcmp(own, uuid)) {
            *gpu = &gpus[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetName(struct gpu *gpu, char *name, unsigned int length) {
    if (!gpu || !name) return INVALID_ARGUMENT;
    if (variant("unnamed")) return NOT_SUPPORTED;
    /* The label's value must be escaped wherever it is shown. */
    return snprintf(name, length, "Awkward \"GPU\" \\ %d", gpu->index) < (int)length
               ? SUCCESS
               : INSUFFICIENT_SIZE;
}

int nvmlDeviceGetPowerUsage(struct gpu *gpu, unsigned int *milliwatts) {
    int result = check(gpu, milliwatts);
    if (result) return result;
    if (is_lost(gpu, "lost")) return GPU_IS_LOST;
    *milliwatts = variant("nonsense") ? 0xffffffffu : 100000u + (unsigned)gpu->index;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(struct gpu *gpu, struct utilization *rates) {
    int result = check(gpu, rates);
    if (result) return result;
    if (is_lost(gpu, "lost")) return UNKNOWN;
    rates->gpu = variant("nonsense") ? 255u : 30u + (unsigned)gpu->index;
    rates->memory = 10u + (unsigned)gpu->index;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(struct gpu *gpu, int sensor, unsigned int *celsius) {
    int result = check(gpu, celsius);
    if (result) return result;
    if (sensor != 0) return INVALID_ARGUMENT;
    *celsius = variant("nonsense") ? 1u << 31 : 40u + (unsigned)gpu->index;
    return SUCCESS;
}

/* Without _v2: used contains what is reserved. */
int nvmlDeviceGetMemoryInfo(struct gpu *gpu, struct memory *memory) {
    int result = check(gpu, memory);
    if (result) return result;
    memory->total = 8000 * MIB;
    memory->used = (1000 + (unsigned)gpu->index) * MIB;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(struct gpu *gpu, unsigned long long *millijoules) {
    int result = check(gpu, millijoules);
    if (result) return result;
    *millijoules = energy_mj(gpu);
    return SUCCESS;
}

#ifndef OLD_NAMES
static int read_field(struct gpu *gpu, struct field_value *field) {
    switch (field->field) {
    case 186: /* NVML_FI_DEV_POWER_INSTANT */
        /* Only the 32 bits that the type announces are written. */
        field->value_type = 1;
        field->value.ull = 0xdeadbeefdeadbeefULL;
        field->value.ui = 200000u + (unsigned)gpu->index;
        return SUCCESS;
    case 83: /* NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION */
        field->value_type = 3;
        field->value.ull = energy_mj(gpu);
        return SUCCESS;
    case 82: /* NVML_FI_DEV_MEMORY_TEMP, whose type some drivers announce wrongly */
        field->value_type = 0;
        field->value.ull = 0;
        field->value.ui = 50u + (unsigned)gpu->index;
        return SUCCESS;
    default:
        field->value_type = 77;
        field->value.ull = 0xdeadbeefdeadbeefULL;
        return INVALID_ARGUMENT;
    }
}

int nvmlDeviceGetFieldValues(struct gpu *gpu, int n, struct field_value *fields) {
    int result = check(gpu, fields);
    if (result) return result;
    int whole = variant("fields_whole");
    if (!whole && !variant("fields")) return NOT_SUPPORTED;
    for (int i = 0; i < n; i++) {
        fields[i].result = read_field(gpu, &fields[i]);
        if (fields[i].result && whole) return fields[i].result;
    }
    return SUCCESS;
}
#endif
