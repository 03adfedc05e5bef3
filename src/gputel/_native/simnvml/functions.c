#include "functions.h"

#include <string.h>

#define SIM_FUNCTION_NAME(name, arguments) #name,
const char *const sim_function_names[SIM_FUNCTIONS + 1] = {NVML_FUNCTIONS(SIM_FUNCTION_NAME) 0};

int sim_function_named(const char *name)
{
    for (int i = 0; i < SIM_FUNCTIONS; i++)
        if (strcmp(sim_function_names[i], name) == 0)
            return i;
    return -1;
}
