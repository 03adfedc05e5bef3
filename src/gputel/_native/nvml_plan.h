/* What is asked of a GPU, and what is remembered of its answers.
 *
 *   core ---- plan[p] -- call[], field[], gpm[], sample[] -- target: a cell of the row
 *     |          |
 *     |       reading[s]   one GPU's state for one plan: what it refused, its counters' last
 *     |          |         values, buffers
 *     +------ device[s]
 *
 * Plans never change. A device and its readings belong to the thread that has claimed the
 * device (nvml_turn.h); only atomics are read by others meanwhile. Everything is allocated
 * at construction, for as many GPUs as there can be; what is not touched costs no memory.
 */
#ifndef GPUTEL_NVML_PLAN_H
#define GPUTEL_NVML_PLAN_H

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "nvml_ask.h"
#include "nvml_ticks.h"

#define GPUTEL_COLD __attribute__((noinline, cold))
#define GPUTEL_COLUMNS_MAX 64
#define GPUTEL_FIELDS_MAX (GPUTEL_COLUMNS_MAX + 2) /* one a column, two more for the rate */
#define GPUTEL_ROW_WORDS (4 + GPUTEL_COLUMNS_MAX)
#define GPUTEL_LINE_BYTES 64
#define GPUTEL_NOTES_MAX 192 /* of one device and sweep: a reset and a refusal a column, one loss */
#define GPUTEL_SAMPLES_MAX 1024 /* gputel.plan.DRAIN_SAMPLES_MAX */

/* A cell of the row. What the driver gives is in range up to `raw_max` at least. What nearly
 * every value needs comes first, in one cache line. */
typedef struct {
    uint64_t raw_max;
    uint64_t multiply;
    uint64_t remembered; /* of a value, for the next to be compared with: all bits of a counter's */
    uint64_t bit;
    double factor, divisor; /* of a float; the factor is `multiply` */
    uint8_t word;           /* of a call's answer */
    uint8_t column;
    uint8_t is_float;
    uint8_t is_counter;
    double low, high;
    int64_t low_i, high_i;
} gputel_target;

typedef struct {
    void *function; /* NULL: the library has none */
    int shape;
    unsigned int argument[2];
    int after;
    int words; /* of the answer, up to the last that has a target */
    int targets;
    gputel_target *target;
} gputel_call;

typedef struct {
    unsigned int field;
    unsigned int scope;
    int member;
    int in_rate; /* part of the rate's traffic, else it has a target */
    gputel_target target;
} gputel_field;

typedef struct {
    unsigned int id; /* metric or sampling type */
    gputel_target target;
} gputel_single;

typedef struct {
    int columns;
    int calls, fields, gpms, samples;
    gputel_call *call;
    gputel_field *field;
    gputel_single *gpm;
    gputel_single *sample;
    int has_rate, has_xid;
    gputel_target rate, xid;
    char *readings; /* one a device, each of `reading_bytes` */
    size_t reading_bytes;
    int asks;       /* functions whose cost is accounted: calls, then these */
    int ask_fields; /* index, or -1 */
    int ask_gpm;    /* SampleGet; MetricsGet follows */
    int ask_samples;
} gputel_plan;

/* Of one function, beside its count of calls. */
typedef struct {
    _Atomic uint64_t ticks;
    _Atomic uint64_t ticks_max;
    _Atomic uint64_t errors[GPUTEL_OUTCOMES];
} gputel_cost;

/* gputel.plan.Note */
enum { GPUTEL_NOTE_LOST, GPUTEL_NOTE_FATAL, GPUTEL_NOTE_RESET, GPUTEL_NOTE_REJECTED };

typedef struct {
    int kind;
    int slot;
    int plan;
    int column;
    int64_t time_ns;
    int64_t before;
    double value;
} gputel_note;

typedef struct {
    uint64_t cursor_us;
    int cursor_known;
    int is_unsupported;
    int count, next; /* of `buffer`, while its rows are merged */
    int member;
    nvmlSample_t *buffer;
} gputel_stream;

#define GPUTEL_NO_TYPE (-1)

/* A field that is asked of a GPU. */
typedef struct {
    const gputel_target *target;
    unsigned int ask[2]; /* fieldId, scopeId: neighbours in nvmlFieldValue_t, too */
    uint64_t used; /* the bits of the union that an answer of `type` uses */
    int type;      /* the nvmlValueType_t of its last answer; GPUTEL_NO_TYPE: look at the next */
    int field;     /* of the plan */
} gputel_active;

/* PERF(readings): what every sweep touches stands in one piece, a few cache lines a GPU, and that
 * of all GPUs side by side. Scattered over the heap, the GPUs' pieces fall onto the same lines
 * of a cache of 32 KiB and push each other out: 30 misses a GPU and sweep. */
typedef struct {
    int64_t attempted_ns; /* the tick this GPU was last claimed for */
    int64_t sequence;
    _Atomic uint64_t *calls; /* by ask: how often */
    int64_t *counter;        /* by column; 0 when never read, and no counter is below */
    gputel_active *active;   /* the fields still asked */
    uint16_t *active_call;   /* the calls still asked */
    uint8_t *unsupported;    /* by origin */
    uint8_t *answered;       /* by origin, since the device was attached */
    int active_fields, active_calls;
    int fields_stale, calls_stale; /* these lists are to be made anew */
    int is_cheap;      /* the last sweep was: its calls need not all be timed */
    unsigned untimed;  /* cheap sweeps so far */
    /* What few sweeps touch. */
    gputel_cost *cost;     /* by ask */
    unsigned int *scope;   /* by field: what this GPU accepts */
    uint8_t *rejected;     /* by column: a note was made */
    uint64_t rate_total;
    int64_t rate_ns;
    int rate_known;
    int gpm_state; /* 0 not asked yet, 1 supported, -1 not */
    int gpm_filled;
    int64_t gpm_ns;
    nvmlGpmSample_t gpm_sample[2];
    nvmlGpmMetricsGet_t *gpm_request;
    gputel_stream *stream;
} gputel_reading;

typedef struct {
    nvmlDevice_t handle;
    _Atomic uint64_t since_ticks; /* of the call in progress; 0 between calls */
    uint64_t claimed_ticks;
    _Atomic int64_t xid_last;     /* -1: XIDs of this GPU can't be seen */
    _Atomic int busy;             /* claimed by a thread */
    _Atomic int attached;
    uint32_t generation;       /* how often it was attached and detached */
    int is_slow;               /* the work was once taken away in one of its calls: asked last */
    nvmlReturn_t code;         /* of the loss */
    nvmlDevice_t whole;        /* of a MIG instance: the GPU it is a part of, */
    unsigned int gpu_instance; /* and its number there */
    int hopeless; /* answers of this sweep that say nothing, */
    int others;   /* and those that do */
    int notes;
    gputel_note *note; /* GPUTEL_NOTES_MAX */
} gputel_device;

typedef struct {
    nvmlDeviceGetFieldValues_fn field_values;
    nvmlDeviceGetSamples_fn samples;
    nvmlGpmQueryDeviceSupport_fn gpm_support;
    nvmlGpmSampleAlloc_fn gpm_alloc;
    nvmlGpmSampleFree_fn gpm_free;
    nvmlGpmSampleGet_fn gpm_sample;
    nvmlGpmMigSampleGet_fn gpm_mig_sample;
    nvmlGpmMetricsGet_fn gpm_metrics;
} gputel_functions;

typedef struct {
    gputel_functions functions;
    gputel_ticks_base base;
    uint64_t cheap_ticks;
    int plans;
    int devices;
    int used; /* slots that ever had a GPU are below */
    gputel_plan *plan;
    gputel_device *device;
    uint64_t *rejected; /* values out of range, [plan][column] */
    _Atomic uint64_t skipped_samples;
} gputel_core;

/* A counter with one writer at a time: no locked instruction is needed. */
static inline void gputel_add(_Atomic uint64_t *counter, uint64_t n)
{
    uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);
    atomic_store_explicit(counter, value + n, memory_order_relaxed);
}

static inline uint64_t gputel_get(_Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* Calls, then fields, then the one call that gets all fields. */
static inline int gputel_origins(const gputel_plan *plan)
{
    return plan->calls + plan->fields + 1;
}

static inline gputel_reading *gputel_reading_of(const gputel_plan *plan, int slot)
{
    return (gputel_reading *)(plan->readings + slot * plan->reading_bytes);
}

/* The bytes of a reading and what lies behind it, whole cache lines. */
static size_t gputel_reading_bytes(const gputel_plan *plan)
{
    size_t bytes = sizeof(gputel_reading) + plan->asks * sizeof(uint64_t) +
                   plan->columns * sizeof(int64_t) + plan->fields * sizeof(gputel_active) +
                   plan->calls * sizeof(uint16_t) + 2 * gputel_origins(plan);

    return (bytes + GPUTEL_LINE_BYTES - 1) / GPUTEL_LINE_BYTES * GPUTEL_LINE_BYTES;
}

/* The buffers that the driver's samples are copied to, of all streams. */
static inline size_t gputel_buffer_bytes(const gputel_plan *plan)
{
    return (size_t)plan->samples * GPUTEL_SAMPLES_MAX * sizeof(nvmlSample_t);
}

/* `reading` is zeroed; -1 when memory is short. */
static int gputel_reading_init(gputel_reading *reading, const gputel_plan *plan)
{
    reading->attempted_ns = INT64_MIN;
    /* By falling alignment. */
    reading->calls = (_Atomic uint64_t *)(reading + 1);
    reading->counter = (int64_t *)(reading->calls + plan->asks);
    reading->active = (gputel_active *)(reading->counter + plan->columns);
    reading->active_call = (uint16_t *)(reading->active + plan->fields);
    reading->unsupported = (uint8_t *)(reading->active_call + plan->calls);
    reading->answered = reading->unsupported + gputel_origins(plan);
    /* One more of each: calloc(0) may be NULL, which would read as a failure. */
    reading->cost = calloc(plan->asks + 1, sizeof *reading->cost);
    reading->scope = calloc(plan->fields + 1, sizeof *reading->scope);
    reading->rejected = calloc(plan->columns, 1);
    reading->gpm_request = calloc(1, plan->gpms ? sizeof *reading->gpm_request : 1);
    reading->stream = calloc(plan->samples + 1, sizeof *reading->stream);
    if (!reading->cost || !reading->scope || !reading->rejected || !reading->gpm_request ||
        !reading->stream)
        return -1;
    if (plan->samples) {
        /* PERF(memory): 16 KiB a stream, of which a driver fills little, and none where no GPU
         * is: mapped, a page costs nothing before it is used; calloc would clear them all. */
        nvmlSample_t *buffers = mmap(NULL, gputel_buffer_bytes(plan), PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (buffers == MAP_FAILED)
            return -1;
        for (int i = 0; i < plan->samples; i++)
            reading->stream[i].buffer = buffers + (size_t)i * GPUTEL_SAMPLES_MAX;
    }
    return 0;
}

static void gputel_reading_free(gputel_reading *reading, const gputel_plan *plan)
{
    if (reading->stream && reading->stream[0].buffer)
        munmap(reading->stream[0].buffer, gputel_buffer_bytes(plan));
    free(reading->cost);
    free(reading->scope);
    free(reading->rejected);
    free(reading->gpm_request);
    free(reading->stream);
}

/* Nothing is known to be unsupported any more. Counters, cursors and costs survive: a reset
 * is seen across a loss, and no sample of the driver is taken twice. */
static void gputel_reading_forget(gputel_reading *reading, const gputel_plan *plan)
{
    memset(reading->unsupported, 0, gputel_origins(plan));
    memset(reading->answered, 0, gputel_origins(plan));
    for (int i = 0; i < plan->calls; i++)
        reading->unsupported[i] = plan->call[i].function == NULL;
    for (int i = 0; i < plan->fields; i++)
        reading->scope[i] = plan->field[i].scope;
    for (int i = 0; i < plan->samples; i++)
        reading->stream[i].is_unsupported = 0;
    reading->fields_stale = reading->calls_stale = 1;
    reading->rate_known = 0;
    reading->gpm_state = 0;
    reading->gpm_filled = 0;
}

#endif
