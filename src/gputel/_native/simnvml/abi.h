/* NVML's interface, whose functions this library exports; all else stays hidden. */
#pragma GCC visibility push(default)
#include "../nvml_abi.h"
#pragma GCC visibility pop
