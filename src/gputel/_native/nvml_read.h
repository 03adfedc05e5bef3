/* One GPU, one metric set: ask what it supports and fill its row's cells.
 *
 * Every call is timed and its start is published (`since_ticks`), so that another thread can
 * see that it does not return. The end of a call is the start of the next one: what we do
 * between them, tens of nanoseconds, is accounted to the driver.
 *
 * PERF(timing): reading the clock costs as much as a cheap call. So where a GPU's whole sweep
 * took less than GPUTEL_CHEAP_NS the last time, its calls are timed in one sweep of
 * GPUTEL_TIMED_EVERY only, and count that many times; no driver of real GPUs is that cheap.
 */
#ifndef GPUTEL_NVML_READ_H
#define GPUTEL_NVML_READ_H

#include "nvml_cells.h"

#define GPUTEL_CHEAP_NS 10000
#define GPUTEL_TIMED_EVERY 16
#define GPUTEL_ALL_LINKS 0xFFFFFFFFu
#define GPUTEL_GPM_INTERVAL_MIN_NS 100000000

/* ---- Calls ------------------------------------------------------------------------------- */

/* The GPU is claimed: decide whether its calls are timed. */
static inline void gputel_timing_begin(gputel_reader *r)
{
    r->start = r->device->since_ticks;
    if (!r->reading->is_cheap)
        r->weight = 1;
    else
        r->weight = ++r->reading->untimed % GPUTEL_TIMED_EVERY ? 0 : GPUTEL_TIMED_EVERY;
}

/* Before `finish`: was it cheap? The time is also the start of the next GPU's. */
static inline uint64_t gputel_timing_end(gputel_reader *r)
{
    uint64_t now = gputel_ticks(&r->core->base);

    r->reading->is_cheap = now - r->device->claimed_ticks < r->core->cheap_ticks;
    return now;
}

/* A call has returned: account it, and begin the next. */
static inline void gputel_account(gputel_reader *r, int ask, int outcome)
{
    gputel_cost *cost = &r->reading->cost[ask];

    gputel_add(&cost->calls, 1);
    if (outcome != GPUTEL_OK)
        gputel_add(&cost->errors[outcome], 1);
    if (r->weight) {
        uint64_t now = gputel_ticks(&r->core->base);
        uint64_t ticks = now - r->start;

        r->start = now;
        atomic_store_explicit(&r->device->since_ticks, now, memory_order_relaxed);
        gputel_add(&cost->ticks, ticks * r->weight);
        if (ticks > gputel_get(&cost->ticks_max))
            atomic_store_explicit(&cost->ticks_max, ticks, memory_order_relaxed);
    }
}

/* What an answer means for its origin. A handle that answered and is now an invalid argument
 * says nothing of what is supported: like UNKNOWN, it is a sign that the GPU may be gone. */
static GPUTEL_COLD int gputel_judge_failure(gputel_reader *r, int origin, nvmlReturn_t code)
{
    int outcome = gputel_classify(code);

    if (code == NVML_ERROR_INVALID_ARGUMENT && r->reading->answered[origin])
        outcome = GPUTEL_TRANSIENT;
    if (outcome == GPUTEL_UNSUPPORTED)
        r->reading->unsupported[origin] = 1;
    if (outcome == GPUTEL_TRANSIENT &&
        (code == NVML_ERROR_UNKNOWN || code == NVML_ERROR_INVALID_ARGUMENT))
        r->device->hopeless++;
    else
        r->device->others++;
    r->device->code = code;
    return outcome;
}

static inline int gputel_judge(gputel_reader *r, int origin, nvmlReturn_t code)
{
    if (code != NVML_SUCCESS)
        return gputel_judge_failure(r, origin, code);
    r->reading->answered[origin] = 1;
    r->device->others++;
    return GPUTEL_OK;
}

static inline int gputel_is_end(int outcome)
{
    return outcome == GPUTEL_LOST || outcome == GPUTEL_FATAL;
}

static int gputel_read_calls(gputel_reader *r)
{
    const gputel_plan *plan = r->plan;
    const uint8_t *unsupported = r->reading->unsupported;
    uint64_t words[GPUTEL_WORDS];

    for (int i = 0; i < plan->calls; i++) {
        const gputel_call *call = &plan->call[i];
        int outcome;

        if (unsupported[i] || (call->after >= 0 && !unsupported[call->after]))
            continue;
        outcome = gputel_judge(r, i, gputel_ask(call->shape, call->function, call->argument,
                                                r->device->handle, words));
        gputel_account(r, i, outcome);
        if (gputel_is_end(outcome))
            return outcome;
        if (outcome == GPUTEL_OK)
            for (int t = 0; t < call->targets; t++)
                gputel_put_word(r, &call->target[t], words[call->target[t].word]);
    }
    return GPUTEL_OK;
}

/* ---- Fields ------------------------------------------------------------------------------ */

static GPUTEL_COLD void gputel_fields_choose(gputel_reader *r)
{
    gputel_reading *reading = r->reading;

    reading->active_count = 0;
    for (int i = 0; i < r->plan->fields; i++)
        if (!reading->unsupported[r->plan->calls + i]) {
            nvmlFieldValue_t *value = &reading->values[reading->active_count];

            value->fieldId = r->plan->field[i].field;
            value->scopeId = reading->scope[i];
            reading->active[reading->active_count++] = i;
        }
    reading->active_stale = 0;
}

/* MB/s from the sum of two KiB counters, as DCGM computes it; the first sum has no rate. */
static void gputel_put_rate(gputel_reader *r, int parts_missing, uint64_t total)
{
    gputel_reading *reading = r->reading;
    uint64_t before = reading->rate_total;
    int64_t elapsed_ns = r->monotonic_ns - reading->rate_ns;
    int known = reading->rate_known;

    reading->rate_known = !parts_missing;
    reading->rate_total = total;
    reading->rate_ns = r->monotonic_ns;
    if (known && !parts_missing && elapsed_ns > 0 && total >= before)
        gputel_put_double(r, &r->plan->rate,
                          (double)(total - before) * 1e9 / (double)elapsed_ns / 1000.0);
}

static GPUTEL_COLD int gputel_field_refused(gputel_reader *r, int i, int outcome)
{
    gputel_reading *reading = r->reading;

    gputel_add(&reading->cost[r->plan->ask_fields].errors[outcome], 1);
    if (outcome != GPUTEL_UNSUPPORTED)
        return outcome;
    if (reading->scope[i] == GPUTEL_ALL_LINKS) {
        /* Before NVLink 5 the aggregate is scope 0: ask once more, in the next sweep. */
        reading->scope[i] = 0;
        reading->unsupported[r->plan->calls + i] = 0;
    }
    reading->active_stale = 1;
    return outcome;
}

static GPUTEL_COLD int gputel_fields_refused(gputel_reader *r, int outcome)
{
    if (outcome == GPUTEL_UNSUPPORTED) {
        memset(r->reading->unsupported + r->plan->calls, 1, r->plan->fields);
        r->reading->active_stale = 1;
    }
    return outcome;
}

static int gputel_read_fields(gputel_reader *r)
{
    const gputel_plan *plan = r->plan;
    gputel_reading *reading = r->reading;
    uint64_t rate_total = 0;
    int rate_missing = 0, rate_parts = 0, outcome;

    if (reading->active_stale)
        gputel_fields_choose(r);
    if (!reading->active_count)
        return GPUTEL_OK;
    for (int k = 0; k < reading->active_count; k++) {
        /* What the driver leaves alone is no answer. */
        reading->values[k].nvmlReturn = NVML_ERROR_UNKNOWN;
        reading->values[k].value.ullVal = 0;
    }
    outcome = gputel_judge(
        r, plan->calls + plan->fields,
        r->core->functions.field_values(r->device->handle, reading->active_count,
                                        reading->values));
    gputel_account(r, plan->ask_fields, outcome);
    if (outcome != GPUTEL_OK)
        return gputel_fields_refused(r, outcome);
    r->device->others--; /* each field counts, not the call */
    for (int k = 0; k < reading->active_count; k++) {
        int i = reading->active[k];
        const gputel_field *field = &plan->field[i];
        const nvmlFieldValue_t *value = &reading->values[k];
        int member = field->member < 0 ? (int)value->valueType : field->member;

        rate_parts += field->in_rate;
        outcome = gputel_judge(r, plan->calls + i, value->nvmlReturn);
        if (outcome != GPUTEL_OK) {
            rate_missing |= field->in_rate;
            if (gputel_is_end(gputel_field_refused(r, i, outcome)))
                return outcome;
        } else if (field->in_rate) {
            if (value->value.ullVal <= INT64_MAX) /* two of them can be added */
                rate_total += value->value.ullVal;
            else
                rate_missing = 1;
        } else if (gputel_put_value(r, &field->target, member, &value->value) < 0) {
            gputel_reject(r, &field->target, NAN);
        }
    }
    if (plan->has_rate)
        gputel_put_rate(r, rate_missing || rate_parts < 2, rate_total);
    return GPUTEL_OK;
}

/* ---- GPM --------------------------------------------------------------------------------- */

static nvmlReturn_t gputel_gpm_prepare(gputel_reader *r)
{
    const gputel_functions *f = &r->core->functions;
    gputel_reading *reading = r->reading;
    nvmlGpmSupport_t support = {.version = NVML_GPM_SUPPORT_VERSION};
    nvmlReturn_t code;

    if (!f->gpm_support || !f->gpm_alloc || !f->gpm_sample || !f->gpm_metrics)
        return NVML_ERROR_FUNCTION_NOT_FOUND;
    code = f->gpm_support(r->device->handle, &support);
    if (code == NVML_SUCCESS && !support.isSupportedDevice)
        return NVML_ERROR_NOT_SUPPORTED;
    for (int i = 0; code == NVML_SUCCESS && i < 2; i++)
        if (!reading->gpm_sample[i])
            code = f->gpm_alloc(&reading->gpm_sample[i]);
    return code;
}

static int gputel_gpm_refused(gputel_reader *r, nvmlReturn_t code)
{
    int outcome = gputel_classify(code);

    if (outcome == GPUTEL_UNSUPPORTED)
        r->reading->gpm_state = -1;
    else if (gputel_is_end(outcome))
        r->device->code = code;
    if (code == NVML_ERROR_UNKNOWN)
        r->device->hopeless++;
    else
        r->device->others++;
    return outcome;
}

static int gputel_read_gpm(gputel_reader *r)
{
    const gputel_plan *plan = r->plan;
    gputel_reading *reading = r->reading;
    nvmlGpmMetricsGet_t *request = reading->gpm_request;
    nvmlGpmSample_t older;
    nvmlReturn_t code;

    if (!plan->gpms || reading->gpm_state < 0)
        return GPUTEL_OK;
    if (reading->gpm_filled && r->monotonic_ns - reading->gpm_ns < GPUTEL_GPM_INTERVAL_MIN_NS)
        return GPUTEL_OK;
    if (reading->gpm_state == 0) {
        code = gputel_gpm_prepare(r);
        if (code != NVML_SUCCESS)
            return gputel_gpm_refused(r, code);
        reading->gpm_state = 1;
    }
    older = reading->gpm_sample[0];
    code = r->core->functions.gpm_sample(r->device->handle, reading->gpm_sample[1]);
    gputel_account(r, plan->ask_gpm, gputel_classify(code));
    if (code != NVML_SUCCESS)
        return gputel_gpm_refused(r, code);
    r->device->others++;
    reading->gpm_sample[0] = reading->gpm_sample[1]; /* the older one of the next sweep */
    reading->gpm_sample[1] = older;
    reading->gpm_ns = r->monotonic_ns;
    if (!reading->gpm_filled) {
        reading->gpm_filled = 1;
        return GPUTEL_OK;
    }
    request->version = NVML_GPM_METRICS_GET_VERSION;
    request->numMetrics = plan->gpms;
    request->sample1 = older;
    request->sample2 = reading->gpm_sample[0];
    for (int i = 0; i < plan->gpms; i++) {
        request->metrics[i].metricId = plan->gpm[i].id;
        request->metrics[i].nvmlReturn = NVML_ERROR_UNKNOWN;
    }
    code = r->core->functions.gpm_metrics(request);
    gputel_account(r, plan->ask_gpm + 1, gputel_classify(code));
    if (code != NVML_SUCCESS)
        return gputel_gpm_refused(r, code);
    for (int i = 0; i < plan->gpms; i++)
        /* NaN: no cycle has elapsed between the samples */
        if (request->metrics[i].nvmlReturn == NVML_SUCCESS && !isnan(request->metrics[i].value))
            gputel_put_double(r, &plan->gpm[i].target, request->metrics[i].value);
    return GPUTEL_OK;
}

static void gputel_gpm_release(gputel_core *core, gputel_reading *reading)
{
    for (int i = 0; i < 2; i++) {
        if (reading->gpm_sample[i] && core->functions.gpm_free)
            core->functions.gpm_free(reading->gpm_sample[i]);
        reading->gpm_sample[i] = NULL;
    }
    reading->gpm_filled = reading->gpm_state = 0;
}

/* ---- The whole --------------------------------------------------------------------------- */

/* GPUTEL_OK: the cells are filled; else device->code says why the GPU or the driver is gone. */
static int gputel_read(gputel_reader *r)
{
    gputel_device *device = r->device;
    int64_t xid;
    int outcome;

    r->reading->row[GPUTEL_ROW_VALID] = 0; /* what is in an invalid cell means nothing */
    device->others = device->hopeless = 0;
    outcome = gputel_read_fields(r);
    if (!gputel_is_end(outcome))
        outcome = gputel_read_calls(r);
    if (!gputel_is_end(outcome))
        outcome = gputel_read_gpm(r);
    if (gputel_is_end(outcome))
        return outcome;
    if (device->hopeless && !device->others)
        return GPUTEL_LOST;
    xid = atomic_load_explicit(&device->xid_last, memory_order_relaxed);
    if (r->plan->has_xid && xid >= 0)
        gputel_put_i(r, &r->plan->xid, xid);
    return GPUTEL_OK;
}

#endif
