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

/* Room for the answer of any shape. The words are 8 bytes wide, whatever the driver's are; those
 * of nvmlMemory_v2_t lie where the driver writes them. */
typedef union {
    struct {
        unsigned long long head;
        unsigned long long word[GPUTEL_WORDS];
    };
    nvmlMemory_v2_t memory;
} gputel_answer;

_Static_assert(offsetof(gputel_answer, word) == offsetof(nvmlMemory_v2_t, total), "in place");

/* The shapes that are asked often are in gputel_ask. */
static __attribute__((noinline)) nvmlReturn_t gputel_ask_rare(
    int shape, void *function, const unsigned int *argument, nvmlDevice_t device,
    unsigned long long *words)
{
    unsigned int narrow[GPUTEL_WORDS] = {0};
    nvmlReturn_t result;

    memset(words, 0, GPUTEL_WORDS * sizeof *words);
    switch (shape) {
    case GPUTEL_INT_U64:
        return ((gputel_int_u64_fn)function)(device, argument[0], words);
    case GPUTEL_INT_INT_U64:
        return ((gputel_int_int_u64_fn)function)(device, argument[0], argument[1], words);
    case GPUTEL_U32_U32:
        result = ((gputel_u32_u32_fn)function)(device, &narrow[0], &narrow[1]);
        break;
    case GPUTEL_U32_X4:
        result = ((gputel_u32_x4_fn)function)(
            device, &narrow[0], &narrow[1], &narrow[2], &narrow[3]);
        break;
    case GPUTEL_PAGES: /* no room for addresses: the driver says how many there are */
        result = ((nvmlDeviceGetRetiredPages_fn)function)(
            device, (nvmlPageRetirementCause_t)argument[0], narrow, NULL);
        if (result == NVML_ERROR_INSUFFICIENT_SIZE)
            result = NVML_SUCCESS;
        break;
    case GPUTEL_LICENSE: {
        nvmlGridLicensableFeatures_t features;
        memset(&features, 0, sizeof features);
        result = ((nvmlDeviceGetGridLicensableFeatures_v4_fn)function)(device, &features);
        if (features.isGridLicenseSupported && features.licensableFeaturesCount)
            narrow[0] = features.gridLicensableFeatures[0].featureState;
        break;
    }
    default:
        return NVML_ERROR_FUNCTION_NOT_FOUND;
    }
    for (int i = 0; i < GPUTEL_WORDS; i++)
        words[i] = narrow[i];
    return result;
}

/* Ask `device`; the first `count` words hold the answer when the result is NVML_SUCCESS, and 0
 * where the driver wrote nothing. The function of every call stands in a table as an address
 * without a type, of which `shape` is the type. */
static inline __attribute__((always_inline)) nvmlReturn_t gputel_ask(
    int shape, void *function, const unsigned int *argument, nvmlDevice_t device,
    gputel_answer *answer, int count)
{
    unsigned long long *words = answer->word;
    nvmlReturn_t result;

    if (shape == GPUTEL_U32 || shape == GPUTEL_INT_U32) {
        unsigned int narrow[GPUTEL_WORDS] = {0};

        result = shape == GPUTEL_U32
                     ? ((gputel_u32_fn)function)(device, narrow)
                     : ((gputel_int_u32_fn)function)(device, argument[0], narrow);
        words[0] = narrow[0];
        if (count > 1) { /* a struct */
            words[1] = narrow[1];
            words[2] = narrow[2];
            words[3] = narrow[3];
        }
    } else if (shape == GPUTEL_U64) {
        memset(words, 0, GPUTEL_WORDS * sizeof *words);
        result = ((gputel_u64_fn)function)(device, words);
    } else if (shape == GPUTEL_MEMORY_V2) {
        memset(answer, 0, sizeof *answer);
        answer->memory.version = NVML_STRUCT_VERSION(Memory, 2);
        result = ((nvmlDeviceGetMemoryInfo_v2_fn)function)(device, &answer->memory);
    } else {
        result = gputel_ask_rare(shape, function, argument, device, words);
    }
    return result;
}

#endif
