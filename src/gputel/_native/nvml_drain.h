/* The driver's own buffers of samples: every sample since the last call, once.
 *
 *   power        10    12    14    16      us, the driver's time
 *   utilisation  10          14
 *                 |     |     |     |
 *   rows         p,u    p    p,u    p      one a timestamp; a missing cell is invalid
 *
 * Each buffer has a cursor: the newest timestamp taken. The first call only sets it, so that
 * a restart takes no sample twice; it survives failures and the loss of the GPU.
 */
#ifndef GPUTEL_NVML_DRAIN_H
#define GPUTEL_NVML_DRAIN_H

#include "nvml_read.h"

#define GPUTEL_CURSOR_AHEAD_MAX_US 60000000

/* By time. The driver's order already is, so one pass; insertion bounds the worst case. */
static void gputel_samples_sort(nvmlSample_t *samples, int count)
{
    for (int i = 1; i < count; i++) {
        nvmlSample_t sample = samples[i];
        int j = i;

        for (; j > 0 && samples[j - 1].timeStamp > sample.timeStamp; j--)
            samples[j] = samples[j - 1];
        samples[j] = sample;
    }
}

/* Keep what is newer than the cursor, each time once. `asked_us` is what the driver was asked
 * for: what it gave beyond that is counted. */
static void gputel_samples_keep(gputel_core *core, gputel_stream *stream, uint64_t asked_us)
{
    int kept = 0, is_first;

    gputel_samples_sort(stream->buffer, stream->count);
    /* Was the clock stepped back? Then the cursor starts anew, at the driver's newest. */
    is_first = !stream->cursor_known ||
               (asked_us < stream->cursor_us && stream->count &&
                stream->buffer[stream->count - 1].timeStamp < stream->cursor_us);
    if (is_first)
        stream->cursor_us = 0;
    for (int i = 0; i < stream->count; i++) {
        uint64_t time_us = stream->buffer[i].timeStamp;

        if (time_us <= stream->cursor_us || time_us > (uint64_t)INT64_MAX / 1000) {
            if (time_us <= asked_us && !is_first)
                atomic_fetch_add_explicit(&core->skipped_samples, 1, memory_order_relaxed);
            continue;
        }
        stream->cursor_us = time_us;
        if (!is_first)
            stream->buffer[kept++] = stream->buffer[i];
    }
    stream->cursor_known = 1;
    stream->count = kept;
}

static int gputel_drain_stream(gputel_reader *r, int i)
{
    gputel_stream *stream = &r->reading->stream[i];
    uint64_t asked_us = stream->cursor_us;
    unsigned int count = GPUTEL_SAMPLES_MAX;
    nvmlValueType_t type = NVML_VALUE_TYPE_UNSIGNED_INT;
    nvmlReturn_t code;
    int outcome;

    stream->count = stream->next = 0;
    if (stream->is_unsupported)
        return GPUTEL_OK;
    /* A cursor far ahead: ask for everything, to learn what the driver's clock says. */
    if (asked_us > (uint64_t)r->time_ns / 1000 + GPUTEL_CURSOR_AHEAD_MAX_US)
        asked_us = 0;
    code = r->core->functions.samples(r->device->handle, (nvmlSamplingType_t)r->plan->sample[i].id,
                                      asked_us, &type, &count, stream->buffer);
    if (code == NVML_ERROR_NOT_FOUND) { /* nothing newer */
        code = NVML_SUCCESS;
        count = 0;
    }
    outcome = gputel_classify(code);
    gputel_account(r, r->plan->ask_samples, outcome);
    if (outcome == GPUTEL_UNSUPPORTED)
        stream->is_unsupported = 1;
    if (outcome != GPUTEL_OK) {
        r->device->code = code;
        return outcome;
    }
    stream->member = (int)type;
    stream->count = count < GPUTEL_SAMPLES_MAX ? (int)count : GPUTEL_SAMPLES_MAX;
    gputel_samples_keep(r->core, stream, asked_us);
    return GPUTEL_OK;
}

/* Empty every buffer of the GPU; the rows are then taken with gputel_drain_row. */
static int gputel_drain(gputel_reader *r)
{
    for (int i = 0; i < r->plan->samples; i++)
        r->reading->stream[i].count = r->reading->stream[i].next = 0;
    if (!r->core->functions.samples)
        return GPUTEL_OK;
    for (int i = 0; i < r->plan->samples; i++) {
        int outcome = gputel_drain_stream(r, i);

        if (gputel_is_end(outcome))
            return outcome;
    }
    return GPUTEL_OK;
}

/* The next row's cells and time, oldest first; 0 when there is none. */
static int gputel_drain_row(gputel_reader *r)
{
    gputel_reading *reading = r->reading;
    uint64_t time_us = UINT64_MAX;

    for (int i = 0; i < r->plan->samples; i++) {
        gputel_stream *stream = &reading->stream[i];

        if (stream->next < stream->count && stream->buffer[stream->next].timeStamp < time_us)
            time_us = stream->buffer[stream->next].timeStamp;
    }
    if (time_us == UINT64_MAX)
        return 0;
    r->row[GPUTEL_ROW_VALID] = 0;
    r->row[0] = time_us * 1000;
    for (int i = 0; i < r->plan->samples; i++) {
        gputel_stream *stream = &reading->stream[i];
        const gputel_target *target = &r->plan->sample[i].target;

        if (stream->next == stream->count || stream->buffer[stream->next].timeStamp != time_us)
            continue;
        if (gputel_put_value(r, target, stream->member,
                             &stream->buffer[stream->next].sampleValue) < 0)
            gputel_reject(r, target, NAN);
        stream->next++;
    }
    return 1;
}

#endif
