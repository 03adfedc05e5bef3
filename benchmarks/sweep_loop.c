/* The loops that the sampler is compared with: the same functions, through pointers, in the same
 * order. `sweep` puts values into an array; nothing is checked, timed, bounded or remembered.
 * `sweep_checked` does by hand, for these calls alone, what no sampler can leave out: it looks at
 * every result, keeps values in range, sees counters that go back, and hands rows with validity
 * bits to a ring. It can't be taken over, remembers nothing that is unsupported, and does not know
 * what it costs. */
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#include "nvml_abi.h"

#define METRICS 24
#define FIELDS 13

static const unsigned int fields[FIELDS] = {186, 83, 197, 198, 138, 139, 74, 75, 76, 77, 78, 79, 82};

#define USE(name) static name##_fn name##_p;
#define FIND(name) name##_p = (name##_fn)dlsym(library, #name); if (!name##_p) return -1;
#define FUNCTIONS(F) \
    F(nvmlDeviceGetUtilizationRates) F(nvmlDeviceGetPowerUsage) F(nvmlDeviceGetClockInfo) \
    F(nvmlDeviceGetCurrentClocksEventReasons) F(nvmlDeviceGetMemoryInfo_v2) \
    F(nvmlDeviceGetTemperature) F(nvmlDeviceGetPerformanceState) F(nvmlDeviceGetFieldValues)

FUNCTIONS(USE)

int find_functions(void *library)
{
    FUNCTIONS(FIND)
    return 0;
}

static void read_device(nvmlDevice_t device, double *out)
{
    nvmlFieldValue_t values[FIELDS];
    nvmlUtilization_t use = {0};
    nvmlMemory_v2_t memory = {.version = NVML_STRUCT_VERSION(Memory, 2)};
    unsigned int number = 0;
    unsigned long long mask = 0;
    nvmlPstates_t state = NVML_PSTATE_UNKNOWN;

    for (int i = 0; i < FIELDS; i++) {
        values[i].fieldId = fields[i];
        values[i].scopeId = fields[i] == 138 || fields[i] == 139 ? 0xFFFFFFFFu : 0;
    }
    nvmlDeviceGetFieldValues_p(device, FIELDS, values);
    for (int i = 0; i < FIELDS; i++)
        switch (values[i].valueType) {
        case NVML_VALUE_TYPE_UNSIGNED_INT:
            out[i] = values[i].value.uiVal;
            break;
        default:
            out[i] = (double)values[i].value.ullVal;
        }
    nvmlDeviceGetUtilizationRates_p(device, &use);
    out[13] = use.gpu;
    out[14] = use.memory;
    nvmlDeviceGetPowerUsage_p(device, &number);
    out[15] = number;
    nvmlDeviceGetClockInfo_p(device, NVML_CLOCK_SM, &number);
    out[16] = number;
    nvmlDeviceGetCurrentClocksEventReasons_p(device, &mask);
    out[17] = (double)mask;
    nvmlDeviceGetMemoryInfo_v2_p(device, &memory);
    out[18] = (double)memory.used;
    out[19] = (double)memory.free;
    out[20] = (double)memory.reserved;
    nvmlDeviceGetTemperature_p(device, NVML_TEMPERATURE_GPU, &number);
    out[21] = number;
    nvmlDeviceGetClockInfo_p(device, NVML_CLOCK_MEM, &number);
    out[22] = number;
    nvmlDeviceGetPerformanceState_p(device, &state);
    out[23] = state;
}

/* `sweeps` times all devices; out is double[devices][METRICS]. */
void sweep(nvmlDevice_t *devices, int count, int sweeps, double *out)
{
    for (int n = 0; n < sweeps; n++)
        for (int i = 0; i < count; i++)
            read_device(devices[i], out + i * METRICS);
}

/* ---- With checks ------------------------------------------------------------------------- */

#define HEADER 4 /* words: time, GPU, validity, sequence */
#define WATTS_MAX_MW 10000000u
#define COUNTER_MAX INT64_MAX

typedef struct {
    uint64_t (*rows)[HEADER + METRICS];
    uint64_t capacity; /* a power of 2 */
    _Atomic uint64_t head, tail;
    uint64_t sequence, rejected, resets, failures;
    uint64_t before[64][METRICS]; /* counters, by device */
} checked_t;

static const struct {
    uint64_t max, multiply;
    int is_counter;
} rule[FIELDS] = {
    {WATTS_MAX_MW, 0, 0}, {COUNTER_MAX, 1, 1}, {COUNTER_MAX, 1, 1}, {COUNTER_MAX, 1, 1},
    {COUNTER_MAX / 1024, 1024, 1}, {COUNTER_MAX / 1024, 1024, 1}, {COUNTER_MAX, 1, 1},
    {COUNTER_MAX, 1, 1}, {COUNTER_MAX, 1, 1}, {COUNTER_MAX, 1, 1}, {COUNTER_MAX, 1, 1},
    {COUNTER_MAX, 1, 1}, {200, 1, 0},
};

static inline void put(checked_t *to, uint64_t *row, int column, uint64_t raw, uint64_t max)
{
    if (raw > max) {
        to->rejected++;
        return;
    }
    row[HEADER + column] = raw;
    row[2] |= 1ull << column;
}

static inline void put_watts(checked_t *to, uint64_t *row, int column, uint64_t milliwatts)
{
    double watts = (double)(int64_t)milliwatts / 1000;

    put(to, row, column, milliwatts, WATTS_MAX_MW);
    memcpy(&row[HEADER + column], &watts, sizeof watts);
}

static inline void put_field(checked_t *to, uint64_t *row, uint64_t *before, int i,
                             const nvmlFieldValue_t *field)
{
    uint64_t raw = field->valueType == NVML_VALUE_TYPE_UNSIGNED_INT ? field->value.uiVal
                                                                   : field->value.ullVal;

    if (field->nvmlReturn != NVML_SUCCESS) {
        to->failures++;
        return;
    }
    if (!rule[i].multiply) {
        put_watts(to, row, i, raw);
        return;
    }
    if (rule[i].is_counter) {
        to->resets += raw < before[i];
        before[i] = raw;
    }
    put(to, row, i, raw * rule[i].multiply, rule[i].max * rule[i].multiply);
}

#define ASK(call) ((call) == NVML_SUCCESS ? 1 : (to->failures++, 0))

static void read_checked(checked_t *to, int number, nvmlDevice_t device, uint64_t *row)
{
    nvmlFieldValue_t values[FIELDS];
    nvmlUtilization_t use = {0};
    nvmlMemory_v2_t memory = {.version = NVML_STRUCT_VERSION(Memory, 2)};
    unsigned int answer = 0;
    unsigned long long mask = 0;
    nvmlPstates_t state = NVML_PSTATE_UNKNOWN;

    for (int i = 0; i < FIELDS; i++) {
        values[i].fieldId = fields[i];
        values[i].scopeId = fields[i] == 138 || fields[i] == 139 ? 0xFFFFFFFFu : 0;
        values[i].nvmlReturn = NVML_ERROR_UNKNOWN;
        values[i].value.ullVal = 0;
    }
    if (ASK(nvmlDeviceGetFieldValues_p(device, FIELDS, values)))
        for (int i = 0; i < FIELDS; i++)
            put_field(to, row, to->before[number], i, &values[i]);
    if (ASK(nvmlDeviceGetUtilizationRates_p(device, &use))) {
        put(to, row, 13, use.gpu, 100);
        put(to, row, 14, use.memory, 100);
    }
    if (ASK(nvmlDeviceGetPowerUsage_p(device, &answer)))
        put_watts(to, row, 15, answer);
    if (ASK(nvmlDeviceGetClockInfo_p(device, NVML_CLOCK_SM, &answer)))
        put(to, row, 16, answer, 10000);
    if (ASK(nvmlDeviceGetCurrentClocksEventReasons_p(device, &mask)))
        put(to, row, 17, mask, INT64_MAX);
    if (ASK(nvmlDeviceGetMemoryInfo_v2_p(device, &memory))) {
        put(to, row, 18, memory.used, INT64_MAX);
        put(to, row, 19, memory.free, INT64_MAX);
        put(to, row, 20, memory.reserved, INT64_MAX);
    }
    if (ASK(nvmlDeviceGetTemperature_p(device, NVML_TEMPERATURE_GPU, &answer)))
        put(to, row, 21, answer, 200);
    if (ASK(nvmlDeviceGetClockInfo_p(device, NVML_CLOCK_MEM, &answer)))
        put(to, row, 22, answer, 10000);
    if (ASK(nvmlDeviceGetPerformanceState_p(device, &state)))
        put(to, row, 23, state, 15);
}

/* As `sweep`; rows go to the ring while there is room, which its reader makes by moving `tail`. */
void sweep_checked(nvmlDevice_t *devices, int count, int sweeps, checked_t *to)
{
    for (int n = 0; n < sweeps; n++)
        for (int i = 0; i < count; i++) {
            uint64_t head = atomic_load_explicit(&to->head, memory_order_relaxed);
            uint64_t *row = to->rows[head & (to->capacity - 1)];

            if (head - atomic_load_explicit(&to->tail, memory_order_acquire) == to->capacity)
                return;
            row[0] = (uint64_t)n;
            row[1] = (uint64_t)i;
            row[2] = 0;
            row[3] = to->sequence++;
            read_checked(to, i, devices[i], row);
            atomic_store_explicit(&to->head, head + 1, memory_order_release);
        }
}
