#include "mig.h"

#include <stdio.h>
#include <string.h>

/* The profiles of NVIDIA's MIG user guide, and the numbers that drivers give their instances. */
static const sim_mig_profile of_80gb[] = {
    {"1g.10gb", 1, 1, 7}, {"1g.20gb", 1, 2, 7}, {"2g.20gb", 2, 2, 3},
    {"3g.40gb", 3, 4, 1}, {"4g.40gb", 4, 4, 1}, {"7g.80gb", 7, 8, 0},
};
static const sim_mig_profile of_180gb[] = {
    {"1g.23gb", 1, 1, 7}, {"1g.45gb", 1, 2, 7}, {"2g.45gb", 2, 2, 3},
    {"3g.90gb", 3, 4, 1}, {"4g.90gb", 4, 4, 1}, {"7g.180gb", 7, 8, 0},
};

_Static_assert(sizeof of_80gb == sizeof of_180gb, "as many kinds of each");

static const sim_mig_profile *profile_named(const char *name, const sim_profile *model)
{
    const sim_mig_profile *table = model->memory_bytes >> 30 > 100 ? of_180gb : of_80gb;
    for (size_t i = 0; i < sizeof of_80gb / sizeof *of_80gb; i++)
        if (strcmp(table[i].name, name) == 0)
            return &table[i];
    return NULL;
}

static unsigned free_id(const sim_mig *mig, unsigned id)
{
    for (unsigned i = 0; i < mig->count; i++)
        if (mig->instances[i].id == id)
            return free_id(mig, id + 1);
    return id;
}

bool sim_mig_read(const char *text, const sim_profile *model, sim_mig *mig, char *problem,
                  size_t problem_bytes)
{
    char copy[256], *rest = NULL;
    unsigned slices = 0, eighths = 0;
    *mig = (sim_mig){.on = true};
    if (!(model->features & SIM_MIG)) {
        snprintf(problem, problem_bytes, "a %s has no MIG", model->key);
        return false;
    }
    snprintf(copy, sizeof copy, "%s", text);
    for (char *name = strtok_r(copy, "+", &rest); name; name = strtok_r(NULL, "+", &rest)) {
        const sim_mig_profile *profile = profile_named(name, model);
        if (!profile) {
            snprintf(problem, problem_bytes, "%.32s is no MIG profile of a %s", name, model->key);
            return false;
        }
        slices += profile->slices;
        eighths += profile->eighths;
        if (slices > SIM_MIG_MAX || eighths > SIM_MIG_EIGHTHS) {
            snprintf(problem, problem_bytes, "7 compute and 8 memory slices can be divided");
            return false;
        }
        unsigned id = free_id(mig, profile->first_id);
        mig->instances[mig->count++] = (sim_mig_instance){profile, id};
    }
    return true;
}
