/* A CUDA runtime and a cuBLAS without a GPU, preloaded before NVIDIA's: PyTorch's own CUDA library runs on it as it is. Memory
   of a device is memory of the host that lies apart, copies are made at once, kernels do nothing, so that every result is what
   memory held before, zeros at first. What is shown by it is all that happens on the host: which calls are made, in what order
   of initialisation, on which device, with which shapes, and what is refused.

   FAKE_DEVICES and FAKE_BYTES say how many devices there are, and how large. A copy whose direction is not where its ends
   lie, and one on another device than the thread's, end the process. Each device that a thread makes a context on is told on
   standard error. The layouts are those of CUDA 13's cuda_runtime_api.h. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, NO_MEMORY = 2, INVALID_DEVICE = 101, INVALID_HANDLE = 400 };
enum { TO_DEVICE = 1, TO_HOST = 2, WITHIN = 3, BY_ADDRESS = 4 };
enum { DEVICES = 8, HOST = DEVICES, WITHOUT_TIME = 2 };

#define ARENA ((size_t)1 << 40)
#define PAGE ((size_t)4096)

/* Blocks of a device, or of the host's page-locked memory: each a page that holds its length, and its bytes. */
struct arena { char *start; size_t next, used; };

static struct arena arenas[DEVICES + 1];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static atomic_int contexts[DEVICES];
static atomic_uintptr_t names = 4096;
static __thread int current, last;

static size_t told(const char *name, size_t otherwise)
{
    const char *text = getenv(name);
    return text ? (size_t)strtoull(text, NULL, 10) : otherwise;
}

static int devices(void) { return (int)told("FAKE_DEVICES", 1); }
static size_t capacity(void) { return told("FAKE_BYTES", (size_t)32 << 30); }

static int failed(int code) { return last = code; }

/* What needs a context makes one on the thread's device, as the runtime does. */
static void use(const char *function)
{
    if (!atomic_exchange(&contexts[current], 1)) fprintf(stderr, "context on device %d by %s\n", current, function);
}

static int allocate(void **out, size_t bytes, int where)
{
    struct arena *arena = &arenas[where];
    size_t room = (bytes + PAGE - 1) / PAGE * PAGE + PAGE;
    *out = NULL;
    if (!bytes) return SUCCESS;
    pthread_mutex_lock(&mutex);
    int fits = where == HOST || arena->used + bytes <= capacity();
    if (fits && !arena->start) {
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        arena->start = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, flags, -1, 0);
    }
    if (fits) {
        char *block = arena->start + arena->next;
        memcpy(block, &bytes, sizeof bytes);
        *out = block + PAGE;
        arena->next += room;
        arena->used += bytes;
    }
    pthread_mutex_unlock(&mutex);
    return fits ? SUCCESS : failed(NO_MEMORY);
}

static int where(const void *address)
{
    for (int i = 0; i <= HOST; i++) {
        const char *start = arenas[i].start;
        if (start && (const char *)address >= start && (const char *)address < start + ARENA) return i;
    }
    return -1;
}

static int release(void *memory)
{
    int found = memory ? where(memory) : -1;
    if (!memory) return SUCCESS;
    if (found < 0) return failed(INVALID_VALUE);
    size_t bytes;
    memcpy(&bytes, (char *)memory - PAGE, sizeof bytes);
    pthread_mutex_lock(&mutex);
    arenas[found].used -= bytes;
    pthread_mutex_unlock(&mutex);
    madvise(memory, (bytes + PAGE - 1) / PAGE * PAGE, MADV_DONTNEED);
    return SUCCESS;
}

static int copy(void *to, const void *from, size_t bytes, int kind)
{
    use("a copy");
    int target = where(to), source = where(from), on[2] = { target >= 0 && target < HOST, source >= 0 && source < HOST };
    if (!bytes) return SUCCESS;
    int right = kind == TO_DEVICE ? on[0] && !on[1] : kind == TO_HOST ? !on[0] && on[1] : kind == WITHIN ? on[0] && on[1]
                                                                                                     : kind == BY_ADDRESS;
    if (!right || (on[0] && target != current) || (on[1] && source != current)) {
        fprintf(stderr, "a wrong copy: kind %d of %zu bytes to place %d from place %d on device %d\n", kind, bytes, target,
                source, current);
        abort();
    }
    memmove(to, from, bytes);
    return SUCCESS;
}

int cudaGetDeviceCount(int *count) { *count = devices(); return SUCCESS; }
int cudaGetDevice(int *device) { *device = current; return SUCCESS; }

int cudaSetDevice(int device)
{
    if (device < 0 || device >= devices()) return failed(INVALID_DEVICE);
    current = device;
    use("cudaSetDevice");
    return SUCCESS;
}

int cudaDriverGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return SUCCESS; }
int cudaGetLastError(void) { int code = last; last = SUCCESS; return code; }
int cudaPeekAtLastError(void) { return last; }
int cudaDeviceSynchronize(void) { use("cudaDeviceSynchronize"); return SUCCESS; }
int cudaDeviceCanAccessPeer(int *can) { *can = 0; return SUCCESS; }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -5; return SUCCESS; }

int cudaDeviceGetAttribute(int *value, int attribute)
{
    static const struct { int attribute, value; } known[] = {
        { 1, 1024 }, { 5, 0x7fffffff }, { 8, 49152 }, { 10, 32 }, { 16, 132 }, { 39, 2048 }, { 75, 8 }, { 81, 233472 },
        { 97, 232448 },
    };
    *value = 0;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) if (known[i].attribute == attribute) *value = known[i].value;
    return SUCCESS;
}

/* Of the generation before Hopper, for which PyTorch attends by kernels of its own: cuDNN, which it prefers there, wants a GPU. */
int cudaGetDeviceProperties(char *properties)
{
    static const struct { int at, value; } words[] = {
        { 304, 65536 }, { 308, 32 }, { 320, 1024 }, { 324, 1024 }, { 328, 1024 }, { 332, 64 }, { 336, 0x7fffffff },
        { 340, 65535 }, { 344, 65535 }, { 360, 8 }, { 384, 132 }, { 596, 50 << 20 }, { 604, 2048 }, { 632, 65536 },
        { 688, 32 },
    };
    static const struct { int at; size_t value; } sizes[] = {
        { 296, 49152 }, { 368, 512 }, { 624, 233472 }, { 672, 232448 },
    };
    size_t total = capacity();
    memset(properties, 0, 1008);
    strcpy(properties, "no GPU");
    memcpy(properties + 288, &total, sizeof total);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) memcpy(properties + words[i].at, &words[i].value, sizeof(int));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) memcpy(properties + sizes[i].at, &sizes[i].value, sizeof(size_t));
    return SUCCESS;
}

int cudaMemGetInfo(size_t *free, size_t *total)
{
    use("cudaMemGetInfo");
    *total = capacity();
    *free = *total - arenas[current].used;
    return SUCCESS;
}

int cudaMalloc(void **out, size_t bytes) { use("cudaMalloc"); return allocate(out, bytes, current); }
int cudaFree(void *memory) { return release(memory); }
int cudaHostAlloc(void **out, size_t bytes) { use("cudaHostAlloc"); return allocate(out, bytes, HOST); }
int cudaFreeHost(void *memory) { return release(memory); }

int cudaPointerGetAttributes(int *attributes, const void *address)
{
    int found = where(address);
    memset(attributes, 0, 88);
    attributes[0] = found < 0 ? 0 : found == HOST ? 1 : 2;
    attributes[1] = found < 0 ? -2 : found % HOST;
    return SUCCESS;
}

int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { return copy(to, from, bytes, kind); }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind) { return copy(to, from, bytes, kind); }
int cudaMemset(void *to, int value, size_t bytes) { use("cudaMemset"); memset(to, value, bytes); return SUCCESS; }
int cudaMemsetAsync(void *to, int value, size_t bytes) { return cudaMemset(to, value, bytes); }
int cudaMemcpyToSymbol(void) { return SUCCESS; }

int cudaGetSymbolAddress(void **out)
{
    static char symbol[1 << 16];
    *out = symbol;
    return SUCCESS;
}

int cudaStreamCreateWithPriority(void **out) { use("a stream"); *out = (void *)atomic_fetch_add(&names, 16); return SUCCESS; }
int cudaStreamDestroy(void) { return SUCCESS; }
int cudaStreamSynchronize(void) { return SUCCESS; }
int cudaStreamQuery(void) { return SUCCESS; }
int cudaStreamWaitEvent(void) { use("cudaStreamWaitEvent"); return SUCCESS; }
int cudaStreamIsCapturing(void *stream, int *status) { (void)stream; *status = 0; return SUCCESS; }
int cudaStreamGetCaptureInfo(void *stream, int *status) { (void)stream; *status = 0; return SUCCESS; }
int cudaThreadExchangeStreamCaptureMode(void) { return SUCCESS; }

struct event { unsigned flags; };

int cudaEventCreateWithFlags(struct event **out, unsigned flags)
{
    use("an event");
    *out = malloc(sizeof **out);
    (*out)->flags = flags;
    return SUCCESS;
}

int cudaEventCreate(struct event **out) { return cudaEventCreateWithFlags(out, 0); }
int cudaEventDestroy(struct event *event) { free(event); return SUCCESS; }
int cudaEventRecord(void) { use("cudaEventRecord"); return SUCCESS; }
int cudaEventRecordWithFlags(void) { return cudaEventRecord(); }
int cudaEventQuery(void) { use("cudaEventQuery"); return SUCCESS; }
int cudaEventSynchronize(void) { use("cudaEventSynchronize"); return SUCCESS; }

int cudaEventElapsedTime(float *milliseconds, struct event *from, struct event *to)
{
    if ((from->flags | to->flags) & WITHOUT_TIME) return failed(INVALID_HANDLE);
    *milliseconds = 1;
    return SUCCESS;
}


int cudaFuncGetAttributes(int *attributes)
{
    memset(attributes, 0, 144);
    attributes[6] = 1024;
    /* Compiled for that generation. */
    attributes[8] = attributes[9] = 80;
    return SUCCESS;
}

int cudaFuncSetAttribute(void) { return SUCCESS; }
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count) { *count = 2; return SUCCESS; }
int cudaLaunchKernelExC(void) { use("a kernel"); return SUCCESS; }
int __cudaGetKernel(void **out) { *out = &current; return SUCCESS; }
int __cudaLaunchKernel(void) { use("a kernel"); return SUCCESS; }

int cudaGetDriverEntryPointByVersion(const char *name, void **out, unsigned version, unsigned long long flags, int *result)
{
    (void)version, (void)flags;
    void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    *out = driver ? dlsym(driver, name) : NULL;
    if (result) *result = *out ? 0 : 1;
    return SUCCESS;
}

/* For the driver beside it. */
int fake_has_context(int device) { return atomic_load(&contexts[device]); }

/* cuBLAS: handles of one kind, and products that leave their results as they are. */

static int handle(void **out) { static int any; *out = &any; return SUCCESS; }

int cublasCreate_v2(void **out) { use("cuBLAS"); return handle(out); }
int cublasLtMatmulDescCreate(void **out) { return handle(out); }
int cublasLtMatmulPreferenceCreate(void **out) { return handle(out); }
int cublasLtMatrixLayoutCreate(void **out) { return handle(out); }
int cublasGetMathMode(void *of, int *mode) { (void)of; *mode = 0; return SUCCESS; }
int cublasGetPointerMode_v2(void *of, int *mode) { (void)of; *mode = 0; return SUCCESS; }
size_t cublasLtGetVersion(void) { return 130100; }

int cublasLtMatmulAlgoGetHeuristic(void *of, void *product, void *a, void *b, void *c, void *d, void *preference, int wanted,
                                   void *found, int *count)
{
    (void)of, (void)product, (void)a, (void)b, (void)c, (void)d, (void)preference, (void)wanted, (void)found;
    *count = 1;
    return SUCCESS;
}

#define NOTHING(name) int name(void) { return SUCCESS; }
NOTHING(cublasDestroy_v2)
NOTHING(cublasSetMathMode)
NOTHING(cublasSetPointerMode_v2)
NOTHING(cublasSetStream_v2)
NOTHING(cublasSetWorkspace_v2)
NOTHING(cublasSgemm_v2)
NOTHING(cublasDgemm_v2)
NOTHING(cublasGemmEx)
NOTHING(cublasSgemmEx)
NOTHING(cublasGemmStridedBatchedEx)
NOTHING(cublasSgemmStridedBatched)
NOTHING(cublasDgemmStridedBatched)
NOTHING(cublasSgemv_v2)
NOTHING(cublasDgemv_v2)
NOTHING(cublasSdot_v2)
NOTHING(cublasDdot_v2)
NOTHING(cublasDotEx)
NOTHING(cublasLtMatmul)
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute)
