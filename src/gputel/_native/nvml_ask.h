/* One call to the driver: by the shape of its C signature, not by its name.
 *
 * A shape says which arguments follow the device and how the answer becomes words
 * (gputel.plan.Shape). A new function of a known shape needs no change here.
 */
#ifndef GPUTEL_NVML_ASK_H
#define GPUTEL_NVML_ASK_H

#include <stdint.h>
#include <string.h>

#include "nvml_abi.h"

#define GPUTEL_WORDS 4

enum {
    GPUTEL_U32,
    GPUTEL_INT_U32,
    GPUTEL_U64,
    GPUTEL_INT_U64,
    GPUTEL_INT_INT_U64,
    GPUTEL_U32_U32,
    GPUTEL_U32_X4,
    GPUTEL_MEMORY_V2,
    GPUTEL_PAGES,
    GPUTEL_LICENSE
};

/* gputel.plan.Outcome */
enum {
    GPUTEL_OK,
    GPUTEL_UNSUPPORTED,
    GPUTEL_TRANSIENT,
    GPUTEL_LOST,
    GPUTEL_FATAL,
    GPUTEL_OUTCOMES
};

/* The one map from nvmlReturn_t to what it means; gputel.plan.OUTCOMES is its twin. */
static inline int gputel_classify(nvmlReturn_t code)
{
    switch (code) {
    case NVML_SUCCESS:
        return GPUTEL_OK;
    case NVML_ERROR_INVALID_ARGUMENT:
    case NVML_ERROR_NOT_SUPPORTED:
    case NVML_ERROR_NO_PERMISSION:
    case NVML_ERROR_FUNCTION_NOT_FOUND:
    case NVML_ERROR_VGPU_ECC_NOT_SUPPORTED:
    case NVML_ERROR_ARGUMENT_VERSION_MISMATCH:
    case NVML_ERROR_DEPRECATED:
        return GPUTEL_UNSUPPORTED;
    case NVML_ERROR_GPU_IS_LOST:
    case NVML_ERROR_RESET_REQUIRED:
    case NVML_ERROR_GPU_NOT_FOUND:
        return GPUTEL_LOST;
    case NVML_ERROR_LIB_RM_VERSION_MISMATCH:
    case NVML_ERROR_UNINITIALIZED:
    case NVML_ERROR_DRIVER_NOT_LOADED:
        return GPUTEL_FATAL;
    default:
        return GPUTEL_TRANSIENT;
    }
}

typedef nvmlReturn_t (*gputel_u32_fn)(nvmlDevice_t, unsigned int *);
typedef nvmlReturn_t (*gputel_int_u32_fn)(nvmlDevice_t, unsigned int, unsigned int *);
typedef nvmlReturn_t (*gputel_u64_fn)(nvmlDevice_t, unsigned long long *);
typedef nvmlReturn_t (*gputel_int_u64_fn)(nvmlDevice_t, unsigned int, unsigned long long *);
typedef nvmlReturn_t (*gputel_int_int_u64_fn)(
    nvmlDevice_t, unsigned int, unsigned int, unsigned long long *);
typedef nvmlReturn_t (*gputel_u32_u32_fn)(nvmlDevice_t, unsigned int *, unsigned int *);
typedef nvmlReturn_t (*gputel_u32_x4_fn)(
    nvmlDevice_t, unsigned int *, unsigned int *, unsigned int *, unsigned int *);

/* Ask `device`; `words` holds the answer when the result is NVML_SUCCESS. The function of
 * every call stands in a table as an address without a type, of which `shape` is the type. */
static inline nvmlReturn_t gputel_ask(
    int shape, void *function, const unsigned int *argument, nvmlDevice_t device, uint64_t *words)
{
    /* Room for the largest struct of a shape; each answer is 0 where the driver wrote none. */
    unsigned int narrow[GPUTEL_WORDS] = {0};
    unsigned long long *wide = (unsigned long long *)words;
    nvmlReturn_t result;

    switch (shape) {
    case GPUTEL_U32:
        result = ((gputel_u32_fn)function)(device, narrow);
        words[0] = narrow[0];
        words[1] = narrow[1];
        return result;
    case GPUTEL_INT_U32:
        result = ((gputel_int_u32_fn)function)(device, argument[0], narrow);
        words[0] = narrow[0];
        return result;
    case GPUTEL_U32_U32:
        result = ((gputel_u32_u32_fn)function)(device, &narrow[0], &narrow[1]);
        words[0] = narrow[0];
        words[1] = narrow[1];
        return result;
    case GPUTEL_U32_X4:
        result = ((gputel_u32_x4_fn)function)(
            device, &narrow[0], &narrow[1], &narrow[2], &narrow[3]);
        for (int i = 0; i < GPUTEL_WORDS; i++)
            words[i] = narrow[i];
        return result;
    case GPUTEL_U64:
        memset(words, 0, GPUTEL_WORDS * sizeof *words);
        return ((gputel_u64_fn)function)(device, wide);
    case GPUTEL_INT_U64:
        memset(words, 0, GPUTEL_WORDS * sizeof *words);
        return ((gputel_int_u64_fn)function)(device, argument[0], wide);
    case GPUTEL_INT_INT_U64:
        words[0] = 0;
        return ((gputel_int_int_u64_fn)function)(device, argument[0], argument[1], wide);
    case GPUTEL_MEMORY_V2: {
        nvmlMemory_v2_t memory = {.version = NVML_STRUCT_VERSION(Memory, 2)};
        result = ((nvmlDeviceGetMemoryInfo_v2_fn)function)(device, &memory);
        words[0] = memory.total;
        words[1] = memory.reserved;
        words[2] = memory.free;
        words[3] = memory.used;
        return result;
    }
    case GPUTEL_PAGES: {
        unsigned int pages = 0; /* no room for addresses: the driver says how many there are */
        result = ((nvmlDeviceGetRetiredPages_fn)function)(
            device, (nvmlPageRetirementCause_t)argument[0], &pages, NULL);
        words[0] = pages;
        return result == NVML_ERROR_INSUFFICIENT_SIZE ? NVML_SUCCESS : result;
    }
    case GPUTEL_LICENSE: {
        nvmlGridLicensableFeatures_t features;
        memset(&features, 0, sizeof features);
        result = ((nvmlDeviceGetGridLicensableFeatures_v4_fn)function)(device, &features);
        words[0] = features.isGridLicenseSupported && features.licensableFeaturesCount
                       ? features.gridLicensableFeatures[0].featureState
                       : 0;
        return result;
    }
    default:
        return NVML_ERROR_FUNCTION_NOT_FOUND;
    }
}

#endif
