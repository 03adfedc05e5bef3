"""The C side of the NVML sweep, as far as nvml.pyx and the benchmark's plain loop name it."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from "nvml_ask.h" nogil:
    ctypedef void *nvmlDevice_t
    ctypedef int nvmlReturn_t
    int GPUTEL_WORDS
    int GPUTEL_OK
    int GPUTEL_LOST
    int GPUTEL_FATAL
    int GPUTEL_OUTCOMES


cdef extern from "nvml_ticks.h" nogil:
    ctypedef struct gputel_ticks_base:
        pass
    uint64_t gputel_ticks(const gputel_ticks_base *base)
    void gputel_ticks_init(gputel_ticks_base *base)
    double gputel_ns_per_tick(const gputel_ticks_base *base)


cdef extern from "nvml_plan.h" nogil:
    int GPUTEL_COLUMNS_MAX
    int GPUTEL_FIELDS_MAX
    int GPUTEL_LINE_BYTES
    int GPUTEL_NOTES_MAX
    int GPUTEL_SAMPLES_MAX
    int GPUTEL_NOTE_LOST
    int GPUTEL_NOTE_FATAL
    ctypedef struct gputel_target:
        uint64_t raw_max
        uint64_t multiply
        uint64_t remembered
        uint64_t bit
        double factor
        double divisor
        uint8_t word
        uint8_t column
        uint8_t is_float
        uint8_t is_counter
        double low
        double high
        int64_t low_i
        int64_t high_i
    ctypedef struct gputel_call:
        void *function
        int shape
        unsigned int argument[2]
        int after
        int words
        int targets
        gputel_target *target
    ctypedef struct gputel_field:
        unsigned int field
        unsigned int scope
        int member
        bint in_rate
        gputel_target target
    ctypedef struct gputel_single:
        unsigned int id
        gputel_target target
    ctypedef struct gputel_plan:
        int columns
        int calls
        int fields
        int gpms
        int samples
        gputel_call *call
        gputel_field *field
        gputel_single *gpm
        gputel_single *sample
        bint has_rate
        bint has_xid
        gputel_target rate
        gputel_target xid
        char *readings
        size_t reading_bytes
        int asks
        int ask_fields
        int ask_gpm
        int ask_samples
    ctypedef struct gputel_cost:
        uint64_t ticks
        uint64_t ticks_max
        uint64_t errors[5]
    ctypedef struct gputel_note:
        int kind
        int slot
        int plan
        int column
        int64_t time_ns
        int64_t before
        double value
    ctypedef struct gputel_reading:
        int64_t attempted_ns
        int64_t sequence
        uint64_t *calls
        gputel_cost *cost
    ctypedef struct gputel_device:
        nvmlDevice_t handle
        uint64_t since_ticks
        int64_t xid_last
        int busy
        int attached
        uint32_t generation
        int is_slow
        nvmlReturn_t code
        nvmlDevice_t whole
        unsigned int gpu_instance
        int notes
        gputel_note *note
    ctypedef struct gputel_functions:
        void *field_values
        void *samples
        void *gpm_support
        void *gpm_alloc
        void *gpm_free
        void *gpm_sample
        void *gpm_mig_sample
        void *gpm_metrics
    ctypedef struct gputel_core:
        gputel_functions functions
        gputel_ticks_base base
        uint64_t cheap_ticks
        int plans
        int devices
        int used
        gputel_plan *plan
        gputel_device *device
        uint64_t *rejected
        uint64_t skipped_samples
    gputel_reading *gputel_reading_of(const gputel_plan *plan, int slot)
    size_t gputel_reading_bytes(const gputel_plan *plan)
    int gputel_reading_init(gputel_reading *reading, const gputel_plan *plan)
    void gputel_reading_free(gputel_reading *reading, const gputel_plan *plan)
    void gputel_reading_forget(gputel_reading *reading, const gputel_plan *plan)
    uint64_t gputel_get(uint64_t *counter)


cdef extern from "nvml_read.h" nogil:
    int GPUTEL_ROW_CELLS
    ctypedef struct gputel_reader:
        gputel_core *core
        gputel_device *device
        const gputel_plan *plan
        gputel_reading *reading
        int plan_index
        int slot
        int64_t time_ns
        int64_t monotonic_ns
        uint32_t generation
        uint64_t row[68]
    int64_t GPUTEL_CHEAP_NS
    void gputel_reader_begin(gputel_reader *reader)
    uint64_t gputel_timing_end(gputel_reader *reader)
    void gputel_timing_check(gputel_reader *reader, uint64_t start, int asked)
    int gputel_read(gputel_reader *reader)
    void gputel_gpm_release(gputel_core *core, gputel_reading *reading)
    void gputel_note_down(
        gputel_reader *reader, int kind, int column, int64_t before, double value
    )


cdef extern from "nvml_drain.h" nogil:
    int gputel_drain(gputel_reader *reader)
    bint gputel_drain_row(gputel_reader *reader)


cdef extern from "nvml_turn.h" nogil:
    int GPUTEL_NOBODY
    int GPUTEL_LOG_MAX
    ctypedef struct gputel_turns:
        uint64_t turn
        int current
        int closing
        int entries
        uint64_t overflow
        gputel_note *log
    void gputel_lock(gputel_turns *turns)
    void gputel_unlock(gputel_turns *turns)
    bint gputel_has_turn(gputel_turns *turns, uint64_t turn)
    bint gputel_claim(
        gputel_turns *turns, gputel_core *core, uint64_t turn, int slot, uint64_t now_ticks
    )
    ctypedef struct gputel_round:
        int slot
        bint slow
        int passed
    int gputel_next(gputel_core *core, int plan, int64_t time_ns, gputel_round *round)
    bint gputel_finish(gputel_turns *turns, gputel_core *core, uint64_t turn, int slot)
    void gputel_detach_locked(gputel_device *device)
    void gputel_log(gputel_turns *turns, const gputel_note *note)
    int64_t gputel_age_ticks(gputel_core *core, int slot)
    bint gputel_abandon(gputel_turns *turns, gputel_core *core, int64_t limit_ticks)
