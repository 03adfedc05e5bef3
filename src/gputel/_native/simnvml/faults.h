/* Scripted faults: `KIND[=VALUE][@T[+D]][:key=value]...`, and which are in force when. */
#ifndef GPUTEL_SIM_FAULTS_H
#define GPUTEL_SIM_FAULTS_H

#include "functions.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIM_FAULTS_MAX 32 /* of one GPU */
#define SIM_FOR_EVER UINT64_MAX
#define SIM_ANY (-1)

typedef enum {
    /* These last. */
    SIM_FAULT_LOST,
    SIM_FAULT_RESET_REQUIRED,
    SIM_FAULT_FALLEN,
    SIM_FAULT_HANG,
    SIM_FAULT_SLOW,
    SIM_FAULT_NOT_SUPPORTED,
    SIM_FAULT_NO_FUNCTION,
    SIM_FAULT_REMOVE,
    /* These happen at an instant. */
    SIM_FAULT_RESTORE,
    SIM_FAULT_XID,
    SIM_FAULT_ECC_SBE,
    SIM_FAULT_ECC_DBE,
    SIM_FAULT_ENERGY_RESET,
    SIM_FAULT_KINDS
} sim_fault_kind;

#define SIM_FAULT_LASTS(kind) ((kind) <= SIM_FAULT_REMOVE)
/* Also of calls that concern no GPU. */
#define SIM_FAULT_OF_HOST(kind) ((kind) >= SIM_FAULT_HANG && (kind) <= SIM_FAULT_NO_FUNCTION)

typedef struct {
    sim_fault_kind kind;
    uint64_t start_ns, end_ns; /* driver time */
    uint64_t value;            /* XID, number of errors, microseconds */
    int function;              /* the one function concerned; SIM_ANY */
    int field;                 /* the one field id concerned; SIM_ANY */
    nvmlReturn_t lookup;       /* what look-ups of a lost GPU answer */
    bool started, ended;
} sim_fault;

typedef struct {
    sim_fault entries[SIM_FAULTS_MAX];
    unsigned count;
    unsigned in_force; /* a bit for each lasting kind in force */
} sim_fault_set;

/* Read one fault; `gpu` becomes SIM_ANY without `gpu=`. False, with the reason in `problem`,
 * when the text is not one. */
bool sim_fault_parse(const char *text, sim_fault *fault, int *gpu, char *problem, size_t size);

/* False when the set is full. */
bool sim_fault_add(sim_fault_set *set, const sim_fault *fault);

/* The next instant at which a fault starts or ends; SIM_FOR_EVER when there is none. */
uint64_t sim_fault_next(const sim_fault_set *set);

/* The next instant at which one starts. */
uint64_t sim_fault_next_start(const sim_fault_set *set);

/* One fault that starts or ends at or before `now`, marked as such; NULL when there is none.
 * The earliest comes first; at one instant ends come before starts. */
sim_fault *sim_fault_turn(sim_fault_set *set, uint64_t now_ns);

/* Whether the field `id` is one that a fault calls not supported. */
bool sim_fault_hides_field(const sim_fault_set *set, unsigned id);

#endif
