/* What each simulated model of GPU is and can do. */
#ifndef GPUTEL_SIM_PROFILES_H
#define GPUTEL_SIM_PROFILES_H

#include "abi.h"

#include <stdint.h>

/* Features that not all models have. */
typedef enum {
    SIM_ECC = 1 << 0,            /* ECC on, row remapping */
    SIM_GPM = 1 << 1,            /* GPM, and the byte counters of PCIe */
    SIM_MIG = 1 << 2,
    SIM_MEMORY_SENSOR = 1 << 3,  /* a temperature of the memory */
    SIM_FABRIC = 1 << 4,         /* NVSwitch fabric with a fabric manager */
    SIM_SERIAL = 1 << 5,         /* a serial number and a board part number */
    SIM_CONFIDENTIAL = 1 << 6,   /* confidential computing */
    SIM_GEFORCE = 1 << 7         /* P-states, a display, fans */
} sim_feature;

/* Power in mW, clocks in MHz, rates in bytes/s in one direction, temperatures in C. */
typedef struct {
    const char *key;     /* its name in GPUTEL_SIM */
    const char *aliases; /* more of them, separated by blanks */
    const char *name;
    const char *part_number;
    const char *vbios;
    const char *inforom;
    nvmlBrandType_t brand;
    unsigned features;
    unsigned architecture;
    int compute_major, compute_minor;
    unsigned pci_device_id, pci_subsystem_id;
    uint64_t memory_bytes, reserved_bytes, bar1_bytes;
    unsigned memory_bus_bits;
    unsigned multiprocessors, cores;
    unsigned copy_engines, decoders, encoders, jpegs, ofas;
    unsigned power_idle_mw, power_default_mw, power_min_mw, power_max_mw;
    unsigned sm_max_mhz, sm_base_mhz, sm_idle_mhz, video_max_mhz;
    unsigned memory_mhz, memory_idle_mhz;
    unsigned pcie_generation;
    double pcie_rate;
    unsigned nvlinks, nvlink_version, nvlink_mbps;
    double nvlink_rate;
    int slowdown_celsius, shutdown_celsius, gpu_max_celsius, memory_max_celsius;
    double celsius_per_watt; /* from the cooling air to the core, at the nominal air flow */
    unsigned fans;
} sim_profile;

/* The profile of that key, alias or full name, whatever its case; NULL when there is none. */
const sim_profile *sim_profile_named(const char *name);

/* The keys, separated by ", ", for messages. */
extern const char sim_profile_keys[];

static inline int sim_has(const sim_profile *profile, sim_feature feature)
{
    return (profile->features & feature) != 0;
}

#endif
