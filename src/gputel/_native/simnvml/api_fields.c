/* nvmlDeviceGetFieldValues: one number for each field id. */
#include "links.h"

#include <limits.h>

#define PROFILE (gpu->model.profile)
#define SEEN (gpu->model.seen)
#define MODEL (gpu->model)
#define KIB 1024
#define NJ_PER_MJ 1000000
#define FIELDS_MAX 4096 /* in one call */
#define RAW_OVER_DATA 1.0625 /* what packets' heads add on NVLink */

#define WITHIN(id, first, last) ((id) >= (first) && (id) <= (last))

static nvmlReturn_t as_u32(nvmlFieldValue_t *field, uint64_t value)
{
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_INT;
    field->value.ullVal = 0;
    field->value.uiVal = (unsigned)value;
    return NVML_SUCCESS;
}

static nvmlReturn_t as_u64(nvmlFieldValue_t *field, uint64_t value)
{
    field->valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
    field->value.ullVal = value;
    return NVML_SUCCESS;
}

static nvmlReturn_t as_i32(nvmlFieldValue_t *field, int value)
{
    field->valueType = NVML_VALUE_TYPE_SIGNED_INT;
    field->value.ullVal = 0;
    field->value.siVal = value;
    return NVML_SUCCESS;
}

/* ---- Errors of memory: fields 1 to 31, 92 to 93, 142 to 145, 226 to 230 ------------------- */

static nvmlReturn_t error_field(const sim_gpu *gpu, nvmlFieldValue_t *field)
{
    switch (field->fieldId) {
    case NVML_FI_DEV_ECC_CURRENT:
    case NVML_FI_DEV_ECC_PENDING:
        return as_u32(field, sim_has(PROFILE, SIM_ECC) ? NVML_FEATURE_ENABLED
                                                       : NVML_FEATURE_DISABLED);
    case NVML_FI_DEV_GET_GPU_RECOVERY_ACTION:
        return as_u32(field, MODEL.remap_pending ? NVML_GPU_RECOVERY_ACTION_GPU_RESET
                                                 : NVML_GPU_RECOVERY_ACTION_NONE);
    case NVML_FI_DEV_RESET_STATUS:
        return as_u32(field, MODEL.remap_pending);
    case NVML_FI_DEV_DRAIN_AND_RESET_STATUS:
        return as_u32(field, 0);
    default:
        break;
    }
    REQUIRE(sim_has(PROFILE, SIM_ECC));
    switch (field->fieldId) {
    case NVML_FI_DEV_ECC_SBE_VOL_TOTAL:
    case NVML_FI_DEV_ECC_SBE_VOL_DEV:
        return as_u64(field, MODEL.sbe_volatile);
    case NVML_FI_DEV_ECC_DBE_VOL_TOTAL:
    case NVML_FI_DEV_ECC_DBE_VOL_DEV:
        return as_u64(field, MODEL.dbe_volatile);
    case NVML_FI_DEV_ECC_SBE_AGG_TOTAL:
    case NVML_FI_DEV_ECC_SBE_AGG_DEV:
        return as_u64(field, MODEL.sbe_aggregate);
    case NVML_FI_DEV_ECC_DBE_AGG_TOTAL:
    case NVML_FI_DEV_ECC_DBE_AGG_DEV:
        return as_u64(field, MODEL.dbe_aggregate);
    case NVML_FI_DEV_REMAPPED_COR:
        return as_u32(field, MODEL.remapped_correctable);
    case NVML_FI_DEV_REMAPPED_UNC:
        return as_u32(field, MODEL.remapped_uncorrectable);
    case NVML_FI_DEV_REMAPPED_PENDING:
        return as_u32(field, MODEL.remap_pending);
    case NVML_FI_DEV_REMAPPED_FAILURE:
        return as_u32(field, 0);
    default: /* of parts that Ampere and later count as one, and of retired pages */
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

/* ---- Power, temperature, violations ------------------------------------------------------- */

static nvmlReturn_t power_field(const sim_gpu *gpu, nvmlFieldValue_t *field)
{
    switch (field->fieldId) {
    case NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
    case NVML_FI_DEV_ENERGY:
        return as_u64(field, MODEL.energy_nj / NJ_PER_MJ);
    case NVML_FI_DEV_POWER_AVERAGE:
        return as_u32(field, SEEN.power_average_mw);
    case NVML_FI_DEV_POWER_INSTANT:
        return as_u32(field, SEEN.power_mw);
    case NVML_FI_DEV_POWER_MIN_LIMIT:
        return as_u32(field, PROFILE->power_min_mw);
    case NVML_FI_DEV_POWER_MAX_LIMIT:
        return as_u32(field, PROFILE->power_max_mw);
    case NVML_FI_DEV_POWER_DEFAULT_LIMIT:
    case NVML_FI_DEV_POWER_CURRENT_LIMIT:
    case NVML_FI_DEV_POWER_REQUESTED_LIMIT:
        return as_u32(field, PROFILE->power_default_mw);
    case NVML_FI_DEV_MEMORY_TEMP:
        REQUIRE(sim_has(PROFILE, SIM_MEMORY_SENSOR));
        return as_u32(field, (unsigned)SEEN.memory_celsius);
    /* Distances to the limits: 0 is at the limit of the core, less is above it. */
    case NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT:
        return as_i32(field, PROFILE->gpu_max_celsius - PROFILE->shutdown_celsius);
    case NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT:
        return as_i32(field, PROFILE->gpu_max_celsius - PROFILE->slowdown_celsius);
    case NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT:
    case NVML_FI_DEV_TEMPERATURE_MEM_MAX_TLIMIT:
        return as_i32(field, 0);
    default:
        return NVML_ERROR_NOT_SUPPORTED;
    }
}

static nvmlReturn_t violation_field(const sim_gpu *gpu, nvmlFieldValue_t *field)
{
    switch (field->fieldId) {
    case NVML_FI_DEV_PERF_POLICY_POWER:
        return as_u64(field, SEEN.power_violation_ns);
    case NVML_FI_DEV_PERF_POLICY_THERMAL:
    case NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN:
        return as_u64(field, SEEN.thermal_violation_ns);
    case NVML_FI_DEV_PERF_POLICY_LOW_UTILIZATION:
        return as_u64(field, SEEN.idle_ns);
    case NVML_FI_DEV_PERF_POLICY_TOTAL_BASE_CLOCKS:
        return as_u64(field, SEEN.below_base_ns);
    default: /* the other reasons do not happen in the simulation */
        return as_u64(field, 0);
    }
}

/* ---- PCIe and NVLink ---------------------------------------------------------------------- */

static nvmlReturn_t pcie_field(const sim_gpu *gpu, nvmlFieldValue_t *field)
{
    switch (field->fieldId) {
    case NVML_FI_DEV_PCIE_REPLAY_COUNTER:
    case NVML_FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER:
        return as_u32(field, 0);
    case NVML_FI_DEV_PCIE_COUNT_TX_BYTES:
        REQUIRE(sim_has(PROFILE, SIM_GPM));
        return as_u64(field, SEEN.pcie_tx_bytes);
    case NVML_FI_DEV_PCIE_COUNT_RX_BYTES:
        REQUIRE(sim_has(PROFILE, SIM_GPM));
        return as_u64(field, SEEN.pcie_rx_bytes);
    default: /* counters of errors, all 0 */
        REQUIRE(sim_has(PROFILE, SIM_GPM));
        return as_u64(field, 0);
    }
}

static uint64_t raw(uint64_t data)
{
    return (uint64_t)((double)data * RAW_OVER_DATA);
}

static nvmlReturn_t traffic_field(const sim_gpu *gpu, nvmlFieldValue_t *field)
{
    unsigned link = field->scopeId;
    if (link != UINT_MAX && link >= PROFILE->nvlinks)
        return NVML_ERROR_INVALID_ARGUMENT;
    switch (field->fieldId) {
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX:
        return as_u64(field, sim_link_bytes(gpu, link, SIM_TX) / KIB);
    case NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX:
        return as_u64(field, sim_link_bytes(gpu, link, SIM_RX) / KIB);
    case NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_TX:
        return as_u64(field, raw(sim_link_bytes(gpu, link, SIM_TX)) / KIB);
    case NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX:
        return as_u64(field, raw(sim_link_bytes(gpu, link, SIM_RX)) / KIB);
    case NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES:
        return as_u64(field, sim_link_bytes(gpu, link, SIM_TX));
    default: /* NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES */
        return as_u64(field, sim_link_bytes(gpu, link, SIM_RX));
    }
}

/* Ids with a link in them: the number of the link; UINT_MAX for a total. */
static unsigned speed_link(unsigned id)
{
    if (WITHIN(id, NVML_FI_DEV_NVLINK_SPEED_MBPS_L0, NVML_FI_DEV_NVLINK_SPEED_MBPS_L5))
        return id - NVML_FI_DEV_NVLINK_SPEED_MBPS_L0;
    if (WITHIN(id, NVML_FI_DEV_NVLINK_SPEED_MBPS_L6, NVML_FI_DEV_NVLINK_SPEED_MBPS_L11))
        return id - NVML_FI_DEV_NVLINK_SPEED_MBPS_L6 + 6;
    return UINT_MAX;
}

static nvmlReturn_t nvlink_field(const sim_gpu *gpu, nvmlFieldValue_t *field)
{
    unsigned id = field->fieldId;
    if (id == NVML_FI_DEV_NVLINK_LINK_COUNT)
        return as_u32(field, PROFILE->nvlinks);
    REQUIRE(PROFILE->nvlinks);
    if (WITHIN(id, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX))
        return traffic_field(gpu, field);
    bool blackwell = PROFILE->nvlink_version >= NVML_NVLINK_VERSION_5_0;
    if (id == NVML_FI_DEV_NVLINK_COUNT_XMIT_BYTES || id == NVML_FI_DEV_NVLINK_COUNT_RCV_BYTES) {
        REQUIRE(blackwell);
        return traffic_field(gpu, field);
    }
    if (id == NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON || speed_link(id) < PROFILE->nvlinks)
        return as_u32(field, PROFILE->nvlink_mbps);
    if (WITHIN(id, NVML_FI_DEV_NVLINK_GET_SPEED, NVML_FI_DEV_NVLINK_GET_POWER_STATE)) {
        if (field->scopeId >= PROFILE->nvlinks)
            return NVML_ERROR_INVALID_ARGUMENT;
        return as_u32(field, id == NVML_FI_DEV_NVLINK_GET_SPEED     ? PROFILE->nvlink_mbps
                             : id == NVML_FI_DEV_NVLINK_GET_STATE   ? NVML_FEATURE_ENABLED
                             : id == NVML_FI_DEV_NVLINK_GET_VERSION ? PROFILE->nvlink_version
                                                                    : 0);
    }
    if (id == NVML_FI_DEV_NVSWITCH_CONNECTED_LINK_COUNT)
        return as_u32(field, PROFILE->nvlinks);
    if (id >= NVML_FI_DEV_NVLINK_COUNT_XMIT_PACKETS)
        REQUIRE(blackwell);
    /* The links are sound; their utilization counters ended with Volta. */
    REQUIRE(!WITHIN(id, NVML_FI_DEV_NVLINK_BANDWIDTH_C0_L0, NVML_FI_DEV_NVLINK_BANDWIDTH_C1_TOTAL));
    REQUIRE(!WITHIN(id, NVML_FI_DEV_NVLINK_BANDWIDTH_C0_L6, NVML_FI_DEV_NVLINK_BANDWIDTH_C1_L11));
    return as_u64(field, 0);
}

/* ---- Which part answers ------------------------------------------------------------------- */

typedef nvmlReturn_t (*field_reader)(const sim_gpu *gpu, nvmlFieldValue_t *field);

static nvmlReturn_t unknown_field(const sim_gpu *gpu, nvmlFieldValue_t *field)
{
    (void)gpu;
    (void)field;
    return NVML_ERROR_NOT_SUPPORTED;
}

static const struct {
    unsigned first, last;
    field_reader read;
} parts[] = {
    {NVML_FI_DEV_ECC_CURRENT, NVML_FI_DEV_RETIRED_PENDING, error_field},
    {NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_L0, NVML_FI_DEV_NVLINK_BANDWIDTH_C1_TOTAL,
     nvlink_field},
    {NVML_FI_DEV_PERF_POLICY_POWER, NVML_FI_DEV_PERF_POLICY_TOTAL_BASE_CLOCKS, violation_field},
    {NVML_FI_DEV_MEMORY_TEMP, NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION, power_field},
    {NVML_FI_DEV_NVLINK_SPEED_MBPS_L0, NVML_FI_DEV_NVLINK_LINK_COUNT, nvlink_field},
    {NVML_FI_DEV_RETIRED_PENDING_SBE, NVML_FI_DEV_RETIRED_PENDING_DBE, unknown_field},
    {NVML_FI_DEV_PCIE_REPLAY_COUNTER, NVML_FI_DEV_PCIE_REPLAY_ROLLOVER_COUNTER, pcie_field},
    {NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_L6, NVML_FI_DEV_NVLINK_THROUGHPUT_RAW_RX,
     nvlink_field},
    {NVML_FI_DEV_REMAPPED_COR, NVML_FI_DEV_REMAPPED_FAILURE, error_field},
    {NVML_FI_DEV_NVLINK_REMOTE_NVLINK_ID, NVML_FI_DEV_NVLINK_GET_POWER_THRESHOLD, nvlink_field},
    {NVML_FI_DEV_PCIE_L0_TO_RECOVERY_COUNTER, NVML_FI_DEV_PCIE_L0_TO_RECOVERY_COUNTER,
     pcie_field},
    {NVML_FI_DEV_C2C_LINK_COUNT, NVML_FI_DEV_C2C_LINK_GET_MAX_BW, unknown_field},
    {NVML_FI_DEV_PCIE_COUNT_CORRECTABLE_ERRORS, NVML_FI_DEV_PCIE_COUNT_LANE_ERROR, pcie_field},
    {NVML_FI_DEV_POWER_AVERAGE, NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT, power_field},
    {NVML_FI_DEV_PCIE_COUNT_TX_BYTES, NVML_FI_DEV_PCIE_COUNT_RX_BYTES, pcie_field},
    {NVML_FI_DEV_NVLINK_COUNT_XMIT_PACKETS, NVML_FI_DEV_NVLINK_COUNT_SYMBOL_BER, nvlink_field},
    {NVML_FI_DEV_RESET_STATUS, NVML_FI_DEV_DRAIN_AND_RESET_STATUS, error_field},
    {NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, error_field},
    {NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
     NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_POWER_BRAKE_SLOWDOWN, violation_field},
};

static _Atomic(field_reader) readers[NVML_FI_MAX];

/* PERF(readers): a table by id, filled as ids are asked for; every thread writes the same. */
static field_reader reader_of(unsigned id)
{
    if (id >= NVML_FI_MAX)
        return NULL;
    field_reader read = atomic_load_explicit(&readers[id], memory_order_relaxed);
    if (read)
        return read;
    read = unknown_field;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (WITHIN(id, parts[i].first, parts[i].last))
            read = parts[i].read;
    atomic_store_explicit(&readers[id], read, memory_order_relaxed);
    return read;
}

/* NOTE(renumbered): from 251 on, the ids of nvml.h 13 (driver 580) are others than those of
 * 12.9: the thermal, power brake and balancing fields moved by 18, and new ones came before
 * and after them. The id in the numbering of 12.9; 0, which is no field, for a new one. */
static unsigned id_in_12(unsigned id)
{
    const unsigned moved_by = 18, last_new = 309;
    if (id < NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN || sim.config.branch < 580)
        return id;
    if (WITHIN(id - moved_by, NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN,
               NVML_FI_DEV_POWER_SYNC_BALANCING_AF))
        return id - moved_by;
    return id <= last_new ? 0 : id;
}

/* Reads one field, under the id of 12.9. */
static nvmlReturn_t read_field(const sim_gpu *gpu, nvmlFieldValue_t *field)
{
    unsigned asked = field->fieldId;
    field->fieldId = id_in_12(asked);
    field_reader read = reader_of(field->fieldId);
    nvmlReturn_t result = read ? read(gpu, field) : NVML_ERROR_INVALID_ARGUMENT;
    field->fieldId = asked;
    return result;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int valuesCount,
                                      nvmlFieldValue_t *values)
{
    DEVICE_CALL(nvmlDeviceGetFieldValues,
                values && valuesCount > 0 && valuesCount <= FIELDS_MAX);
    long long now_us = (long long)sim_unix_us(MODEL.time_ns);
    bool hidden = gpu->target.faults.in_force & 1u << SIM_FAULT_NOT_SUPPORTED;
    for (int i = 0; i < valuesCount; i++) {
        nvmlFieldValue_t *field = &values[i];
        field->timestamp = now_us;
        field->latencyUsec = 0;
        if (hidden && sim_fault_hides_field(&gpu->target.faults, field->fieldId))
            field->nvmlReturn = NVML_ERROR_NOT_SUPPORTED;
        else
            field->nvmlReturn = read_field(gpu, field);
    }
    return NVML_SUCCESS;
}

/* Clears counters of errors of NVLink, which are 0 here. */
nvmlReturn_t nvmlDeviceClearFieldValues(nvmlDevice_t device, int valuesCount,
                                        nvmlFieldValue_t *values)
{
    DEVICE_CALL(nvmlDeviceClearFieldValues,
                values && valuesCount > 0 && valuesCount <= FIELDS_MAX);
    for (int i = 0; i < valuesCount; i++) {
        field_reader read = reader_of(id_in_12(values[i].fieldId));
        bool counters = read == nvlink_field && PROFILE->nvlinks;
        values[i].nvmlReturn = !read      ? NVML_ERROR_INVALID_ARGUMENT
                               : counters ? NVML_SUCCESS
                                          : NVML_ERROR_NOT_SUPPORTED;
    }
    return NVML_SUCCESS;
}
