#include "faults.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX 256
#define SECONDS_MAX 1e9

/* What stands behind `=` of a kind. */
typedef enum { VALUE_NONE, VALUE_NUMBER, VALUE_FUNCTION, VALUE_FUNCTION_OR_FIELD } value_form;

static const struct {
    const char *name;
    value_form form;
} kinds[SIM_FAULT_KINDS] = {
    [SIM_FAULT_LOST] = {"lost", VALUE_NONE},
    [SIM_FAULT_RESET_REQUIRED] = {"reset_required", VALUE_NONE},
    [SIM_FAULT_FALLEN] = {"fallen", VALUE_NONE},
    [SIM_FAULT_HANG] = {"hang", VALUE_NONE},
    [SIM_FAULT_SLOW] = {"slow", VALUE_NUMBER},
    [SIM_FAULT_NOT_SUPPORTED] = {"not_supported", VALUE_FUNCTION_OR_FIELD},
    [SIM_FAULT_NO_FUNCTION] = {"no_function", VALUE_FUNCTION},
    [SIM_FAULT_REMOVE] = {"remove", VALUE_NONE},
    [SIM_FAULT_RESTORE] = {"restore", VALUE_NONE},
    [SIM_FAULT_XID] = {"xid", VALUE_NUMBER},
    [SIM_FAULT_ECC_SBE] = {"ecc_sbe", VALUE_NUMBER},
    [SIM_FAULT_ECC_DBE] = {"ecc_dbe", VALUE_NUMBER},
    [SIM_FAULT_ENERGY_RESET] = {"energy_reset", VALUE_NONE},
};

typedef struct {
    char *problem;
    size_t size;
} complaint;

#define FAIL(...) (snprintf(to.problem, to.size, __VA_ARGS__), false)

static bool number(const char *text, uint64_t max, uint64_t *value)
{
    char *end;
    errno = 0;
    if (!isdigit((unsigned char)*text))
        return false;
    *value = strtoull(text, &end, 10);
    return *end == '\0' && errno == 0 && *value <= max;
}

static bool seconds(const char *text, uint64_t *ns)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !isfinite(value) || value < 0 || value > SECONDS_MAX)
        return false;
    *ns = (uint64_t)llround(value * 1e9);
    return true;
}

/* nvmlInit goes by any of its names: which of them a client calls, its user can't know. */
static bool function_named(const char *text, int *function, complaint to)
{
    *function = sim_function_named(text);
    if (*function < 0)
        return FAIL("'%s' is no NVML function of the simulated driver", text);
    if (*function == SIM_nvmlShutdown)
        return FAIL("%s can't be given a fault", text);
    if (SIM_IS_INIT(*function))
        *function = SIM_nvmlInit_v2;
    return true;
}

static bool read_value(sim_fault *fault, const char *text, complaint to)
{
    const char *kind = kinds[fault->kind].name;
    uint64_t id;
    switch (kinds[fault->kind].form) {
    case VALUE_NONE:
        return text ? FAIL("%s takes no value, '=%s' is one", kind, text) : true;
    case VALUE_NUMBER:
        if (!text || !number(text, 1000000000, &fault->value))
            return FAIL("%s needs a whole number of at most 1000000000: %s=N", kind, kind);
        return true;
    case VALUE_FUNCTION_OR_FIELD:
        if (text && number(text, 100000, &id)) {
            fault->field = (int)id;
            return true;
        }
        /* fall through */
    case VALUE_FUNCTION:
        if (!text)
            return FAIL("%s needs the name of a function: %s=nvmlDevice...", kind, kind);
        return function_named(text, &fault->function, to);
    }
    return false;
}

static bool read_time(sim_fault *fault, char *text, complaint to)
{
    char *length = strchr(text, '+');
    if (length)
        *length++ = '\0';
    if (!seconds(text, &fault->start_ns))
        return FAIL("'@%s' is not a time in seconds", text);
    if (!length)
        return true;
    if (!SIM_FAULT_LASTS(fault->kind))
        return FAIL("%s happens at an instant, '+%s' has no meaning", kinds[fault->kind].name,
                    length);
    if (!seconds(length, &fault->end_ns))
        return FAIL("'+%s' is not a duration in seconds", length);
    fault->end_ns += fault->start_ns;
    return true;
}

static bool read_option(sim_fault *fault, int *gpu, char *text, complaint to)
{
    char *value = strchr(text, '=');
    uint64_t index;
    if (!value)
        return FAIL("':%s' has no value", text);
    *value++ = '\0';
    if (strcmp(text, "gpu") == 0) {
        if (!number(value, 1000, &index))
            return FAIL("'gpu=%s' is no index", value);
        *gpu = (int)index;
        return true;
    }
    if (strcmp(text, "function") == 0) {
        if (fault->function != SIM_ANY || fault->field != SIM_ANY ||
            fault->kind == SIM_FAULT_REMOVE || !SIM_FAULT_LASTS(fault->kind))
            return FAIL("%s can't be narrowed with ':function='", kinds[fault->kind].name);
        return function_named(value, &fault->function, to);
    }
    if (strcmp(text, "lookup") == 0 && fault->kind == SIM_FAULT_LOST) {
        fault->lookup = strcmp(value, "ok") == 0          ? NVML_SUCCESS
                        : strcmp(value, "lost") == 0      ? NVML_ERROR_GPU_IS_LOST
                        : strcmp(value, "not_found") == 0 ? NVML_ERROR_NOT_FOUND
                                                          : NVML_ERROR_UNKNOWN;
        return fault->lookup != NVML_ERROR_UNKNOWN
                   ? true
                   : FAIL("'lookup=%s': ok, lost or not_found is allowed", value);
    }
    return FAIL("':%s' is none of gpu, function, and lookup (of lost)", text);
}

static bool read_kind(sim_fault *fault, char *text, complaint to)
{
    char *value = strchr(text, '=');
    if (value)
        *value++ = '\0';
    for (int kind = 0; kind < SIM_FAULT_KINDS; kind++)
        if (strcmp(kinds[kind].name, text) == 0) {
            fault->kind = (sim_fault_kind)kind;
            return read_value(fault, value, to);
        }
    return FAIL("'%s' is none of lost, reset_required, fallen, hang, slow, not_supported, "
                "no_function, remove, restore, xid, ecc_sbe, ecc_dbe, energy_reset", text);
}

/* nvmlInit belongs to no GPU, and asks none. */
static bool check_init(const sim_fault *fault, int gpu, complaint to)
{
    if (fault->function != SIM_nvmlInit_v2)
        return true;
    if (!SIM_FAULT_OF_HOST(fault->kind))
        return FAIL("%s is not for nvmlInit, which asks no GPU", kinds[fault->kind].name);
    return gpu == SIM_ANY ? true : FAIL("'gpu=%d': nvmlInit belongs to no GPU", gpu);
}

bool sim_fault_parse(const char *text, sim_fault *fault, int *gpu, char *problem, size_t size)
{
    complaint to = {problem, size};
    char copy[TEXT_MAX];
    if (strlen(text) >= sizeof copy)
        return FAIL("longer than %d characters", TEXT_MAX - 1);
    strcpy(copy, text);
    *fault = (sim_fault){.end_ns = SIM_FOR_EVER, .function = SIM_ANY, .field = SIM_ANY};
    *gpu = SIM_ANY;

    char *options = strchr(copy, ':');
    if (options)
        *options++ = '\0';
    char *time = strchr(copy, '@');
    if (time)
        *time++ = '\0';
    if (!read_kind(fault, copy, to) || (time && !read_time(fault, time, to)))
        return false;
    while (options) {
        char *next = strchr(options, ':');
        if (next)
            *next++ = '\0';
        if (!read_option(fault, gpu, options, to))
            return false;
        options = next;
    }
    return check_init(fault, *gpu, to);
}

bool sim_fault_add(sim_fault_set *set, const sim_fault *fault)
{
    /* The place of one that is over is free again. */
    for (unsigned i = 0; i < set->count; i++)
        if (set->entries[i].ended) {
            set->entries[i] = *fault;
            return true;
        }
    if (set->count == SIM_FAULTS_MAX)
        return false;
    set->entries[set->count++] = *fault;
    return true;
}

static uint64_t turn_ns(const sim_fault *fault)
{
    return fault->ended ? SIM_FOR_EVER : fault->started ? fault->end_ns : fault->start_ns;
}

uint64_t sim_fault_next(const sim_fault_set *set)
{
    uint64_t next = SIM_FOR_EVER;
    for (unsigned i = 0; i < set->count; i++)
        if (turn_ns(&set->entries[i]) < next)
            next = turn_ns(&set->entries[i]);
    return next;
}

uint64_t sim_fault_next_start(const sim_fault_set *set)
{
    uint64_t next = SIM_FOR_EVER;
    for (unsigned i = 0; i < set->count; i++) {
        const sim_fault *fault = &set->entries[i];
        if (!fault->started && !fault->ended && fault->start_ns < next)
            next = fault->start_ns;
    }
    return next;
}

sim_fault *sim_fault_turn(sim_fault_set *set, uint64_t now_ns)
{
    sim_fault *first = NULL;
    for (unsigned i = 0; i < set->count; i++) {
        sim_fault *fault = &set->entries[i];
        uint64_t when = turn_ns(fault);
        if (when == SIM_FOR_EVER || when > now_ns)
            continue;
        if (!first || when < turn_ns(first) || (when == turn_ns(first) && fault->started))
            first = fault;
    }
    if (!first)
        return NULL;
    if (first->started || !SIM_FAULT_LASTS(first->kind))
        first->ended = true;
    first->started = true;
    set->in_force = 0;
    for (unsigned i = 0; i < set->count; i++)
        if (set->entries[i].started && !set->entries[i].ended)
            set->in_force |= 1u << set->entries[i].kind;
    return first;
}

bool sim_fault_hides_field(const sim_fault_set *set, unsigned id)
{
    for (unsigned i = 0; i < set->count; i++) {
        const sim_fault *fault = &set->entries[i];
        if (fault->kind == SIM_FAULT_NOT_SUPPORTED && fault->field == (int)id && fault->started &&
            !fault->ended)
            return true;
    }
    return false;
}
