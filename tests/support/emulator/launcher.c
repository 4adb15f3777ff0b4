/* natc's own launcher, with the emulated driver in the place of libcuda. */
#define _GNU_SOURCE
#include <dlfcn.h>
extern void *natc_emulated_open(const char *name, int mode);
extern void *natc_emulated_symbol(void *library, const char *name);
#define dlopen natc_emulated_open
#define dlsym natc_emulated_symbol
#include "cuda.c"
