/* The C ring: the same algorithm as _ring_python.py over any memory, without allocating and without a system call.

   Only the paths that must be fast live here. Whatever needs words for a person (a wrong type, a value out of range) or may run
   Python code (a datetime, a dict to encode, a lane to claim) is done by the Python callables given at construction, before a
   slot is touched; between the first write to a slot and the store that publishes it no Python code runs and the GIL is held,
   which is what makes an append atomic among the threads of a process and in signal handlers.

   SYNC POINT pairs, here as in the Python ring:
     head  stored with release by append (publish), loaded with acquire by the drain: a drain that sees the new head sees the
           whole slot. Reordered, it would read a slot of the last lap.
     tail  stored with release by the writer (advance), loaded with acquire by append when its copy says full: an append that
           sees the new tail may overwrite the slots below it. Reordered, it could overwrite a slot still being read.
     state and refuse word: plain flags, loaded relaxed at every append; nothing else is ordered by them. They are looked at
     once the slot is written, when they have arrived: until it is published a slot is nobody's. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#if defined(__GNUC__) || defined(__clang__)
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#else
#error "ringlog's C ring needs GCC or Clang; the Python ring works without it"
#endif

/* Brings a line here to be written. The compiler's own is one to read, unless told of the processor: the line then stays with
   the processor whose writer read it, and an append that soon follows waits until it is given up. */
#if defined(__x86_64__)
#define PREFETCH_WRITE(p) __asm__ volatile("prefetchw %0" : : "m"(*(const char *)(p)))
#else
#define PREFETCH_WRITE(p) __builtin_prefetch((p), 1, 3)
#endif

/* What an append runs lies in one page, for after a sleep each page that it needs costs more than the lines in it. */
#ifdef __ELF__
#define HOT __attribute__((section(".text.append"), noinline))
#else
#define HOT __attribute__((noinline))
#endif
#define INLINE static inline __attribute__((always_inline)) /* in each of its callers, so that a call is part of none */

/* An int of a single digit, read without a call. */
#if PY_VERSION_HEX >= 0x030C0000
#define LONG_IS_SMALL(value) PyUnstable_Long_IsCompact((PyLongObject *)(value))
#define LONG_SMALL_VALUE(value) PyUnstable_Long_CompactValue((PyLongObject *)(value))
#else
#define LONG_IS_SMALL(value) (Py_SIZE(value) == 1)
#define LONG_SMALL_VALUE(value) (((PyLongObject *)(value))->ob_digit[0])
#endif

enum kind { TIMESTAMP, DOUBLE, LONG, BOOLEAN, SYMBOL, VARCHAR, JSON, KINDS };
/* The reasons that are given here; those that only `recover` gives are numbers, of which Python says how many there are. */
enum refused { FULL, BOARD, BUDGET, REENTRANT, CLOSED, CLOCK, INVALID, REASONS_MIN };
enum outcome { WRITTEN, COERCE, OFF_CLOCK, SHUT, REFUSED, FAILED };

#define FIELDS_MAX 64
#define RECOVER_WAIT_MS 12000
#define REASONS_MAX 63 /* words that a segment has room for: layout.REASONS_MAX */
#define NULL_LENGTH 0xFFFF
#define TEXT_WIDTH_MAX 32768
#define SLOT_BYTES_MAX (1 << 20)
#define LINE_BYTES 64
#define PAGE_BYTES 4096
#define TIMESTAMP_MIN INT64_C(946684800000000) /* 2000-01-01 */
#define TIMESTAMP_MAX INT64_C(7258118400000000) /* 2200-01-01, as the decoder has it */
#define TIMESTAMP_AHEAD_MAX INT64_C(3600000000) /* one hour */

typedef union {
    double number;
    int64_t integer;
} Limit;

typedef struct {
    int count;
    PyObject **texts;   /* str objects of a symbol's choices: owned */
    int64_t *integers;  /* or the values of a long's */
} Choices;

/* A symbol that a field was given lately, by the identity of the str, with its checked bytes. */
typedef struct {
    PyObject *text;        /* owned: as long as it is here, no other object has its address */
    unsigned char image[]; /* u16 length and text, whole words */
} Symbol;

/* Those of a field. */
#define KEPT_SHIFT 3 /* places of a field, as a power of two: a trade's are all in the page of its appender's plan */
#define KEPT (1u << KEPT_SHIFT)
#define IMAGE_BYTES_MAX 56
#define MULTIPLIER UINT32_C(0x9E3779B1) /* the first one: 2^32 over the golden ratio */
typedef struct {
    unsigned char *places;
    uint32_t multiplier;  /* of an address, which gives a place */
    uint32_t place_shift; /* bytes of a place, as a power of two */
} Symbols;

typedef struct {
    uint8_t kind;
    uint8_t nullable;
    uint8_t has_default;
    uint8_t index; /* in the record layout, for the Python callables */
    uint32_t offset;
    uint32_t width;
    Limit minimum, maximum; /* of a double or a long */
    Symbols *symbols;       /* NULL: this field keeps none */
    Choices *choices;       /* owned, or NULL */
    PyObject *name;         /* owned, interned */
} Field;

/* Raised in every forked child, however it was forked. Not 0 at first, so that it lies beside the tables of methods, which a
   call looks at, too. */
static unsigned fork_generation = 1;

static void after_fork_in_child(void) { fork_generation++; }

static inline uint64_t load_acquire(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
static inline uint64_t load_relaxed(const uint64_t *word) { return __atomic_load_n(word, __ATOMIC_RELAXED); }
/* On x86 an order to the compiler alone: stores are seen in their order there. */
static inline void fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static inline void store_release(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }

static inline int64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static inline Symbol *symbol_at(const Symbols *symbols, uint32_t place)
{
    return (Symbol *)(symbols->places + ((size_t)place << symbols->place_shift));
}

static inline uint32_t place_of(PyObject *text, uint32_t multiplier)
{
    return ((uint32_t)((uintptr_t)text >> 4) * multiplier) >> (32 - KEPT_SHIFT);
}

/* ---- fields ---------------------------------------------------------------------------------------------------- */

static void choices_free(Choices *choices)
{
    if (!choices)
        return;
    for (int i = 0; choices->texts && i < choices->count; i++)
        Py_XDECREF(choices->texts[i]);
    PyMem_Free(choices->texts);
    PyMem_Free(choices->integers);
    PyMem_Free(choices);
}

static void field_clear(Field *field)
{
    choices_free(field->choices);
    for (uint32_t place = 0; field->symbols && place < KEPT; place++)
        Py_XDECREF(symbol_at(field->symbols, place)->text);
    Py_XDECREF(field->name);
    memset(field, 0, sizeof *field);
}

/* The choices of a description's tuple, into *to (NULL for none). */
static int choices_new(PyObject *tuple, int kind, Choices **to)
{
    Py_ssize_t count = PyTuple_Size(tuple);
    *to = NULL;
    if (count <= 0)
        return count < 0 ? -1 : 0;
    Choices *choices = *to = PyMem_Calloc(1, sizeof *choices);
    if (!choices)
        return PyErr_NoMemory(), -1;
    choices->count = (int)count;
    if (kind == LONG)
        choices->integers = PyMem_Calloc((size_t)count, sizeof *choices->integers);
    else
        choices->texts = PyMem_Calloc((size_t)count, sizeof *choices->texts);
    if (!choices->integers && !choices->texts)
        return PyErr_NoMemory(), -1;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *choice = PyTuple_GetItem(tuple, i);
        if (!choice)
            return -1;
        if (kind == LONG) {
            choices->integers[i] = PyLong_AsLongLong(choice);
            if (choices->integers[i] == -1 && PyErr_Occurred())
                return -1;
        }
        else if (!PyUnicode_Check(choice)) {
            PyErr_Format(PyExc_TypeError, "choice: got %.100s, wanted a str", Py_TYPE(choice)->tp_name);
            return -1;
        }
        else {
            Py_INCREF(choice);
            choices->texts[i] = choice;
        }
    }
    return 0;
}

static inline uintptr_t aligned(uintptr_t bytes, uintptr_t to) { return (bytes + to - 1) & ~(to - 1); }
static size_t whole_words(size_t bytes) { return aligned(bytes, 8); }

/* For PyArg_Parse: an int as a long long. One that none holds is -1, which no count or place may be. */
static int as_count(PyObject *value, void *to)
{
    int overflow;
    PyObject *whole = PyNumber_Index(value);
    if (!whole)
        return 0;
    long long count = PyLong_AsLongLongAndOverflow(whole, &overflow);
    Py_DECREF(whole);
    if (count == -1 && PyErr_Occurred())
        return 0;
    *(long long *)to = overflow ? -1 : count;
    return 1;
}

/* Bytes of a slot that belong to a field: of a text its length and whole words, since it is copied by words. */
static long long reserved_bytes(long long kind, long long width)
{
    return kind >= SYMBOL ? (long long)whole_words((size_t)width + 2) : width;
}

/* Whether a field can be of this kind and width, and lie there in a slot: what is written later is not checked again. */
static int place_fits(long long kind, long long offset, long long width, long long slot_bytes)
{
    if (kind < TIMESTAMP || kind >= KINDS)
        return 0;
    if (kind >= SYMBOL ? width < 1 || width > TEXT_WIDTH_MAX : width != (kind == BOOLEAN ? 1 : 8))
        return 0;
    return offset >= 8 && offset <= slot_bytes - reserved_bytes(kind, width) && (kind == BOOLEAN || offset % 8 == 0);
}

/* One field of a slot of `slot_bytes` from its description: (name, kind, offset, width, nullable, minimum, maximum, choices).
   The limits are floats for a double and ints for every other kind. */
static int field_init(Field *field, PyObject *description, int index, long long slot_bytes)
{
    PyObject *name, *choices, *minimum, *maximum;
    int nullable;
    long long kind, offset, width;
    if (!PyTuple_Check(description)) {
        PyErr_Format(PyExc_TypeError, "field %d: got %.100s, wanted a tuple", index, Py_TYPE(description)->tp_name);
        return -1;
    }
    if (!PyArg_ParseTuple(description, "UO&O&O&pOOO!", &name, as_count, &kind, as_count, &offset, as_count, &width, &nullable,
                          &minimum, &maximum, &PyTuple_Type, &choices))
        return -1;
    if (!place_fits(kind, offset, width, slot_bytes)) {
        PyErr_Format(PyExc_ValueError, "field %d: got kind %lld of %lld bytes at byte %lld, wanted 8 bytes for a number, 1 for a "
                     "boolean, 1 to %d for a text, inside bytes 8 to %lld of a slot, at a multiple of 8 but for a boolean",
                     index, kind, width, offset, TEXT_WIDTH_MAX, slot_bytes);
        return -1;
    }
    field->kind = (uint8_t)kind;
    field->index = (uint8_t)index;
    field->offset = (uint32_t)offset;
    field->width = (uint32_t)width;
    field->nullable = (uint8_t)nullable;
    if (kind == DOUBLE) {
        field->minimum.number = PyFloat_AsDouble(minimum);
        field->maximum.number = PyFloat_AsDouble(maximum);
    }
    else {
        field->minimum.integer = PyLong_AsLongLong(minimum);
        field->maximum.integer = PyLong_AsLongLong(maximum);
    }
    if (PyErr_Occurred())
        return -1;
    Py_INCREF(name);
    field->name = name;
    PyUnicode_InternInPlace(&field->name);
    if (choices_new(choices, field->kind, &field->choices) < 0)
        return -1;
    return 0;
}

static inline void write_u16(unsigned char *at, unsigned value)
{
    uint16_t word = (uint16_t)value;
    memcpy(at, &word, 2);
}

static void field_write_null(const Field *field, unsigned char *slot)
{
    if (field->kind == DOUBLE) {
        double nan = __builtin_nan("");
        memcpy(slot + field->offset, &nan, 8);
    }
    else if (field->kind == LONG) {
        int64_t null = INT64_MIN;
        memcpy(slot + field->offset, &null, 8);
    }
    else
        write_u16(slot + field->offset, NULL_LENGTH);
}

#define DOUBLE_INTS_END 9007199254740992.0 /* 2^53: every int below it is a double */

static inline int write_double(const Field *field, PyObject *value, unsigned char *slot)
{
    double number;
    if (LIKELY(PyFloat_CheckExact(value)))
        number = PyFloat_AS_DOUBLE(value);
    else if (PyLong_CheckExact(value)) {
        number = PyLong_AsDouble(value);
        if (UNLIKELY(number == -1.0 && PyErr_Occurred())) {
            PyErr_Clear();
            return COERCE;
        }
        /* Above 2^53 an int may lie between two doubles: whether this one does is for `exact_value` to say. */
        if (UNLIKELY(number >= DOUBLE_INTS_END || number <= -DOUBLE_INTS_END))
            return COERCE;
    }
    else
        return COERCE;
    /* NaN fails both comparisons; infinity is outside any limits a declaration can give. */
    if (UNLIKELY(!(number >= field->minimum.number && number <= field->maximum.number)))
        return COERCE;
    memcpy(slot + field->offset, &number, 8);
    return WRITTEN;
}

static inline int write_long(const Field *field, PyObject *value, unsigned char *slot)
{
    int overflow;
    int64_t number;
    if (UNLIKELY(!PyLong_CheckExact(value)))
        return COERCE;
    if (LIKELY(LONG_IS_SMALL(value)))
        number = LONG_SMALL_VALUE(value);
    else {
        number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (UNLIKELY(overflow))
            return COERCE;
    }
    if (UNLIKELY(number < field->minimum.integer || number > field->maximum.integer))
        return COERCE;
    if (UNLIKELY(field->choices != NULL)) {
        int i = 0;
        while (i < field->choices->count && field->choices->integers[i] != number)
            i++;
        if (i == field->choices->count)
            return COERCE;
    }
    memcpy(slot + field->offset, &number, 8);
    return WRITTEN;
}

static int chosen(const Choices *choices, const char *text, size_t length)
{
    for (int i = 0; i < choices->count; i++) {
        Py_ssize_t choice_length;
        const char *choice = PyUnicode_AsUTF8AndSize(choices->texts[i], &choice_length);
        if (!choice)
            PyErr_Clear();
        else if ((size_t)choice_length == length && memcmp(choice, text, length) == 0)
            return 1;
    }
    return 0;
}

typedef uint8_t Vector __attribute__((vector_size(16)));

#define HAS_NUL(word) (((word) - UINT64_C(0x0101010101010101)) & ~(word) & UINT64_C(0x8080808080808080))

/* As copy_text, for fewer than 16 bytes: without calls, and the parts overlap. */
static inline int copy_short_text(unsigned char *to, const char *from, size_t length)
{
    uint64_t head = 0, tail = 0;
    if (length >= 8) {
        memcpy(&head, from, 8);
        memcpy(&tail, from + length - 8, 8);
        memcpy(to, &head, 8);
        memcpy(to + length - 8, &tail, 8);
        return !(HAS_NUL(head) | HAS_NUL(tail));
    }
    int sound = 1;
    for (size_t at = 0; at < length; at++) {
        to[at] = (unsigned char)from[at];
        sound &= from[at] != 0;
    }
    return sound;
}

/* Copies 16 bytes and says which of them are NUL. */
static inline Vector copy_vector(unsigned char *to, const char *from)
{
    Vector part;
    memcpy(&part, from, 16);
    memcpy(to, &part, 16);
    return (Vector)(part == 0);
}

/* Copies a text and says whether it has no NUL byte, in one pass; the last steps overlap those before. */
static inline int copy_text(unsigned char *to, const char *from, size_t length)
{
    if (length < 16)
        return copy_short_text(to, from, length);
    Vector zeros = {0};
    size_t at = 0, last = length - 16;
    for (; at + 32 <= length; at += 32)
        zeros |= copy_vector(to + at, from + at) | copy_vector(to + at + 16, from + at + 16);
    zeros |= copy_vector(to + (at < last ? at : last), from + (at < last ? at : last));
    zeros |= copy_vector(to + last, from + last);
    uint64_t halves[2];
    memcpy(halves, &zeros, 16);
    return !(halves[0] | halves[1]);
}

/* A text: its UTF-8 is asked of the str object itself, which for ASCII is its own memory (nothing is allocated). */
static inline int write_text(const Field *field, PyObject *value, unsigned char *slot)
{
    Py_ssize_t length;
    const char *text;
    if (UNLIKELY(!PyUnicode_CheckExact(value)))
        return COERCE;
    if (LIKELY(PyUnicode_IS_COMPACT_ASCII(value))) {
        text = (const char *)PyUnicode_1BYTE_DATA(value);
        length = PyUnicode_GET_LENGTH(value);
    }
    else if (!(text = PyUnicode_AsUTF8AndSize(value, &length))) {
        PyErr_Clear(); /* a lone surrogate: the Python callable says so in words */
        return COERCE;
    }
    if (UNLIKELY((size_t)length > field->width))
        return COERCE;
    if (UNLIKELY(!copy_text(slot + field->offset + 2, text, (size_t)length)))
        return COERCE;
    if (UNLIKELY(field->choices && !chosen(field->choices, text, (size_t)length)))
        return COERCE;
    write_u16(slot + field->offset, (unsigned)length);
    return WRITTEN;
}

/* Copies the words that hold a text and its length; a text's place in a slot is whole words (see records). */
static inline void copy_words(unsigned char *to, const unsigned char *from)
{
    uint16_t length;
    memcpy(&length, from, 2);
    size_t at = 0;
    do {
        memcpy(to + at, from + at, 8);
        at += 8;
    } while (at < (size_t)length + 2);
}

/* Looks for a multiplier by which `text` and all that are kept have places of their own, and moves them there: an append
   looks at one place alone, and while they are few, which is the rule, finds each. */
static void symbols_spread(Symbols *symbols, PyObject *text)
{
    unsigned char kept[KEPT * (sizeof(Symbol) + IMAGE_BYTES_MAX)];
    uint32_t multiplier = symbols->multiplier, count = 0;
    for (uint32_t place = 0; place < KEPT; place++)
        count += symbol_at(symbols, place)->text != NULL;
    for (int tries = count > KEPT / 2 ? 0 : 64; tries > 0; tries--) {
        multiplier = (multiplier * UINT32_C(1664525) + UINT32_C(1013904223)) | 1; /* the next of a random sequence */
        uint32_t taken = 1u << place_of(text, multiplier), place = 0;
        for (; place < KEPT; place++) {
            PyObject *other = symbol_at(symbols, place)->text;
            uint32_t bit = other ? 1u << place_of(other, multiplier) : 0;
            if (taken & bit)
                break;
            taken |= bit;
        }
        if (place < KEPT)
            continue;
        size_t bytes = (size_t)1 << symbols->place_shift;
        Symbols before = {kept, 0, symbols->place_shift};
        memcpy(kept, symbols->places, KEPT * bytes);
        memset(symbols->places, 0, KEPT * bytes);
        symbols->multiplier = multiplier;
        for (place = 0; place < KEPT; place++) {
            const Symbol *symbol = symbol_at(&before, place);
            if (symbol->text)
                memcpy(symbol_at(symbols, place_of(symbol->text, multiplier)), symbol, bytes);
        }
        return;
    }
}

/* A symbol repeats, and mostly as the very same object: then its checked bytes are at hand, at its place or, where many
   are kept, the one beside it. */
static int write_symbol(const Field *field, PyObject *value, unsigned char *slot)
{
    unsigned char *at = slot + field->offset;
    Symbols *symbols = field->symbols;
    if (!symbols)
        return write_text(field, value, slot);
    uint32_t place = place_of(value, symbols->multiplier);
    for (uint32_t beside = 0; beside < 2; beside++)
        if (symbol_at(symbols, place ^ beside)->text == value) {
            copy_words(at, symbol_at(symbols, place ^ beside)->image);
            return WRITTEN;
        }
    if (write_text(field, value, slot) != WRITTEN)
        return COERCE;
    if (symbol_at(symbols, place)->text)
        symbols_spread(symbols, value);
    place = place_of(value, symbols->multiplier);
    Symbol *first = symbol_at(symbols, place), *second = symbol_at(symbols, place ^ 1);
    PyObject *forgotten = NULL;
    if (first->text) { /* the newest where it is looked for first, and the one before it beside it */
        forgotten = second->text;
        memcpy(second, first, (size_t)1 << symbols->place_shift);
    }
    uint16_t length;
    memcpy(&length, at, 2);
    memcpy(first->image, at, (size_t)length + 2);
    Py_INCREF(value);
    first->text = value;
    Py_XDECREF(forgotten); /* an exact str: its end runs no code */
    return WRITTEN;
}

static inline int write_timestamp(PyObject *value, unsigned char *at, int64_t now)
{
    int64_t stamp = now;
    if (UNLIKELY(value != Py_None)) {
        int overflow;
        if (Py_TYPE(value) != &PyLong_Type)
            return COERCE;
        stamp = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (overflow || stamp > now + TIMESTAMP_AHEAD_MAX)
            return COERCE;
    }
    /* Outside of these bounds the writer takes no time, wherever it comes from. */
    if (UNLIKELY((uint64_t)stamp - (uint64_t)TIMESTAMP_MIN > (uint64_t)(TIMESTAMP_MAX - TIMESTAMP_MIN)))
        return value == Py_None ? OFF_CLOCK : COERCE;
    memcpy(at, &stamp, 8);
    return WRITTEN;
}

static __attribute__((noinline)) int write_field(const Field *field, PyObject *value, unsigned char *slot)
{
    switch (field->kind) {
    case DOUBLE:
        if (LIKELY(value != Py_None))
            return write_double(field, value, slot);
        break;
    case LONG:
        if (LIKELY(value != Py_None))
            return write_long(field, value, slot);
        break;
    case BOOLEAN:
        if (LIKELY(value == Py_True || value == Py_False)) {
            slot[field->offset] = value == Py_True;
            return WRITTEN;
        }
        return COERCE;
    case SYMBOL:
        if (LIKELY(value != Py_None))
            return write_symbol(field, value, slot);
        break;
    case TIMESTAMP:
        return write_timestamp(value, slot + field->offset, now_us());
    default:
        if (LIKELY(value != Py_None))
            return write_text(field, value, slot);
    }
    if (!field->nullable)
        return COERCE;
    field_write_null(field, slot);
    return WRITTEN;
}

/* ---- the ring, as its producer sees it -------------------------------------------------------------------------- */

/* The lane that is written. A ring has it, and each of its appenders a copy, in the page of what an append needs. */
typedef struct {
    unsigned char *slots; /* NULL while detached */
    uint64_t *state_word, *board_word, *head_word, *tail_word;
    uint64_t tail; /* as it was read last: never beyond the shared one */
    uint64_t capacity;
    uint32_t slot_bytes;
    unsigned generation;
} Lane;

typedef struct Appender Appender;

typedef struct {
    PyObject_HEAD
    Lane lane;
    Appender *appenders; /* the first of a list; each owns this ring, and leaves the list at its end */
    uint64_t *refused_words;
    uint64_t head; /* of the lane that was left last */
    uint32_t slot_bytes;
    uint64_t refused[REASONS_MAX];  /* those of lanes that this ring left */
    uint64_t unplaced[REASONS_MAX]; /* those of no lane: the next one's words take them over, where others see them */
    int reasons; /* how many words a lane has for them */
    unsigned counts_generation; /* whose `refused`, `unplaced` and `last_refused` are */
    PyObject *descriptions; /* a tuple, one for each field */
    int field_count;
    PyObject *coerce;  /* coerce(index, value) -> a value of the exact type, or raises */
    PyObject *recover; /* recover() -> True once attached to a lane that may be written */
    PyObject *invalid; /* invalid(error) -> True: an append of wrong input returns False. Or None: it always raises */
    Py_buffer memory, board_memory;
    int recovering;
    unsigned recovering_generation; /* a child forked in the middle of it is not recovering */
    unsigned long recovering_thread;
    int last_refused; /* reason + 1 of the latest refusal, or 0 */
} Ring;

/* Each field is made once here, so that a wrong one is named now. */
static int ring_check_fields(PyObject *fields, long long slot_bytes)
{
    Field made[FIELDS_MAX];
    int count = (int)PyTuple_GET_SIZE(fields), at = 0, sound = 1;
    memset(made, 0, sizeof made);
    for (; sound && at < count; at++) {
        Field *field = &made[at];
        sound = field_init(field, PyTuple_GET_ITEM(fields, at), at, slot_bytes) == 0;
        for (int other = 0; sound && other < at; other++) {
            long long start = field->offset, end = start + reserved_bytes(field->kind, field->width);
            long long begin = made[other].offset, stop = begin + reserved_bytes(made[other].kind, made[other].width);
            if (start < stop && begin < end) {
                PyErr_Format(PyExc_ValueError, "field %d: got bytes %lld to %lld of a slot, wanted none of those of field %d", at,
                             start, end, other);
                sound = 0;
            }
            else if (PyUnicode_Compare(field->name, made[other].name) == 0) {
                PyErr_Format(PyExc_ValueError, "field %d: got name %R, wanted another than that of field %d", at, field->name,
                             other);
                sound = 0;
            }
        }
        if (sound && (field->kind == TIMESTAMP) != (at == count - 1)) {
            PyErr_SetString(PyExc_ValueError, "fields: wanted one time, the last of them");
            sound = 0;
        }
    }
    while (at-- > 0)
        field_clear(&made[at]);
    return sound ? 0 : -1;
}

static int ring_init(Ring *self, PyObject *args, PyObject *kwargs)
{
    PyObject *fields, *coerce, *recover, *invalid = Py_None;
    long long slot_bytes, reasons;
    static char *names[] = {"fields", "slot_bytes", "reasons", "coerce", "recover", "invalid", NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O&O&OO|O", names, &PyTuple_Type, &fields, as_count, &slot_bytes, as_count,
                                     &reasons, &coerce, &recover, &invalid))
        return -1;
    Py_ssize_t count = PyTuple_GET_SIZE(fields);
    if (self->field_count) {
        PyErr_SetString(PyExc_ValueError, "Ring was initialised before, wanted it once");
        return -1;
    }
    if (count < 2 || count > FIELDS_MAX) {
        PyErr_Format(PyExc_ValueError, "fields: got %zd, wanted 2 to %d", count, FIELDS_MAX);
        return -1;
    }
    if (slot_bytes < 16 || slot_bytes > SLOT_BYTES_MAX || slot_bytes % 8) {
        PyErr_Format(PyExc_ValueError, "slot_bytes: got %lld, wanted a multiple of 8 from 16 to %d", slot_bytes, SLOT_BYTES_MAX);
        return -1;
    }
    if (reasons < REASONS_MIN || reasons > REASONS_MAX) {
        PyErr_Format(PyExc_ValueError, "reasons: got %lld, wanted %d to %d", reasons, REASONS_MIN, REASONS_MAX);
        return -1;
    }
    if (ring_check_fields(fields, slot_bytes) < 0)
        return -1;
    Py_INCREF(fields);
    self->descriptions = fields;
    self->field_count = (int)count;
    self->slot_bytes = (uint32_t)slot_bytes;
    self->reasons = (int)reasons;
    self->counts_generation = fork_generation;
    Py_INCREF(coerce);
    self->coerce = coerce;
    Py_INCREF(recover);
    self->recover = recover;
    Py_INCREF(invalid);
    self->invalid = invalid;
    return 0;
}

/* A forked child has refused nothing yet: what its parent had counted until then is the parent's. */
static void ring_own_counts(Ring *self)
{
    if (self->counts_generation == fork_generation)
        return;
    self->counts_generation = fork_generation;
    self->last_refused = 0;
    memset(self->refused, 0, sizeof(self->refused));
    memset(self->unplaced, 0, sizeof(self->unplaced));
}

/* Whether the attached lane's words are this process's: those that a forked child inherited are its parent's, who goes on
   counting in them. */
static inline int lane_is_own(const Lane *lane) { return lane->slots && lane->generation == fork_generation; }

static uint64_t ring_head_now(const Ring *self)
{
    return lane_is_own(&self->lane) ? load_relaxed(self->lane.head_word) : self->head;
}

static void ring_tell_appenders(Ring *self); /* of a lane that was attached or left */

static void ring_release(Ring *self)
{
    if (!self->lane.slots)
        return;
    ring_own_counts(self);
    for (int i = 0; i < self->reasons && lane_is_own(&self->lane); i++)
        self->refused[i] += load_relaxed(&self->refused_words[i]);
    self->head = ring_head_now(self);
    self->lane.slots = NULL;
    ring_tell_appenders(self);
    PyBuffer_Release(&self->memory);
    PyBuffer_Release(&self->board_memory);
}

static void ring_count(Ring *self, int reason, uint64_t rows)
{
    if (lane_is_own(&self->lane)) {
        uint64_t *word = &self->refused_words[reason];
        __atomic_store_n(word, load_relaxed(word) + rows, __ATOMIC_RELAXED);
    }
    else
        self->unplaced[reason] += rows;
}

/* Whether words lie at `at`, aligned and below `end`. */
static int words_fit(long long at, long long words, long long end) { return at >= 0 && at % 8 == 0 && at <= end - 8 * words; }

static PyObject *ring_attach(Ring *self, PyObject *args)
{
    PyObject *memory, *board;
    long long slots_offset, capacity, state, head, tail, refused, refuse;
    if (!PyArg_ParseTuple(args, "OOO&O&(O&O&O&O&O&)", &memory, &board, as_count, &slots_offset, as_count, &capacity, as_count,
                          &state, as_count, &head, as_count, &tail, as_count, &refused, as_count, &refuse))
        return NULL;
    if (!self->slot_bytes) {
        PyErr_SetString(PyExc_TypeError, "Ring was not initialised");
        return NULL;
    }
    ring_release(self);
    if (PyObject_GetBuffer(memory, &self->memory, PyBUF_WRITABLE) < 0)
        return NULL;
    if (PyObject_GetBuffer(board, &self->board_memory, PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&self->memory);
        return NULL;
    }
    long long room = self->memory.len;
    int fits = capacity > 0 && !(capacity & (capacity - 1)) && words_fit(slots_offset, 0, room) &&
               capacity <= (room - slots_offset) / self->slot_bytes && words_fit(state, 1, slots_offset) &&
               words_fit(head, 1, slots_offset) && words_fit(tail, 1, slots_offset) &&
               words_fit(refused, self->reasons, slots_offset) && words_fit(refuse, 1, self->board_memory.len) &&
               !((uintptr_t)self->memory.buf & 7) && !((uintptr_t)self->board_memory.buf & 7);
    if (!fits) {
        PyErr_Format(PyExc_ValueError, "memory: got %lld bytes for %lld slots of %u bytes from byte %lld on, wanted a power of two "
                     "of slots inside it, and aligned words below them", room, capacity, self->slot_bytes, slots_offset);
        PyBuffer_Release(&self->memory);
        PyBuffer_Release(&self->board_memory);
        return NULL;
    }
    unsigned char *base = self->memory.buf;
    self->refused_words = (uint64_t *)(base + refused);
    self->lane = (Lane){
        .slots = base + slots_offset,
        .state_word = (uint64_t *)(base + state),
        .board_word = (uint64_t *)((unsigned char *)self->board_memory.buf + refuse),
        .head_word = (uint64_t *)(base + head),
        .tail_word = (uint64_t *)(base + tail),
        .tail = load_acquire((uint64_t *)(base + tail)),
        .capacity = (uint64_t)capacity,
        .slot_bytes = self->slot_bytes,
        .generation = fork_generation,
    };
    ring_own_counts(self);
    for (int i = 0; i < self->reasons; i++)
        if (self->unplaced[i]) {
            ring_count(self, i, self->unplaced[i]);
            self->unplaced[i] = 0;
        }
    ring_tell_appenders(self);
    Py_RETURN_NONE;
}

static PyObject *ring_detach(Ring *self, PyObject *Py_UNUSED(none))
{
    ring_release(self);
    Py_RETURN_NONE;
}

static void ring_refuse(Ring *self, int reason, uint64_t rows)
{
    ring_own_counts(self);
    self->last_refused = reason + 1;
    ring_count(self, reason, rows);
}

static inline int lane_usable(const Lane *lane) { return lane_is_own(lane) && load_relaxed(lane->state_word) == 0; }

static inline int lane_open(const Lane *lane)
{
    return (load_relaxed(lane->state_word) | load_relaxed(lane->board_word)) == 0;
}

static int ring_is_recovering(const Ring *self)
{
    return self->recovering && self->recovering_generation == fork_generation;
}

/* Waits for another thread that is claiming a lane: as long as a claim may last. Bounded, since
   that thread may wait for what this one holds, where a signal handler runs here. 1: go on; 0: no end; -1: an exception is set. */
static int ring_await(Ring *self)
{
    const struct timespec pause = {0, 1000000};
    for (int i = 0; i < RECOVER_WAIT_MS; i++) {
        if (!ring_is_recovering(self))
            return 1;
        Py_BEGIN_ALLOW_THREADS
        nanosleep(&pause, NULL);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0)
            return -1;
    }
    return 0;
}

/* Asks Python for a lane that may be written. 1: go on; 0: refused (counted); -1: an exception is set. */
static int ring_recover(Ring *self, uint64_t rows)
{
    if (ring_is_recovering(self)) {
        int ended = self->recovering_thread == PyThread_get_thread_ident() ? 0 : ring_await(self);
        if (!ended) /* the callable itself led back here (a signal handler, __del__) */
            ring_refuse(self, REENTRANT, rows);
        return ended;
    }
    if (!self->recover) { /* cleared by the garbage collector, or never made */
        ring_refuse(self, CLOSED, rows);
        return 0;
    }
    self->recovering = 1;
    self->recovering_generation = fork_generation;
    self->recovering_thread = PyThread_get_thread_ident();
    PyObject *answer = PyObject_CallNoArgs(self->recover);
    self->recovering = 0;
    if (!answer)
        return -1;
    long reason = answer == Py_True ? -1 : PyLong_AsLong(answer);
    Py_DECREF(answer);
    if (reason == -1 && PyErr_Occurred())
        return -1;
    if (reason == -1 && lane_usable(&self->lane))
        return 1;
    ring_refuse(self, reason >= 0 && reason < self->reasons ? (int)reason : BUDGET, rows);
    return 0;
}

/* How many of `rows` slots are free. The shared tail is read only when the copy of it says full. */
static inline uint64_t lane_free(Lane *lane, uint64_t rows)
{
    uint64_t head = load_relaxed(lane->head_word), used = head - lane->tail;
    if (UNLIKELY(used > lane->capacity || rows > lane->capacity - used)) {
        lane->tail = load_acquire(lane->tail_word); /* SYNC POINT tail: with the writer's advance */
        used = head - lane->tail;
        if (used > lane->capacity) /* a tail beyond the head or a lap behind: no writer stores that; write nothing */
            return 0;
    }
    return lane->capacity - used;
}

static inline void lane_publish(Lane *lane, uint64_t head)
{
    store_release(lane->head_word, head); /* SYNC POINT head: with the drain */
    /* Two ahead: the next one's lines are on their way already when appends follow each other closely. */
    unsigned char *next = lane->slots + ((head + 1) & (lane->capacity - 1)) * lane->slot_bytes;
    /* Written out: GCC makes no loop of it. Of a smaller slot these are lines of those after it: no address is wrong here. */
    PREFETCH_WRITE(next);
    PREFETCH_WRITE(next + LINE_BYTES);
    PREFETCH_WRITE(next + 2 * LINE_BYTES);
    PREFETCH_WRITE(next + 3 * LINE_BYTES);
    PREFETCH_WRITE(next + 4 * LINE_BYTES);
    PREFETCH_WRITE(next + 5 * LINE_BYTES);
}

/* append_many(rows, count) -> how many were accepted, from the front. The caller has checked the rows. */
static PyObject *ring_append_many(Ring *self, PyObject *args)
{
    Py_buffer rows;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "y*n", &rows, &count))
        return NULL;
    /* Not above the bytes first: a larger count times the bytes of a slot could wrap around to them. */
    if (count < 0 || count > rows.len || (uint64_t)rows.len != (uint64_t)count * self->slot_bytes) {
        PyErr_Format(PyExc_ValueError, "rows: got %zd bytes for %zd rows, wanted %u bytes a row", rows.len, count,
                     self->slot_bytes);
        goto failed;
    }
    while (!lane_usable(&self->lane)) {
        int recovered = ring_recover(self, (uint64_t)count);
        if (recovered < 0)
            goto failed;
        if (!recovered) {
            PyBuffer_Release(&rows);
            return PyLong_FromLong(0);
        }
    }
    Lane *lane = &self->lane;
    uint64_t accepted = 0, head = load_relaxed(lane->head_word);
    if (load_relaxed(lane->board_word))
        ring_refuse(self, BOARD, (uint64_t)count);
    else {
        accepted = lane_free(lane, (uint64_t)count);
        if (accepted > (uint64_t)count)
            accepted = (uint64_t)count;
        const unsigned char *from = rows.buf;
        for (uint64_t i = 0; i < accepted; i++, from += self->slot_bytes) {
            uint64_t seq = head + i;
            unsigned char *slot = lane->slots + (seq & (lane->capacity - 1)) * self->slot_bytes;
            memcpy(slot, &seq, 8);
            fence_release(); /* SYNC POINT overwritten: with a tap's copy */
            memcpy(slot + 8, from + 8, self->slot_bytes - 8);
        }
        if (accepted)
            lane_publish(lane, head + accepted);
        if (accepted < (uint64_t)count)
            ring_refuse(self, FULL, (uint64_t)count - accepted);
    }
    PyBuffer_Release(&rows);
    return PyLong_FromUnsignedLongLong(accepted);
failed:
    PyBuffer_Release(&rows);
    return NULL;
}

static PyObject *ring_refused(Ring *self, PyObject *Py_UNUSED(none))
{
    ring_own_counts(self);
    PyObject *counts = PyTuple_New(self->reasons);
    for (int i = 0; counts && i < self->reasons; i++) {
        uint64_t total = self->refused[i] + self->unplaced[i] + (lane_is_own(&self->lane) ? load_relaxed(&self->refused_words[i]) : 0);
        PyObject *count = PyLong_FromUnsignedLongLong(total);
        if (!count || PyTuple_SetItem(counts, i, count) < 0) {
            Py_DECREF(counts);
            return NULL;
        }
    }
    return counts;
}

/* refuse(reason, rows): for what Python code refuses before it asks the ring. */
static PyObject *ring_refuse_rows(Ring *self, PyObject *args)
{
    long long reason, rows;
    if (!PyArg_ParseTuple(args, "O&O&", as_count, &reason, as_count, &rows))
        return NULL;
    if (reason < 0 || reason >= self->reasons || rows < 0) {
        PyErr_Format(PyExc_ValueError, "refuse: got reason %lld for %lld rows, wanted a reason below %d", reason, rows,
                     self->reasons);
        return NULL;
    }
    ring_refuse(self, (int)reason, (uint64_t)rows);
    Py_RETURN_NONE;
}

static PyObject *ring_head(Ring *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(ring_head_now(self));
}

static PyObject *ring_last_refused(Ring *self, void *Py_UNUSED(closure))
{
    ring_own_counts(self);
    return PyLong_FromLong(self->last_refused - 1);
}

static PyObject *ring_attached(Ring *self, void *Py_UNUSED(closure)) { return PyBool_FromLong(self->lane.slots != NULL); }

static int ring_traverse(Ring *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->descriptions);
    Py_VISIT(self->coerce);
    Py_VISIT(self->recover);
    Py_VISIT(self->invalid);
    return 0;
}

static int ring_clear(Ring *self)
{
    Py_CLEAR(self->descriptions);
    Py_CLEAR(self->coerce);
    Py_CLEAR(self->recover);
    Py_CLEAR(self->invalid);
    return 0;
}

static void ring_dealloc(Ring *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    ring_release(self);
    ring_clear(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef ring_methods[] = {
    {"attach", (PyCFunction)ring_attach, METH_VARARGS,
     "attach(memory, board, slots_offset, capacity, (state, head, tail, refused, refuse))\n\nWrites to this lane from now on."},
    {"detach", (PyCFunction)ring_detach, METH_NOARGS, "detach()\n\nLets go of the memory; the next append recovers."},
    {"append_many", (PyCFunction)ring_append_many, METH_VARARGS,
     "append_many(rows, count) -> int\n\nAppends checked slots; how many were accepted, from the front."},
    {"refuse", (PyCFunction)ring_refuse_rows, METH_VARARGS, "refuse(reason, rows)\n\nCounts rows that were refused."},
    {"refused", (PyCFunction)ring_refused, METH_NOARGS, "refused() -> tuple of counts, by reason"},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef ring_getset[] = {
    {"head", (getter)ring_head, NULL, "The seq of the next record.", NULL},
    {"last_refused", (getter)ring_last_refused, NULL, "The reason of the latest refusal, or -1.", NULL},
    {"attached", (getter)ring_attached, NULL, "Whether a lane is attached.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_doc, "Ring(fields, slot_bytes, reasons, coerce, recover, invalid=None)\n\nThe producer's side of one lane after another."},
    {Py_tp_init, ring_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, ring_dealloc},
    {Py_tp_traverse, ring_traverse},
    {Py_tp_clear, ring_clear},
    {Py_tp_methods, ring_methods},
    {Py_tp_getset, ring_getset},
    {0, NULL},
};

static PyType_Spec ring_spec = {"ringlog._ring.Ring", sizeof(Ring), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, ring_slots};

/* ---- the appender: a ring with some fields preset ---------------------------------------------------------------- */

typedef struct {
    uint32_t offset, length;
} Run;

/* The fields of a record by what it takes to write them: an append is a loop for each group, without a choice in it. */
enum group { DOUBLES, LONGS, SHORT_SYMBOLS, SYMBOLS, TEXTS, BOOLEANS, OTHERS, GROUPS };

/* What an append needs of a field. */
typedef struct {
    uint32_t offset;
    uint16_t place; /* of its argument */
    uint16_t width;
    union {
        struct {
            Limit minimum, maximum;
        };
        Symbols symbols;
    };
} Step;

/* All that an append needs of its appender and ring, in one page: in an append that comes after a sleep each page costs more
   than the lines in it. */
typedef struct {
    Lane lane; /* as the ring has it */
    Ring *ring;
    int count; /* of fields that vary, the timestamp among them */
    int run_count;
    const Step *ends[GROUPS]; /* of the groups in `steps`, one after another */
    uint32_t timestamp_offset;
    Step steps[FIELDS_MAX];
    _Alignas(LINE_BYTES) unsigned char symbols[]; /* the rest of the page */
} Plan;

#define SYMBOLS_ROOM (PAGE_BYTES - sizeof(Plan))
_Static_assert(sizeof(Plan) < PAGE_BYTES, "a plan has a page");

struct Appender {
    PyObject_HEAD
    Appender *next; /* of the ring's */
    Run runs[FIELDS_MAX];     /* the presets' bytes in the image */
    unsigned char *image;     /* owned, slot_bytes: presets and defaults */
    void *symbols;            /* owned, or NULL: where the plan has no room for all fields' */
    Field fields[FIELDS_MAX]; /* those that vary, in order, the timestamp last */
    PyObject *last_names; /* the keyword names of the last call and where they go: a caller's tuple is one constant */
    int last_places[FIELDS_MAX];
    unsigned char room[2 * PAGE_BYTES]; /* in which the plan has a page */
};

/* Found without a look at the appender itself, which lies in other pages. */
static inline Plan *plan_of(const Appender *self)
{
    return (Plan *)aligned((uintptr_t)self->room, PAGE_BYTES);
}

static void ring_tell_appenders(Ring *self)
{
    for (Appender *appender = self->appenders; appender; appender = appender->next)
        plan_of(appender)->lane = self->lane;
}

static uint32_t field_image_bytes(const Field *field, const unsigned char *image)
{
    if (field->kind < SYMBOL)
        return field->width;
    uint16_t length;
    memcpy(&length, image + field->offset, 2);
    return (uint32_t)whole_words(2 + (size_t)(length == NULL_LENGTH ? 0 : length));
}

/* Writes a preset or a default into the image, by way of the same code as an append. */
static int appender_image(Appender *self, Field *field, PyObject *value)
{
    PyObject *exact = PyObject_CallFunction(plan_of(self)->ring->coerce, "iO", field->index, value);
    if (!exact)
        return -1;
    int outcome = write_field(field, exact, self->image);
    Py_DECREF(exact);
    if (outcome == WRITTEN)
        return 0;
    PyErr_Format(PyExc_SystemError, "field %U: coerce gave back a value that does not fit", field->name);
    return -1;
}

static enum group field_group(const Field *field)
{
    size_t bytes = whole_words((size_t)field->width + 2);
    switch (field->kind) {
    case DOUBLE:
        return DOUBLES;
    case LONG:
        return field->choices ? OTHERS : LONGS;
    case BOOLEAN:
        return BOOLEANS;
    case SYMBOL:
        return bytes == 8 ? SHORT_SYMBOLS : bytes <= IMAGE_BYTES_MAX ? SYMBOLS : OTHERS;
    default:
        return field->choices ? OTHERS : TEXTS;
    }
}

/* The bytes of a place for a field's symbols, as a power of two. */
static uint32_t place_shift(const Field *field)
{
    uint32_t shift = 4;
    while (((size_t)1 << shift) < sizeof(Symbol) + whole_words((size_t)field->width + 2))
        shift++;
    return shift;
}

/* Sorts all fields but the timestamp into groups, once they are known. */
static int appender_sort(Appender *self)
{
    Plan *plan = plan_of(self);
    int count = plan->count - 1, at = 0;
    size_t bytes = 0;
    for (int i = 0; i < count; i++)
        if (field_group(&self->fields[i]) == SHORT_SYMBOLS || field_group(&self->fields[i]) == SYMBOLS)
            bytes += (size_t)KEPT << place_shift(&self->fields[i]);
    unsigned char *places = plan->symbols;
    if (bytes > SYMBOLS_ROOM) {
        if (!(self->symbols = PyMem_Calloc(1, bytes + LINE_BYTES)))
            return PyErr_NoMemory(), -1;
        places = (unsigned char *)aligned((uintptr_t)self->symbols, LINE_BYTES);
    }
    for (int group = 0; group < GROUPS; plan->ends[group++] = plan->steps + at)
        for (int i = 0; i < count; i++) {
            Field *field = &self->fields[i];
            if ((int)field_group(field) != group)
                continue;
            Step *step = &plan->steps[at++];
            *step = (Step){.offset = field->offset, .place = (uint16_t)i, .width = (uint16_t)field->width};
            if (group == SHORT_SYMBOLS || group == SYMBOLS) {
                step->symbols = (Symbols){places, MULTIPLIER, place_shift(field)};
                places += (size_t)KEPT << place_shift(field);
                field->symbols = &step->symbols;
            }
            else {
                step->minimum = field->minimum;
                step->maximum = field->maximum;
            }
        }
    plan->timestamp_offset = self->fields[count].offset;
    return 0;
}

static int appender_init(Appender *self, PyObject *args, PyObject *kwargs)
{
    PyObject *ring, *presets, *defaults, *type;
    if (kwargs && PyDict_Size(kwargs)) {
        PyErr_SetString(PyExc_TypeError, "Appender takes (Ring, ring, presets, defaults)");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "O!OO!O!", &PyType_Type, &type, &ring, &PyDict_Type, &presets, &PyDict_Type, &defaults))
        return -1;
    Plan *plan = plan_of(self);
    if (plan->ring || (PyObject *)Py_TYPE(ring) != type || !((Ring *)ring)->descriptions) {
        PyErr_SetString(PyExc_TypeError, "ring: wanted a Ring that was initialised, once");
        return -1;
    }
    Py_INCREF(ring);
    plan->ring = (Ring *)ring;
    if (!(self->image = PyMem_Calloc(1, plan->ring->slot_bytes)))
        return PyErr_NoMemory(), -1;
    for (int i = 0; i < plan->ring->field_count; i++) {
        if (!plan->ring->descriptions) /* cleared by the garbage collector meanwhile */
            return PyErr_SetString(PyExc_TypeError, "ring: it is gone"), -1;
        PyObject *description = PyTuple_GetItem(plan->ring->descriptions, i);
        Field *field = &self->fields[plan->count]; /* a preset one is cleared again, and its place used by the next */
        if (!description || field_init(field, description, i, plan->ring->slot_bytes) < 0) {
            field_clear(field);
            return -1;
        }
        PyObject *preset = PyDict_GetItemWithError(presets, field->name);
        PyObject *value = preset || PyErr_Occurred() ? preset : PyDict_GetItemWithError(defaults, field->name);
        if (PyErr_Occurred() || (value && appender_image(self, field, value) < 0)) {
            field_clear(field);
            return -1;
        }
        if (preset) {
            Run run = {field->offset, field_image_bytes(field, self->image)};
            self->runs[plan->run_count++] = run;
            field_clear(field);
            continue;
        }
        field->has_default = value != NULL;
        plan->count++;
    }
    if (!plan->count || self->fields[plan->count - 1].kind != TIMESTAMP) {
        PyErr_SetString(PyExc_ValueError, "fields: wanted the timestamp last, and not preset");
        return -1;
    }
    if (appender_sort(self) < 0)
        return -1;
    self->next = plan->ring->appenders;
    plan->ring->appenders = self;
    plan->lane = plan->ring->lane;
    return 0;
}

static void appender_write_default(const Appender *self, const Field *field, unsigned char *slot)
{
    memcpy(slot + field->offset, self->image + field->offset, field_image_bytes(field, self->image));
}

/* Where each keyword goes; -1 with an exception where a name is unknown. */
static int appender_resolve(Appender *self, PyObject *names)
{
    int wanted = plan_of(self)->count;
    Py_ssize_t count = PyTuple_GET_SIZE(names);
    if (count > FIELDS_MAX)
        goto unknown;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        int place = 0;
        while (place < wanted && self->fields[place].name != name)
            place++;
        if (place == wanted) /* not interned: compare the text */
            for (place = 0; place < wanted; place++)
                if (PyUnicode_Compare(self->fields[place].name, name) == 0)
                    break;
        if (place == wanted || PyErr_Occurred())
            goto unknown;
        self->last_places[i] = place;
    }
    Py_INCREF(names);
    Py_XDECREF(self->last_names);
    self->last_names = names;
    return 0;
unknown:
    Py_CLEAR(self->last_names);
    return -1;
}

/* Says in words what is wrong with the arguments of a call; always leaves an exception. */
static void appender_complain(Appender *self, Py_ssize_t given, PyObject *names)
{
    const Plan *plan = plan_of(self);
    PyObject *wanted = PyTuple_New(plan->count);
    for (int i = 0; wanted && i < plan->count; i++) {
        Py_INCREF(self->fields[i].name);
        if (PyTuple_SetItem(wanted, i, self->fields[i].name) < 0)
            Py_CLEAR(wanted);
    }
    if (!wanted)
        return;
    PyObject *answer = PyObject_CallFunction(plan->ring->coerce, "inOO", -1, given, names ? names : Py_None, wanted);
    Py_DECREF(wanted);
    if (answer) {
        Py_DECREF(answer);
        PyErr_SetString(PyExc_SystemError, "coerce(-1, ...) must raise");
    }
}

/* The values of a call in the order of `self->fields`, NULL where left out. 1: none is, but perhaps the timestamp; 0: some
   are, and have defaults; -1: an exception is set. */
static int appender_arrange(Appender *self, PyObject *const *args, Py_ssize_t given, PyObject *names, PyObject **values)
{
    int count = plan_of(self)->count;
    Py_ssize_t named = names ? PyTuple_GET_SIZE(names) : 0;
    if (given >= count) /* the timestamp is passed by name */
        goto wrong;
    if (named && names != self->last_names && appender_resolve(self, names) < 0)
        goto wrong;
    for (int i = 0; i < count; i++)
        values[i] = i < given ? args[i] : NULL;
    for (Py_ssize_t i = 0; i < named; i++) {
        if (values[self->last_places[i]])
            goto wrong;
        values[self->last_places[i]] = args[given + i];
    }
    int complete = 1;
    for (int i = 0; i < count - 1; i++) {
        complete &= values[i] != NULL;
        if (UNLIKELY(!values[i] && !self->fields[i].has_default))
            goto wrong;
    }
    return complete;
wrong:
    if (!PyErr_Occurred())
        appender_complain(self, given, names);
    return -1;
}

static inline void copy_run(unsigned char *slot, const unsigned char *image, const Run *run)
{
    uint32_t at = run->offset, end = run->offset + run->length;
    for (; at + 8 <= end; at += 8)
        memcpy(slot + at, image + at, 8);
    for (; at < end; at++)
        slot[at] = image[at];
}

/* Writes the value of every field but the timestamp. What is not of the exact type, or is None, goes the long way. */
HOT static __attribute__((aligned(PAGE_BYTES))) int appender_write_given(const Appender *self, PyObject *const *values,
                                                                         unsigned char *slot)
{
    const Plan *plan = plan_of(self);
    const Step *step = plan->steps;
    for (const Step *end = plan->ends[DOUBLES]; step < end; step++) {
        PyObject *value = values[step->place];
        if (UNLIKELY(!PyFloat_CheckExact(value))) {
            if (write_field(&self->fields[step->place], value, slot) != WRITTEN)
                return COERCE;
            continue;
        }
        double number = PyFloat_AS_DOUBLE(value);
        /* NaN fails both comparisons; infinity is outside any limits a declaration can give. */
        if (UNLIKELY(!(number >= step->minimum.number && number <= step->maximum.number)))
            return COERCE;
        memcpy(slot + step->offset, &number, 8);
    }
    for (const Step *end = plan->ends[LONGS]; step < end; step++) {
        PyObject *value = values[step->place];
        if (UNLIKELY(!PyLong_CheckExact(value) || !LONG_IS_SMALL(value))) {
            if (write_field(&self->fields[step->place], value, slot) != WRITTEN)
                return COERCE;
            continue;
        }
        int64_t number = LONG_SMALL_VALUE(value);
        if (UNLIKELY(number < step->minimum.integer || number > step->maximum.integer))
            return COERCE;
        memcpy(slot + step->offset, &number, 8);
    }
    /* The two loops over symbols look alike on purpose: each copies a number of bytes that the compiler knows. */
    for (const Step *end = plan->ends[SHORT_SYMBOLS]; step < end; step++) {
        PyObject *value = values[step->place];
        const Symbol *symbol = symbol_at(&step->symbols, place_of(value, step->symbols.multiplier));
        if (UNLIKELY(symbol->text != value)) {
            if (write_field(&self->fields[step->place], value, slot) != WRITTEN)
                return COERCE;
            continue;
        }
        memcpy(slot + step->offset, symbol->image, 8);
    }
    for (const Step *end = plan->ends[SYMBOLS]; step < end; step++) {
        PyObject *value = values[step->place];
        const Symbol *symbol = symbol_at(&step->symbols, place_of(value, step->symbols.multiplier));
        if (UNLIKELY(symbol->text != value)) {
            if (write_field(&self->fields[step->place], value, slot) != WRITTEN)
                return COERCE;
            continue;
        }
        memcpy(slot + step->offset, symbol->image, 16);
        uint16_t length;
        memcpy(&length, symbol->image, 2);
        if (UNLIKELY(length > 14))
            copy_words(slot + step->offset, symbol->image);
    }
    for (const Step *end = plan->ends[TEXTS]; step < end; step++) {
        PyObject *value = values[step->place];
        if (UNLIKELY(!PyUnicode_CheckExact(value) || !PyUnicode_IS_COMPACT_ASCII(value))) {
            if (write_field(&self->fields[step->place], value, slot) != WRITTEN)
                return COERCE;
            continue;
        }
        size_t length = (size_t)PyUnicode_GET_LENGTH(value);
        if (UNLIKELY(length > step->width) ||
            UNLIKELY(!copy_text(slot + step->offset + 2, (const char *)PyUnicode_1BYTE_DATA(value), length)))
            return COERCE;
        write_u16(slot + step->offset, (unsigned)length);
    }
    for (const Step *end = plan->ends[BOOLEANS]; step < end; step++) {
        PyObject *value = values[step->place];
        if (UNLIKELY((value != Py_True) & (value != Py_False)))
            return COERCE;
        slot[step->offset] = value == Py_True;
    }
    for (const Step *end = plan->ends[OTHERS]; step < end; step++)
        if (UNLIKELY(write_field(&self->fields[step->place], values[step->place], slot) != WRITTEN))
            return COERCE;
    return WRITTEN;
}

/* As appender_write_given, where a value that is NULL was left out by the caller: its default is written. */
static int appender_write_or_default(const Appender *self, PyObject *const *values, unsigned char *slot)
{
    int count = plan_of(self)->count - 1;
    for (int i = 0; i < count; i++) {
        const Field *field = &self->fields[i];
        if (!values[i])
            appender_write_default(self, field, slot);
        else if (write_field(field, values[i], slot) != WRITTEN)
            return COERCE;
    }
    return WRITTEN;
}

/* Writes one record to a free slot of this process's lane and publishes it. `count` values: with the timestamp, or all but
   it; `complete`: none of the others is NULL. COERCE: a value is not of the exact type, or wrong; OFF_CLOCK: all is well but
   the clock that should stamp it; SHUT: the lane or the board takes none; nothing was published. */
INLINE int appender_write(Appender *self, PyObject *const *values, int count, int complete)
{
    Plan *plan = plan_of(self);
    Lane *lane = &plan->lane;
    PyObject *timestamp = UNLIKELY(count == plan->count && values[count - 1]) ? values[count - 1] : Py_None;
    uint64_t head = load_relaxed(lane->head_word);
    unsigned char *slot = lane->slots + (head & (lane->capacity - 1)) * lane->slot_bytes;
    memcpy(slot, &head, 8);
    fence_release(); /* SYNC POINT overwritten: with a tap's copy, which sees the new seq before any field of it */
    for (int i = 0; i < plan->run_count; i++)
        copy_run(slot, self->image, &self->runs[i]);
    int written = complete ? appender_write_given(self, values, slot) : appender_write_or_default(self, values, slot);
    int64_t now = now_us(); /* last: reading the clock waits for all that was loaded before, which had better be much */
    int stamped = write_timestamp(timestamp, slot + plan->timestamp_offset, now);
    if (UNLIKELY((written | stamped) != WRITTEN))
        return written != WRITTEN ? written : stamped;
    if (UNLIKELY(!lane_open(lane)))
        return SHUT;
    lane_publish(lane, head + 1);
    return WRITTEN;
}

/* Lets Python turn each value into one of the exact type (owned, in `exact`), or say what is wrong with it. */
static int appender_coerce(Appender *self, PyObject *const *values, int count, PyObject **exact)
{
    for (int i = 0; i < count; i++) {
        exact[i] = NULL;
        if (!values[i])
            continue;
        exact[i] = PyObject_CallFunction(plan_of(self)->ring->coerce, "iO", self->fields[i].index, values[i]);
        if (!exact[i]) {
            while (i-- > 0)
                Py_XDECREF(exact[i]);
            return -1;
        }
    }
    return 0;
}

/* 1: a slot is free; 0: refused and counted; -1: an exception is set. */
static inline int appender_ready(Appender *self)
{
    Plan *plan = plan_of(self);
    Ring *ring = plan->ring;
    while (UNLIKELY(!lane_usable(&plan->lane))) {
        int recovered = ring_recover(ring, 1);
        if (recovered <= 0)
            return recovered;
    }
    if (UNLIKELY(load_relaxed(plan->lane.board_word) != 0)) {
        ring_refuse(ring, BOARD, 1);
        return 0;
    }
    if (UNLIKELY(lane_free(&plan->lane, 1) == 0)) {
        ring_refuse(ring, FULL, 1);
        return 0;
    }
    return 1;
}

/* Appends once a slot is free and lane and board are open. COERCE as appender_write; REFUSED: counted; FAILED: an exception
   is set. */
static __attribute__((noinline)) int appender_write_when_ready(Appender *self, PyObject *const *values, int count, int complete)
{
    int outcome = SHUT;
    while (outcome == SHUT) { /* again: another process has shut it meanwhile, and appender_ready knows what to do */
        int ready = appender_ready(self);
        if (ready <= 0)
            return ready < 0 ? FAILED : REFUSED;
        outcome = appender_write(self, values, count, complete);
    }
    if (outcome != OFF_CLOCK)
        return outcome;
    ring_refuse(plan_of(self)->ring, CLOCK, 1);
    return REFUSED;
}

/* Wrong input, for which an exception is set: counted, and `invalid` decides whether the caller gets it, or False. An interrupt
   is no wrong input, nor is memory that ran out. */
static __attribute__((noinline)) PyObject *appender_refuse_invalid(Appender *self)
{
    Ring *ring = plan_of(self)->ring;
    if (!PyErr_ExceptionMatches(PyExc_Exception) || PyErr_ExceptionMatches(PyExc_MemoryError))
        return NULL;
    ring_refuse(ring, INVALID, 1);
    if (!ring->invalid || ring->invalid == Py_None) /* NULL: cleared by the garbage collector */
        return NULL;
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *answer = PyObject_CallFunctionObjArgs(ring->invalid, error, NULL);
    int is_taken = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    if (is_taken == 0) {
        PyErr_Restore(type, error, traceback);
        return NULL;
    }
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return is_taken < 0 ? NULL : PyBool_FromLong(0);
}

/* The long way of an append: where no slot is at hand, or the values are not of the exact types. */
static __attribute__((noinline)) PyObject *appender_append_slowly(Appender *self, PyObject *const *values, int count,
                                                                  int complete)
{
    int outcome = appender_write_when_ready(self, values, count, complete);
    for (int tries = 0; outcome == COERCE && tries < 2; tries++) { /* again: the clock may have been set back in between */
        PyObject *exact[FIELDS_MAX] = {NULL};
        if (appender_coerce(self, values, count, exact) < 0)
            return appender_refuse_invalid(self);
        outcome = appender_write_when_ready(self, exact, count, complete); /* anew: Python code has run since */
        for (int i = 0; i < count; i++)
            Py_XDECREF(exact[i]);
    }
    if (outcome == COERCE)
        PyErr_SetString(PyExc_SystemError, "coerce gave back a value that does not fit");
    return outcome == WRITTEN || outcome == REFUSED ? PyBool_FromLong(outcome == WRITTEN) : NULL;
}

INLINE PyObject *appender_append_values(Appender *self, PyObject *const *values, int count, int complete)
{
    Lane *lane = &plan_of(self)->lane;
    if (LIKELY(lane_is_own(lane) && lane_free(lane, 1)) &&
        LIKELY(appender_write(self, values, count, complete) == WRITTEN))
        Py_RETURN_TRUE;
    return appender_append_slowly(self, values, count, complete);
}

/* An append with keywords, or with fewer values than fields. */
static __attribute__((noinline)) PyObject *appender_append_arranged(Appender *self, PyObject *const *args, Py_ssize_t given,
                                                                    PyObject *names)
{
    PyObject *values[FIELDS_MAX];
    int count = plan_of(self)->count;
    if (!plan_of(self)->timestamp_offset) { /* set last by a construction that came to its end */
        PyErr_SetString(PyExc_TypeError, "Appender was not initialised");
        return NULL;
    }
    /* All fields and timestamp=: the values of keywords lie behind the others, so they are in their order already. */
    if (names && given == count - 1 && PyTuple_GET_SIZE(names) == 1 &&
        PyTuple_GET_ITEM(names, 0) == self->fields[count - 1].name)
        return appender_append_values(self, args, count, 1);
    int complete = appender_arrange(self, args, given, names, values);
    return complete < 0 ? appender_refuse_invalid(self) : appender_append_values(self, values, count, complete);
}

HOT static PyObject *appender_append(Appender *self, PyObject *const *args, Py_ssize_t given, PyObject *names)
{
    Plan *plan = plan_of(self);
    if (UNLIKELY(names || !plan->timestamp_offset || given != plan->count - 1))
        return appender_append_arranged(self, args, given, names);
    return appender_append_values(self, args, (int)given, 1);
}

static int appender_traverse(Appender *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(plan_of(self)->ring);
    return 0;
}

/* There is no clear: cycles lead through the ring's callables, which the ring clears, and an append after that (from
   another object's end) still finds its ring. */

static void appender_dealloc(Appender *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    Plan *plan = plan_of(self);
    PyObject_GC_UnTrack(self);
    for (Appender **at = plan->ring ? &plan->ring->appenders : NULL; at && *at; at = &(*at)->next)
        if (*at == self) {
            *at = self->next;
            break;
        }
    for (int i = 0; i < plan->count; i++)
        field_clear(&self->fields[i]);
    PyMem_Free(self->symbols);
    PyMem_Free(self->image);
    Py_XDECREF(self->last_names);
    Py_XDECREF((PyObject *)plan->ring);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyMethodDef appender_methods[] = {
    {"append", (PyCFunction)(void (*)(void))appender_append, METH_FASTCALL | METH_KEYWORDS,
     "append(*fields, timestamp=None) -> bool\n\nTrue: accepted. False: refused and counted by reason."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot appender_slots[] = {
    {Py_tp_doc, "Appender(Ring, ring, presets, defaults)\n\nAppends records of which some fields are preset."},
    {Py_tp_init, appender_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, appender_dealloc},
    {Py_tp_traverse, appender_traverse},
    {Py_tp_methods, appender_methods},
    {0, NULL},
};

static PyType_Spec appender_spec = {"ringlog._ring.Appender", sizeof(Appender), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                    appender_slots};

/* ---- words, as the drain and the board see them ------------------------------------------------------------------ */

static PyObject *word_load(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer memory;
    Py_ssize_t offset;
    if (!PyArg_ParseTuple(args, "y*n", &memory, &offset))
        return NULL;
    PyObject *answer = NULL;
    if (offset < 0 || offset > memory.len - 8 || (((uintptr_t)memory.buf + (size_t)offset) & 7))
        PyErr_Format(PyExc_ValueError, "offset: got %zd, wanted an aligned word inside %zd bytes", offset, memory.len);
    else
        answer = PyLong_FromUnsignedLongLong(load_acquire((uint64_t *)((unsigned char *)memory.buf + offset)));
    PyBuffer_Release(&memory);
    return answer;
}

static PyObject *word_store(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer memory;
    Py_ssize_t offset;
    unsigned long long value;
    if (!PyArg_ParseTuple(args, "w*nK", &memory, &offset, &value))
        return NULL;
    int inside = offset >= 0 && offset <= memory.len - 8 && !(((uintptr_t)memory.buf + (size_t)offset) & 7);
    if (inside)
        store_release((uint64_t *)((unsigned char *)memory.buf + offset), value);
    else
        PyErr_Format(PyExc_ValueError, "offset: got %zd, wanted an aligned word inside %zd bytes", offset, memory.len);
    PyBuffer_Release(&memory);
    if (!inside)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"load", word_load, METH_VARARGS, "load(memory, offset) -> int\n\nAn 8-byte word, with acquire."},
    {"store", word_store, METH_VARARGS, "store(memory, offset, value)\n\nAn 8-byte word, with release."},
    {NULL, NULL, 0, NULL},
};

static int add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    int added = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return added;
}

static int module_exec(PyObject *module)
{
    static int registered;
    if (!registered && pthread_atfork(NULL, NULL, after_fork_in_child) != 0) {
        PyErr_SetString(PyExc_OSError, "pthread_atfork failed");
        return -1;
    }
    registered = 1;
    if (add_type(module, &ring_spec) < 0 || add_type(module, &appender_spec) < 0)
        return -1;
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, "_ring", "The C ring; see _ring_python.py for the reference.", 0, module_methods, module_slots,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__ring(void) { return PyModuleDef_Init(&module_def); }
