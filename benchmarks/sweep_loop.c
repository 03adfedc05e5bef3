/* The plain loop that the sampler is compared with: the same functions, through pointers, in
 * the same order, values into an array; nothing is checked, timed, bounded or remembered. */
#include <dlfcn.h>

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
