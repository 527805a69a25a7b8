/* A libcuda.so.1 without a GPU, for the runtime beside it: what PyTorch's libraries and this program ask the driver. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

int cuInit(unsigned flags) { (void)flags; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetUuid_v2(unsigned char *number, int device) { memset(number, 1 + device, 16); return 0; }
static int any;

int cuCtxGetCurrent(void **context) { *context = &any; return 0; }
int cuDevicePrimaryCtxRetain(void **context) { return cuCtxGetCurrent(context); }
int cuDeviceGetAttribute(int *value) { *value = 0; return 0; }
int cuGetErrorString(int code, const char **text) { (void)code; *text = "an error of no GPU"; return 0; }

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active)
{
    int (*has)(int) = (int (*)(int))dlsym(RTLD_DEFAULT, "fake_has_context");
    *flags = 0;
    *active = has ? has(device) : 0;
    return 0;
}

/* Attributes as cuda.h numbers them; a device's memory is one range, as reserved addresses are. */
int cuPointerGetAttribute(void *out, int attribute, uint64_t address)
{
    int (*range)(const void *, uint64_t *, uint64_t *, int *) =
        (int (*)(const void *, uint64_t *, uint64_t *, int *))dlsym(RTLD_DEFAULT, "fake_range");
    uint64_t start, bytes;
    int device;
    if (!range || !range((const void *)(uintptr_t)address, &start, &bytes, &device)) return 1;
    switch (attribute) {
    case 2: *(unsigned *)out = 2; return 0;
    case 8: *(unsigned *)out = 0; return 0;
    case 9: *(int *)out = device; return 0;
    case 11: *(uint64_t *)out = start; return 0;
    case 12: *(uint64_t *)out = bytes; return 0;
    }
    return 1;
}

/* Of compiled kernels, of which there are none. */
#define NOTHING(name) int name(void) { return 0; }
NOTHING(cuCtxSetCurrent)
NOTHING(cuFuncGetAttribute)
NOTHING(cuFuncSetAttribute)
NOTHING(cuFuncSetCacheConfig)
NOTHING(cuLaunchCooperativeKernel)
NOTHING(cuLaunchKernel)
NOTHING(cuLinkAddData_v2)
NOTHING(cuLinkComplete)
NOTHING(cuLinkCreate_v2)
NOTHING(cuModuleGetFunction)
NOTHING(cuModuleLoad)
NOTHING(cuModuleLoadData)
NOTHING(cuModuleLoadDataEx)
NOTHING(cuModuleUnload)
NOTHING(cuOccupancyMaxActiveBlocksPerMultiprocessor)
NOTHING(cuTensorMapEncodeTiled)
