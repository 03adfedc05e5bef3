/* One GPU, one metric set: ask what it supports and fill its row's cells. */
#ifndef GPUTEL_NVML_READ_H
#define GPUTEL_NVML_READ_H

#include "nvml_account.h"

#define GPUTEL_ALL_LINKS 0xFFFFFFFFu
#define GPUTEL_GPM_INTERVAL_MIN_NS 100000000

/* ---- Calls ------------------------------------------------------------------------------- */

/* The calls to ask from now on, from number `from` of the plan on; the position of the first. */
static GPUTEL_COLD int gputel_calls_choose(gputel_reader *r, int from)
{
    gputel_reading *reading = r->reading;
    const uint8_t *unsupported = reading->unsupported;
    int count = 0, first = 0;

    for (int i = 0; i < r->plan->calls; i++) {
        int after = r->plan->call[i].after;

        if (i == from)
            first = count;
        if (!unsupported[i] && (after < 0 || unsupported[after]))
            reading->active_call[count++] = (uint16_t)i;
    }
    reading->active_calls = count;
    reading->calls_stale = 0;
    return from < r->plan->calls ? first : count;
}

static int gputel_read_calls(gputel_reader *r)
{
    gputel_reading *reading = r->reading;
    const gputel_call *calls = r->plan->call;
    nvmlDevice_t handle = r->device->handle;
    int64_t *counter = reading->counter;
    uint64_t valid = 0;
    int well = 0;
    gputel_answer answer = {0};

    if (reading->calls_stale)
        gputel_calls_choose(r, 0);
    for (int k = 0; k < reading->active_calls; k++) {
        int i = reading->active_call[k];
        const gputel_call *call = &calls[i];
        nvmlReturn_t code = gputel_ask(call->shape, call->function, call->argument, handle,
                                       &answer, call->words);

        if (__builtin_expect(code != NVML_SUCCESS, 0)) {
            int outcome = gputel_judge_failure(r, i, code);

            gputel_account(r, i, outcome);
            if (gputel_is_end(outcome))
                return outcome;
            if (reading->calls_stale) /* another call may take its place, in this sweep */
                k = gputel_calls_choose(r, i + 1) - 1;
            continue;
        }
        gputel_account_well(r, i);
        reading->answered[i] = 1;
        well++;
        for (const gputel_target *target = call->target, *end = target + call->targets;
             target != end; target++) {
            uint64_t raw = answer.word[target->word];

            if (__builtin_expect(gputel_put_quickly(r, counter, target, raw), 1))
                valid |= target->bit;
            else
                gputel_put_word(r, target, raw);
        }
    }
    r->row[GPUTEL_ROW_VALID] |= valid;
    r->device->others += well;
    return GPUTEL_OK;
}

/* ---- Fields ------------------------------------------------------------------------------ */

static GPUTEL_COLD void gputel_fields_choose(gputel_reader *r)
{
    gputel_reading *reading = r->reading;
    int count = 0;

    for (int i = 0; i < r->plan->fields; i++)
        if (!reading->unsupported[r->plan->calls + i]) {
            reading->active[count].target = &r->plan->field[i].target;
            reading->active[count].ask[0] = r->plan->field[i].field;
            reading->active[count].ask[1] = reading->scope[i];
            reading->active[count].field = i;
            reading->active[count].type = GPUTEL_NO_TYPE;
            count++;
        }
    reading->active_fields = count;
    reading->fields_stale = 0;
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

static GPUTEL_COLD int gputel_field_refused(gputel_reader *r, int i, nvmlReturn_t code)
{
    gputel_reading *reading = r->reading;
    int origin = r->plan->calls + i;
    int outcome = gputel_judge_failure(r, origin, code);

    gputel_add(&reading->cost[r->plan->ask_fields].errors[outcome], 1);
    if (outcome == GPUTEL_UNSUPPORTED && reading->scope[i] == GPUTEL_ALL_LINKS) {
        /* Before NVLink 5 the aggregate is scope 0: ask once more, in the next sweep. */
        reading->scope[i] = 0;
        reading->unsupported[origin] = 0;
    }
    return outcome;
}

static GPUTEL_COLD int gputel_fields_refused(gputel_reader *r, int outcome)
{
    if (outcome == GPUTEL_UNSUPPORTED) {
        memset(r->reading->unsupported + r->plan->calls, 1, r->plan->fields);
        r->reading->fields_stale = r->reading->calls_stale = 1;
    }
    return outcome;
}

typedef struct {
    uint64_t total;
    int parts, missing;
} gputel_traffic;

/* Any answer to a field: one that was refused, is part of the rate, is its first, or differs
 * from the last in a way that needs a look. */
static GPUTEL_COLD int gputel_put_field(gputel_reader *r, int k, gputel_traffic *traffic)
{
    gputel_active *active = &r->reading->active[k];
    const nvmlFieldValue_t *value = &r->values[k];
    const gputel_field *field = &r->plan->field[active->field];
    int member = field->member < 0 ? (int)value->valueType : field->member;

    traffic->parts += field->in_rate;
    if (value->nvmlReturn != NVML_SUCCESS) {
        traffic->missing |= field->in_rate;
        return gputel_field_refused(r, active->field, value->nvmlReturn);
    }
    r->reading->answered[r->plan->calls + active->field] = 1;
    r->device->others++;
    if (field->in_rate) {
        if (value->value.ullVal <= INT64_MAX) /* two of them can be added */
            traffic->total += value->value.ullVal;
        else
            traffic->missing = 1;
        return GPUTEL_OK;
    }
    if (gputel_put_value(r, &field->target, member, &value->value) < 0)
        gputel_reject(r, &field->target, NAN);
    active->type = GPUTEL_NO_TYPE;
    if (member == NVML_VALUE_TYPE_UNSIGNED_INT || member == NVML_VALUE_TYPE_UNSIGNED_LONG_LONG) {
        active->type = (int)value->valueType;
        active->used = member == NVML_VALUE_TYPE_UNSIGNED_INT ? UINT32_MAX : UINT64_MAX;
    }
    return GPUTEL_OK;
}

static int gputel_read_fields(gputel_reader *r)
{
    static const struct {
        nvmlValueType_t type;
        nvmlReturn_t code;
    } unanswered = {NVML_VALUE_TYPE_DOUBLE, NVML_ERROR_UNKNOWN};
    const gputel_plan *plan = r->plan;
    gputel_reading *reading = r->reading;
    nvmlFieldValue_t *values = r->values;
    int64_t *counter = reading->counter;
    gputel_traffic traffic = {0};
    const gputel_active *active, *end;
    nvmlFieldValue_t *value;
    uint64_t valid = 0;
    nvmlReturn_t code;
    int count, looked = 0;

    if (reading->fields_stale)
        gputel_fields_choose(r);
    count = reading->active_fields;
    if (!count)
        return GPUTEL_OK;
    if (!r->core->functions.field_values)
        return gputel_fields_refused(r, GPUTEL_UNSUPPORTED);
    end = reading->active + count;
    for (active = reading->active, value = values; active != end; active++, value++) {
        memcpy(&value->fieldId, active->ask, sizeof active->ask); /* and scopeId, at once */
        /* What the driver leaves alone is no answer. */
        memcpy(&value->valueType, &unanswered, sizeof unanswered);
        value->value.ullVal = 0;
    }
    code = r->core->functions.field_values(r->device->handle, count, values);
    if (code != NVML_SUCCESS) {
        int outcome = gputel_judge_failure(r, plan->calls + plan->fields, code);

        gputel_account(r, plan->ask_fields, outcome);
        return gputel_fields_refused(r, outcome);
    }
    gputel_account_well(r, plan->ask_fields);
    reading->answered[plan->calls + plan->fields] = 1;
    for (active = reading->active, value = values; active != end; active++, value++) {
        const gputel_target *target = active->target;
        int outcome;

        if (__builtin_expect(value->nvmlReturn == NVML_SUCCESS &&
                                 (int)value->valueType == active->type &&
                                 gputel_put_quickly(r, counter, target,
                                                    value->value.ullVal & active->used),
                             1)) {
            valid |= target->bit;
            continue;
        }
        looked++; /* and counted there */
        outcome = gputel_put_field(r, (int)(active - reading->active), &traffic);
        if (gputel_is_end(outcome))
            return outcome;
    }
    r->row[GPUTEL_ROW_VALID] |= valid;
    r->device->others += count - looked; /* each field counts, not the call */
    if (plan->has_rate)
        gputel_put_rate(r, traffic.missing || traffic.parts < 2, traffic.total);
    return GPUTEL_OK;
}

/* ---- GPM --------------------------------------------------------------------------------- */

static nvmlReturn_t gputel_gpm_prepare(gputel_reader *r)
{
    const gputel_functions *f = &r->core->functions;
    gputel_reading *reading = r->reading;
    nvmlDevice_t whole = r->device->whole;
    nvmlGpmSupport_t support = {.version = NVML_GPM_SUPPORT_VERSION};
    nvmlReturn_t code;

    if (!f->gpm_support || !f->gpm_alloc || !f->gpm_metrics ||
        (whole ? !f->gpm_mig_sample : !f->gpm_sample))
        return NVML_ERROR_FUNCTION_NOT_FOUND;
    code = f->gpm_support(whole ? whole : r->device->handle, &support);
    if (code == NVML_SUCCESS && !support.isSupportedDevice)
        return NVML_ERROR_NOT_SUPPORTED;
    for (int i = 0; code == NVML_SUCCESS && i < 2; i++)
        if (!reading->gpm_sample[i])
            code = f->gpm_alloc(&reading->gpm_sample[i]);
    return code;
}

/* A MIG instance's sample is its GPU's to give. */
static nvmlReturn_t gputel_gpm_sample(const gputel_reader *r, nvmlGpmSample_t sample)
{
    const gputel_functions *f = &r->core->functions;
    const gputel_device *device = r->device;

    return device->whole ? f->gpm_mig_sample(device->whole, device->gpu_instance, sample)
                         : f->gpm_sample(device->handle, sample);
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
    code = gputel_gpm_sample(r, reading->gpm_sample[1]);
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

    r->row[GPUTEL_ROW_VALID] = 0; /* what is in an invalid cell means nothing */
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
