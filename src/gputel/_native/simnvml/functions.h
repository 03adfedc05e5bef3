/* A number for each NVML function: the index of its call counter and of its latency. */
#ifndef GPUTEL_SIM_FUNCTIONS_H
#define GPUTEL_SIM_FUNCTIONS_H

#include "abi.h"

#define SIM_FUNCTION_NUMBER(name, arguments) SIM_##name,
typedef enum { NVML_FUNCTIONS(SIM_FUNCTION_NUMBER) SIM_FUNCTIONS } sim_function;

/* The name of each, NULL-terminated. */
extern const char *const sim_function_names[SIM_FUNCTIONS + 1];

/* The number of `name`; -1 when there is none. */
int sim_function_named(const char *name);

/* nvmlInit, under any of its names. */
#define SIM_IS_INIT(function) ((function) <= SIM_nvmlInitWithFlags)

#endif
