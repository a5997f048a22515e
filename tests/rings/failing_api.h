/* Forced into a build of the C files for tests: the n-th call into the C API that can fail does.
 *
 * `api_fail_at` says which (0: none), `api_calls` counts. A call that fails does nothing, sets MemoryError where the
 * real one would set an exception, and returns what the real one returns then.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

__attribute__((visibility("default"))) long api_calls, api_fail_at, api_failed_line;
#define api_fails(sets_error) api_fails_(sets_error, __LINE__)

static inline int api_fails_(int sets_error, int line) {
    if (++api_calls != api_fail_at) return 0;
    api_failed_line = line;
    if (sets_error) PyErr_SetString(PyExc_MemoryError, "injected");
    return 1;
}

/* These three are macros for functions that take sizes as PY_SSIZE_T_CLEAN says. */
__attribute__((unused)) static PyObject *(*const api_call_function)(PyObject *, const char *, ...)
    = PyObject_CallFunction;
__attribute__((unused)) static int (*const api_parse)(PyObject *, const char *, ...) = PyArg_ParseTuple;
__attribute__((unused)) static int (*const api_parse_keywords)(PyObject *, PyObject *, const char *, char **, ...)
    = PyArg_ParseTupleAndKeywords;
#undef PyObject_CallFunction
#undef PyArg_ParseTuple
#undef PyArg_ParseTupleAndKeywords
#undef PyObject_CallNoArgs

#define PyMem_Calloc(...) (api_fails(0) ? NULL : (PyMem_Calloc)(__VA_ARGS__))
#define PyMem_Realloc(...) (api_fails(0) ? NULL : (PyMem_Realloc)(__VA_ARGS__))
#define PyLong_FromLong(...) (api_fails(1) ? NULL : (PyLong_FromLong)(__VA_ARGS__))
#define PyLong_FromSsize_t(...) (api_fails(1) ? NULL : (PyLong_FromSsize_t)(__VA_ARGS__))
#define PyLong_FromUnsignedLongLong(...) (api_fails(1) ? NULL : (PyLong_FromUnsignedLongLong)(__VA_ARGS__))
#define PyLong_AsLong(...) (api_fails(1) ? -1 : (PyLong_AsLong)(__VA_ARGS__))
#define PyLong_AsLongLong(...) (api_fails(1) ? -1 : (PyLong_AsLongLong)(__VA_ARGS__))
#define PyLong_AsSsize_t(...) (api_fails(1) ? -1 : (PyLong_AsSsize_t)(__VA_ARGS__))
#define PyLong_AsDouble(...) (api_fails(1) ? -1.0 : (PyLong_AsDouble)(__VA_ARGS__))
#define PyFloat_AsDouble(...) (api_fails(1) ? -1.0 : (PyFloat_AsDouble)(__VA_ARGS__))
#define PyUnicode_AsUTF8AndSize(...) (api_fails(1) ? NULL : (PyUnicode_AsUTF8AndSize)(__VA_ARGS__))
#define PyUnicode_DecodeUTF8(...) (api_fails(1) ? NULL : (PyUnicode_DecodeUTF8)(__VA_ARGS__))
#define PyTuple_New(...) (api_fails(1) ? NULL : (PyTuple_New)(__VA_ARGS__))
#define PyTuple_GetItem(...) (api_fails(1) ? NULL : (PyTuple_GetItem)(__VA_ARGS__))
#define PyTuple_Size(...) (api_fails(1) ? -1 : (PyTuple_Size)(__VA_ARGS__))
#define PyDict_Size(...) (api_fails(1) ? -1 : (PyDict_Size)(__VA_ARGS__))
#define PyList_New(...) (api_fails(1) ? NULL : (PyList_New)(__VA_ARGS__))
#define PyList_Append(...) (api_fails(1) ? -1 : (PyList_Append)(__VA_ARGS__))
#define PyDict_GetItemWithError(...) (api_fails(1) ? NULL : (PyDict_GetItemWithError)(__VA_ARGS__))
#define PyObject_GetBuffer(...) (api_fails(1) ? -1 : (PyObject_GetBuffer)(__VA_ARGS__))
#define PyObject_CallFunction(...) (api_fails(1) ? NULL : api_call_function(__VA_ARGS__))
#define PyObject_CallNoArgs(...) (api_fails(1) ? NULL : (PyObject_CallNoArgs)(__VA_ARGS__))
#define PyArg_ParseTuple(...) (api_fails(1) ? 0 : api_parse(__VA_ARGS__))
#define PyArg_ParseTupleAndKeywords(...) (api_fails(1) ? 0 : api_parse_keywords(__VA_ARGS__))
#define PyType_FromModuleAndSpec(...) (api_fails(1) ? NULL : (PyType_FromModuleAndSpec)(__VA_ARGS__))
#define PyModule_AddType(...) (api_fails(1) ? -1 : (PyModule_AddType)(__VA_ARGS__))
