/* The sampler's own protocol from many threads at once: the ring between two threads, and sweeps
 * whose calls hang, are taken over, come back late, lose their GPU and get it again.
 *
 *   nvml_hammer SECONDS
 *
 *   sweeper    sweeps with the turn it was given, until the turn is taken; then another follows
 *   watch      takes the turn from a sweeper whose call lasts too long, and starts the next
 *   roster     gives GPUs up and claims and attaches them again; reads notes and costs
 *   events     waits for what the driver tells: XIDs, of which some take the GPU away, as do
 *              removals, and looks for the GPU by the address of its handle
 *   consumer   empties the ring, and checks that every row is whole, in order and there
 *
 * Prints "rows R takeovers T events E wrong W". The loop of a sweep is that of nvml.pyx, on the same
 * functions. -DSEED_RING and -DSEED_LOCK publish rows and the lock without a release, so that a
 * run can show that the thread sanitizer sees a mistake of that kind.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef SEED_RING
#define memory_order_release memory_order_relaxed
#endif
#include "ring.h"
#undef memory_order_release

#include "nvml_drain.h"

#ifdef SEED_LOCK
#define memory_order_release memory_order_relaxed
#endif
#include "nvml_turn.h"
#undef memory_order_release

#define GPUS 4
#define CALLS 2
#define FIELDS 2
#define COLUMNS (CALLS + FIELDS + 1)
#define XID_COLUMN (CALLS + FIELDS)
#define ROW_WORDS (GPUTEL_ROW_CELLS + COLUMNS)
#define RING_ROWS 4096
#define LIMIT_NS 200000
#define SAMPLES_EACH 3
#define THREADS_MAX 4096

enum { READS, DRAINS, PLANS };

static gputel_core core;
static gputel_turns turns;
static gputel_plan plans[PLANS];
static gputel_device devices[GPUS];
static uint64_t rejected[PLANS * GPUTEL_COLUMNS_MAX];

static gputel_ring_cursors *cursors;
static uint64_t ring[RING_ROWS][ROW_WORDS];
static atomic_bool done;
static _Atomic uint64_t written, taken, wrong, takeovers, told, ticks;

static void expect(bool right)
{
    if (!right)
        atomic_fetch_add(&wrong, 1);
}

static void pause_ns(long ns)
{
    struct timespec pause = {0, ns};
    nanosleep(&pause, NULL);
}

/* ---- A driver: each GPU counts its calls, and some calls are long ---------------------------- */

struct nvmlDevice_st {
    unsigned number;
    uint64_t count; /* no atomic: only the thread that has claimed the GPU is in its calls */
};

static struct nvmlDevice_st gpus[GPUS];

/* The event set: XIDs grow, so that a row can be checked; one that is full forgets the oldest. */
#define EVENTS_MAX 64
#define FATAL_EVERY 16

typedef struct {
    nvmlDevice_t device;
    uint64_t xid;
} told_event;

static pthread_mutex_t events_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t events_there = PTHREAD_COND_INITIALIZER;
static told_event events[EVENTS_MAX];
static unsigned events_first, events_count;
static uint64_t last_xid;

static void post_event(nvmlDevice_t device)
{
    pthread_mutex_lock(&events_lock);
    if (events_count == EVENTS_MAX) {
        events_first++;
        events_count--;
    }
    events[(events_first + events_count++) % EVENTS_MAX] = (told_event){device, ++last_xid};
    pthread_cond_signal(&events_there);
    pthread_mutex_unlock(&events_lock);
}

static bool wait_for_event(told_event *event)
{
    pthread_mutex_lock(&events_lock);
    while (!events_count && !atomic_load(&done))
        pthread_cond_wait(&events_there, &events_lock);
    bool there = events_count > 0;
    if (there) {
        *event = events[events_first++ % EVENTS_MAX];
        events_count--;
    }
    pthread_mutex_unlock(&events_lock);
    return there;
}

static uint64_t called(nvmlDevice_t device)
{
    uint64_t count = ++device->count;

    if (count % 53 == device->number)
        post_event(device);
    if (count % 997 == device->number * 7)
        pause_ns(5 * LIMIT_NS);
    return count;
}

static nvmlReturn_t call_u32(nvmlDevice_t device, unsigned int *value)
{
    *value = (unsigned int)called(device);
    return NVML_SUCCESS;
}

static nvmlReturn_t call_u64(nvmlDevice_t device, unsigned long long *value)
{
    *value = called(device);
    return *value % 101 ? NVML_SUCCESS : NVML_ERROR_NO_DATA;
}

static nvmlReturn_t field_values(nvmlDevice_t device, int count, nvmlFieldValue_t *values)
{
    for (int i = 0; i < count; i++) {
        values[i].value.ullVal = called(device);
        values[i].valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
        values[i].nvmlReturn = NVML_SUCCESS;
    }
    return NVML_SUCCESS;
}

static nvmlReturn_t samples(nvmlDevice_t device, nvmlSamplingType_t type, unsigned long long after,
                            nvmlValueType_t *value_type, unsigned int *count, nvmlSample_t *buffer)
{
    (void)type;
    called(device);
    *value_type = NVML_VALUE_TYPE_UNSIGNED_INT;
    *count = SAMPLES_EACH;
    for (unsigned i = 0; i < SAMPLES_EACH; i++) {
        buffer[i].timeStamp = after + i + 1;
        buffer[i].sampleValue.uiVal = i;
    }
    return NVML_SUCCESS;
}

/* ---- Plans ------------------------------------------------------------------------------------ */

static void fill_target(gputel_target *target, int column, int is_counter)
{
    target->column = (uint8_t)column;
    target->bit = (uint64_t)1 << column;
    target->raw_max = target->high_i = INT64_MAX;
    target->high = GPUTEL_I64_LIMIT;
    target->multiply = 1;
    target->factor = target->divisor = 1;
    target->is_counter = (uint8_t)is_counter;
    target->remembered = is_counter ? UINT64_MAX : 0;
}

static void make_plans(void)
{
    static gputel_call call[CALLS];
    static gputel_target call_target[CALLS];
    static gputel_field field[FIELDS];
    static gputel_single sample;
    gputel_plan *reads = &plans[READS], *drains = &plans[DRAINS];

    for (int i = 0; i < CALLS; i++) {
        call[i].function = i ? (void *)call_u64 : (void *)call_u32;
        call[i].shape = i ? GPUTEL_U64 : GPUTEL_U32;
        call[i].after = -1;
        call[i].words = call[i].targets = 1;
        call[i].target = &call_target[i];
        fill_target(&call_target[i], i, 1);
    }
    for (int i = 0; i < FIELDS; i++) {
        field[i].field = (unsigned)i;
        field[i].member = -1;
        fill_target(&field[i].target, CALLS + i, 0);
    }
    fill_target(&sample.target, 0, 0);
    reads->columns = drains->columns = COLUMNS;
    reads->call = call;
    reads->calls = CALLS;
    reads->field = field;
    reads->fields = FIELDS;
    fill_target(&reads->xid, XID_COLUMN, 0);
    reads->has_xid = 1;
    reads->ask_fields = CALLS;
    reads->asks = CALLS + 1;
    drains->sample = &sample;
    drains->samples = 1;
    drains->asks = 1;
}

static int make_core(void)
{
    make_plans();
    gputel_ticks_init(&core.base);
    core.cheap_ticks = (uint64_t)(GPUTEL_CHEAP_NS / gputel_ns_per_tick(&core.base));
    core.functions.field_values = field_values;
    core.functions.samples = samples;
    core.plans = PLANS;
    core.devices = core.used = GPUS;
    core.plan = plans;
    core.device = devices;
    core.rejected = rejected;
    turns.current = GPUTEL_NOBODY;
    for (int p = 0; p < PLANS; p++) {
        size_t size_bytes = plans[p].reading_bytes = gputel_reading_bytes(&plans[p]);

        plans[p].readings = aligned_alloc(GPUTEL_LINE_BYTES, GPUS * size_bytes);
        if (!plans[p].readings)
            return -1;
        memset(plans[p].readings, 0, GPUS * size_bytes);
        for (int slot = 0; slot < GPUS; slot++) {
            gputel_reading *reading = gputel_reading_of(&plans[p], slot);

            if (gputel_reading_init(reading, &plans[p]) < 0)
                return -1;
            gputel_reading_forget(reading, &plans[p]);
        }
    }
    for (int slot = 0; slot < GPUS; slot++) {
        gpus[slot].number = (unsigned)slot;
        devices[slot].handle = &gpus[slot];
        devices[slot].attached = 1;
        devices[slot].note = calloc(GPUTEL_NOTES_MAX, sizeof(gputel_note));
        if (!devices[slot].note)
            return -1;
    }
    cursors = gputel_ring_cursors_new();
    return cursors ? 0 : -1;
}

static void free_core(void)
{
    for (int p = 0; p < PLANS; p++) {
        for (int slot = 0; slot < GPUS; slot++) {
            gputel_gpm_release(&core, gputel_reading_of(&plans[p], slot));
            gputel_reading_free(gputel_reading_of(&plans[p], slot), &plans[p]);
        }
        free(plans[p].readings);
    }
    for (int slot = 0; slot < GPUS; slot++)
        free(devices[slot].note);
    free(cursors);
}

/* ---- Sweeps ----------------------------------------------------------------------------------- */

static void write_row(gputel_reader *r)
{
    uint64_t head = gputel_head_relaxed(cursors);

    if (head - gputel_tail_acquire(cursors) == RING_ROWS) {
        gputel_drop(cursors, 1);
        return;
    }
    r->row[1] = (uint64_t)r->slot | (uint64_t)r->plan_index << 32;
    r->row[3] = (uint64_t)r->reading->sequence++;
    for (int i = 0; i < ROW_WORDS; i++) /* a memcpy would be out of the sanitizer's sight */
        ring[head % RING_ROWS][i] = r->row[i];
    gputel_head_release(cursors, head + 1);
    atomic_fetch_add_explicit(&written, 1, memory_order_relaxed);
}

static void keep(gputel_reader *r)
{
    if (r->device->generation != r->generation)
        return;
    if (r->plan->samples) {
        while (gputel_drain_row(r))
            write_row(r);
    } else {
        r->row[0] = (uint64_t)r->time_ns;
        write_row(r);
    }
    for (int i = 0; i < r->device->notes; i++)
        gputel_log(&turns, &r->device->note[i]);
}

/* False when the turn was taken away. */
static bool sweep(gputel_reader *r, uint64_t turn)
{
    gputel_round progress = {0};
    uint64_t start_ticks = gputel_ticks(&core.base), now_ticks = start_ticks;
    int asked = 0;
    bool mine = true;

    gputel_lock(&turns);
    while (mine && (r->slot = gputel_next(&core, r->plan_index, r->time_ns, &progress)) !=
                       GPUTEL_NOBODY) {
        if (!gputel_claim(&turns, &core, turn, r->slot, now_ticks))
            continue;
        asked++;
        gputel_reader_begin(r);
        gputel_unlock(&turns);
        if (r->plan->samples)
            gputel_drain(r);
        else
            gputel_read(r);
        now_ticks = gputel_timing_end(r);
        gputel_lock(&turns);
        keep(r);
        mine = gputel_finish(&turns, &core, turn, r->slot);
    }
    mine = mine && gputel_has_turn(&turns, turn);
    gputel_timing_check(r, start_ticks, asked);
    gputel_unlock(&turns);
    return mine;
}

static void *sweeper(void *argument)
{
    uint64_t turn = (uint64_t)(uintptr_t)argument;
    gputel_reader reader;
    bool mine = true;

    memset(&reader, 0, sizeof reader);
    reader.core = &core;
    while (mine && !atomic_load(&done)) {
        uint64_t tick = atomic_fetch_add(&ticks, 1) + 1;

        reader.plan_index = tick % 4 ? READS : DRAINS;
        reader.plan = &plans[reader.plan_index];
        reader.time_ns = reader.monotonic_ns = (int64_t)tick;
        mine = sweep(&reader, turn);
        while (gputel_head_relaxed(cursors) - gputel_tail_acquire(cursors) > RING_ROWS / 2 &&
               !atomic_load(&done))
            sched_yield();
    }
    return NULL;
}

static void *watch(void *argument)
{
    static pthread_t threads[THREADS_MAX];
    int64_t limit_ticks = (int64_t)(LIMIT_NS / gputel_ns_per_tick(&core.base));
    int count = 0;

    (void)argument;
    pthread_create(&threads[count++], NULL, sweeper, (void *)(uintptr_t)turns.turn);
    while (!atomic_load(&done)) {
        pause_ns(LIMIT_NS / 2);
        if (count < THREADS_MAX && gputel_abandon(&turns, &core, limit_ticks)) {
            atomic_fetch_add(&takeovers, 1);
            pthread_create(&threads[count++], NULL, sweeper, (void *)(uintptr_t)turns.turn);
        }
    }
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    return NULL;
}

/* ---- What Python's side does meanwhile -------------------------------------------------------- */

static void give_up_and_find(int slot)
{
    gputel_device *device = &devices[slot];
    bool mine;

    gputel_lock(&turns);
    if (device->attached)
        gputel_detach_locked(device);
    gputel_unlock(&turns);
    pause_ns(50000);
    do { /* the lookup of a GPU is a claim of its own, with the turn of the day */
        uint64_t turn = turns.turn;

        gputel_lock(&turns);
        mine = gputel_claim(&turns, &core, turn, slot, gputel_ticks(&core.base));
        if (mine) {
            for (int p = 0; p < PLANS; p++)
                gputel_reading_forget(gputel_reading_of(&plans[p], slot), &plans[p]);
            device->generation++;
            device->attached = 1;
            gputel_finish(&turns, &core, turn, slot);
        }
        gputel_unlock(&turns);
        if (!mine)
            pause_ns(50000);
    } while (!mine && !atomic_load(&done));
}

static void *roster(void *argument)
{
    uint64_t calls_before = 0;

    (void)argument;
    for (int round = 0; !atomic_load(&done); round++) {
        uint64_t calls = 0;

        give_up_and_find(round % GPUS);
        for (int slot = 0; slot < GPUS; slot++) {
            for (int ask = 0; ask < plans[READS].asks; ask++)
                calls += gputel_get(&gputel_reading_of(&plans[READS], slot)->calls[ask]);
            expect(gputel_age_ticks(&core, slot) < INT64_MAX / 2);
        }
        expect(calls >= calls_before);
        calls_before = calls;
        gputel_lock(&turns);
        turns.entries = 0;
        gputel_unlock(&turns);
        pause_ns(200000);
    }
    return NULL;
}

static int slot_of(nvmlDevice_t handle)
{
    for (int slot = 0; slot < GPUS; slot++)
        if (devices[slot].handle == handle)
            return slot;
    return GPUTEL_NOBODY;
}

/* As Nvml._driver_event: the XID is for the next rows, and a fatal one is the GPU's end until the
 * roster has found it again. */
static void *events_thread(void *argument)
{
    told_event event;

    (void)argument;
    while (wait_for_event(&event)) {
        int slot = slot_of(event.device);

        expect(slot != GPUTEL_NOBODY);
        if (slot == GPUTEL_NOBODY)
            continue;
        atomic_store_explicit(&devices[slot].xid_last, (int64_t)event.xid, memory_order_relaxed);
        atomic_fetch_add(&told, 1);
        if (event.xid % FATAL_EVERY == 0) {
            gputel_lock(&turns);
            if (gputel_flag(&devices[slot].attached))
                gputel_detach_locked(&devices[slot]);
            gputel_unlock(&turns);
        }
    }
    return NULL;
}

/* Rows of a GPU and plan come with all sequences from 0 on; counts of a GPU only grow. */
static void check_row(const uint64_t *row, int64_t next[PLANS][GPUS], uint64_t last[GPUS],
                      uint64_t xid[GPUS])
{
    unsigned slot = (unsigned)row[1], plan = (unsigned)(row[1] >> 32);

    if (slot >= GPUS || plan >= PLANS) {
        expect(false);
        return;
    }
    expect((int64_t)row[3] == next[plan][slot]);
    next[plan][slot] = (int64_t)row[3] + 1;
    if (plan == READS) {
        const uint64_t *cells = row + GPUTEL_ROW_CELLS;

        expect((row[2] & ~(uint64_t)2) == ((1 << COLUMNS) - 1 - 2)); /* call 1 has gaps */
        expect(cells[2] > last[slot] && cells[3] > cells[2] && cells[0] > cells[3]);
        last[slot] = cells[0];
        expect(cells[XID_COLUMN] >= xid[slot]);
        xid[slot] = cells[XID_COLUMN];
    }
}

static void *consumer(void *argument)
{
    int64_t next[PLANS][GPUS] = {0};
    uint64_t last[GPUS] = {0}, xid[GPUS] = {0};
    uint64_t tail = 0;

    (void)argument;
    for (;;) {
        bool last_look = atomic_load(&done);
        uint64_t head = gputel_head_acquire(cursors);

        for (; tail < head; tail++)
            check_row(ring[tail % RING_ROWS], next, last, xid);
        gputel_tail_release(cursors, tail);
        atomic_store(&taken, tail);
        if (last_look)
            return NULL;
        sched_yield();
    }
}

int main(int argc, char **argv)
{
    double seconds = argc > 1 ? atof(argv[1]) : 2;
    pthread_t watching, finding, hearing, reading;

    if (make_core() < 0)
        return 2;
    pthread_create(&watching, NULL, watch, NULL);
    pthread_create(&finding, NULL, roster, NULL);
    pthread_create(&hearing, NULL, events_thread, NULL);
    pthread_create(&reading, NULL, consumer, NULL);
    for (int i = 0; i < seconds * 100; i++)
        pause_ns(10000000);
    atomic_store(&done, true);
    pthread_mutex_lock(&events_lock);
    pthread_cond_broadcast(&events_there);
    pthread_mutex_unlock(&events_lock);
    pthread_join(watching, NULL);
    pthread_join(finding, NULL);
    pthread_join(hearing, NULL);
    pthread_join(reading, NULL);
    /* The consumer's last look may have come before the sweepers' last rows. */
    expect(atomic_load(&written) - atomic_load(&taken) <= RING_ROWS);
    expect(gputel_head_acquire(cursors) == atomic_load(&written));
    expect(gputel_dropped(cursors) == 0);
    printf("rows %llu takeovers %llu events %llu wrong %llu\n", (unsigned long long)taken,
           (unsigned long long)takeovers, (unsigned long long)told, (unsigned long long)wrong);
    free_core();
    return wrong != 0;
}
