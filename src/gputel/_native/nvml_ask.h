/* One call to the driver: by the shape of its C signature, not by its name.
 *
 * A shape says which arguments follow the device and how the answer becomes words
 * (gputel.plan.Shape). A new function of a known shape needs no change here.
 */
#ifndef GPUTEL_NVML_ASK_H
#define GPUTEL_NVML_ASK_H

#include <stddef.h>
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

/* Room for the answer of any shape. Its words are 4 or 8 bytes wide, as the driver writes them. */
typedef union {
    unsigned int narrow[GPUTEL_WORDS];
    unsigned long long wide[GPUTEL_WORDS];
    nvmlMemory_v2_t memory;
} gputel_answer;

/* Where the words of a shape begin, and how wide they are, in bytes. */
static inline int gputel_word_bytes(int shape)
{
    switch (shape) {
    case GPUTEL_U64:
    case GPUTEL_INT_U64:
    case GPUTEL_INT_INT_U64:
    case GPUTEL_MEMORY_V2:
        return sizeof(unsigned long long);
    default:
        return sizeof(unsigned int);
    }
}

static inline int gputel_word_offset(int shape, int word)
{
    return (shape == GPUTEL_MEMORY_V2 ? (int)offsetof(nvmlMemory_v2_t, total) : 0) +
           word * gputel_word_bytes(shape);
}

/* Ask `device`; `answer` holds it when the result is NVML_SUCCESS, and is 0 where the driver
 * wrote nothing. The function of every call stands in a table as an address without a type, of
 * which `shape` is the type. */
static inline nvmlReturn_t gputel_ask(
    int shape, void *function, const unsigned int *argument, nvmlDevice_t device,
    gputel_answer *answer)
{
    unsigned int *narrow = answer->narrow;
    unsigned long long *wide = answer->wide;

    memset(answer, 0, sizeof *answer);
    switch (shape) {
    case GPUTEL_U32:
        return ((gputel_u32_fn)function)(device, narrow);
    case GPUTEL_INT_U32:
        return ((gputel_int_u32_fn)function)(device, argument[0], narrow);
    case GPUTEL_U32_U32:
        return ((gputel_u32_u32_fn)function)(device, &narrow[0], &narrow[1]);
    case GPUTEL_U32_X4:
        return ((gputel_u32_x4_fn)function)(
            device, &narrow[0], &narrow[1], &narrow[2], &narrow[3]);
    case GPUTEL_U64:
        return ((gputel_u64_fn)function)(device, wide);
    case GPUTEL_INT_U64:
        return ((gputel_int_u64_fn)function)(device, argument[0], wide);
    case GPUTEL_INT_INT_U64:
        return ((gputel_int_int_u64_fn)function)(device, argument[0], argument[1], wide);
    case GPUTEL_MEMORY_V2:
        answer->memory.version = NVML_STRUCT_VERSION(Memory, 2);
        return ((nvmlDeviceGetMemoryInfo_v2_fn)function)(device, &answer->memory);
    case GPUTEL_PAGES: { /* no room for addresses: the driver says how many there are */
        nvmlReturn_t result = ((nvmlDeviceGetRetiredPages_fn)function)(
            device, (nvmlPageRetirementCause_t)argument[0], narrow, NULL);
        return result == NVML_ERROR_INSUFFICIENT_SIZE ? NVML_SUCCESS : result;
    }
    case GPUTEL_LICENSE: {
        nvmlGridLicensableFeatures_t features;
        nvmlReturn_t result;
        memset(&features, 0, sizeof features);
        result = ((nvmlDeviceGetGridLicensableFeatures_v4_fn)function)(device, &features);
        if (features.isGridLicenseSupported && features.licensableFeaturesCount)
            narrow[0] = features.gridLicensableFeatures[0].featureState;
        return result;
    }
    default:
        return NVML_ERROR_FUNCTION_NOT_FOUND;
    }
}

#endif
