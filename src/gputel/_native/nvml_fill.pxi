"""From gputel.plan, which is Python, to the structs of nvml_plan.h; part of nvml.pyx."""


cdef void *_zeroed(size_t count, size_t size_bytes) except NULL:
    cdef void *memory = calloc(count or 1, size_bytes)
    if memory is NULL:
        raise MemoryError(f"{count} times {size_bytes} bytes")
    return memory


cdef void *_address(functions, str name) except? NULL:
    return <void *><uintptr_t>functions.get(name, 0)


cdef int _fill_target(gputel_target *to, target, int columns) except -1:
    if not 0 <= target.column < columns or not 0 <= target.word < GPUTEL_WORDS:
        raise ValueError(f"{target} is outside the row or the answer")
    if not target.is_float and target.divide != 1:
        raise ValueError(f"{target} divides an integer")
    if target.low > 0 or target.high < 0:
        raise ValueError(f"{target} can't be 0")
    if target.is_counter and (target.low < 0 or target.is_float):
        raise ValueError(f"{target} is a counter of what can't be counted")
    to.word = target.word
    to.column = target.column
    to.is_float = target.is_float
    to.is_counter = target.is_counter
    to.multiply = target.multiply
    to.remembered = ~<uint64_t>0 if target.is_counter else 0
    to.factor = target.multiply
    to.divisor = target.divide
    to.low = target.low
    to.high = target.high
    to.low_i = <int64_t>max(-(2**63), int(target.low))
    to.high_i = <int64_t>min(2**63 - 1, int(target.high))
    to.bit = <uint64_t>1 << target.column
    if target.is_float:  # rounding may move the limit: what is near it gets a closer look
        to.raw_max = int(max(0, min(2.0**50, target.high * target.divide / target.multiply) - 1))
    else:
        to.raw_max = to.high_i // target.multiply
    return 0


cdef int _fill_plan(gputel_plan *to, plan) except -1:
    cdef int columns = plan.columns
    cdef int i, j
    if not 1 <= columns <= GPUTEL_COLUMNS_MAX:
        raise ValueError(f"{columns} columns; 1 to {GPUTEL_COLUMNS_MAX} are allowed")
    if len(plan.fields) > GPUTEL_FIELDS_MAX:
        raise ValueError(f"{len(plan.fields)} fields; {GPUTEL_FIELDS_MAX} are allowed at most")
    to.columns = columns
    to.call = <gputel_call *>_zeroed(len(plan.calls), sizeof(gputel_call))
    to.field = <gputel_field *>_zeroed(len(plan.fields), sizeof(gputel_field))
    to.gpm = <gputel_single *>_zeroed(len(plan.gpm), sizeof(gputel_single))
    to.sample = <gputel_single *>_zeroed(len(plan.samples), sizeof(gputel_single))
    for i, call in enumerate(plan.calls):
        to.call[i].target = <gputel_target *>_zeroed(len(call.targets), sizeof(gputel_target))
        to.calls += 1  # one by one: what is counted is freed
        to.call[i].function = <void *><uintptr_t>call.address
        to.call[i].shape = call.shape
        to.call[i].after = call.after
        for j, number in enumerate(call.arguments):
            to.call[i].argument[j] = number
        for j, target in enumerate(call.targets):
            _fill_target(&to.call[i].target[j], target, columns)
            to.call[i].words = max(to.call[i].words, <int>target.word + 1)
        to.call[i].targets = len(call.targets)
    for i, field in enumerate(plan.fields):
        to.field[i].field = field.field
        to.field[i].scope = field.scope
        to.field[i].member = field.member
        to.field[i].in_rate = field.in_rate
        if field.target is not None:
            _fill_target(&to.field[i].target, field.target, columns)
    to.fields = len(plan.fields)
    _fill_singles(to.gpm, [(op.metric, op.target) for op in plan.gpm], columns)
    to.gpms = len(plan.gpm)
    _fill_singles(to.sample, [(op.type, op.target) for op in plan.samples], columns)
    to.samples = len(plan.samples)
    if plan.rate is not None:
        to.has_rate = True
        _fill_target(&to.rate, plan.rate, columns)
    if plan.xid is not None:
        to.has_xid = True
        _fill_target(&to.xid, plan.xid, columns)
    to.ask_fields = to.calls
    to.ask_gpm = to.ask_fields + (to.fields > 0)
    to.ask_samples = to.ask_gpm + 2 * (to.gpms > 0)
    to.asks = to.ask_samples + (to.samples > 0)
    if to.asks != len(plan.asks):
        raise ValueError("the plan accounts other functions than the kernel")
    return 0


cdef int _fill_singles(gputel_single *to, singles, int columns) except -1:
    for i, (number, target) in enumerate(singles):
        to[i].id = number
        _fill_target(&to[i].target, target, columns)
    return 0


cdef void _free_plan(gputel_plan *plan):
    cdef int i
    for i in range(plan.calls):
        free(plan.call[i].target)
    free(plan.call)
    free(plan.field)
    free(plan.gpm)
    free(plan.sample)
