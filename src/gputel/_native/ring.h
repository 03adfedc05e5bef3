/* The ring's shared state: C11 atomics, which Cython can't spell.
 *
 *   cache line 0   head      rows ever written     written by the producer only
 *                  dropped   rows refused          written by the producer only
 *   cache line 1   tail      rows ever taken       written by the consumer only
 *
 * Each side's words have a line of their own, or the two cores would pass one line to and
 * fro with every row. A side reads its own word relaxed and the other's with acquire, and
 * publishes its own with release: a row's bytes are visible before the head that covers
 * them, and a slot is no longer read once the tail has passed it.
 */
#ifndef GPUTEL_RING_H
#define GPUTEL_RING_H

#include <stdalign.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>

#define GPUTEL_CACHE_LINE 64

typedef struct {
    alignas(GPUTEL_CACHE_LINE) _Atomic uint64_t head;
    _Atomic uint64_t dropped;
    alignas(GPUTEL_CACHE_LINE) _Atomic uint64_t tail;
} gputel_ring_cursors;

static inline gputel_ring_cursors *gputel_ring_cursors_new(void)
{
    gputel_ring_cursors *cursors = aligned_alloc(GPUTEL_CACHE_LINE, sizeof *cursors);
    if (cursors) {
        atomic_init(&cursors->head, 0);
        atomic_init(&cursors->dropped, 0);
        atomic_init(&cursors->tail, 0);
    }
    return cursors;
}

static inline uint64_t gputel_head_relaxed(gputel_ring_cursors *cursors)
{
    return atomic_load_explicit(&cursors->head, memory_order_relaxed);
}

static inline uint64_t gputel_head_acquire(gputel_ring_cursors *cursors)
{
    return atomic_load_explicit(&cursors->head, memory_order_acquire);
}

static inline void gputel_head_release(gputel_ring_cursors *cursors, uint64_t head)
{
    atomic_store_explicit(&cursors->head, head, memory_order_release);
}

static inline uint64_t gputel_tail_relaxed(gputel_ring_cursors *cursors)
{
    return atomic_load_explicit(&cursors->tail, memory_order_relaxed);
}

static inline uint64_t gputel_tail_acquire(gputel_ring_cursors *cursors)
{
    return atomic_load_explicit(&cursors->tail, memory_order_acquire);
}

static inline void gputel_tail_release(gputel_ring_cursors *cursors, uint64_t tail)
{
    atomic_store_explicit(&cursors->tail, tail, memory_order_release);
}

/* PERF(prefetch): a ring is larger than the caches; the place of a row comes from afar while the
 * row is made. A hint: any address will do. */
static inline void gputel_prefetch_row(const char *row, size_t row_bytes)
{
    for (size_t byte = 0; byte < row_bytes; byte += GPUTEL_CACHE_LINE)
        __builtin_prefetch(row + byte, 1);
}

/* PERF(words): a row that was just written is copied word by word. A wider load would wait until
 * the narrow stores that it covers have left the store buffer, 10 ns a row; the empty assembly
 * keeps the compiler from making one. */
static inline void gputel_copy_words(uint64_t *to, const uint64_t *words, size_t count)
{
#pragma GCC unroll 4
    for (size_t i = 0; i < count; i++) {
        __asm__("" : "+m"(to[i]));
        to[i] = words[i];
    }
}

static inline uint64_t gputel_dropped(gputel_ring_cursors *cursors)
{
    return atomic_load_explicit(&cursors->dropped, memory_order_relaxed);
}

static inline void gputel_drop(gputel_ring_cursors *cursors, uint64_t rows)
{
    atomic_fetch_add_explicit(&cursors->dropped, rows, memory_order_relaxed);
}

#endif
