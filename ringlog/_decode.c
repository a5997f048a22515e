/* Slots to columns in one pass over the slots, with the checks that tell a corrupt slot; see decode.py for the reference.

   The slots lie in memory that another process owns, so nothing in them is trusted: every length is read once and bounded
   before it is used. A slot that append could not have written ends the pass, and the caller decides about it. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum kind { TIMESTAMP, DOUBLE, LONG, BOOLEAN, SYMBOL, VARCHAR, JSON };

#define FIELDS_MAX 64
#define NULL_LENGTH 0xFFFF
#define TIMESTAMP_MIN INT64_C(946684800000000)  /* 2000-01-01 */
#define TIMESTAMP_MAX INT64_C(7258118400000000) /* 2200-01-01: append is stricter, but clocks are set back */

/* The symbols seen so far: an open-addressing table of codes; code i is values[i], whose bytes are in the arena. */
typedef struct {
    uint32_t *table; /* code + 1, or 0 */
    uint32_t *hashes;
    uint32_t *ends; /* of each code's bytes in the arena */
    unsigned char *arena;
    uint32_t count, size, arena_bytes, arena_room;
    PyObject *values; /* list of str */
} Symbols;

typedef struct {
    int kind, nullable;
    uint32_t offset, width;
    double double_min, double_max;
    int64_t long_min, long_max;
    Symbols symbols;
} Column;

typedef struct {
    PyObject_HEAD
    Column columns[FIELDS_MAX];
    int count;
    uint32_t slot_bytes;
} Decoder;

/* Where one field's values go in one call. */
typedef struct {
    Py_buffer values, data, valid;
    uint32_t length; /* bytes of data so far */
} Output;

static int symbols_grow(Symbols *symbols)
{
    uint32_t size = symbols->size ? symbols->size * 2 : 256;
    uint32_t *table = PyMem_Calloc(size, sizeof *table);
    uint32_t *hashes = PyMem_Realloc(symbols->hashes, size / 2 * sizeof *hashes);
    if (hashes)
        symbols->hashes = hashes;
    uint32_t *ends = PyMem_Realloc(symbols->ends, size / 2 * sizeof *ends);
    if (ends)
        symbols->ends = ends;
    if (!table || !hashes || !ends) {
        PyMem_Free(table);
        return PyErr_NoMemory(), -1;
    }
    for (uint32_t code = 0; code < symbols->count; code++) {
        uint32_t at = symbols->hashes[code] & (size - 1);
        while (table[at])
            at = (at + 1) & (size - 1);
        table[at] = code + 1;
    }
    PyMem_Free(symbols->table);
    symbols->table = table;
    symbols->size = size;
    return 0;
}

static void symbols_free(Symbols *symbols)
{
    PyMem_Free(symbols->table);
    PyMem_Free(symbols->hashes);
    PyMem_Free(symbols->ends);
    PyMem_Free(symbols->arena);
    Py_XDECREF(symbols->values);
    memset(symbols, 0, sizeof *symbols);
}

static inline uint32_t hash_bytes(const unsigned char *bytes, uint32_t length)
{
    uint64_t hash = UINT64_C(0x9E3779B97F4A7C15) ^ length;
    while (length >= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        hash = (hash ^ word) * UINT64_C(0xFF51AFD7ED558CCD);
        hash ^= hash >> 32;
        bytes += 8;
        length -= 8;
    }
    uint64_t word = 0;
    memcpy(&word, bytes, length);
    hash = (hash ^ word) * UINT64_C(0xFF51AFD7ED558CCD);
    return (uint32_t)(hash ^ (hash >> 29));
}

static inline const unsigned char *symbol_bytes(const Symbols *symbols, uint32_t code, uint32_t *length)
{
    uint32_t start = code ? symbols->ends[code - 1] : 0;
    *length = symbols->ends[code] - start;
    return symbols->arena + start;
}

/* A new symbol's code; -1: not UTF-8 or NUL inside (no exception set), -2: an exception is set. */
static int64_t symbols_add(Symbols *symbols, const unsigned char *bytes, uint32_t length, uint32_t hash)
{
    if (memchr(bytes, 0, length))
        return -1;
    PyObject *value = PyUnicode_DecodeUTF8((const char *)bytes, length, "strict");
    if (!value) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
            return -2;
        PyErr_Clear();
        return -1;
    }
    if (!symbols->arena || symbols->arena_bytes + length > symbols->arena_room) {
        uint32_t room = (symbols->arena_room + length) * 2 + 1024;
        unsigned char *arena = PyMem_Realloc(symbols->arena, room);
        if (!arena) {
            Py_DECREF(value);
            PyErr_NoMemory();
            return -2;
        }
        symbols->arena = arena;
        symbols->arena_room = room;
    }
    if ((symbols->count + 1) * 2 > symbols->size && symbols_grow(symbols) < 0) {
        Py_DECREF(value);
        return -2;
    }
    int appended = PyList_Append(symbols->values, value);
    Py_DECREF(value);
    if (appended < 0)
        return -2;
    memcpy(symbols->arena + symbols->arena_bytes, bytes, length);
    symbols->arena_bytes += length;
    uint32_t code = symbols->count++;
    symbols->hashes[code] = hash;
    symbols->ends[code] = symbols->arena_bytes;
    uint32_t at = hash & (symbols->size - 1);
    while (symbols->table[at])
        at = (at + 1) & (symbols->size - 1);
    symbols->table[at] = code + 1;
    return code;
}

static inline int64_t symbols_code(Symbols *symbols, const unsigned char *bytes, uint32_t length)
{
    uint32_t hash = hash_bytes(bytes, length);
    for (uint32_t at = hash & (symbols->size - 1); symbols->table[at]; at = (at + 1) & (symbols->size - 1)) {
        uint32_t code = symbols->table[at] - 1, known;
        if (symbols->hashes[code] != hash)
            continue;
        const unsigned char *text = symbol_bytes(symbols, code, &known);
        if (known == length && memcmp(text, bytes, length) == 0)
            return code;
    }
    return symbols_add(symbols, bytes, length, hash);
}

static int decoder_init(Decoder *self, PyObject *args, PyObject *kwargs)
{
    PyObject *fields;
    unsigned int slot_bytes;
    if ((kwargs && PyDict_Size(kwargs)) || self->count) {
        PyErr_SetString(PyExc_TypeError, "Decoder takes (fields, slot_bytes), once");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "O!I", &PyTuple_Type, &fields, &slot_bytes))
        return -1;
    Py_ssize_t count = PyTuple_Size(fields);
    if (count < 1 || count > FIELDS_MAX) {
        PyErr_Format(PyExc_ValueError, "fields: got %zd, wanted 1 to %d", count, FIELDS_MAX);
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Column *column = &self->columns[i];
        PyObject *minimum, *maximum;
        unsigned int offset, width;
        if (!PyTuple_Check(PyTuple_GET_ITEM(fields, i))) {
            PyErr_Format(PyExc_TypeError, "field %zd: got %.100s, wanted a tuple", i, Py_TYPE(PyTuple_GET_ITEM(fields, i))->tp_name);
            return -1;
        }
        if (!PyArg_ParseTuple(PyTuple_GET_ITEM(fields, i), "iIIpOO", &column->kind, &offset, &width, &column->nullable, &minimum,
                              &maximum))
            return -1;
        uint64_t end = (uint64_t)offset + width + (column->kind >= SYMBOL ? 2 : 0);
        if (offset < 8 || end > slot_bytes || column->kind < TIMESTAMP || column->kind > JSON ||
            (column->kind < BOOLEAN && width != 8) || (column->kind == BOOLEAN && width != 1)) {
            PyErr_Format(PyExc_ValueError, "field %zd: got a kind or place that a slot of %u bytes cannot have", i, slot_bytes);
            return -1;
        }
        column->offset = offset;
        column->width = width;
        if (column->kind == DOUBLE) {
            column->double_min = PyFloat_AsDouble(minimum);
            column->double_max = PyFloat_AsDouble(maximum);
        }
        else {
            column->long_min = PyLong_AsLongLong(minimum);
            column->long_max = PyLong_AsLongLong(maximum);
        }
        if (PyErr_Occurred())
            return -1;
        self->count = (int)i + 1;
        if (column->kind == SYMBOL && (!(column->symbols.values = PyList_New(0)) || symbols_grow(&column->symbols) < 0))
            return -1;
    }
    self->slot_bytes = slot_bytes;
    return 0;
}

static void decoder_dealloc(Decoder *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    for (int i = 0; i < self->count; i++)
        symbols_free(&self->columns[i].symbols);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static void outputs_release(Output *outputs, int count)
{
    for (int i = 0; i < count; i++) {
        PyBuffer_Release(&outputs[i].values);
        if (outputs[i].data.obj)
            PyBuffer_Release(&outputs[i].data);
        if (outputs[i].valid.obj)
            PyBuffer_Release(&outputs[i].valid);
    }
}

/* Room for rows `at` to `end` in every output. Returns how many outputs hold a buffer, all of them on success. */
static int outputs_open(Decoder *self, PyObject *tuple, Output *outputs, Py_ssize_t at, Py_ssize_t end)
{
    memset(outputs, 0, sizeof(Output) * FIELDS_MAX);
    if (PyTuple_Size(tuple) != self->count) {
        PyErr_Format(PyExc_ValueError, "outputs: got %zd, wanted %d", PyTuple_Size(tuple), self->count);
        return -1;
    }
    for (int i = 0; i < self->count; i++) {
        const Column *column = &self->columns[i];
        Output *output = &outputs[i];
        PyObject *item = PyTuple_GetItem(tuple, i);
        int text = column->kind >= VARCHAR;
        PyObject *values = item && text ? PyTuple_GetItem(item, 0) : item;
        if (!values || PyObject_GetBuffer(values, &output->values, PyBUF_WRITABLE) < 0)
            goto failed_before;
        Py_ssize_t item_bytes = column->kind < BOOLEAN ? 8 : column->kind == BOOLEAN ? 1 : 4;
        int fits = output->values.len >= (end + text) * item_bytes;
        if (text) {
            PyObject *data = PyTuple_GetItem(item, 1), *valid = PyTuple_GetItem(item, 2);
            if (!data || !valid || PyObject_GetBuffer(data, &output->data, PyBUF_WRITABLE) < 0 ||
                PyObject_GetBuffer(valid, &output->valid, PyBUF_WRITABLE) < 0)
                goto failed;
            if (fits)
                memcpy(&output->length, (int32_t *)output->values.buf + at, 4);
            fits = fits && output->valid.len >= end && output->data.len <= INT32_MAX &&
                   (uint64_t)output->length + (uint64_t)(end - at) * column->width <= (uint64_t)output->data.len;
        }
        if (!fits) {
            PyErr_Format(PyExc_ValueError, "outputs[%d]: got too little room for %zd rows", i, end);
            goto failed;
        }
        continue;
    failed:
        outputs_release(outputs, i + 1);
        return -1;
    failed_before:
        outputs_release(outputs, i);
        return -1;
    }
    return 0;
}

/* ASCII is checked eight bytes at a time; anything else is decoded once to see that it is UTF-8. */
static int text_sound(const unsigned char *text, uint32_t length)
{
    uint64_t high = 0, word;
    uint32_t at = 0;
    for (; at + 8 <= length; at += 8) {
        memcpy(&word, text + at, 8);
        high |= word;
    }
    for (; at < length; at++)
        high |= (uint64_t)text[at];
    if (memchr(text, 0, length))
        return 0;
    if (!(high & UINT64_C(0x8080808080808080)))
        return 1;
    PyObject *decoded = PyUnicode_DecodeUTF8((const char *)text, length, "strict");
    if (!decoded) {
        if (!PyErr_ExceptionMatches(PyExc_UnicodeDecodeError))
            return -1;
        PyErr_Clear();
        return 0;
    }
    Py_DECREF(decoded);
    return 1;
}

/* One field of one slot. 1: stored; 0: append could not have written this; -1: an exception is set. */
static inline int decode_value(Column *column, Output *output, const unsigned char *slot, Py_ssize_t row)
{
    const unsigned char *at = slot + column->offset;
    switch (column->kind) {
    case DOUBLE: {
        double number;
        memcpy(&number, at, 8);
        ((double *)output->values.buf)[row] = number;
        return (number >= column->double_min && number <= column->double_max) || (column->nullable && isnan(number));
    }
    case LONG: {
        int64_t number;
        memcpy(&number, at, 8);
        ((int64_t *)output->values.buf)[row] = number;
        return (number >= column->long_min && number <= column->long_max) || (column->nullable && number == INT64_MIN);
    }
    case TIMESTAMP: {
        int64_t stamp;
        memcpy(&stamp, at, 8);
        ((int64_t *)output->values.buf)[row] = stamp;
        return stamp >= TIMESTAMP_MIN && stamp <= TIMESTAMP_MAX;
    }
    case BOOLEAN:
        ((unsigned char *)output->values.buf)[row] = *at;
        return *at <= 1;
    }
    uint16_t length;
    memcpy(&length, at, 2);
    int null = length == NULL_LENGTH;
    if (null ? !column->nullable : length > column->width)
        return 0;
    if (column->kind == SYMBOL) {
        int64_t code = null ? -1 : symbols_code(&column->symbols, at + 2, length);
        ((int32_t *)output->values.buf)[row] = (int32_t)code;
        return null || code >= 0 ? 1 : code == -1 ? 0 : -1;
    }
    if (!null) {
        unsigned char *to = (unsigned char *)output->data.buf + output->length;
        memcpy(to, at + 2, length);
        int sound = text_sound(to, length); /* of the copy: the slot's owner could still change the slot */
        if (sound <= 0)
            return sound;
        output->length += length;
    }
    ((unsigned char *)output->valid.buf)[row] = !null;
    ((int32_t *)output->values.buf)[row + 1] = (int32_t)output->length;
    return 1;
}

static PyObject *decoder_decode(Decoder *self, PyObject *args)
{
    Py_buffer slots;
    Py_ssize_t rows, at, row = 0;
    unsigned long long first_seq;
    PyObject *tuple;
    Output outputs[FIELDS_MAX];
    if (!self->slot_bytes) { /* set last by a construction that came to its end */
        PyErr_SetString(PyExc_TypeError, "Decoder was not initialised");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "y*nKO!n", &slots, &rows, &first_seq, &PyTuple_Type, &tuple, &at))
        return NULL;
    /* Not above the bytes first: a larger count times the bytes of a slot could wrap around to them. */
    if (rows < 0 || rows > slots.len || at < 0 || at > INT32_MAX ||
        (uint64_t)slots.len != (uint64_t)rows * self->slot_bytes) {
        PyErr_Format(PyExc_ValueError, "slots: got %zd bytes for %zd rows of %u bytes", slots.len, rows, self->slot_bytes);
        PyBuffer_Release(&slots);
        return NULL;
    }
    if (outputs_open(self, tuple, outputs, at, at + rows) < 0) {
        PyBuffer_Release(&slots);
        return NULL;
    }
    int sound = 1;
    const unsigned char *slot = slots.buf;
    for (; row < rows; row++, slot += self->slot_bytes) {
        uint64_t seq;
        memcpy(&seq, slot, 8);
        sound = seq == first_seq + (uint64_t)row;
        __builtin_prefetch(slot + 2 * self->slot_bytes);
        __builtin_prefetch(slot + 2 * self->slot_bytes + 64);
        for (int i = 0; sound > 0 && i < self->count; i++)
            sound = decode_value(&self->columns[i], &outputs[i], slot, at + row);
        if (sound <= 0)
            break;
    }
    outputs_release(outputs, self->count);
    PyBuffer_Release(&slots);
    return sound < 0 ? NULL : PyLong_FromSsize_t(row);
}

static PyObject *decoder_values(Decoder *self, PyObject *index)
{
    Py_ssize_t i = PyLong_AsSsize_t(index);
    if (i == -1 && PyErr_Occurred())
        return NULL;
    if (i < 0 || i >= self->count || self->columns[i].kind != SYMBOL || !self->columns[i].symbols.values) {
        PyErr_Format(PyExc_ValueError, "field %zd is no symbol", i);
        return NULL;
    }
    Py_INCREF(self->columns[i].symbols.values);
    return self->columns[i].symbols.values;
}

static PyMethodDef decoder_methods[] = {
    {"decode", (PyCFunction)decoder_decode, METH_VARARGS,
     "decode(slots, rows, first_seq, outputs, at) -> int\n\nDecodes until the first corrupt slot; how many rows it decoded."},
    {"values", (PyCFunction)decoder_values, METH_O, "values(field) -> list of str\n\nThe symbols by code; it only grows."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot decoder_slots[] = {
    {Py_tp_doc, "Decoder(fields, slot_bytes)"},
    {Py_tp_init, decoder_init},
    {Py_tp_new, PyType_GenericNew},
    {Py_tp_dealloc, decoder_dealloc},
    {Py_tp_methods, decoder_methods},
    {0, NULL},
};

static PyType_Spec decoder_spec = {"ringlog._decode.Decoder", sizeof(Decoder), 0, Py_TPFLAGS_DEFAULT, decoder_slots};

static int module_exec(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &decoder_spec, NULL);
    int added = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return added;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT, "_decode", "Slots to columns; see decode.py for the reference.", 0, NULL, module_slots, NULL, NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__decode(void) { return PyModuleDef_Init(&module_def); }
